"""`/readyz` names what is down and since when; what is only amiss keeps no replica from taking data. And the drain at SIGTERM."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from collector.wire import SAMPLES_PATH
from ingest.readiness import Standing
from ingest.settings import Settings
from ingest.store.engine import URL_VARIABLE, Database
from tests.db.ingest_harness import batch_meta, body_of, device_row, headers, make_site, now_us, run
from tests.db.ingest_server import free_port
from tests.scratch import quick_folder
from wattledger.errors import WattledgerError
from wattledger.readiness import Cached, segments_watch, worker_watch
from wattledger.service import DRAIN_VARIABLE, create_service, drain_s

pytestmark = pytest.mark.db
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def test_each_dependency_is_told_by_name_since_it_was_first_seen_down() -> None:
    now = NOON
    standing = Standing(lambda: now)
    assert standing.told({}) == (200, {"status": "ready"})
    standing.told({"database": "away"})
    now += timedelta(minutes=2)
    status, body = standing.told({"database": "still away", "disk": "full"}, {"worker": "silent"})
    assert status == 503
    assert body == {
        "status": "not ready",
        "faults": [
            {"dependency": "database", "fault": "still away", "since": "2026-11-21T12:00:00Z"},
            {"dependency": "disk", "fault": "full", "since": "2026-11-21T12:02:00Z"},
        ],
        "degraded": [{"dependency": "worker", "fault": "silent", "since": "2026-11-21T12:02:00Z"}],
    }
    assert standing.told({}, {"worker": "silent"})[0] == 200
    now += timedelta(minutes=1)
    assert standing.told({"database": "again"})[1]["faults"][0]["since"] == "2026-11-21T12:03:00Z"


def test_a_database_that_is_away_is_told_by_name(db: Database) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        with db.named("postgres").connect("admin", autocommit=True) as admin:
            admin.execute(f"ALTER DATABASE {db.name} ALLOW_CONNECTIONS false")
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                [db.name],
            )
            away = await client.get("/readyz")
            admin.execute(f"ALTER DATABASE {db.name} ALLOW_CONNECTIONS true")
        assert [fault["dependency"] for fault in away.json()["faults"]] == ["database"]
        assert (await client.get("/readyz")).json() == {"status": "ready"}

    run(Settings(db), scenario)


def test_a_silent_worker_and_a_lost_folder_are_told(db: Database, tmp_path: Path) -> None:
    watch = worker_watch(db)
    assert "no worker has ever worked" in watch()["worker"]
    with db.connect("admin", autocommit=True) as admin:
        admin.execute(
            "INSERT INTO watermarks (name, value, lease_epoch, holder) VALUES ('worker/lease', '', 1, 'host/1')"
        )
        assert watch() == {}
        admin.execute("UPDATE watermarks SET updated_at = now() - interval '90 seconds'")
        assert watch()["worker"].startswith("host/1 has been silent for 9")
        admin.execute("UPDATE watermarks SET holder = NULL")
        assert watch()["worker"].startswith("none has worked for 9")
    assert segments_watch(tmp_path / "segments")() == {}
    assert "is not there" in segments_watch(tmp_path / "gone" / "segments")()["segment store"]
    assert segments_watch("s3://bucket/x")() == {}


def test_a_watch_is_asked_every_ten_seconds_at_most() -> None:
    now_s = 100.0
    asked: list[float] = []

    def look() -> dict[str, str]:
        asked.append(now_s)
        return {"worker": "silent"}

    watch = Cached(look, lambda: now_s)
    for step_s in (0.0, 9.0, 1.5):
        now_s += step_s
        assert watch() == {"worker": "silent"}
    assert asked == [100.0, 110.5]


@pytest.mark.parametrize("text", ["-1", "1.5", "301", "soon"])
def test_a_drain_that_is_no_number_of_seconds_is_refused(text: str) -> None:
    with pytest.raises(WattledgerError, match="whole seconds from 0 to 300"):
        drain_s({DRAIN_VARIABLE: text})
    assert (drain_s({}), drain_s({DRAIN_VARIABLE: "5"})) == (0, 5)


@contextmanager
def served(db: Database, port: int, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    home = quick_folder("wl-drain-")
    command = [sys.executable, "-m", "wattledger", "--home", str(home), "serve", "--port", str(port)]
    with subprocess.Popen(command, env={**os.environ, URL_VARIABLE: db.url, **env}) as process:
        try:
            deadline = time.monotonic() + 120
            while _status(port) != 200:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield process
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(home)


def _status(port: int) -> int:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code
    except httpx.TransportError:
        return 0


def test_told_to_stop_it_says_so_first_and_answers_200_to_nothing_that_is_not_committed(db: Database) -> None:
    site, port, meta, at = make_site(db), free_port(), batch_meta(), now_us() - 600_000_000
    statuses: list[tuple[int, str | None]] = []

    def send() -> None:
        with httpx.Client(timeout=20) as client:
            for sequence in range(1, 100_000):
                body = body_of(
                    batch_meta(spool=meta.spool, sequence=sequence), device_row(at + sequence, energy_mj=sequence)
                )
                try:
                    answer = client.post(
                        f"http://127.0.0.1:{port}{SAMPLES_PATH}",
                        content=body,
                        headers=headers(site.node_tokens["node-1"]),
                    )
                except httpx.TransportError:
                    return
                statuses.append((answer.status_code, answer.headers.get("retry-after")))

    with served(db, port, **{DRAIN_VARIABLE: "2", "WATTLEDGER_INGEST_NODE_BODIES_PER_S": "0"}) as process:
        sender = threading.Thread(target=send)
        sender.start()
        while len(statuses) < 10:
            assert sender.is_alive()
            time.sleep(0.01)
        told_s = time.monotonic()
        process.send_signal(signal.SIGTERM)
        while _status(port) == 200:
            assert time.monotonic() < told_s + 1.5, "it says too late that it is not ready"
        assert process.poll() is None
        process.wait(timeout=30)
        assert time.monotonic() - told_s < 2 + 10 + 5
        sender.join()
    kept = sum(status == 200 for status, _ in statuses)
    assert {status for status, _ in statuses} == {200, 503}
    assert (503, "2") in statuses
    with db.connect("admin") as connection:
        assert connection.execute("SELECT count(*) FROM device_samples").fetchone() == (kept,)


def test_a_folder_of_sealed_hours_short_of_room_is_told_and_keeps_nobody_from_sending(tmp_path: Path) -> None:
    mib = 1024 * 1024
    watch = segments_watch(tmp_path / "segments", 100 * mib, lambda _: 99 * mib)
    assert watch()["segment store"].startswith(f"99 MiB are free for {tmp_path}, 100 MiB are needed; hours stay")
    assert segments_watch(tmp_path / "segments", 99 * mib, lambda _: 99 * mib)() == {}


def test_a_service_that_nothing_tells_of_its_database_s_disk_says_so(db: Database, tmp_path: Path) -> None:
    cases: tuple[tuple[dict[str, str], tuple[Path, ...], bool], ...] = (
        ({}, (), True),
        ({"WATTLEDGER_INGEST_DATABASE_MAX_MIB": "5000"}, (), False),
        ({"WATTLEDGER_INGEST_DISK_PATHS": str(tmp_path)}, (), False),
        ({}, (tmp_path,), False),
    )
    for env, data_paths, wanted in cases:
        service = create_service(db, env, data_paths=data_paths)
        told = [watch() for watch in service.state.ingest.watches]
        assert any("disk guard" in each for each in told) is wanted, env
