"""What the pages say: periods in whole steps, amounts that read well, unknown never as zero, simulated always marked."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from dashboard import view
from dashboard.data import Bill, Budget, Finding
from tests.fakes import api

NOW = datetime(2026, 11, 21, 12, 34, 56, tzinfo=UTC)


def answer(path: str) -> Mapping[str, Any]:
    given = api.a_good_day()[path]({})
    assert isinstance(given, Mapping)
    return given


def test_a_bill_is_asked_for_full_hours_that_end_with_the_open_one() -> None:
    first, last = view.Period("6 h", 6, 60).bill_window(NOW)
    assert (first, last) == (datetime(2026, 11, 21, 7, tzinfo=UTC), datetime(2026, 11, 21, 13, tzinfo=UTC))


def test_power_ends_with_the_last_step_that_is_over() -> None:
    first, last = view.Period("24 h", 24, 300).power_window(NOW)
    assert last == datetime(2026, 11, 21, 12, 30, tzinfo=UTC)
    assert first == datetime(2026, 11, 20, 12, 30, tzinfo=UTC)


@pytest.mark.parametrize("period", view.PERIODS)
def test_every_period_is_drawn_in_a_few_hundred_steps(period: view.Period) -> None:
    assert 280 <= period.hours * 3600 / period.step_s <= 360
    assert period.step_s % 60 == 0


@pytest.mark.parametrize(
    ("value", "said"),
    [("1234.56", "1,235 kWh"), ("123.45", "123.4 kWh"), ("0.5", "0.50 kWh"), ("-2500", "-2,500 kWh")],
)
def test_an_amount_shows_about_four_digits(value: str, said: str) -> None:
    assert view.amount(Decimal(value), "kWh") == said


def test_unknown_is_a_dash_and_never_zero() -> None:
    assert view.amount(None, "kWh") == view.percent(None) == "\N{EN DASH}"
    assert view.amount(Decimal(0), "kWh") == "0.00 kWh"


def test_simulated_data_is_marked_alone_and_mixed() -> None:
    assert view.origins_note([]) is None
    assert view.origins_note(["live", "imported"]) is None
    alone, mixed = view.origins_note(["simulated"]), view.origins_note(["live", "simulated"])
    assert alone is not None
    assert alone.startswith("**SIMULATED DATA.**")
    assert mixed is not None
    assert "mix simulated with live data" in mixed
    assert view.heading("Power", ["simulated"]).endswith(":orange-badge[SIMULATED]")
    assert view.heading("Power", ["live"]) == "Power"


def test_provenance_names_source_coverage_origin_and_what_has_no_price() -> None:
    bill = Bill.of(answer("/v1/bill"))
    said = view.provenance(bill)
    assert said == (
        "source: measured · coverage 99.1 % · origin: simulated · 47 hours closed, the rest provisional · "
        "books to 21 Nov 12:00 UTC"
    )
    unpriced = replace(bill, total=replace(bill.total, unpriced_lines=3))
    assert "3 lines have no price: the cost is at least this" in view.provenance(unpriced)
    silent = replace(bill, total=replace(bill.total, usage_unknown_calls=1))
    assert view.provenance(silent) == f"{said} · 1 API call told no usage and cost nothing here"


def test_the_fullest_budget_stands_first_with_its_state() -> None:
    budgets = [Budget.of(row) for row in answer("/v1/budgets")["budgets"]]
    rows = view.budget_rows(budgets)
    assert [(row["budget"], row["state"], row["due"], row["mode"]) for row in rows][:2] == [
        ("quant-day", ["exceeded"], "cancel", "dry run"),
        ("nlp-week", ["warning"], "\N{EN DASH}", "dry run"),
    ]
    assert rows[1]["used_percent"] == pytest.approx(82.89, abs=0.01)  # 7460.25 of 9000
    assert {state for row in rows for state in row["state"]} <= view.VERDICT_COLORS.keys()


def test_a_budgets_unit_is_written_as_people_write_it() -> None:
    budgets = [Budget.of(row) for row in answer("/v1/budgets")["budgets"]]
    limits = {row["limit"] for row in view.budget_rows(budgets)}
    assert limits == {"9,000 USD", "900.0 USD", "2,500 kWh", "600.0 kgCO2e"}


def test_a_share_too_small_to_show_is_not_shown_as_nothing() -> None:
    bill = Bill.of(answer("/v1/bill"))
    said = view.wasted(replace(bill, total=replace(bill.total, idle_waste=Decimal("0.4"), throttle_waste=Decimal(0))))
    assert said.startswith("0.40 USD of the cost (less than 0.1 %) could have been avoided; 240.0 GPU-h idle (3.9 %")


def test_a_budget_of_nothing_has_no_percentage() -> None:
    (row,) = view.budget_rows([Budget.of(api.budget("b", "t", "cost", "USD", "0", "5", "5", "deny", "hold"))])
    assert row["used_percent"] is None


def test_the_dearest_findings_come_first_and_unknown_cash_last() -> None:
    findings = [Finding.of(row) for row in answer("/v1/findings")["findings"]]
    rows = view.finding_rows([replace(findings[0], avoidable_cash=None), *findings[1:]], most=99)
    assert rows[0]["cash"] == 24.5  # 1.75 x 14
    assert rows[-1]["cash"] is None
    assert rows[0]["minutes"] == 64  # 25 + 3 x 13
