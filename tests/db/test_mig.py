"""MIG instances are shares of their board: what is metered and priced is the board, and its parts add up to it exactly."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from analytics.jobs import HourCloser, WorkerSettings
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db
SEVENTH = Decimal("0.142857")
BOARD_MJ = 360_000_000
"""100 W for an hour."""


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + HOUR + timedelta(minutes=5))
    return fleet


def instance(fleet: SmallFleet, number: int, slice_ratio: Decimal = SEVENTH) -> int:
    """Insert a MIG instance of the board with readings of its own, which no counter is among."""
    with fleet.admin() as connection:
        row: tuple[Any, ...] | None = connection.execute(
            "INSERT INTO devices (uuid, vendor, model, kind, parent_device_id, mig_profile, slice_ratio) "
            "VALUES (%s, 'nvidia', 'H100', 'mig', %s, '1g.10gb', %s) RETURNING id",
            (f"MIG-{number}", fleet.device_id, slice_ratio),
        ).fetchone()
        assert row is not None
        connection.execute(
            "INSERT INTO placements (device_id, node_id, valid_from) VALUES (%s, %s, %s)",
            (row[0], fleet.node_id, HOUR_AT),
        )
        connection.execute(
            "INSERT INTO device_samples (at, device_id, epoch_id, reading, span_us, samples, samples_missed, memory_used_bytes) "
            "SELECT %s + n * interval '10 s', %s, %s, 0, 10000000, 10, 0, 1 FROM generate_series(0, 390) AS n",
            (HOUR_AT, row[0], fleet.epoch_id),
        )
    return int(row[0])


def job(
    fleet: SmallFleet,
    native_id: str,
    held: dict[str, Any],
    *,
    start_at: timedelta = timedelta(0),
    end_at: timedelta = HOUR,
) -> None:
    target = {"share_ratio": None, "device_id": None, "node_id": None, "accelerators": 1} | held
    with fleet.admin() as connection:
        connection.execute(
            "WITH job AS (INSERT INTO jobs (site_id, cluster, native_id, started_at, ended_at, account, origin, source) "
            "VALUES (%(site)s, 'c1', %(native_id)s, %(start_at)s, %(end_at)s, 'nlp', 1, 'agent') RETURNING id) "
            "INSERT INTO allocations (job_id, site_id, device_id, node_id, share_ratio, accelerators, start_at, end_at, evidence) "
            "SELECT id, %(site)s, %(device_id)s, %(node_id)s, %(share_ratio)s, %(accelerators)s, %(start_at)s, %(end_at)s, 'cgroup' "
            "FROM job",
            target
            | {
                "site": fleet.site_id,
                "native_id": native_id,
                "start_at": HOUR_AT + start_at,
                "end_at": HOUR_AT + end_at,
            },
        )


def closed(fleet: SmallFleet) -> dict[str, tuple[int, int]]:
    """Close the hour; return energy in mJ and held time in us by job, after asking that only the board has any."""
    HourCloser(fleet.database, WorkerSettings(code_version="t")).run(HOUR_AT + 3 * HOUR)
    rows = fleet.rows(
        "SELECT usage.device_id, coalesce(jobs.native_id, usage.holder), usage.energy_mj, usage.held_us "
        "FROM current_usage_hours AS usage LEFT JOIN jobs ON jobs.id = usage.job_id WHERE hour_at = %s",
        HOUR_AT,
    )
    assert {row[0] for row in rows} == {fleet.device_id}
    assert sum(row[2] for row in rows) == BOARD_MJ
    assert sum(row[3] for row in rows) == 3_600_000_000
    cost = fleet.rows(
        "SELECT sum(effective_cost) FROM current_ledger_lines WHERE hour_at = %s AND charge_category = 'gpu_owned'",
        HOUR_AT,
    )
    assert cost == [(Decimal("2.000000000"),)]
    return {row[1]: (row[2], row[3]) for row in rows}


def test_seven_jobs_on_seven_instances_share_the_board_and_add_up_to_it(fleet: SmallFleet) -> None:
    for number in range(7):
        job(fleet, str(number), {"device_id": instance(fleet, number)})
    rows = closed(fleet)
    # A slice is kept as 0.142857 and means a seventh: 51,428,571.43 mJ and 514,285,714.29 us, and nothing is idle.
    assert rows == {str(n): (51_428_571 + (n < 3), 514_285_714 + (n < 2)) for n in range(7)}


def test_an_instance_that_nobody_holds_is_idle_time_of_the_board(fleet: SmallFleet) -> None:
    held, _ = instance(fleet, 0, Decimal("0.5")), instance(fleet, 1, Decimal("0.5"))
    job(fleet, "7", {"device_id": held}, end_at=timedelta(minutes=30))
    assert closed(fleet) == {"7": (90_000_000, 900_000_000), "idle": (270_000_000, 2_700_000_000)}


def test_jobs_that_share_an_instance_hold_their_shares_of_its_slice(fleet: SmallFleet) -> None:
    whole = instance(fleet, 0, Decimal("0.5"))
    job(fleet, "7", {"device_id": whole, "share_ratio": Decimal("0.25")})
    job(fleet, "8", {"device_id": whole, "share_ratio": Decimal("0.75")})
    rows = closed(fleet)
    assert {name: energy_mj for name, (energy_mj, _) in rows.items()} == {
        "7": 45_000_000,
        "8": 135_000_000,
        "idle": 180_000_000,
    }


def test_one_job_on_two_instances_holds_both_slices(fleet: SmallFleet) -> None:
    first, second = instance(fleet, 0, Decimal("0.25")), instance(fleet, 1, Decimal("0.25"))
    job(fleet, "7", {"device_id": first})
    with fleet.admin() as connection:
        connection.execute(
            "INSERT INTO allocations (job_id, site_id, device_id, start_at, end_at, evidence) "
            "SELECT job_id, site_id, %s, start_at, end_at, evidence FROM allocations",
            (second,),
        )
    assert closed(fleet)["7"] == (180_000_000, 1_800_000_000)


def test_a_count_of_a_node_counts_the_instances_of_a_board_that_is_cut_up(fleet: SmallFleet) -> None:
    for number in range(4):
        instance(fleet, number, Decimal("0.25"))
    job(fleet, "7", {"node_id": fleet.node_id, "accelerators": 1})
    assert closed(fleet)["7"] == (90_000_000, 900_000_000)
