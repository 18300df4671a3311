"""Hours that cannot be closed: said, kept due, and in nobody else's way."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from analytics.closing import hours
from analytics.errors import BooksError
from analytics.jobs import HourCloser, WorkerSettings
from analytics.pipeline import HourResult, reduce_shards
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet
from wattledger.home import Home
from wattledger.work import Worker

pytestmark = pytest.mark.db

SETTINGS = WorkerSettings(code_version="test")
LATER = HOUR_AT + 6 * HOUR
CLOSED = "SELECT hour_at FROM ledger_hours WHERE site_id = %s AND status = 'closed' ORDER BY 1"


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    return small_fleet(db)


def _second_site(fleet: SmallFleet) -> SmallFleet:
    """A site like the first, which the worker reaches after it."""
    ((site,),) = fleet.rows("INSERT INTO sites (name, grid_zone) VALUES ('s2', 'TEST') RETURNING id")
    ((node,),) = fleet.rows("INSERT INTO nodes (site_id, name) VALUES (%s, 'n2') RETURNING id", site)
    ((device,),) = fleet.rows(
        "INSERT INTO devices (uuid, vendor, model, kind) VALUES ('GPU-2', 'nvidia', 'H100', 'gpu') RETURNING id"
    )
    fleet.rows(
        "INSERT INTO placements (device_id, node_id, valid_from) VALUES (%s, %s, %s) RETURNING id",
        device,
        node,
        HOUR_AT,
    )
    ((epoch,),) = fleet.rows(
        "INSERT INTO epochs (node_id, boot_id, driver_epoch, feed, origin, cadence_us, agent_version) "
        "VALUES (%s, 'b2', 0, 1, 1, 10000000, 'test') RETURNING id",
        node,
    )
    return replace(fleet, site_id=site, node_id=node, device_id=device, epoch_id=epoch)


def _sealed(fleet: SmallFleet) -> None:
    """Say that the hour lies in a segment that is not there."""
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


def test_a_site_whose_hours_cannot_be_read_keeps_no_other_site_from_its_books(fleet: SmallFleet) -> None:
    other = _second_site(fleet)
    for site in (fleet, other):
        site.samples(HOUR_AT, HOUR_AT + timedelta(minutes=50))
    _sealed(fleet)
    closer = HourCloser(fleet.database, SETTINGS)

    done = closer.run(LATER)

    assert (done.failed, done.closed) == (1, 1)
    assert fleet.rows(CLOSED, other.site_id) == [(HOUR_AT,)]
    closer.run(LATER)
    left = fleet.rows("SELECT DISTINCT site_id FROM changes")
    assert left == [(fleet.site_id,)]  # what healthy hours have seen is forgotten, what the bad one waits for is not
    fleet.rows("UPDATE hour_catalog SET state = 'open' RETURNING 1")
    assert closer.run(LATER).closed == 1
    closer.run(LATER)
    assert fleet.rows("SELECT count(*) FROM changes") == [(0,)]


def test_an_hour_the_database_refuses_keeps_no_other_hour_of_its_batch_from_closing(fleet: SmallFleet) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + timedelta(minutes=170))
    fleet.job("7", HOUR_AT + HOUR, HOUR_AT + timedelta(minutes=90))
    with fleet.admin() as connection:
        connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE numeric_value_out_of_range; END $$"
        )
        connection.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON usage_hours FOR EACH ROW WHEN (NEW.job_id IS NOT NULL) "
            "EXECUTE FUNCTION refuse()"
        )
    closer = HourCloser(fleet.database, SETTINGS)

    assert closer.run(LATER).failed == 1

    assert fleet.rows(CLOSED, fleet.site_id) == [(HOUR_AT,), (HOUR_AT + 2 * HOUR,)]
    with fleet.admin() as connection:
        connection.execute("DROP TRIGGER refuse ON usage_hours")
    assert closer.run(LATER).closed == 1


def test_an_hour_that_does_not_balance_leaves_one_finding_until_it_does(
    fleet: SmallFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unbalanced(*_: object) -> HourResult:
        raise BooksError("3 mJ too many")

    fleet.samples(HOUR_AT, HOUR_AT + timedelta(minutes=50))
    closer = HourCloser(fleet.database, SETTINGS)
    found = "SELECT start_at, end_at, evidence, withdrawn_at IS NULL FROM findings WHERE kind = 'books_unbalanced'"
    evidence = {"law": "BooksError", "message": "3 mJ too many"}
    monkeypatch.setattr(hours, "reduce_shards", unbalanced)

    for _ in range(2):
        assert closer.run(LATER).failed == 1
    assert fleet.rows(found) == [(HOUR_AT, HOUR_AT + HOUR, evidence, True)]

    monkeypatch.setattr(hours, "reduce_shards", reduce_shards)
    assert closer.run(LATER).closed == 1
    assert fleet.rows(found) == [(HOUR_AT, HOUR_AT + HOUR, evidence, False)]


def test_a_worker_waits_longer_for_hours_that_fail_and_does_its_other_chores(
    fleet: SmallFleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + timedelta(minutes=50))
    _sealed(fleet)
    worker = Worker(fleet.database, SETTINGS, Home(tmp_path, "test"), enforced=False, clock=lambda: LATER)
    with closing(worker):
        worker.round()
    assert [chore.name for chore in worker.chores if chore.failures] == ["hours"]
    assert "1 hours were left open by errors" in caplog.text
