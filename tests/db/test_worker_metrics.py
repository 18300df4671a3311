"""What a worker says of itself to whoever scrapes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from analytics.io.lease import NAME
from analytics.jobs import WorkerSettings
from ingest.pollers.scrape import serve
from ingest.store.engine import Database
from ingest.store.segments import Segments
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet
from wattledger.home import Home
from wattledger.sealing import SealingSettings
from wattledger.work import Worker

pytestmark = pytest.mark.db

NO_TIME = timedelta(0)


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + 2 * HOUR - timedelta(seconds=10))
    return fleet


@pytest.fixture
def worker(fleet: SmallFleet, tmp_path: Path) -> Iterator[Worker]:
    with closing(
        Worker(
            fleet.database,
            WorkerSettings(code_version="test"),
            Home(tmp_path, "test"),
            enforced=False,
            clock=lambda: HOUR_AT + 8 * HOUR,
            segments=Segments.at(tmp_path / "segments"),
            sealing=SealingSettings(merge_after=NO_TIME, grace=NO_TIME),
        )
    ) as worker:
        yield worker


def figures(worker: Worker) -> dict[str, float]:
    lines = worker.metrics.exposition().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


def test_a_round_that_closes_two_hours_counts_them_and_leaves_nothing_due(worker: Worker) -> None:
    worker.round()
    said = figures(worker)
    assert said['wattledger_worker_rounds_total{outcome="worked"}'] == 1
    assert said["wattledger_worker_round_duration_seconds_count"] == 1
    assert said['wattledger_worker_hours_total{outcome="closed"}'] == 2
    assert said['wattledger_worker_hours_total{outcome="failed"}'] == 0
    assert said['wattledger_worker_chore_duration_seconds_count{chore="hours",outcome="done"}'] == 1
    assert (said["wattledger_worker_due_hours"], said["wattledger_worker_oldest_due_hour_lag_seconds"]) == (0, 0)


def test_an_hour_that_cannot_be_closed_stays_due_and_its_lag_is_told(worker: Worker, fleet: SmallFleet) -> None:
    fleet.rows(
        "INSERT INTO hour_catalog (site_id, hour_at, state) VALUES (%s, %s, 'sealed') RETURNING 1",
        fleet.site_id,
        HOUR_AT,
    )
    fleet.rows(
        "INSERT INTO hour_segments (site_id, hour_at, stream, generation, path, rows, size_bytes, sha256, feeds) "
        "VALUES (%s, %s, 'device_samples', 1, 'lost.parquet', 1, 1, '', '{1}') RETURNING 1",
        fleet.site_id,
        HOUR_AT,
    )
    worker.round()
    said = figures(worker)
    failed = said['wattledger_worker_hours_total{outcome="failed"}']
    assert failed >= 1
    assert said["wattledger_worker_due_hours"] == failed
    # The hour ended seven hours before the worker's clock, and an hour is to be closed a quarter of an hour after its end.
    assert said["wattledger_worker_oldest_due_hour_lag_seconds"] == 7 * 3600 - 15 * 60
    assert said['wattledger_worker_chore_duration_seconds_count{chore="hours",outcome="failed"}'] == 1


def test_hours_whose_minutes_are_to_be_made_are_told_until_they_have_them(worker: Worker, fleet: SmallFleet) -> None:
    worker.round()
    said = figures(worker)
    assert said["wattledger_worker_minutes_made_hours_total"] == 2
    assert said["wattledger_worker_minutes_missing_hours"] == 0
    written = fleet.rows("DELETE FROM tenant_minutes RETURNING 1")
    fleet.rows("UPDATE ledger_hours SET minutes_run_id = NULL RETURNING 1")
    minutes = next(chore for chore in worker.chores if chore.name == "minutes")
    minutes.due_s = 0.0
    worker.round()
    said = figures(worker)
    assert said["wattledger_worker_minutes_made_hours_total"] == 4
    assert said["wattledger_worker_minutes_missing_hours"] == 0
    assert fleet.rows("SELECT count(*) FROM tenant_minutes") == [(len(written),)]


def test_sealing_counts_its_hours_and_their_bytes(worker: Worker, fleet: SmallFleet, tmp_path: Path) -> None:
    worker.once()
    said = figures(worker)
    ((hours,),) = fleet.rows("SELECT count(*) FROM hour_catalog WHERE state = 'sealed'")
    files = [path.stat().st_size for path in (tmp_path / "segments").rglob("*.parquet")]
    assert said['wattledger_worker_sealing_passes_total{outcome="done"}'] == 1
    assert said['wattledger_worker_sealing_hours_total{outcome="sealed"}'] == hours >= 2
    assert said["wattledger_worker_sealing_bytes_total"] == sum(files) > 0


def test_a_worker_without_the_lease_says_standby_and_no_backlog(worker: Worker, fleet: SmallFleet) -> None:
    worker.round()
    fleet.rows("UPDATE watermarks SET holder = 'another', updated_at = now() WHERE name = %s RETURNING 1", NAME)
    worker.round()
    said = figures(worker)
    assert said['wattledger_worker_rounds_total{outcome="standby"}'] == 1
    assert "wattledger_worker_due_hours" not in said


def test_metrics_are_read_over_http_on_loopback(worker: Worker) -> None:
    worker.round()
    server = serve(worker.metrics.exposition, 0)
    try:
        assert server.server_address[0] == "127.0.0.1"
        answer = httpx.get(f"http://127.0.0.1:{server.server_address[1]}/metrics")
    finally:
        server.shutdown()
        server.server_close()
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert (
        '# TYPE wattledger_worker_rounds_total counter\nwattledger_worker_rounds_total{outcome="worked"} 1'
        in answer.text
    )
