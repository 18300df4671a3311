"""A device's past stays what it was: simulated hours say so also when its node reports live data today."""

from __future__ import annotations

from datetime import timedelta

import pytest

from analytics.jobs import HourCloser, WorkerSettings
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, small_fleet

pytestmark = pytest.mark.db

SIMULATED = 4


def test_a_silent_hour_of_a_simulated_past_is_simulated_whatever_the_node_reports_today(db: Database) -> None:
    fleet = small_fleet(db)
    fleet.rows("UPDATE epochs SET origin = %s RETURNING id", SIMULATED)
    fleet.samples(HOUR_AT, HOUR_AT + timedelta(minutes=50))
    fleet.job("7", HOUR_AT + HOUR, HOUR_AT + HOUR + timedelta(minutes=30))  # an hour of which there are no samples
    fleet.rows(
        "INSERT INTO epochs (node_id, boot_id, driver_epoch, feed, origin, cadence_us, agent_version) "
        "VALUES (%s, 'today', 0, 1, 1, 10000000, 'test') RETURNING id",
        fleet.node_id,
    )

    HourCloser(db, WorkerSettings(code_version="test")).run(HOUR_AT + timedelta(hours=3))

    silent = "SELECT holder <> 'idle', covered_us, origin FROM current_usage_hours WHERE hour_at = %s ORDER BY 1"
    assert fleet.rows(silent, HOUR_AT + HOUR) == [(False, 0, SIMULATED), (True, 0, SIMULATED)]
