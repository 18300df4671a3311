"""Kill the whole agent again and again, in bad weather: the server gets every batch, and what it gets twice is the same."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from collector.spool import Spool
from collector.wire import Stream
from tests.fakes.bodies import read_body
from tests.fakes.nvml.build import build_or_skip, start_agent

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

KILLS = 25
FAST = (
    "--sample-s",
    "0.05",
    "--row-s",
    "0.2",
    "--batch-s",
    "0.2",
    "--no-gpm",
    "--node",
    "gpu-01",
    "--release-file",
    "",
)


class Weather(ThreadingHTTPServer):
    """Takes a body and says so, takes it and says nothing, or takes nothing: as the dice fall."""

    daemon_threads = True

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.fair = False
        self.taken: dict[tuple[str, int], set[bytes]] = defaultdict(set)
        self.times: dict[tuple[str, int], int] = defaultdict(int)
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Weather

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        fate = "taken" if self.server.fair else self.server.dice.choice(("taken", "taken", "busy", "silent", "cut"))
        if fate != "busy":
            meta = read_body(body).meta
            self.server.taken[meta.spool, meta.sequence].add(body)
            self.server.times[meta.spool, meta.sequence] += 1
        if fate == "cut":
            self.close_connection = True
            return
        if fate == "silent":
            time.sleep(self.server.dice.uniform(0.0, 1.0))
        self.send_response(503 if fate == "busy" else 204)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.mark.parametrize("seed", [3, 4])
def test_every_batch_arrives_whole_and_the_same_however_often_the_agent_is_killed(seed: int, tmp_path: Path) -> None:
    library = build_or_skip(tmp_path)
    dice = random.Random(seed)
    path = tmp_path / "spool.db"
    with Weather(seed) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        for _ in range(KILLS):
            agent = start_agent(library, path, *FAST, "--server-url", url, gpus=2)
            time.sleep(dice.uniform(0.3, 2.0))
            agent.kill()
            agent.communicate()
        server.fair = True
        agent = start_agent(library, path, *FAST, "--server-url", url, gpus=2)
        until_s = time.monotonic() + 60
        while time.monotonic() < until_s:
            time.sleep(0.5)
            spool = Spool(path, max_bytes=1 << 30)
            waiting = spool.state().batches
            spool.close()
            if waiting <= 1:
                break
        agent.terminate()
        agent.communicate(timeout=15)
        server.shutdown()
        thread.join()
    spool = Spool(path, max_bytes=1 << 30)
    assert not spool.damaged_files
    assert spool.state().dropped_batches == spool.state().quarantined == 0
    left: list[int] = []
    while (batch := spool.oldest(after=left[-1] if left else 0)) is not None:
        left.append(batch.sequence)
    assert {name for name, _ in server.taken} == {spool.uuid}
    spool.close()
    arrived = sorted(sequence for _, sequence in server.taken)
    assert arrived[0] == 1
    assert sorted({*arrived, *left}) == list(range(1, max(*arrived, *left) + 1))
    assert all(len(bodies) == 1 for bodies in server.taken.values()), "one number, two contents"
    assert max(server.times.values()) > 1, "the weather was too good to prove anything"
    _no_reading_twice([body for bodies in server.taken.values() for body in bodies])


def _no_reading_twice(bodies: list[bytes]) -> None:
    seen: set[tuple[str, int, int]] = set()
    for raw in bodies:
        body = read_body(raw)
        if Stream.DEVICE not in body.streams:
            continue
        for row in body.streams[Stream.DEVICE].to_dicts():
            key = (body.meta.devices[row["device"]].uuid, row["at_us"], row["reading"])
            assert key not in seen
            seen.add(key)
    assert len(seen) > KILLS
