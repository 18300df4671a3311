"""Minutes by device and tenant: made after the books of their hour, of what these were made of, a step at a time."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from analytics.frames import Rollups, TenantMinutes
from analytics.io.due_minutes import Minutes, due_minutes, write_minutes
from analytics.jobs import HourCloser, WorkerSettings
from analytics.minutes import AGAIN_AFTER_S, MinutesMade, MinutesMaker
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
    """What was made once, then taken away: as a version left it that made none."""
    assert MinutesMaker(fleet.database, SETTINGS).step(within_s=60.0) == MinutesMade(made=4)
    written = fleet.rows(MINUTES)
    assert len({row[1].hour for row in written}) >= 3
    forget(fleet)
    return written


def forget(fleet: SmallFleet) -> None:
    fleet.rows("DELETE FROM tenant_minutes RETURNING 1")
    fleet.rows("DELETE FROM minute_rollups RETURNING 1")
    fleet.rows("UPDATE ledger_hours SET minutes_run_id = NULL RETURNING 1")


def test_a_close_makes_none_and_the_chore_makes_those_of_every_hour_once(fleet: SmallFleet) -> None:
    assert fleet.rows("SELECT count(*) FROM minute_rollups") == [(0,)]
    maker = MinutesMaker(fleet.database, SETTINGS)
    assert maker.step(within_s=60.0) == MinutesMade(made=4)
    assert maker.step(within_s=60.0) == MinutesMade()
    # 100 W for three hours, whoever held it.
    for table in ("minute_rollups", "tenant_minutes"):
        assert fleet.rows(f"SELECT sum(energy_mj)::bigint FROM {table}") == [(1_080_000_000,)]


def test_the_same_minutes_are_made_again(fleet: SmallFleet, before: list[tuple[Any, ...]]) -> None:
    assert MinutesMaker(fleet.database, SETTINGS).step(within_s=60.0) == MinutesMade(made=4)
    assert fleet.rows(MINUTES) == before


def test_sealed_hours_are_read_from_their_files(
    fleet: SmallFleet, before: list[tuple[Any, ...]], segments: Segments
) -> None:
    sealer = Sealer(fleet.database, segments)
    for number in range(3):
        sealer.seal(hour_of(fleet.site_id, HOUR_AT + number * HOUR))
    assert MinutesMaker(fleet.database, SETTINGS, segments).step(within_s=60.0) == MinutesMade(made=4)
    assert fleet.rows(MINUTES) == before


def test_an_hour_that_is_only_sealed_keeps_its_minutes(fleet: SmallFleet, segments: Segments) -> None:
    maker = MinutesMaker(fleet.database, SETTINGS, segments)
    maker.step(within_s=60.0)
    sealer = Sealer(fleet.database, segments)
    for number in range(-1, 5):
        sealer.seal(hour_of(fleet.site_id, HOUR_AT + number * HOUR))
    closed_again = HourCloser(fleet.database, SETTINGS, segments).run(HOUR_AT + 6 * HOUR)
    assert closed_again.unchanged == 4  # looked at once more, now of their files
    assert maker.step(within_s=60.0) == MinutesMade()


def test_an_hour_is_read_as_it_was_known_when_it_was_closed(fleet: SmallFleet, before: list[tuple[Any, ...]]) -> None:
    # Since then somebody corrected who held the device; its hours are due, and once they are closed they get their new minutes.
    fleet.rows("UPDATE allocations SET superseded_at = now() RETURNING 1")
    assert MinutesMaker(fleet.database, SETTINGS).step(within_s=60.0) == MinutesMade(made=4)
    assert fleet.rows(MINUTES) == before


def test_a_step_ends_in_time_and_another_worker_goes_on_where_it_was(
    fleet: SmallFleet, before: list[tuple[Any, ...]]
) -> None:
    # The clock is looked at before each hour, three seconds later each time: seven seconds are two hours', one of a single reading.
    first = MinutesMaker(fleet.database, SETTINGS, clock_s=Seconds())
    assert first.step(within_s=7.0) == MinutesMade(made=2, left=2)
    newest = {row[1] for row in fleet.rows(MINUTES)}
    assert min(newest) == HOUR_AT + 2 * HOUR
    assert MinutesMaker(fleet.database, SETTINGS).step(within_s=60.0) == MinutesMade(made=2)
    assert fleet.rows(MINUTES) == before
    assert first.step(within_s=60.0) == MinutesMade()


def test_the_hour_at_hand_has_its_minutes_made_once_a_minute(db: Database) -> None:
    fleet, clock = small_fleet(db), Seconds()
    closer, maker = HourCloser(db, SETTINGS), MinutesMaker(db, SETTINGS, clock_s=clock)
    counted = []
    for number, waits_s in enumerate((0.0, 0.0, 60.0)):
        clock.now_s += waits_s
        fleet.samples(
            HOUR_AT + timedelta(minutes=number),
            HOUR_AT + timedelta(minutes=number, seconds=50),
            start_mj=number * 6_000_000,
        )
        now = HOUR_AT + timedelta(minutes=number + 1)
        assert closer.run(now).provisional == 1
        maker.step(now)
        counted += fleet.rows("SELECT count(*)::int, sum(energy_mj)::bigint FROM minute_rollups")
    # 100 W: what a minute had by its last reading, 50 s; then by 50 s of the third, the second left out.
    assert counted == [(1, 5_000_000), (1, 5_000_000), (3, 17_000_000)]


def test_an_hour_whose_file_is_lost_is_put_off_and_the_others_are_made(
    fleet: SmallFleet, before: list[tuple[Any, ...]], segments: Segments
) -> None:
    made = Sealer(fleet.database, segments).seal(hour_of(fleet.site_id, HOUR_AT + 2 * HOUR))
    assert made.rows
    # The last hour's rows are needed for itself and those beside it, by the minute.
    fleet.rows("UPDATE hour_segments SET path = 'lost.parquet' RETURNING 1")
    clock = Seconds()
    maker = MinutesMaker(fleet.database, SETTINGS, segments, clock_s=clock)
    done = maker.step(within_s=60.0)
    assert done.put_off == done.left >= 1
    assert maker.step(within_s=60.0) == MinutesMade(
        left=done.left, put_off=done.left
    )  # tried again in an hour, not in a circle
    clock.now_s += 2 * AGAIN_AFTER_S
    assert maker.step(within_s=60.0).put_off == done.left


def test_hours_past_retention_are_nobodys_to_make(fleet: SmallFleet, before: list[tuple[Any, ...]]) -> None:
    fleet.rows(
        "INSERT INTO hour_catalog (site_id, hour_at, state, generation, expired_at) "
        "SELECT site_id, hour_at, 'sealed', 1, now() FROM ledger_hours RETURNING 1"
    )
    assert MinutesMaker(fleet.database, SETTINGS).step() == MinutesMade()


def test_minutes_are_not_written_where_other_books_came(fleet: SmallFleet, before: list[tuple[Any, ...]]) -> None:
    with fleet.database.connect("worker", autocommit=True) as connection:
        hour = due_minutes(connection)[-1]
        assert hour.hour_at == HOUR_AT
        fleet.job("9", HOUR_AT + timedelta(minutes=1), HOUR_AT + timedelta(minutes=5))
        HourCloser(fleet.database, SETTINGS).run(HOUR_AT + 5 * HOUR)
        MinutesMaker(fleet.database, SETTINGS).step(within_s=60.0)
        closed_again = fleet.rows(MINUTES)
        assert closed_again
        assert not write_minutes(connection, hour, Minutes(Rollups.create_empty(), TenantMinutes.create_empty()))
    assert fleet.rows(MINUTES) == closed_again
