"""What a run read is on record, also where it changed nothing, and the files it read outlive their generation."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from analytics.jobs import HourCloser, WorkerSettings
from analytics.version import METHOD_VERSION
from collector.wire import Stream
from ingest.store.engine import Database
from ingest.store.sample_tables import TARGETS
from ingest.store.seal import Sealer, hour_of
from ingest.store.seal_hours import delete_retired
from ingest.store.segments import Segments
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db
SETTINGS = WorkerSettings(code_version="test")
LATER = HOUR_AT + 6 * HOUR
RUNS = "SELECT kind, revision, generation, jsonb_array_length(inputs -> 'segments') FROM ledger_runs WHERE hour_at = %s ORDER BY id"


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + timedelta(minutes=50))
    return fleet


@pytest.fixture
def segments(tmp_path: Path) -> Segments:
    return Segments.at(tmp_path)


def again(fleet: SmallFleet, closer: HourCloser, kind: str = "allocations") -> None:
    """Have the hour looked at once more."""
    with fleet.admin() as connection:
        fleet.changed(kind, HOUR_AT, HOUR_AT + HOUR, connection)
    closer.run(LATER)


def test_a_run_says_with_which_formulas_choices_and_inputs_it_computed(fleet: SmallFleet) -> None:
    fleet.job("7", HOUR_AT, HOUR_AT + timedelta(minutes=20))
    HourCloser(fleet.database, SETTINGS).run(LATER)
    ((method, lateness_us, inputs, snapshot),) = fleet.rows(
        "SELECT method_version, policy ->> 'lateness_us', inputs, snapshot FROM ledger_runs WHERE hour_at = %s", HOUR_AT
    )
    assert (method, lateness_us) == (METHOD_VERSION, "900000000")
    assert inputs["segments"] == []
    assert inputs["outside"][0] == 301  # every 10 s for 50 min, both ends
    assert {name: rows for name, (rows, _) in inputs["frames"].items() if rows} == {
        "devices": 1, "epochs": 1, "placements": 1, "holds": 1, "jobs": 1, "bindings": 1, "tenants": 1, "prices": 1, "tariffs": 1, "intensity": 1,
    }  # fmt: skip
    assert snapshot.count(":") == 2


def test_an_hour_that_stays_the_same_rests_on_what_was_read_last(fleet: SmallFleet, segments: Segments) -> None:
    closer = HourCloser(fleet.database, SETTINGS, segments)
    closer.run(LATER)
    again(fleet, closer)
    assert fleet.rows(RUNS, HOUR_AT) == [("close", 1, 0, 0)]  # the same inputs: nothing to keep

    Sealer(fleet.database, segments).seal(hour_of(fleet.site_id, HOUR_AT))
    again(fleet, closer)

    assert fleet.rows(RUNS, HOUR_AT) == [("close", 1, 0, 0), ("attest", 1, 1, 1)]
    now = "SELECT kind FROM ledger_hours JOIN ledger_runs AS runs ON runs.id = run_id WHERE ledger_hours.hour_at = %s"
    assert fleet.rows(now, HOUR_AT) == [("attest",)]
    ((inputs, sha256),) = fleet.rows(
        "SELECT inputs, (SELECT encode(sha256, 'hex') FROM hour_segments) FROM ledger_runs WHERE generation = 1"
    )
    assert inputs["segments"] == [["device_samples", HOUR_AT.isoformat(), 1, sha256]]
    assert inputs["outside"] is None


def test_a_file_that_a_run_read_outlives_its_generation_until_its_hour_is_past_retention(
    fleet: SmallFleet, segments: Segments, tmp_path: Path
) -> None:
    closer, sealer = HourCloser(fleet.database, SETTINGS, segments), Sealer(fleet.database, segments)
    closer.run(LATER)
    hour = hour_of(fleet.site_id, HOUR_AT)
    sealer.seal(hour)
    again(fleet, closer)
    late(fleet, minute=55)
    sealer.merge(hour)
    late(fleet, minute=56)
    sealer.merge(hour)  # nobody read generation 2
    of_files = "SELECT generation, pinned, retired_at IS NOT NULL FROM hour_segments ORDER BY 1"
    assert fleet.rows(of_files) == [(1, True, True), (2, False, True), (3, False, False)]

    with fleet.database.connect("worker") as connection:
        assert delete_retired(connection, segments, timedelta(0)) == 1
    assert [row[0] for row in fleet.rows(of_files)] == [1, 3]
    assert len(list(tmp_path.rglob("*.parquet"))) == 2

    fleet.rows("UPDATE hour_catalog SET expired_at = now() RETURNING 1")
    with fleet.database.connect("worker") as connection:
        assert delete_retired(connection, segments, timedelta(0)) == 1
    assert [row[0] for row in fleet.rows(of_files)] == [3]


def late(fleet: SmallFleet, *, minute: int) -> None:
    with fleet.admin() as connection:
        connection.execute(
            "INSERT INTO late_samples (at, device_id, epoch_id, reading, span_us, samples, samples_missed, energy_mj) "
            "VALUES (%s, %s, %s, 0, 0, 1, 0, %s)",
            (HOUR_AT + timedelta(minutes=minute), fleet.device_id, fleet.epoch_id, minute * 6_000_000),
        )


def test_what_is_said_of_a_finding_makes_no_revision_and_a_finding_that_stands_is_left_alone(fleet: SmallFleet) -> None:
    # Idle at 100 W, which is the floor nobody told us: a job that holds it all the hour wastes it.
    fleet.rows("UPDATE device_samples SET gpu_util_percent = 0 RETURNING 1")
    fleet.job("7", HOUR_AT, HOUR_AT + HOUR)
    closer = HourCloser(fleet.database, SETTINGS)
    closer.run(LATER)
    noted = "SELECT recorded_at, withdrawn_at, evidence FROM findings WHERE kind = 'idle_waste'"
    ((recorded_at, withdrawn_at, evidence),) = fleet.rows(noted)
    assert withdrawn_at is None

    again(fleet, closer)
    assert fleet.rows(noted) == [(recorded_at, None, evidence)]
    fleet.rows("UPDATE findings SET evidence = '{}' WHERE kind = 'idle_waste' RETURNING 1")
    again(fleet, closer)

    ((_, _, told_again),) = fleet.rows(noted)
    assert told_again == evidence
    assert fleet.rows("SELECT revision FROM ledger_hours WHERE hour_at = %s", HOUR_AT) == [(1,)]


def test_an_old_hour_that_is_closed_again_does_not_take_a_job_back_to_the_tenant_of_then(fleet: SmallFleet) -> None:
    # From 9:00 on the account is bound to another tenant; then the energy of 8:00 turns out to be more.
    fleet.samples(HOUR_AT + HOUR, HOUR_AT + 2 * HOUR, start_mj=360_000_000)
    ((other,),) = fleet.rows("INSERT INTO tenants (path) VALUES ('globex') RETURNING id")
    fleet.rows("UPDATE bindings SET valid_to = %s RETURNING 1", HOUR_AT + HOUR)
    fleet.rows(
        "INSERT INTO bindings (position, tenant_id, account, valid_from) VALUES (1, %s, 'nlp', %s) RETURNING 1",
        other,
        HOUR_AT + HOUR,
    )
    job_id = fleet.job("7", HOUR_AT, HOUR_AT + 2 * HOUR)
    closer = HourCloser(fleet.database, SETTINGS)
    closer.run(LATER)
    assert fleet.rows("SELECT tenant_id FROM jobs WHERE id = %s", job_id) == [(other,)]

    columns = ", ".join(name for name in TARGETS[Stream.DEVICE].schema if name not in {"at", "energy_mj"})
    fleet.rows(
        f"INSERT INTO device_samples (at, energy_mj, {columns}) SELECT %s, energy_mj + 1000000, {columns} FROM device_samples "
        "WHERE at = %s RETURNING 1",
        HOUR_AT + timedelta(minutes=50, seconds=1),
        HOUR_AT + timedelta(minutes=50),
    )
    again(fleet, closer, "device_samples")

    assert fleet.rows("SELECT revision FROM ledger_hours WHERE hour_at = %s", HOUR_AT) == [(2,)]
    assert fleet.rows("SELECT tenant_id FROM jobs WHERE id = %s", job_id) == [(other,)]
    paying = "SELECT tenant_id FROM current_usage_hours WHERE hour_at = %s AND job_id IS NOT NULL"
    assert fleet.rows(paying, HOUR_AT) == [(fleet.tenant_id,)]


def seal(fleet: SmallFleet, segments: Segments, *numbers: int) -> None:
    sealer = Sealer(fleet.database, segments)
    for number in numbers:
        sealer.seal(hour_of(fleet.site_id, HOUR_AT + number * HOUR))


def test_an_hour_that_was_closed_of_hot_rows_is_computed_once_of_its_files_when_it_and_its_neighbours_have_them(
    fleet: SmallFleet, segments: Segments
) -> None:
    closer = HourCloser(fleet.database, SETTINGS, segments)
    closer.run(LATER)
    seal(fleet, segments, 0)
    assert closer.run(LATER).unchanged == 0  # what lies before and after it is still hot

    seal(fleet, segments, -1, 1)
    done = closer.run(LATER)

    assert (done.unchanged, done.restated, done.failed) == (1, 0, 0)
    assert fleet.rows(RUNS, HOUR_AT) == [("close", 1, 0, 0), ("attest", 1, 1, 1)]
    reason = "SELECT reason FROM ledger_runs WHERE kind = 'attest'"
    assert fleet.rows(reason) == [("sealed samples",)]
    assert closer.run(LATER).unchanged == 0
    assert fleet.rows("SELECT count(*) FROM findings WHERE kind = 'attest_differs'") == [(0,)]


def test_an_hour_that_its_files_close_otherwise_is_restated_with_a_finding(
    fleet: SmallFleet, segments: Segments
) -> None:
    closer = HourCloser(fleet.database, SETTINGS, segments)
    closer.run(LATER)
    # What no door does: a reading moves, and no change tells of it.
    fleet.rows(
        "UPDATE device_samples SET energy_mj = energy_mj + 5000 WHERE at = %s RETURNING 1",
        HOUR_AT + timedelta(minutes=50),
    )
    seal(fleet, segments, -1, 0, 1)

    done = closer.run(LATER)

    assert (done.restated, done.failed) == (1, 0)
    assert fleet.rows("SELECT withdrawn_at FROM findings WHERE kind = 'attest_differs'") == [(None,)]
    assert closer.run(LATER).restated == 0


def test_an_hour_without_samples_is_looked_at_once_too(fleet: SmallFleet, segments: Segments) -> None:
    fleet.rows("DELETE FROM device_samples RETURNING 1")
    closer = HourCloser(fleet.database, SETTINGS, segments)
    closer.run(LATER)
    seal(fleet, segments, -1, 0, 1)
    assert closer.run(LATER).unchanged == 1
    assert closer.run(LATER).unchanged == 0
