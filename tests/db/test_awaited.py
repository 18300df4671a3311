"""An hour of a feed that speaks seldom closes once it was heard of after its end, or may be silent no longer."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from analytics.jobs import HourCloser, WorkerSettings
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db

MINUTE = timedelta(minutes=1)
END = HOUR_AT + HOUR


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    """A row each ten minutes, at 08:05, 08:15, ... 08:55: by three cadences it may be silent for half an hour."""
    fleet = small_fleet(db)
    fleet.rows("UPDATE epochs SET cadence_us = 600000000 RETURNING 1")
    fleet.samples(HOUR_AT + 5 * MINUTE, HOUR_AT + 55 * MINUTE, step_s=600)
    return fleet


def status(fleet: SmallFleet, at: datetime) -> str:
    HourCloser(fleet.database, WorkerSettings(code_version="test")).run(at)
    ((found,),) = fleet.rows("SELECT status FROM ledger_hours WHERE hour_at = %s", HOUR_AT)
    return str(found)


def test_it_waits_for_the_next_reading_and_then_knows_its_last_minutes(fleet: SmallFleet) -> None:
    assert status(fleet, END + 14 * MINUTE) == "provisional"
    assert status(fleet, END + 16 * MINUTE) == "provisional"  # lateness is over
    # The row of 09:05 comes late. 100 W x 55 minutes, from the first reading on, are 330 kJ.
    fleet.samples(END + 5 * MINUTE, END + 5 * MINUTE, start_mj=360_000_000, step_s=600)
    assert status(fleet, END + 17 * MINUTE) == "closed"
    closed = "SELECT revision, sum(energy_mj)::bigint FROM current_usage_hours WHERE hour_at = %s GROUP BY 1"
    assert fleet.rows(closed, HOUR_AT) == [(1, 330_000_000)]


def test_it_waits_no_longer_than_the_feed_may_be_silent(fleet: SmallFleet) -> None:
    assert status(fleet, END + 29 * MINUTE) == "provisional"
    assert status(fleet, END + 31 * MINUTE) == "closed"


def test_it_waits_two_hours_at_most(fleet: SmallFleet) -> None:
    fleet.rows("UPDATE epochs SET cadence_us = 3600000000 RETURNING 1")  # three hours
    assert status(fleet, END + 119 * MINUTE) == "provisional"
    assert status(fleet, END + 121 * MINUTE) == "closed"


def test_a_feed_of_ten_seconds_that_falls_silent_keeps_no_hour_open(db: Database) -> None:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + 50 * MINUTE)
    assert status(fleet, END + 15 * MINUTE) == "closed"


def test_an_hour_that_is_closed_is_not_opened_again_by_one_before_it_that_waits(fleet: SmallFleet) -> None:
    # 09:00 has readings of a node beside, and closed while nothing was known of 08:00.
    fleet.rows("DELETE FROM changes RETURNING 1")
    fleet.rows("UPDATE device_samples SET at = at + interval '1 hour' RETURNING 1")
    with fleet.admin() as connection:
        fleet.changed("device_samples", END, END + HOUR, connection)
    at = END + HOUR + 31 * MINUTE
    closer = HourCloser(fleet.database, WorkerSettings(code_version="test"))
    assert closer.run(at).closed == 1
    fleet.rows("UPDATE epochs SET cadence_us = 3600000000 RETURNING 1")
    fleet.rows("UPDATE device_samples SET at = at - interval '1 hour' WHERE at > %s RETURNING 1", END + 30 * MINUTE)
    with fleet.admin() as connection:
        fleet.changed("device_samples", HOUR_AT, END + HOUR, connection)
    closer.run(at)
    assert fleet.rows("SELECT status FROM ledger_hours WHERE hour_at = %s", END) == [("closed",)]
