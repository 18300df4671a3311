"""What comes to hours of a closed month, from whatever side: nothing moves there, what is owed is posted once, and the worker comes to rest."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from analytics.closing import hours
from analytics.io.periods import close_month
from analytics.jobs import HourCloser, Round, WorkerSettings
from analytics.model.month import month
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db
NOVEMBER = month("2026-11")
LATER = datetime(2026, 12, 2, tzinfo=UTC)
SETTINGS = WorkerSettings(code_version="test", hours_per_pass=4)
STANDING = (
    "SELECT hour_at, revision, shadow_revision, status, frozen_period_id IS NOT NULL FROM ledger_hours ORDER BY 1"
)
OWED = "SELECT coalesce(sum(billed_cost), 0) FROM ledger_corrections"


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    """One job from 8:00 to 9:00 at 100 W, and the hour after it until its last reading: 2 x (2 USD + 0.1 kWh at 0.20)."""
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + 2 * HOUR)
    fleet.job("7", HOUR_AT, HOUR_AT + HOUR)
    return fleet


def worked(fleet: SmallFleet, now: datetime = LATER) -> Round:
    return HourCloser(fleet.database, SETTINGS).run(now)


def freeze(fleet: SmallFleet, now: datetime = LATER) -> None:
    with fleet.database.connect("owner", autocommit=True) as connection:
        accepted = ["coverage", "mapped"]
        close_month(connection, NOVEMBER, None, now=now, lateness=timedelta(minutes=15), by="ada", accepted=accepted)


def test_an_hour_of_a_closed_month_that_still_waits_for_a_slow_feed_shows_no_figures_meanwhile(
    fleet: SmallFleet,
) -> None:
    soon = datetime(2026, 12, 1, 0, 16, tzinfo=UTC)
    worked(fleet, soon)
    freeze(fleet, soon)
    ((before,),) = fleet.rows("SELECT sum(billed_cost) FROM current_ledger_lines")
    fleet.rows("UPDATE epochs SET cadence_us = 600000000 RETURNING 1")
    last = datetime(2026, 11, 30, 23, tzinfo=UTC)
    fleet.samples(last, last + timedelta(minutes=50), step_s=600, start_mj=5_000_000_000)
    in_november = "SELECT sum(billed_cost) FROM current_ledger_lines WHERE hour_at < '2026-12-01Z'"
    for minutes in (1, 300):
        worked(fleet, soon + timedelta(minutes=minutes))
        assert fleet.rows(in_november) == [(before,)]
    assert fleet.rows(STANDING)[-1] == (last, 0, 1, "closed", True)
    ((owed,),) = fleet.rows(OWED)
    assert owed > Decimal(2)  # an hour of the board, and what it drew


def test_a_second_price_is_rated_upon_what_the_first_one_owes_and_reads_no_sample(
    fleet: SmallFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked(fleet)
    freeze(fleet)
    monkeypatch.setattr(hours, "begin_batch", None)
    # 0.1 kWh in each of the two hours: at 0.51 instead of 0.20 that is 0.031 more each, at 0.70 0.050.
    for amount, owed in (("0.51", "0.062"), ("0.70", "0.100")):
        fleet.tariff_was(amount)
        done = worked(fleet)
        assert (done.rated, done.failed) == (2, 0)
        assert fleet.rows(OWED) == [(Decimal(owed),)]
    assert fleet.rows(STANDING)[0] == (HOUR_AT, 1, 3, "closed", True)


def test_a_frozen_hour_whose_samples_are_past_retention_is_told_of_once_and_left(fleet: SmallFleet) -> None:
    worked(fleet)
    freeze(fleet)
    fleet.tariff_was("0.51")
    worked(fleet)
    fleet.rows(
        "INSERT INTO hour_catalog (site_id, hour_at, state, generation, expired_at) SELECT %s, hour_at, 'sealed', 1, now() "
        "FROM generate_series(%s::timestamptz, %s::timestamptz, interval '1 hour') AS hour_at RETURNING 1",
        fleet.site_id,
        HOUR_AT - 3 * HOUR,
        HOUR_AT + 5 * HOUR,
    )
    with fleet.admin() as connection:
        fleet.changed("device_samples", HOUR_AT, HOUR_AT + 2 * HOUR, connection)
    first, second = worked(fleet), worked(fleet)
    assert (first.failed, first.refused > 0) == (0, True)
    assert (second.failed, second.refused) == (0, 0)


def test_a_silence_that_ends_in_a_frozen_month_is_told_once_and_the_worker_comes_to_rest(fleet: SmallFleet) -> None:
    worked(fleet)
    freeze(fleet)
    noon = HOUR_AT + 13 * HOUR
    fleet.samples(noon, noon + timedelta(minutes=30), start_mj=30_000_000_000)
    rounds = [worked(fleet) for _ in range(5)]
    assert rounds[-1] == Round()
    assert fleet.rows("SELECT count(*) FROM changes") == [(0,)]
