"""Late rows that wait beside a segment are in the books at once; when they are in the next one, their hour is computed once more of files alone."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from analytics.io.recompute import Ground
from analytics.jobs import HourCloser, WorkerSettings
from ingest.store.engine import Database
from ingest.store.seal import Sealer, hour_of
from ingest.store.seal_hours import delete_retired
from ingest.store.segments import Segments
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet
from tests.db.test_recompute import late, of_now, recomputed, verdict

pytestmark = pytest.mark.db
SETTINGS = WorkerSettings(code_version="test")
LATER = HOUR_AT + 6 * HOUR
RUNS = "SELECT kind, revision, generation, jsonb_typeof(inputs -> 'outside') FROM ledger_runs WHERE hour_at = %s ORDER BY id"


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    """Two hours of a device that is silent for ten minutes: what it says of these comes late, a minute at a time."""
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + timedelta(minutes=50))
    fleet.samples(HOUR_AT + HOUR, HOUR_AT + 2 * HOUR, start_mj=360_000_000)
    return fleet


@pytest.fixture
def segments(tmp_path: Path) -> Segments:
    return Segments.at(tmp_path)


@pytest.fixture
def closer(fleet: SmallFleet, segments: Segments) -> HourCloser:
    """Closed, sealed with the hours around, and computed again of the files."""
    closer = HourCloser(fleet.database, SETTINGS, segments)
    closer.run(LATER)
    for number in range(-1, 4):
        Sealer(fleet.database, segments).seal(hour_of(fleet.site_id, HOUR_AT + number * HOUR))
    closer.run(LATER)
    assert fleet.rows(RUNS, HOUR_AT) == [("close", 1, 0, "array"), ("attest", 1, 1, "null")]
    return closer


def come(fleet: SmallFleet, minute: int) -> None:
    late(fleet, minute)
    with fleet.admin() as connection:
        at = HOUR_AT + timedelta(minutes=minute)
        fleet.changed("device_samples", at, at + timedelta(microseconds=1), connection)


def merge(fleet: SmallFleet, segments: Segments) -> None:
    Sealer(fleet.database, segments).merge(hour_of(fleet.site_id, HOUR_AT))
    with fleet.database.connect("worker") as connection:
        delete_retired(connection, segments, timedelta(0))


def test_a_bill_with_late_rows_stays_repeatable_whatever_comes_after_their_merge(
    fleet: SmallFleet, closer: HourCloser, segments: Segments
) -> None:
    come(fleet, 51)
    closer.run(LATER)  # at once, though the row is in no file yet
    assert fleet.rows(RUNS, HOUR_AT)[2:] == [("close", 2, 1, "array")]
    # The row lies in the ten minutes before the next hour, which therefore read it too.
    assert fleet.rows(RUNS, HOUR_AT + HOUR)[-1][3] == "array"

    merge(fleet, segments)
    done = closer.run(LATER)

    assert (done.restated, done.failed) == (0, 0)
    assert fleet.rows(RUNS, HOUR_AT)[3:] == [("attest", 2, 2, "null")]
    assert fleet.rows(RUNS, HOUR_AT + HOUR)[-1] == ("attest", 1, 1, "null")
    assert closer.run(LATER).unchanged == 0  # once
    merged_at = of_now(fleet)

    come(fleet, 52)
    closer.run(LATER)
    beside_at = of_now(fleet)
    come(fleet, 53)
    closer.run(LATER)
    merge(fleet, segments)
    closer.run(LATER)

    assert verdict(recomputed(fleet, segments, merged_at)) == (2, "attest", Ground.SAMPLES, True)
    # What was superseded before its late row was in a file: to the byte, but of the usage hours.
    assert verdict(recomputed(fleet, segments, beside_at)) == (3, "close", Ground.USAGE, True)
    assert verdict(recomputed(fleet, segments)) == (4, "attest", Ground.SAMPLES, True)


def test_an_hour_that_was_rated_before_it_was_sealed_is_computed_once_of_its_files_too(
    fleet: SmallFleet, segments: Segments
) -> None:
    closer = HourCloser(fleet.database, SETTINGS, segments)
    closer.run(LATER)
    with fleet.admin() as connection:
        connection.execute("UPDATE prices SET superseded_at = now()")
        connection.execute(
            "INSERT INTO prices (provider, model, meter, amount, unit, currency, source, valid_from) "
            "SELECT provider, model, meter, 3, unit, currency, 'test', valid_from FROM prices"
        )
        fleet.changed("prices", HOUR_AT, HOUR_AT + HOUR, connection)
    assert closer.run(LATER).rated > 0
    for number in range(-1, 2):
        Sealer(fleet.database, segments).seal(hour_of(fleet.site_id, HOUR_AT + number * HOUR))
    rated_at = of_now(fleet)

    done = closer.run(LATER)

    assert (done.restated, done.failed) == (0, 0)
    assert [run[:3] for run in fleet.rows(RUNS, HOUR_AT)] == [("close", 1, 0), ("rate", 2, 0), ("attest", 2, 1)]
    assert closer.run(LATER).unchanged == 0
    come(fleet, 51)
    closer.run(LATER)
    assert verdict(recomputed(fleet, segments, rated_at))[2:] == (Ground.USAGE, True)
    assert verdict(recomputed(fleet, segments)) == (3, "close", Ground.SAMPLES, True)
