"""What a frozen hour would come to by now, as differences: exact, by who and what, whatever its price."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from analytics.model.corrections import AMOUNTS, WHO, differences
from analytics.model.explain import correction_steps
from tests.unit.test_chain import SCHEMA, line

pytestmark = pytest.mark.unit
MORE = {"job_id": pl.Int64, "line_key": pl.String}


def lines(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame([dict.fromkeys(MORE) | row for row in rows], schema=SCHEMA | MORE)


def moved(before: pl.DataFrame, after: pl.DataFrame) -> list[dict[str, Any]]:
    rows = differences(before, after).to_dicts()
    return [
        {name: row[name] for name in ("holder_key", *AMOUNTS, "source", "origin") if row[name] not in {None, 0}}
        for row in rows
    ]


def test_equal_hours_differ_in_nothing() -> None:
    one = lines(line("a"), line("b", billed_cost=None, energy_mj=None))
    assert differences(one, one).height == 0
    assert differences(lines(), lines()).columns[: len(WHO)] == list(WHO)


def test_another_price_is_one_difference_and_not_two_lines() -> None:
    before = lines(line("a", price_id=7, billed_cost=Decimal("2.000000000"), effective_cost=Decimal("2.000000000")))
    after = lines(line("a", price_id=8, billed_cost=Decimal("2.000000001"), effective_cost=Decimal("2.000000001")))
    less = Decimal("0.000000001")
    told = {"holder_key": "a", "billed_cost": less, "effective_cost": less, "source": "measured", "origin": 1}
    assert moved(before, after) == [told]
    assert moved(after, before) == [told | {"billed_cost": -less, "effective_cost": -less}]


def test_a_line_that_is_new_counts_whole_and_one_that_is_gone_is_taken_back_whole() -> None:
    cost = Decimal("2.000000000")
    whole: dict[str, Any] = {
        "quantity": 3_600_000_000,
        "energy_mj": 360_000_000,
        "billed_cost": cost,
        "effective_cost": cost,
    }
    assert moved(lines(line("a")), lines(line("b"))) == [
        {"holder_key": "a", **{name: -amount for name, amount in whole.items()}, "source": "measured", "origin": 1},
        {"holder_key": "b", **whole, "source": "measured", "origin": 1},
    ]


def test_a_job_given_to_another_tenant_leaves_the_one_and_comes_to_the_other() -> None:
    rows = differences(lines(line("a", tenant_id=1)), lines(line("a", tenant_id=2))).to_dicts()
    assert [(row["tenant_id"], row["billed_cost"]) for row in rows] == [(1, Decimal(-2)), (2, Decimal(2))]


def test_what_was_unpriced_is_posted_at_its_price_and_what_stays_unpriced_stays_null() -> None:
    before = lines(line("a", billed_cost=None, effective_cost=None), line("b", billed_cost=None, effective_cost=None))
    after = lines(line("a"), line("b", billed_cost=None, effective_cost=None, energy_mj=360_000_001))
    priced, unpriced = differences(before, after).to_dicts()
    assert (priced["billed_cost"], priced["energy_mj"]) == (Decimal(2), 0)
    assert (unpriced["billed_cost"], unpriced["energy_mj"]) == (None, 1)


def test_lines_of_two_prices_within_the_hour_are_one_sum() -> None:
    half = line("a", price_id=7, billed_cost=Decimal("0.500000000"))
    other = line("a", price_id=8, billed_cost=Decimal("0.250000000"))
    (row,) = differences(lines(half, other), lines(half | {"billed_cost": Decimal("1.000000000")}, other)).to_dicts()
    assert row["billed_cost"] == Decimal("0.500000000")


def test_of_two_sources_and_origins_the_less_certain_one_is_told() -> None:
    before = lines(line("a", source="estimated", origin=1, coverage=0.5, method="share"))
    after = lines(line("a", source="measured", origin=4, coverage=1.0, method="whole", energy_mj=1))
    (row,) = differences(before, after).to_dicts()
    assert (row["source"], row["origin"], row["coverage"], row["method"]) == ("estimated", 4, 1.0, "whole")
    (gone,) = differences(before, lines()).to_dicts()
    assert (gone["coverage"], gone["method"]) == (0.5, "share")


def test_of_the_methods_of_one_sum_the_least_exact_is_told_and_of_facility_categories_the_lower() -> None:
    one = line("a", price_id=7, method="share", facility_category=2)
    other = line("a", price_id=8, method="whole", facility_category=1)
    (row,) = differences(lines(), lines(one, other)).to_dicts()
    assert (row["method"], row["facility_category"]) == ("share", 1)
    (row,) = differences(lines(), lines(one | {"method": "equal"}, other | {"method": None})).to_dicts()
    assert row["method"] == "equal"


def test_a_correction_is_explained_as_what_it_would_be_by_now_less_what_was_posted() -> None:
    # 2 and 0.5 USD were posted for one device's two prices; it would be 2.25 by now. The quantity stands.
    half = {"billed_cost": Decimal("0.500000000"), "energy_mj": None, "quantity": 0}
    before = lines(line("a"), line("a", price_id=8, **half), line("b"))
    after = lines(line("a", billed_cost=Decimal("2.250000000"), energy_mj=None), line("b"))
    posted = dict.fromkeys(MORE) | line("a", billed_cost=Decimal("-0.250000000"), energy_mj=-360_000_000, quantity=0)
    told = correction_steps(posted, before, after)
    assert [(step.words, step.value, step.unit) for step in told.steps] == [
        ("billed cost: 2.250000000 by now − 2.500000000 posted before", "-0.250000000", "USD"),
        ("energy: nothing by now − 360,000,000 posted before", "-360,000,000", "mJ"),
        ("quantity: 3,600,000,000 by now − 3,600,000,000 posted before", "0", "accelerator-us"),
    ]
    assert told.differs == ()
    wrong = correction_steps(posted | {"energy_mj": None, "quantity": 1}, before, after)
    assert wrong.differs == (
        "energy: -360,000,000 worked out, nothing stored (mJ)",
        "quantity: 0 worked out, 1 stored (accelerator-us)",
    )
