"""kill -9 of ingest, and a PostgreSQL that goes away, in the middle of a load: every row is in exactly once afterwards."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from collector.wire import SAMPLES_PATH
from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import Database
from ingest.store.migrate import upgrade
from tests.db import ingest_server
from tests.db.ingest_harness import SECOND_US, Site, batch_meta, device, headers, make_site, now_us, wide_body

pytestmark = pytest.mark.db
BATCHES = 40
ROWS = 400


class Sender(threading.Thread):
    """An agent's shipper: each batch is sent until it is acknowledged, in order."""

    def __init__(self, port: int, site: Site, node: str, last_at_us: int) -> None:
        super().__init__()
        self.acknowledged = 0
        self._url = f"http://127.0.0.1:{port}{SAMPLES_PATH}"
        self._secret = site.node_tokens[node]
        first = batch_meta(node=node, devices=(device(f"{node}-a"), device(f"{node}-b")))
        # Each batch lies after the one before: no two rows of a device have the same time.
        span_us = ROWS // 2 * SECOND_US
        self.bodies = [
            wide_body(
                batch_meta(spool=first.spool, sequence=n + 1, node=node, devices=first.devices),
                ROWS,
                last_at_us - n * span_us,
            )
            for n in range(BATCHES)
        ]

    def run(self) -> None:
        with httpx.Client(timeout=10) as client:
            for body in self.bodies:
                while not self._sent(client, body):
                    time.sleep(0.05)
                self.acknowledged += 1

    def _sent(self, client: httpx.Client, body: bytes) -> bool:
        try:
            answer = client.post(self._url, content=body, headers=headers(self._secret))
        except httpx.HTTPError:
            return False
        assert answer.status_code in (200, 503), answer.text
        return answer.status_code == 200


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def counts(db: Database) -> tuple[object, ...]:
    with db.connect("admin") as conn:
        row = conn.execute("SELECT count(*), count(DISTINCT (device_id, at)) FROM device_samples").fetchone()
        assert row is not None
        return row


def test_ingest_killed_in_the_middle_of_a_load_loses_and_repeats_nothing(db: Database, server: EmbeddedServer) -> None:
    site, port, at_us = make_site(db), ingest_server.free_port(), now_us()
    process = ingest_server.start(server.placement.socket_dir, db.name, port)
    senders = [Sender(port, site, node, at_us) for node in ("node-1", "node-2")]
    try:
        for sender in senders:
            sender.start()
        for acknowledged in (8, 24):
            wait_until(lambda wanted=acknowledged: min(sender.acknowledged for sender in senders) >= wanted)  # type: ignore[misc]
            process.send_signal(signal.SIGKILL)
            process.wait()
            process = ingest_server.start(server.placement.socket_dir, db.name, port)
        for sender in senders:
            sender.join(60)
            assert sender.acknowledged == BATCHES
        # A restored spool sends what was acknowledged long ago once more.
        again = Sender(port, site, "node-1", at_us)
        again.bodies = senders[0].bodies
        again.run()
    finally:
        process.kill()
        process.wait()
    assert counts(db) == (2 * BATCHES * ROWS, 2 * BATCHES * ROWS)


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A PostgreSQL that may be stopped: the run's own serves other tests."""
    home = Path(tempfile.mkdtemp(prefix="wl-test-"))
    home.chmod(0o711)
    running = EmbeddedServer.in_home(home)
    try:
        running.start()
        upgrade(running.database().url)
        yield running
    finally:
        running.destroy()
        shutil.rmtree(home)


def test_postgresql_stopped_and_started_under_load_loses_and_repeats_nothing(own_server: EmbeddedServer) -> None:
    db, port, at_us = own_server.database(), ingest_server.free_port(), now_us()
    site = make_site(db)
    process = ingest_server.start(own_server.placement.socket_dir, db.name, port)
    senders = [Sender(port, site, node, at_us) for node in ("node-1", "node-2")]
    try:
        for sender in senders:
            sender.start()
        wait_until(lambda: min(sender.acknowledged for sender in senders) >= 8)
        own_server.stop()
        time.sleep(0.5)
        own_server.start()
        for sender in senders:
            sender.join(60)
            assert sender.acknowledged == BATCHES
    finally:
        process.kill()
        process.wait()
    assert counts(db) == (2 * BATCHES * ROWS, 2 * BATCHES * ROWS)
