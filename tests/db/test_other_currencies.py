"""A price or tariff in another currency stops no hour: its lines are unpriced, and everybody who asks why is told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

import pytest

from analytics.io.checklist import Verdict
from analytics.io.health import ledger_facts
from analytics.io.periods import look
from analytics.io.verify_period import verify
from analytics.jobs import HourCloser, WorkerSettings
from analytics.model.month import month
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db
NOVEMBER: Final = month("2026-11")
LATER: Final = datetime(2026, 12, 2, tzinfo=UTC)
COSTS: Final = """
SELECT charge_category, sum(billed_cost), count(coalesce(price_id, tariff_id)) > 0 FROM current_ledger_lines WHERE pool = 'job' GROUP BY 1 ORDER BY 1
"""


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    """A job's hour at 100 W; the board's own price is told in EUR."""
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + HOUR - timedelta(seconds=10))
    fleet.job("7", HOUR_AT, HOUR_AT + HOUR)
    fleet.rows("UPDATE prices SET currency = 'EUR' RETURNING 1")
    HourCloser(fleet.database, WorkerSettings(code_version="test")).run(LATER)
    return fleet


def test_the_hour_closes_and_what_has_no_rate_of_exchange_is_unpriced(fleet: SmallFleet) -> None:
    # 100 W until 8:59:50 are 359,000 J: 0.20 x 359 / 3,600. Only the price of the board is missing.
    assert fleet.rows(COSTS) == [("electricity", Decimal("0.019944444"), True), ("gpu_owned", None, True)]
    assert fleet.rows("SELECT status FROM ledger_hours") == [("closed",)]


def test_the_checklist_and_the_doctor_say_in_which_currency_it_is(fleet: SmallFleet) -> None:
    with fleet.database.connect("owner", autocommit=True) as owner:
        items = {each.name: each for each in look(owner, NOVEMBER, None, now=LATER, lateness=timedelta(minutes=15))}
    assert items["prices"].verdict is Verdict.STOP
    assert items["prices"].said == "without a price: 1 line: H100; of 1 line it is in EUR, and the books are not"
    assert items["prices"].figures["currencies"] == ["EUR"]
    with fleet.database.connect("worker") as worker:
        assert ledger_facts(worker, HOUR_AT + HOUR, HOUR).other_currencies == ("EUR",)


def test_the_books_verify_and_are_priced_once_the_price_is_told_in_their_currency(fleet: SmallFleet) -> None:
    with fleet.database.connect("worker", autocommit=True) as worker:
        assert verify(worker, from_at=NOVEMBER.from_at, to_at=LATER).problems == ()
    fleet.rows("UPDATE prices SET superseded_at = now() RETURNING 1")
    fleet.rows(
        "INSERT INTO prices (provider, model, meter, amount, unit, currency, source, valid_from) "
        "VALUES ('owned', 'H100', 'accelerator_hour', 2.2, 'hour', 'USD', 'test', '2026-10-01Z') RETURNING 1"
    )
    with fleet.admin() as admin:
        fleet.changed("prices", HOUR_AT, HOUR_AT + HOUR, admin)
    HourCloser(fleet.database, WorkerSettings(code_version="test")).run(LATER)
    assert fleet.rows(COSTS)[1] == ("gpu_owned", Decimal("2.200000000"), True)
    with fleet.database.connect("worker", autocommit=True) as worker:
        assert verify(worker, from_at=NOVEMBER.from_at, to_at=LATER).problems == ()
