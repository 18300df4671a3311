"""Shared boards in the books: what agents saw of processes and MIG instances decides who pays for the work of a board."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from analytics.inputs import Window
from analytics.io.load import Loaded, load_batch
from analytics.io.manifest import RowsDigest
from analytics.jobs import HourCloser, WorkerSettings
from analytics.pipeline import content_hash
from analytics.policy import Policy
from ingest.store.engine import Database
from ingest.store.seal import Sealer, hour_of
from ingest.store.segments import Segments
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db
HALF = HOUR / 2
MINUTE = timedelta(minutes=1)
J = 1_000


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    """A board at 500 W for an hour: 1,800,000 J, of which 360,000 are its floor of 100 W and 1,440,000 its work."""
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT - 10 * MINUTE, HOUR_AT + HOUR + 5 * MINUTE, power_w=500)
    return fleet


def hold(
    fleet: SmallFleet,
    native_id: str,
    device_id: int,
    share: str | None,
    since: timedelta = timedelta(0),
    until: timedelta = HOUR,
) -> None:
    with fleet.admin() as connection:
        connection.execute(
            "WITH job AS (INSERT INTO jobs (site_id, cluster, native_id, started_at, ended_at, account, origin, source) "
            "VALUES (%(site)s, 'c1', %(name)s, %(start)s, %(end)s, 'nlp', 1, 'agent') RETURNING id) "
            "INSERT INTO allocations (job_id, site_id, device_id, share_ratio, start_at, end_at, evidence) "
            "SELECT id, %(site)s, %(device)s, %(share)s, %(start)s, %(end)s, 'cgroup' FROM job",
            {
                "site": fleet.site_id,
                "name": native_id,
                "device": device_id,
                "share": None if share is None else Decimal(share),
                "start": HOUR_AT + since,
                "end": HOUR_AT + until,
            },
        )


def looks(fleet: SmallFleet, native_id: str | None, percent: float, method: str = "process_utilization") -> None:
    """An agent's looks of a job's processes, every 5 s of the hour; it dates the job's start a second late."""
    with fleet.admin() as connection:
        connection.execute(
            "INSERT INTO device_shares (at, device_id, epoch_id, span_us, cluster, native_job_id, job_started_at_us, processes, "
            "sm_util_percent, evidence, method) "
            "SELECT %(at)s + n * interval '5 s', %(device)s, %(epoch)s, 5000000, %(cluster)s, %(name)s, %(started)s, 1, %(percent)s, "
            "'cgroup', %(method)s FROM generate_series(1, 725) AS n",
            {
                "at": HOUR_AT,
                "device": fleet.device_id,
                "epoch": fleet.epoch_id,
                "cluster": None if native_id is None else "c1",
                "name": native_id,
                "started": None if native_id is None else int(HOUR_AT.timestamp() + 1) * 1_000_000,
                "percent": percent,
                "method": method,
            },
        )
        fleet.changed("device_shares", HOUR_AT, HOUR_AT + HOUR, connection)


def close(fleet: SmallFleet) -> None:
    HourCloser(fleet.database, WorkerSettings(code_version="t")).run(HOUR_AT + 3 * HOUR)


def by_job(fleet: SmallFleet) -> dict[str, tuple[Any, ...]]:
    """Energy (J), method and source of the hour by job, or by holder where there is none; they sum to the board's."""
    rows = fleet.rows(
        "SELECT coalesce(jobs.native_id, usage.holder), usage.energy_mj, usage.method, usage.source "
        "FROM current_usage_hours AS usage LEFT JOIN jobs ON jobs.id = usage.job_id WHERE hour_at = %s",
        HOUR_AT,
    )
    assert sum(row[1] for row in rows) == 1_800_000 * J
    return {name: (energy_mj / J, method, source) for name, energy_mj, method, source in rows}


def test_what_two_time_sliced_jobs_were_seen_to_do_ends_in_their_lines(fleet: SmallFleet) -> None:
    """60 % and 20 % of the SM time, half of the floor each: 180,000 + 1,080,000 J and 180,000 + 360,000 J."""
    hold(fleet, "a", fleet.device_id, "0.5")
    hold(fleet, "b", fleet.device_id, "0.5")
    looks(fleet, "a", 60)
    looks(fleet, "b", 20)
    close(fleet)
    assert by_job(fleet) == {
        "a": (1_260_000, "process_utilization", "estimated"),
        "b": (540_000, "process_utilization", "estimated"),
    }
    lines = fleet.rows(
        "SELECT line.energy_mj, line.energy_low_mj < line.energy_mj, line.energy_high_mj > line.energy_mj, line.method "
        "FROM current_ledger_lines AS line WHERE hour_at = %s AND charge_category = 'gpu_owned' ORDER BY energy_mj",
        HOUR_AT,
    )
    assert sum(row[0] for row in lines) == 1_800_000 * J
    assert {row[1:] for row in lines} == {(True, True, "process_utilization")}


@pytest.mark.parametrize("percent", [300_000, -5, 1e30])
def test_a_value_that_no_measurement_can_be_is_not_known_and_the_hour_closes(fleet: SmallFleet, percent: float) -> None:
    """As if nobody had looked at job 2: of what both hold all goes by what was granted."""
    hold(fleet, "1", fleet.device_id, "0.5")
    hold(fleet, "2", fleet.device_id, "0.5")
    looks(fleet, "1", 60)
    looks(fleet, "2", percent)
    close(fleet)
    assert by_job(fleet) == {"1": (900_000, "share", "estimated"), "2": (900_000, "share", "estimated")}


def test_processes_of_no_job_on_a_shared_board_are_nobodys_work(fleet: SmallFleet) -> None:
    """Half of the board is a job's, half nobody's; a stranger works as much as the job does."""
    hold(fleet, "a", fleet.device_id, "0.5")
    looks(fleet, "a", 30)
    looks(fleet, None, 30)
    close(fleet)
    found = {name: energy for name, (energy, *_) in by_job(fleet).items()}
    assert found == {"a": 900_000, "idle": 180_000, "unattributed:no_job": 720_000}


def test_looks_that_come_late_close_the_hour_again(fleet: SmallFleet) -> None:
    hold(fleet, "a", fleet.device_id, "0.5")
    hold(fleet, "b", fleet.device_id, "0.5")
    close(fleet)
    assert {name: energy for name, (energy, *_) in by_job(fleet).items()} == {"a": 900_000, "b": 900_000}
    looks(fleet, "a", 60)
    looks(fleet, "b", 20)
    close(fleet)
    assert {name: energy for name, (energy, *_) in by_job(fleet).items()} == {"a": 1_260_000, "b": 540_000}
    assert fleet.rows("SELECT revision FROM ledger_hours WHERE hour_at = %s", HOUR_AT) == [(2,)]


def test_a_board_that_is_cut_up_anew_within_the_hour_is_its_instances_at_each_time(fleet: SmallFleet) -> None:
    """Until the half hour 3 slices work and 4 rest; then one job has all 7 as one instance. Floor of a half: 180,000 J."""
    ids = {}
    with fleet.admin() as connection:
        for name, slices in (("3g", 3), ("4g", 4), ("7g", 7)):
            row = connection.execute(
                "INSERT INTO devices (uuid, vendor, model, kind, parent_device_id, slice_ratio) "
                "VALUES (%s, 'nvidia', 'H100', 'mig', %s, %s) RETURNING id",
                (f"MIG-{name}", fleet.device_id, Decimal(slices * 10**6 // 7) / 10**6),
            ).fetchone()
            assert row is not None
            ids[name] = row[0]
            connection.execute(
                "INSERT INTO placements (device_id, node_id, valid_from) VALUES (%s, %s, %s)",
                (row[0], fleet.node_id, HOUR_AT),
            )
        for name, active in (("3g", 0.8), ("4g", 0.0)):
            connection.execute(
                "INSERT INTO device_samples (at, device_id, epoch_id, reading, span_us, samples, samples_missed, sm_active_ratio) "
                "SELECT %s + n * interval '10 s', %s, %s, 0, 10000000, 10, 0, %s FROM generate_series(1, 180) AS n",
                (HOUR_AT, ids[name], fleet.epoch_id, active),
            )
    hold(fleet, "a", ids["3g"], None, until=HALF)
    hold(fleet, "b", ids["4g"], None, until=HALF)
    hold(fleet, "c", ids["7g"], None, since=HALF)
    close(fleet)
    found = by_job(fleet)
    # 3/7 and 4/7 of 180,000 J, all of 720,000 J, and the whole board at 500 W for half an hour.
    assert found["a"] == (pytest.approx(77_142.857 + 720_000, abs=0.5), "slice_activity", "estimated")
    assert found["b"] == (pytest.approx(102_857.143, abs=0.5), "slice_activity", "estimated")
    assert found["c"][0] == pytest.approx(900_000, abs=0.5)


def test_looks_read_from_segments_are_those_of_the_tables(fleet: SmallFleet, tmp_path: Path) -> None:
    hold(fleet, "a", fleet.device_id, "0.5")
    hold(fleet, "b", fleet.device_id, "0.5")
    looks(fleet, "a", 60)
    looks(fleet, "b", 20)
    segments = Segments.at(tmp_path)
    hot = _loaded(fleet, segments)
    sealer = Sealer(fleet.database, segments)
    for number in (-1, 0, 1):
        sealer.seal(hour_of(fleet.site_id, HOUR_AT + number * HOUR))
    sealed = _loaded(fleet, segments)
    assert hot.inputs.usage.device_shares.height > 1_440
    assert content_hash(sealed.inputs.usage.device_shares) == content_hash(hot.inputs.usage.device_shares)
    assert "device_shares" in {file.stream for file in sealed.read.files}


def test_looks_are_hashed_the_same_however_many_devices_are_read_together() -> None:
    rows = pl.DataFrame({"device_id": [1, 1, 2, 3], "span_us": [5, None, 7, 8], "method": ["a", "b", "a", "b"]})
    whole, parts, other = RowsDigest(), RowsDigest(), RowsDigest()
    whole.add(rows)
    for ids in ([3], [1, 2]):
        parts.add(rows.filter(pl.col("device_id").is_in(ids)))
    other.add(rows.with_columns(pl.lit("a").alias("method")))
    assert (parts.rows, parts.sha256()) == (4, whole.sha256())
    assert other.sha256() != whole.sha256()


def _loaded(fleet: SmallFleet, segments: Segments) -> Loaded:
    window = Window(HOUR_AT, HOUR_AT + HOUR, HOUR_AT + HOUR)
    with fleet.database.connect("worker") as connection:
        return load_batch(fleet.database, connection, fleet.site_id, window, Policy(), "USD", segments=segments)
