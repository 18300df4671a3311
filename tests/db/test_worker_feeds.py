"""Books of a device that two feeds tell of, against an independent query over all that they told."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from analytics.jobs import HourCloser, WorkerSettings
from ingest.store.engine import Database
from tests.db.independent_energy import INDEPENDENT
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)


def _epoch(fleet: SmallFleet, feed: int, boot: str, load: int) -> SmallFleet:
    (row,) = fleet.rows(
        "INSERT INTO epochs (node_id, boot_id, driver_epoch, feed, origin, cadence_us, agent_version) "
        "VALUES (%s, %s, %s, %s, 1, 30000000, 'test') RETURNING id",
        fleet.node_id,
        boot,
        load,
        feed,
    )
    return replace(fleet, epoch_id=int(row[0]))


def test_books_of_two_feeds_equal_an_independent_query_over_the_samples_of_both(db: Database) -> None:
    agent = small_fleet(db)
    dcgm, reloaded = _epoch(agent, 2, "b1", 5), _epoch(agent, 1, "b1", 1)
    # DCGM all the time at 250 W, off the hour, and blind to the reload. The agent at 373 W until 8:20:03; loads its driver while it
    # is silent for 61 s; is there again until 8:40; then from 9:10:01 on, of which only its own counter knows.
    dcgm.samples(HOUR_AT + 7 * SECOND, HOUR_AT + 2 * HOUR, power_w=250, step_s=30, start_mj=10**9)
    agent.samples(HOUR_AT + 3 * SECOND, HOUR_AT + 20 * MINUTE + 3 * SECOND, power_w=373, step_s=11)
    reloaded.samples(HOUR_AT + 21 * MINUTE + 4 * SECOND, HOUR_AT + 40 * MINUTE, power_w=373, step_s=11)
    later = _epoch(agent, 1, "b2", 0)
    later.samples(HOUR_AT + 70 * MINUTE + SECOND, HOUR_AT + 2 * HOUR, power_w=410, step_s=13, start_mj=5_000_000)
    agent.job("7", HOUR_AT + 10 * MINUTE + 3 * SECOND, HOUR_AT + 95 * MINUTE + SECOND)

    HourCloser(db, WorkerSettings(code_version="test")).run(HOUR_AT + 3 * HOUR)

    for hour in (HOUR_AT, HOUR_AT + HOUR):
        with agent.admin() as connection:
            independent = connection.execute(INDEPENDENT, {"hour": hour}).fetchall()
        books = agent.rows(
            "SELECT device_id, sum(energy_mj)::bigint FROM current_usage_hours WHERE hour_at = %s GROUP BY 1", hour
        )
        assert books == independent
        assert books[0][1] > 0
    # From the last reading of 8:39 to 9:10:01 the counter began anew somewhere: nobody's, whatever DCGM made of it. Then 230 steps of
    # 13 s at 410 W; the last 9 s no feed has a reading after.
    assert books[0][1] == 2_990 * 410_000
