"""Columns of a bill add up to its cost, whatever categories the books have."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from analytics.frames import CARRIERS, CATEGORIES, COSTED, COSTLESS, USED
from analytics.io.statement_formats import as_csv, as_dict
from analytics.io.statements import Bill, BillRow, Figures, GroupBy, _figures
from dashboard.charts import CATEGORY_NAMES

pytestmark = pytest.mark.unit


def bill_of(*costs: dict[str, str]) -> Bill:
    figures = [Figures({name: Decimal(cost) for name, cost in each.items()}) for each in costs]
    rows = tuple(BillRow(f"t{place}", f"t{place}", each) for place, each in enumerate(figures))
    at = datetime(2026, 10, 1, tzinfo=UTC)
    total = sum(figures, Figures())
    return Bill(at, at, GroupBy.TENANT, "USD", rows, (), total, None, "closed", 1, None)


def columns_of(bill: Bill) -> list[tuple[Decimal, Decimal]]:
    """Return of each row its cost and the sum of its columns by category."""
    known = set(bill.total.cost_by_category) | set(COSTED)
    return [
        (Decimal(row["cost"]), sum((Decimal(row[f"cost_{name}"]) for name in known), Decimal(0)))
        for row in csv.DictReader(io.StringIO(as_csv(bill)))
    ]


def test_the_columns_of_a_bill_add_up_to_its_cost_over_all_categories() -> None:
    # 1, 2, 4, ...: no sum of some of them is the sum of others.
    made = bill_of({name: str(2**place) for place, name in enumerate(CATEGORIES)}, {"electricity": "-0.200000000"})
    assert columns_of(made) == [(Decimal(2 ** len(CATEGORIES) - 1),) * 2, (Decimal("-0.2"),) * 2]
    assert as_dict(made)["total"]["cost"] == str(Decimal(2 ** len(CATEGORIES) - 1) - Decimal("0.2"))


def test_a_category_this_version_does_not_know_is_a_column_of_its_own() -> None:
    assert columns_of(bill_of({"gpu_owned": "1"}, {"demand": "6.451612903"})) == [
        (Decimal(1), Decimal(1)),
        (Decimal("6.451612903"), Decimal("6.451612903")),
    ]


def test_a_carrier_that_costs_what_its_electricity_does_is_no_column_until_somebody_prices_it() -> None:
    def cost(category: str, amount: str | None) -> dict[str, Decimal]:
        made = {"charge_category": category, "cost": None if amount is None else Decimal(amount)}
        return dict(_figures(made).cost_by_category)

    for category in COSTLESS:
        assert (cost(category, None), cost(category, "0")) == ({}, {})
        assert cost(category, "1.5") == {category: Decimal("1.5")}
    assert cost("electricity", "0") == {"electricity": Decimal(0)}


def test_the_words_say_once_which_categories_there_are() -> None:
    assert set(COSTED) | set(COSTLESS) == set(CATEGORIES)
    assert len(set(CATEGORIES)) == len(CATEGORIES)
    assert set(COSTLESS) < set(CARRIERS) < set(CATEGORIES) > set(USED)
    assert COSTED[:4] == ("gpu_owned", "electricity", "api_tokens", "idle_spread")  # as the columns of bills stand
    assert set(CATEGORY_NAMES) <= set(CATEGORIES)  # the dashboard imports nothing of ours
