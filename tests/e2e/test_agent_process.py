"""The real agent process: against the fake driver, a server on loopback, signals and bad weather."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.ipc
import pytest
import zstandard

from collector import wire
from collector.spool import Spool
from collector.wire import BatchMeta, Origin
from tests.fakes.nvml.build import build_or_skip, environment, start_agent

pytestmark = pytest.mark.e2e

PATIENCE_S = 120.0
"""For what takes seconds on an idle machine."""
FAST = ("--sample-s", "0.1", "--row-s", "0.5", "--batch-s", "0.5", "--no-gpm", "--node", "gpu-01")


class Ingest(ThreadingHTTPServer):
    """Takes batches, or refuses while ``code`` says so, and keeps what it took."""

    def __init__(self) -> None:
        self.code = 200
        self.taken: list[BatchMeta] = []
        self.rows = 0
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(200)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        assert isinstance(server, Ingest)
        if server.code == 200:
            assert self.path == wire.SAMPLES_PATH
            assert self.headers["Authorization"] == "Bearer s3cret"
            table = pyarrow.ipc.open_stream(zstandard.decompress(body)).read_all()
            server.taken.append(BatchMeta.from_json(table.schema.metadata[wire.META_KEY.encode()]))
            server.rows += table.num_rows
        self._answer(server.code)

    def _answer(self, code: int) -> None:
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_or_skip(tmp_path_factory.mktemp("nvml-process"))


@pytest.fixture
def ingest() -> Iterator[Ingest]:
    with Ingest() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    return file


def until(claim: Callable[[], bool], agent: subprocess.Popen[str]) -> None:
    """Wait until the claim holds; if the agent ends before or time runs out, say what it logged."""
    end_s = time.monotonic() + PATIENCE_S
    while True:
        has_ended = agent.poll() is not None
        if claim():
            return
        if has_ended or time.monotonic() > end_s:
            agent.kill()
            _, log = agent.communicate()
            raise AssertionError(f"not within {PATIENCE_S:.0f} s, or it ended with {agent.returncode}:\n{log[-6000:]}")
        time.sleep(0.05)


def stored(path: Path) -> int:
    """Count the batches in a spool another process may be writing."""
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path, timeout=10)) as db, suppress(sqlite3.OperationalError):
        return int(db.execute("SELECT count(*) FROM batches").fetchone()[0])
    return 0  # the table is not there yet


def stop(agent: subprocess.Popen[str]) -> str:
    agent.send_signal(signal.SIGTERM)
    _, log = agent.communicate(timeout=PATIENCE_S)
    assert agent.returncode == 0, log
    return log


def run(library: Path, *arguments: str, faults: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "collector", *arguments]
    env = environment(library, gpus=2, faults=faults)
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_what_is_measured_arrives_and_leaves_the_spool(
    library: Path, ingest: Ingest, token: Path, tmp_path: Path
) -> None:
    path = tmp_path / "spool.db"
    agent = start_agent(library, path, *FAST, "--server-url", ingest.url, "--token-file", str(token), gpus=2)
    until(lambda: len(ingest.taken) >= 4 and any(meta.devices for meta in ingest.taken), agent)
    log = stop(agent)
    assert "s3cret" not in log
    # A reading that came late is counted; on a loaded machine it is no fault of the driver's.
    (errors,) = re.findall(r"probe_errors=(\S+)$", log.strip())
    assert {error.partition("*")[0] for error in errors.split(",")} <= {"none", "nvml:overdue"}, log
    assert {meta.node for meta in ingest.taken} == {"gpu-01"}
    seen = next(meta.devices for meta in ingest.taken if meta.devices)  # the first may tell of the start alone
    assert [device.model for device in seen] == 2 * ["NVIDIA H100 80GB HBM3"]
    assert ingest.taken[0].origin is Origin.LIVE


def test_sigterm_flushes_the_row_that_was_begun(library: Path, tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    began_s = time.monotonic()
    agent = start_agent(library, path, "--sample-s", "0.1", "--row-s", "60", "--batch-s", "60", gpus=1)
    until(path.exists, agent)
    time.sleep(2.0)
    stop(agent)
    ran_s = time.monotonic() - began_s
    spool = Spool(path, max_bytes=1 << 20)
    batch = spool.oldest()
    assert batch is not None
    table = pyarrow.ipc.open_stream(zstandard.decompress(batch.body)).read_all()
    assert table.num_rows >= 1
    assert 1 <= sum(table.column("samples").to_pylist()) <= ran_s / 0.1 + 1
    spool.close()


def test_an_outage_and_kills_lose_and_double_nothing(
    library: Path, ingest: Ingest, token: Path, tmp_path: Path
) -> None:
    path = tmp_path / "spool.db"
    flags = (*FAST, "--server-url", ingest.url, "--token-file", str(token))
    ingest.code = 503
    for kill in range(1, 4):
        agent = start_agent(library, path, *flags, gpus=2)
        until(lambda at_least=3 * kill: stored(path) >= at_least, agent)  # type: ignore[misc]
        agent.kill()
        agent.communicate()
    held = stored(path)
    ingest.code = 200
    agent = start_agent(library, path, *flags, gpus=2)
    until(lambda: len(ingest.taken) >= held, agent)
    stop(agent)
    sequences = [meta.sequence for meta in ingest.taken]
    assert sequences == list(range(1, len(sequences) + 1))
    assert len({meta.spool for meta in ingest.taken}) == 1
    assert len({meta.driver_epoch for meta in ingest.taken}) == 1


def test_a_second_agent_on_the_same_spool_is_refused(library: Path, tmp_path: Path) -> None:
    agent = start_agent(library, tmp_path / "spool.db", *FAST)
    until((tmp_path / "spool.db").exists, agent)
    second = run(library, "run", "--spool-path", str(tmp_path / "spool.db"))
    assert second.returncode == 2
    assert "another agent holds" in second.stderr
    stop(agent)


def test_a_second_agent_on_the_same_node_is_refused_whatever_its_spool(library: Path, tmp_path: Path) -> None:
    node = ("--release-file", str(tmp_path / "release"))
    agent = start_agent(library, tmp_path / "one" / "spool.db", *FAST, *node)
    until((tmp_path / "one" / "spool.db").exists, agent)
    second = run(library, "run", "--spool-path", str(tmp_path / "two" / "spool.db"), *node)
    assert second.returncode == 2
    assert "another agent runs on this node" in second.stderr
    stop(agent)


def test_an_upgraded_driver_ends_the_process_for_a_new_one_and_loses_nothing(library: Path, tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    agent = start_agent(library, path, *FAST, gpus=1, faults="version@2")
    _, log = agent.communicate(timeout=PATIENCE_S)
    assert agent.returncode == 75, log
    spool = Spool(path, max_bytes=1 << 20)
    assert spool.oldest() is not None
    spool.close()


def test_once_prints_what_can_be_read(library: Path) -> None:
    shown = run(library, "--once", "--pretty", "--sample-s", "0.5", faults="field:185:3")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "    GPU-fa4e0000-0000-4000-8000-000000000000  " in shown.stdout
    assert sum("NVIDIA H100 80GB HBM3" in line for line in lines) == 2
    assert any(line.startswith("  ✗ power, 1 s average") for line in lines)
    assert "2 devices can be metered" in lines[-1]


def test_once_without_a_driver_says_no_and_why(library: Path) -> None:
    shown = run(library, "--once", "--sample-s", "1", "--no-rapl", faults="gone@0")
    seen = json.loads(shown.stdout)
    assert (shown.returncode, seen["measurable"], seen["devices"]) == (1, False, [])
    (driver,) = next(section for section in seen["sections"] if section["name"] == "nvml")["sights"]
    assert (driver["seen"], driver["detail"]) == (False, "Driver Not Loaded")
    assert driver["remedy"] == "load the kernel module: modprobe nvidia"


def test_check_looks_at_everything_and_says_no_if_one_thing_fails(
    library: Path, ingest: Ingest, token: Path, tmp_path: Path
) -> None:
    flags = ("--spool-path", str(tmp_path / "spool.db"), "--token-file", str(token))
    good = run(library, "check", "--server-url", ingest.url, *flags)
    assert good.returncode == 0, good.stdout
    assert good.stdout.count("ok  ") == 4
    assert "2 of 2 devices answer" in good.stdout
    bad = run(library, "check", "--server-url", "http://127.0.0.1:9", *flags)
    assert bad.returncode == 1
    assert "FAIL  server" in bad.stdout
    assert "s3cret" not in good.stdout + bad.stdout


def test_a_replayed_trace_ends_the_run_and_is_marked(
    library: Path, ingest: Ingest, token: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    lines = [f"{number * 100_000},GPU-a,A100,{number * 30}" for number in range(15)]
    trace.write_text("\n".join(["at_us,uuid,model,energy_mj", *lines]) + "\n")
    path = tmp_path / "spool.db"
    done = run(library, "run", *FAST, "--spool-path", str(path), "--replay", str(trace))
    assert done.returncode == 0, done.stderr
    agent = start_agent(library, path, *FAST, "--server-url", ingest.url, "--token-file", str(token))
    until(lambda: any(meta.origin is Origin.REPLAYED for meta in ingest.taken), agent)
    stop(agent)


def test_impossible_settings_are_listed_and_stop_the_start(library: Path) -> None:
    refused = run(library, "run", "--row-s", "7", "--server-url", "ledger")
    assert refused.returncode == 2
    assert "row_s (7.0) must divide an hour" in refused.stderr
    assert "server_url must be like https://" in refused.stderr


def test_the_settings_are_printed_with_their_origins(library: Path) -> None:
    printed = run(library, "--print-config", "--row-s", "60", "--batch-s", "60")
    assert printed.returncode == 0
    assert "# flag" in printed.stdout
    assert "# host name" in printed.stdout
