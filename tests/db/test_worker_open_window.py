"""The open window: priced at every round while its hour is at hand, then left alone until something changes or it closes."""

from __future__ import annotations

from datetime import timedelta

import pytest

from analytics.jobs import HourCloser, Round, WorkerSettings
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db

MINUTE = timedelta(minutes=1)
NOTHING = Round()


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    return small_fleet(db)


@pytest.fixture
def closer(fleet: SmallFleet) -> HourCloser:
    return HourCloser(fleet.database, WorkerSettings(code_version="test"))


def test_time_passes_in_the_hour_at_hand_also_where_nothing_is_sent(fleet: SmallFleet, closer: HourCloser) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + 10 * MINUTE)
    held = "SELECT sum(held_us) FROM current_usage_hours WHERE hour_at = %s"

    for minutes in (10, 20, 60):
        assert closer.run(HOUR_AT + minutes * MINUTE) == Round(provisional=1)
        assert fleet.rows(held, HOUR_AT) == [(minutes * 60_000_000,)]


def test_an_hour_that_waits_for_its_close_is_looked_at_only_when_something_changes(
    fleet: SmallFleet, closer: HourCloser
) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + 50 * MINUTE)
    assert closer.run(HOUR_AT + HOUR) == Round(provisional=1)
    assert closer.run(HOUR_AT + HOUR + 2 * MINUTE) == NOTHING

    fleet.samples(HOUR_AT + 51 * MINUTE, HOUR_AT + 55 * MINUTE, start_mj=51 * 60 * 100_000)
    assert closer.run(HOUR_AT + HOUR + 3 * MINUTE) == Round(provisional=1)
    assert closer.run(HOUR_AT + HOUR + 4 * MINUTE) == NOTHING

    assert closer.run(HOUR_AT + HOUR + 15 * MINUTE) == Round(closed=1)


def test_the_open_window_has_one_run_however_often_it_was_priced_and_none_once_it_is_closed(
    fleet: SmallFleet, closer: HourCloser
) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + 50 * MINUTE)
    runs = "SELECT revision, reason FROM ledger_runs ORDER BY id"

    for minutes in (10, 20, 30):
        closer.run(HOUR_AT + minutes * MINUTE)
    assert fleet.rows(runs) == [(0, "open window")]

    closer.run(HOUR_AT + 2 * HOUR)
    assert fleet.rows(runs) == [(1, "first close")]


def test_a_run_says_what_it_could_not_know_by_reason(fleet: SmallFleet, closer: HourCloser) -> None:
    # Read up to 08:20 and again from 08:30 on, where the counter began anew, until 08:50.
    fleet.samples(HOUR_AT, HOUR_AT + 20 * MINUTE, start_mj=10**9)
    fleet.samples(HOUR_AT + 30 * MINUTE, HOUR_AT + 50 * MINUTE)

    closer.run(HOUR_AT + 2 * HOUR)

    ((quality,),) = fleet.rows("SELECT quality FROM ledger_runs WHERE hour_at = %s", HOUR_AT)
    ten_min_us = 600_000_000
    assert quality == {
        "counter_reset": {"devices": 1, "readings": 0, "time_us": ten_min_us},
        "no_data": {"devices": 1, "readings": 0, "time_us": ten_min_us},
    }
