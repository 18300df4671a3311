"""Minutes by tenant of hours that were closed before there were any: made of what their books were made of, a step at a time."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from analytics.backfill import AGAIN_AFTER_S, Backfilled, MinutesBackfill
from analytics.frames import TenantMinutes
from analytics.io.missing_minutes import missing_hours, write_minutes
from analytics.jobs import HourCloser, WorkerSettings
from ingest.store.engine import Database
from ingest.store.seal import Sealer, hour_of
from ingest.store.segments import Segments
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db

SETTINGS = WorkerSettings(code_version="test")
MINUTES = "SELECT site_id, minute_at, tenant_id, energy_mj FROM tenant_minutes ORDER BY minute_at, tenant_id"


class Seconds:
    """A clock that is three seconds later each time it is looked at."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 3.0
        return self.now_s


@pytest.fixture
def segments(tmp_path: Path) -> Segments:
    return Segments.at(tmp_path / "segments")


@pytest.fixture
def fleet(db: Database, segments: Segments) -> SmallFleet:
    """Three closed hours, with a job that begins and ends inside minutes and a share of another."""
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + 3 * HOUR)
    fleet.job("7", HOUR_AT + timedelta(minutes=10, seconds=17), HOUR_AT + timedelta(minutes=70, seconds=3))
    fleet.job("8", HOUR_AT + timedelta(minutes=100), None)
    fleet.rows("UPDATE allocations SET share_ratio = 0.25 WHERE end_at IS NULL RETURNING 1")
    HourCloser(db, SETTINGS, segments).run(HOUR_AT + 5 * HOUR)
    return fleet


@pytest.fixture
def before(fleet: SmallFleet) -> list[tuple[Any, ...]]:
    """What the closes wrote, then taken away: as an older version left it."""
    written = fleet.rows(MINUTES)
    assert len({row[1].hour for row in written}) >= 3
    fleet.rows("DELETE FROM tenant_minutes RETURNING 1")
    return written


def test_the_minutes_are_those_that_closing_the_hours_would_have_written(
    fleet: SmallFleet, before: list[tuple[Any, ...]]
) -> None:
    done = MinutesBackfill(fleet.database, SETTINGS).step()
    assert done == Backfilled(made=3)
    assert fleet.rows(MINUTES) == before


def test_sealed_hours_are_read_from_their_files(
    fleet: SmallFleet, before: list[tuple[Any, ...]], segments: Segments
) -> None:
    sealer = Sealer(fleet.database, segments)
    for number in range(3):
        sealer.seal(hour_of(fleet.site_id, HOUR_AT + number * HOUR))
    assert MinutesBackfill(fleet.database, SETTINGS, segments).step() == Backfilled(made=3)
    assert fleet.rows(MINUTES) == before


def test_an_hour_is_read_as_it_was_known_when_it_was_closed(fleet: SmallFleet, before: list[tuple[Any, ...]]) -> None:
    # Since then somebody corrected who held the device; its hours are due, and closing them writes their new minutes.
    fleet.rows("UPDATE allocations SET superseded_at = now() RETURNING 1")
    assert MinutesBackfill(fleet.database, SETTINGS).step() == Backfilled(made=3)
    assert fleet.rows(MINUTES) == before


def test_a_step_ends_in_time_and_another_worker_goes_on_where_it_was(
    fleet: SmallFleet, before: list[tuple[Any, ...]]
) -> None:
    # The clock is looked at before each hour, three seconds later each time: five seconds are one hour's.
    first = MinutesBackfill(fleet.database, SETTINGS, clock_s=Seconds())
    assert first.step(within_s=5.0) == Backfilled(made=1, left=2)
    newest = {row[1] for row in fleet.rows(MINUTES)}
    assert min(newest) == HOUR_AT + 2 * HOUR
    assert MinutesBackfill(fleet.database, SETTINGS).step() == Backfilled(made=2)
    assert fleet.rows(MINUTES) == before
    assert first.step(within_s=60.0) == Backfilled(made=2)  # it had found them before: written again, they are the same
    assert fleet.rows(MINUTES) == before


def test_a_worker_with_nothing_to_do_looks_again_after_an_hour(fleet: SmallFleet) -> None:
    clock = Seconds()
    backfill = MinutesBackfill(fleet.database, SETTINGS, clock_s=clock)
    assert backfill.step() == Backfilled()
    fleet.rows("DELETE FROM tenant_minutes RETURNING 1")
    assert backfill.step() is None
    clock.now_s += AGAIN_AFTER_S
    assert backfill.step(within_s=60.0) == Backfilled(made=3)


def test_an_hour_whose_file_is_lost_is_put_off_and_the_others_are_made(
    fleet: SmallFleet, before: list[tuple[Any, ...]], segments: Segments
) -> None:
    made = Sealer(fleet.database, segments).seal(hour_of(fleet.site_id, HOUR_AT + 2 * HOUR))
    assert made.rows
    # The last hour's rows are needed for nothing but itself and the minute before it.
    fleet.rows("UPDATE hour_segments SET path = 'lost.parquet' RETURNING 1")
    clock = Seconds()
    backfill = MinutesBackfill(fleet.database, SETTINGS, segments, clock_s=clock)
    done = backfill.step(within_s=60.0)
    assert done is not None
    assert done.put_off == done.left >= 1
    assert backfill.step() == Backfilled(left=done.left, put_off=done.left)  # nothing else is found
    assert backfill.step() is None  # tried again in an hour, not in a circle
    clock.now_s += 2 * AGAIN_AFTER_S
    assert backfill.step(within_s=60.0) == Backfilled(left=done.left, put_off=done.left)


def test_hours_past_retention_are_nobodys_to_make(fleet: SmallFleet, before: list[tuple[Any, ...]]) -> None:
    fleet.rows(
        "INSERT INTO hour_catalog (site_id, hour_at, state, generation, expired_at) "
        "SELECT site_id, hour_at, 'sealed', 1, now() FROM ledger_hours RETURNING 1"
    )
    assert MinutesBackfill(fleet.database, SETTINGS).step() == Backfilled()


def test_minutes_are_not_written_over_those_of_a_later_close(fleet: SmallFleet, before: list[tuple[Any, ...]]) -> None:
    with fleet.database.connect("worker", autocommit=True) as connection:
        hour = missing_hours(connection)[-1]
        assert hour.hour_at == HOUR_AT
        fleet.job("9", HOUR_AT + timedelta(minutes=1), HOUR_AT + timedelta(minutes=5))
        HourCloser(fleet.database, SETTINGS).run(HOUR_AT + 5 * HOUR)
        closed_again = fleet.rows(MINUTES)
        assert closed_again
        assert not write_minutes(connection, hour, TenantMinutes.create_empty())
    assert fleet.rows(MINUTES) == closed_again
