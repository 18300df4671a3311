"""Charts as data: what is drawn, in which unit, and that a silence is not drawn as zero."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import altair as alt
import pytest

from dashboard.charts import (
    AREAS,
    MOST_SERIES,
    NOBODY,
    OTHER,
    Flow,
    Measure,
    Waste,
    power_chart,
    styled,
    tenant_chart,
    tenants_over_time,
    waste_chart,
)
from dashboard.data import BillRow, Figures, PowerPoint, TenantEnergy, TenantSteps
from tests.fakes.api import figures

AT = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
STEP_S = 600


def point(step: int, watts: float, site: str = "lab", model: str = "H100", coverage: float = 1.0) -> PowerPoint:
    return PowerPoint(AT + timedelta(seconds=step * STEP_S), site, model, watts, coverage, ("live",))


def row(tenant: str, **given: Any) -> BillRow:
    return BillRow(tenant, Figures.of(figures(**given)))


def drawn(chart: alt.Chart) -> list[dict[str, Any]]:
    made = chart.to_dict()
    values: list[dict[str, Any]] = made["datasets"][made["data"]["name"]]
    return values


def titles(chart: alt.Chart) -> set[str]:
    encoding = chart.to_dict()["encoding"]
    return {encoding[axis]["axis"].get("title") for axis in ("x", "y")} - {None}


def test_power_is_drawn_in_kilowatts_with_units_on_both_axes() -> None:
    chart = power_chart([point(0, 1500.0, coverage=0.98)], STEP_S)
    assert drawn(chart) == [
        {
            "at": "2026-11-21T12:00:00+00:00",
            "until": "2026-11-21T12:10:00+00:00",
            "series": "lab",
            "power_kw": 1.5,
            "coverage_percent": 98.0,
        }
    ]
    assert titles(chart) == {"time (UTC)", "IT power (kW)"}


def test_a_step_without_readings_is_not_drawn_at_all() -> None:
    chart = power_chart([point(0, 100.0), point(2, 100.0)], STEP_S)
    assert [value["at"][11:16] for value in drawn(chart)] == ["12:00", "12:20"]


@pytest.mark.parametrize(
    ("points", "names"),
    [
        ([("a", "H100"), ("b", "H100")], ["a", "b"]),
        ([("a", "H100"), ("a", "L40S")], ["H100", "L40S"]),
        ([("a", "H100"), ("b", "L40S")], ["a · H100", "b · L40S"]),
    ],
)
def test_series_are_named_by_what_tells_them_apart(points: list[tuple[str, str]], names: list[str]) -> None:
    chart = power_chart([point(0, 1.0, site, model) for site, model in points], STEP_S)
    assert [value["series"] for value in drawn(chart)] == names


def test_too_many_series_are_summed_as_one_and_none_is_lost() -> None:
    chart = power_chart([point(0, 1000.0, f"s{number}") for number in range(MOST_SERIES + 3)], STEP_S)
    by_series = {value["series"]: value["power_kw"] for value in drawn(chart)}
    assert len(by_series) == MOST_SERIES + 1
    assert by_series[OTHER] == 3.0
    assert sum(by_series.values()) == MOST_SERIES + 3
    assert len(AREAS) == MOST_SERIES + 1


def steps(tenants: dict[str | None, list[int | None]]) -> TenantSteps:
    each = [TenantEnergy(name, tuple(energy), ("measured",), ("live",), 1.0) for name, energy in tenants.items()]
    return TenantSteps(AT, 60, tuple(each))


def test_a_tenants_minute_is_drawn_as_mean_power_or_as_energy() -> None:
    # 90 kJ in a minute are 1.5 kW, or 0.025 kWh.
    made = steps({"acme": [90_000_000, None, 0], None: [None, 30_000_000, None]})
    chart = tenants_over_time(made, Flow.POWER)
    assert [
        (value["at"][11:16], value["series"], value["power_kw"], value["energy_kwh"]) for value in drawn(chart)
    ] == [
        ("12:00", "acme", 1.5, 0.025),
        ("12:01", NOBODY, 0.5, pytest.approx(1 / 120)),
        ("12:02", "acme", 0.0, 0.0),
    ]
    assert titles(chart) == {"time (UTC)", "IT power (kW)"}
    assert titles(tenants_over_time(made, Flow.ENERGY)) == {"time (UTC)", "IT energy (kWh per 1 min)"}


def test_small_tenants_are_summed_as_one_and_no_energy_is_lost() -> None:
    many: dict[str | None, list[int | None]] = {f"t{number}": [number * 60_000_000] for number in range(12)}
    by_series = {value["series"]: value["power_kw"] for value in drawn(tenants_over_time(steps(many), Flow.POWER))}
    assert len(by_series) == MOST_SERIES + 1
    assert by_series[OTHER] == 0 + 1 + 2 + 3
    assert sum(by_series.values()) == 66
    many[None] = [30_000_000]  # half a kilowatt that is nobody's is not hidden among small tenants
    by_series = {value["series"]: value["power_kw"] for value in drawn(tenants_over_time(steps(many), Flow.POWER))}
    assert (by_series[NOBODY], by_series[OTHER], len(by_series)) == (0.5, 0 + 1 + 2 + 3 + 4, MOST_SERIES + 1)


def test_cost_is_stacked_by_category_and_the_dearest_tenant_stands_first() -> None:
    chart = tenant_chart([row("a", gpu="10", electricity="2"), row("b", gpu="20")], Measure.COST, "EUR")
    assert chart.to_dict()["encoding"]["y"]["sort"] == ["b", "a"]
    assert [(value["tenant"], value["part"], value["amount"]) for value in drawn(chart)] == [
        ("a", "own GPUs", 10.0),
        ("a", "electricity", 2.0),
        ("b", "own GPUs", 20.0),
    ]
    assert titles(chart) == {"cost (EUR)"}


def test_a_category_nobody_named_is_still_drawn() -> None:
    chart = tenant_chart(
        [BillRow("a", Figures.of(figures() | {"cost_by_category": {"storage": "3"}}))], Measure.COST, "EUR"
    )
    assert [(value["part"], value["position"]) for value in drawn(chart)] == [("storage", 4)]


@pytest.mark.parametrize(
    ("measure", "title", "amount"),
    [(Measure.ENERGY, "IT energy (kWh)", 7.5), (Measure.CARBON, "carbon, location-based (kgCO2e)", 2.25)],
)
def test_the_toggle_changes_what_is_drawn_and_its_unit(measure: Measure, title: str, amount: float) -> None:
    chart = tenant_chart([row("a", energy="7.5", carbon="2.25")], measure, "EUR")
    assert titles(chart) == {title}
    assert [value["amount"] for value in drawn(chart)] == [amount]


def test_waste_shows_idle_and_throttled_and_leaves_out_who_wasted_nothing() -> None:
    chart = waste_chart([row("a", waste=("3", "1.5")), row("b")], Waste.CASH, "EUR")
    assert [(value["tenant"], value["part"], value["amount"]) for value in drawn(chart)] == [
        ("a", "idle", 3.0),
        ("a", "throttled", 1.5),
    ]
    assert titles(chart) == {"avoidable cost (EUR)"}


def test_waste_can_be_shown_in_gpu_hours_instead() -> None:
    chart = waste_chart([row("a")], Waste.TIME, "EUR")  # the fake's row: 240 h idle, 80 h throttled
    assert [(value["part"], value["amount"]) for value in drawn(chart)] == [("idle", 240.0), ("throttled", 80.0)]
    assert titles(chart) == {"held without full use (GPU-h)"}


def test_unknown_energy_is_no_bar_of_zero_length() -> None:
    assert row("a").figures.energy_kwh is None
    assert drawn(tenant_chart([row("a")], Measure.ENERGY, None)) == []


def test_a_saved_picture_of_simulated_data_says_so() -> None:
    chart = power_chart([point(0, 1.0)], STEP_S)
    assert styled(chart, is_simulated=True).to_dict()["title"]["text"] == "simulated data"
    assert "title" not in styled(chart, is_simulated=False).to_dict()


def test_a_cost_is_what_its_categories_are() -> None:
    assert Figures.of(figures(gpu="1.5", electricity="0.25")).cost == Decimal("1.75")
