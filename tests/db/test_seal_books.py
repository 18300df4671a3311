"""The books over sealed hours: the same bytes as over hot rows, with late rows, and after the hot rows are gone."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from analytics.inputs import Window
from analytics.io.load import load_batch
from analytics.io.manifest import readings_sha256
from analytics.io.references import Known
from analytics.jobs import HourCloser, WorkerSettings
from analytics.pipeline import close_hours, content_hash
from collector.wire import Stream
from ingest.store.engine import Database
from ingest.store.sample_tables import TARGETS
from ingest.store.seal import Sealer, hour_of
from ingest.store.seal_days import drop_hot_days
from ingest.store.segments import Segments
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db
SETTINGS = WorkerSettings(code_version="test")
LATER = HOUR_AT + timedelta(days=1, hours=3)
DAY_AT = HOUR_AT.replace(hour=0)


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    """Three hours of a device with a silence of 40 minutes across an hour's edge, a job, and a node with only a meter."""
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + timedelta(minutes=50))
    fleet.samples(HOUR_AT + timedelta(minutes=90), HOUR_AT + 3 * HOUR, start_mj=540_000_000)
    fleet.job("7", HOUR_AT + timedelta(minutes=20), HOUR_AT + timedelta(minutes=100))
    with fleet.admin() as connection:
        connection.execute("INSERT INTO nodes (site_id, name) VALUES (%s, 'n2')", [fleet.site_id])
        connection.execute("INSERT INTO devices (uuid, vendor, model, kind) VALUES ('node:n2', 'x', 'H100', 'node')")
        connection.execute(
            "INSERT INTO placements (device_id, node_id, valid_from) SELECT devices.id, nodes.id, %s "
            "FROM devices, nodes WHERE devices.uuid = 'node:n2' AND nodes.name = 'n2'",
            [HOUR_AT],
        )
        connection.execute(
            "INSERT INTO meters (node_id, name, bills) SELECT id, 'ac', true FROM nodes WHERE name = 'n2'"
        )
        connection.execute(
            "INSERT INTO epochs (node_id, boot_id, driver_epoch, feed, origin, cadence_us, agent_version) "
            "SELECT id, 'import', 0, 4, 2, 60000000, 'import' FROM nodes WHERE name = 'n2'"
        )
        connection.execute(
            "INSERT INTO node_samples (at, meter_id, epoch_id, span_us, power_mw) "
            "SELECT %s + n * interval '1 minute', meters.id, epochs.id, 0, 2000000 + n "
            "FROM generate_series(0, 180) AS n, meters, epochs WHERE epochs.boot_id = 'import'",
            [HOUR_AT],
        )
        fleet.changed("node_samples", HOUR_AT, HOUR_AT + 3 * HOUR, connection)
    return fleet


def seal_day(fleet: SmallFleet, segments: Segments) -> None:
    sealer = Sealer(fleet.database, segments)
    for number in range(24):
        sealer.seal(hour_of(fleet.site_id, DAY_AT + number * HOUR))


def drop_day(fleet: SmallFleet, segments: Segments) -> None:
    engine = fleet.database.create_engine("worker")
    assert drop_hot_days(engine, segments, (DAY_AT + timedelta(days=1)).date()).partitions
    engine.dispose()


def books(fleet: SmallFleet, segments: Segments | None, as_of: Known | None = None) -> tuple[object, ...]:
    window = Window(HOUR_AT, HOUR_AT + 3 * HOUR, LATER)
    with fleet.database.connect("worker") as connection:
        loaded = load_batch(
            fleet.database, connection, fleet.site_id, window, SETTINGS.policy, "USD", as_of=as_of, segments=segments
        )
    result = close_hours(loaded.inputs, SETTINGS.policy)
    ground = (readings_sha256(loaded.inputs), loaded.read.frames)
    return (ground, *(content_hash(frame) for frame in (result.usage, result.lines, result.findings)))


def test_sealed_and_dropped_hours_give_the_books_they_gave_when_hot(fleet: SmallFleet, tmp_path: Path) -> None:
    segments = Segments.at(tmp_path)
    HourCloser(fleet.database, SETTINGS, segments).run(LATER)
    of_hours = "SELECT hour_at, content_sha256 FROM ledger_hours ORDER BY 1"
    closed, hot = fleet.rows(of_hours), books(fleet, segments)
    assert len(closed) == 4  # the last reading lies right on 11:00

    seal_day(fleet, segments)
    assert books(fleet, segments) == hot
    drop_day(fleet, segments)
    assert books(fleet, segments) == hot

    with fleet.admin() as connection:
        fleet.changed("allocations", HOUR_AT, HOUR_AT + 3 * HOUR, connection)
    done = HourCloser(fleet.database, SETTINGS, segments).run(LATER)
    assert (done.unchanged, done.restated, done.failed) == (4, 0, 0)
    assert fleet.rows(of_hours) == closed


def test_a_late_row_of_a_dropped_day_restates_its_hour_from_the_segment(fleet: SmallFleet, tmp_path: Path) -> None:
    segments = Segments.at(tmp_path)
    closer = HourCloser(fleet.database, SETTINGS, segments)
    closer.run(LATER)
    seal_day(fleet, segments)
    drop_day(fleet, segments)
    at = HOUR_AT + timedelta(minutes=70)
    with fleet.admin() as connection:  # in the silence; 8:50 to 9:30 has 300 to 540 kJ, 9:10 would be 420
        connection.execute(
            "INSERT INTO late_samples (at, device_id, epoch_id, reading, span_us, samples, samples_missed, energy_mj) "
            "VALUES (%s, %s, %s, 0, 0, 1, 0, 400000000)",
            (at, fleet.device_id, fleet.epoch_id),
        )
        fleet.changed("device_samples", at, at + timedelta(microseconds=1), connection)

    done = closer.run(LATER)

    assert (done.restated, done.failed) == (2, 0)
    # From 8:00 to 8:50 300 kJ, to 9:00 half of 100 kJ; the rest of 720 kJ follows until 10:00.
    energy = (
        "SELECT sum(energy_mj)::bigint FROM current_usage_hours WHERE device_id = %s GROUP BY hour_at ORDER BY hour_at"
    )
    assert fleet.rows(energy, fleet.device_id)[:3] == [(350_000_000,), (370_000_000,), (360_000_000,)]
    before = books(fleet, segments)
    Sealer(fleet.database, segments).merge(hour_of(fleet.site_id, at))
    assert books(fleet, segments) == before
    runs = "SELECT generation FROM ledger_runs WHERE hour_at = %s ORDER BY id"
    assert fleet.rows(runs, HOUR_AT) == [(0,), (1,)]


def test_readings_of_a_sealed_hour_that_come_again_move_nothing_in_its_books(fleet: SmallFleet, tmp_path: Path) -> None:
    segments = Segments.at(tmp_path)
    closer = HourCloser(fleet.database, SETTINGS, segments)
    closer.run(LATER)
    of_hours = "SELECT hour_at, revision, content_sha256 FROM ledger_hours ORDER BY 1"
    closed, sums = fleet.rows(of_hours), books(fleet, segments)[1:]
    seal_day(fleet, segments)
    rows = fleet.rows("SELECT sum(rows)::bigint FROM hour_segments WHERE retired_at IS NULL AND hour_at = %s", HOUR_AT)
    # The whole hour once more, as an import of the same readings by another file does.
    with fleet.admin() as connection:
        names = ", ".join(TARGETS[Stream.DEVICE].schema)
        connection.execute(
            f"INSERT INTO late_samples ({names}) SELECT {names} FROM device_samples WHERE at >= %s AND at < %s".encode(),
            [HOUR_AT, HOUR_AT + HOUR],
        )
        fleet.changed("device_samples", HOUR_AT, HOUR_AT + HOUR, connection)

    closer.run(LATER)  # they wait beside the segment: the close drops the second of each

    assert fleet.rows(of_hours) == closed
    assert books(fleet, segments)[1:] == sums
    Sealer(fleet.database, segments).merge(hour_of(fleet.site_id, HOUR_AT))
    assert books(fleet, segments)[1:] == sums
    after = fleet.rows("SELECT sum(rows)::bigint FROM hour_segments WHERE retired_at IS NULL AND hour_at = %s", HOUR_AT)
    assert after == rows  # and the merge keeps one
