"""NVML and dcgm-exporter on one node: two instruments, one bill."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from analytics.jobs import HourCloser, WorkerSettings
from collector.wire import Feed
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db


def through_dcgm(fleet: SmallFleet) -> SmallFleet:
    """The same device, as an agent that reads dcgm-exporter sends it."""
    with fleet.admin() as connection:
        row = connection.execute(
            "INSERT INTO epochs (node_id, boot_id, driver_epoch, feed, origin, cadence_us, agent_version) "
            "VALUES (%s, 'b1', 0, %s, 1, 10000000, 'test') RETURNING id",
            (fleet.node_id, int(Feed.DCGM)),
        ).fetchone()
    assert row is not None
    return replace(fleet, epoch_id=row[0])


def test_a_device_with_both_feeds_is_billed_by_nvml_once_and_by_dcgm_where_nvml_is_silent(db: Database) -> None:
    fleet = small_fleet(db)
    # NVML: 100 W until 09:00 and nothing after. DCGM: 30 s rows all the while, its counter 3 % off, from 5 kJ on.
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    through_dcgm(fleet).samples(HOUR_AT, HOUR_AT + 2 * HOUR, power_w=103, start_mj=5_000_000, step_s=30)
    fleet.job("7", HOUR_AT, HOUR_AT + 2 * HOUR)

    HourCloser(db, WorkerSettings(code_version="test")).run(HOUR_AT + timedelta(hours=4))

    usage = fleet.rows(
        "SELECT hour_at, feed, energy_mj, held_us FROM current_usage_hours WHERE energy_mj > 0 ORDER BY 1"
    )
    hour_us = 3_600_000_000
    assert usage == [
        (HOUR_AT, int(Feed.NATIVE), 360_000_000, hour_us),  # 100 W x 3600 s
        (HOUR_AT + HOUR, int(Feed.DCGM), 370_800_000, hour_us),  # 103 W x 3600 s
    ]
