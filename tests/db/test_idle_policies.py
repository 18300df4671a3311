"""Who carries idle accelerators is a dated policy of the site: its lines show on bills, and no budget's own spend counts them."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from analytics.closing import hours
from analytics.io.spend import load_spend
from analytics.io.statements import bill
from analytics.jobs import HourCloser, WorkerSettings
from analytics.model.budget import Budget, Measure
from analytics.model.period import Period
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db
NINE = HOUR_AT + HOUR
LATER = HOUR_AT + 6 * HOUR
NLP = "acme/research/nlp"
SPREAD = (
    "SELECT hour_at, path, billed_cost FROM current_ledger_lines LEFT JOIN tenants ON tenants.id = tenant_id "
    "WHERE charge_category = 'idle_spread' AND hour_at < '2026-11-01 10:00Z' ORDER BY hour_at, path"
)
COSTS = "SELECT sum(billed_cost) FROM current_ledger_lines GROUP BY hour_at ORDER BY hour_at"


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    """One board at 2 USD an hour and 100 W at 0.20 USD: held for half of an hour, idle for the rest of two. Closed."""
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + 2 * HOUR)
    fleet.job("7", HOUR_AT, HOUR_AT + timedelta(minutes=30))
    closer(fleet).run(LATER)
    return fleet


def closer(fleet: SmallFleet) -> HourCloser:
    return HourCloser(fleet.database, WorkerSettings(code_version="test"))


def test_spread_idle_is_on_the_bill_and_in_no_budgets_own_spend(
    fleet: SmallFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fleet.rows(COSTS)
    monkeypatch.setattr(hours, "begin_batch", _no_readings)
    policy(fleet, "proportional", HOUR_AT, basis="time")

    assert closer(fleet).run(LATER).rated == 1

    # Half an hour is 1 USD and 0.01 USD of electricity; at nine nobody used anything.
    assert fleet.rows(SPREAD) == [(HOUR_AT, NLP, Decimal("1.01")), (HOUR_AT, None, Decimal("-1.01"))]
    assert fleet.rows(COSTS) == before
    engine = fleet.database.create_engine("admin")
    with engine.connect() as conn:
        rows = {row.key: row.figures for row in bill(conn, HOUR_AT, NINE).rows}
        assert rows[NLP].cost_by_category == {
            "electricity": Decimal("0.01"),
            "gpu_owned": Decimal(1),
            "idle_spread": Decimal("1.01"),
        }
        assert rows["(platform)/idle"].cost == 0
        for measure, own, other in (
            (Measure.COST, "1.01", "1.01"),
            (Measure.ACCELERATOR_HOURS, "0.5", "0"),
            (Measure.ENERGY_KWH, "0.05", "0"),
        ):
            currency = "USD" if measure is Measure.COST else None
            budget = Budget(1, 1, NLP, "nlp", Period.MONTH, "UTC", measure, Decimal(100), currency, ())
            spend = load_spend(conn, budget, LATER)
            assert (spend.own, spend.other) == (Decimal(own), Decimal(other))
    engine.dispose()


def test_a_policy_counts_from_its_hour_on_and_a_fixed_part_is_carried_whoever_worked(fleet: SmallFleet) -> None:
    policy(fleet, "fixed", HOUR_AT, tenant_id=fleet.tenant_id, fixed_ppm=250_000)
    closer(fleet).run(LATER)
    # 25 % of 1.01, and of 2.02 where nobody used anything.
    assert [row[2] for row in fleet.rows(SPREAD)] == [
        Decimal("0.2525"),
        Decimal("-0.2525"),
        Decimal("0.505"),
        Decimal("-0.505"),
    ]
    policy(fleet, "keep", NINE)
    closer(fleet).run(LATER)
    assert [row[0] for row in fleet.rows(SPREAD)] == [HOUR_AT, HOUR_AT]


def policy(fleet: SmallFleet, name: str, from_at: datetime, **more: Any) -> None:
    row = {"site_id": fleet.site_id, "policy": name, "valid_from": from_at, **more}
    with fleet.admin() as connection:
        connection.execute(
            f"INSERT INTO idle_policies ({', '.join(row)}) VALUES ({', '.join(['%s'] * len(row))})".encode(),
            list(row.values()),
        )
        fleet.changed("idle_policies", from_at, LATER, connection)


def _no_readings(*_: object, **__: object) -> None:
    raise AssertionError("a rating reads no sample")
