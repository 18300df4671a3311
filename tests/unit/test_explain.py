"""A line is worked out once more, reading by reading, in integers and fractions: every step as one would do it by hand."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from analytics.model.explain import Explained
from analytics.model.replay import GAP, Limits, Reading, cut, half_even, part_of, stretches
from tests.fakes.explained import explained
from tests.fakes.site import (
    LONG_AGO,
    Site,
    at,
    binding,
    epoch,
    factor,
    holds,
    intensity,
    job,
    price,
    reading,
    steady,
    tariff,
)
from wattledger.cli.why import steps_text

pytestmark = pytest.mark.unit

LIMITS = Limits(reach_us=172_800_000_000, refresh_us=1_000_000, most_mw=20_000_000)


def steps(line: Explained, part: str) -> list[tuple[str, str | None]]:
    return [(step.words, step.value) for step in line.steps if step.part == part]


def test_a_line_of_0_123456789_is_replayed_reading_by_reading() -> None:
    # A reading each 40 minutes, none on the hour: C(10:00) = 1,000,000 + 200,000,000 x 600/2400 = 51,000,000 mJ and
    # C(11:00) = 201,000,000 + floor(392,592,587 x 1800/2400 = 294,444,440.25) = 495,444,440. The difference of 444,444,440 mJ at
    # 1 USD/kWh is 444,444,440 / 3,600,000,000 = 0.1234567888... USD.
    readings = [reading(1, -600, 1_000), reading(1, 1_800, 201_000), reading(1, 4_200, 593_592.587)]
    site = Site(
        readings=readings,
        epochs=(epoch(cadence_us=1_200_000_000),),
        allocations=(holds(7, 1, -600, 4_200),),
        tariffs=(tariff(1, "1"),),
    )
    result = site.close()
    found = {line.line["charge_category"]: (line, rows) for line, rows in explained(site.inputs(), result, site.policy)}

    line, (row,) = found["electricity"]

    assert line.line["billed_cost"] == Decimal("0.123456789")
    assert (line.differs, row.differs, row.energy_mj) == ((), (), 444_444_440)
    assert [(step.words, step.value) for step in row.steps] == [
        ("C(10:00:00) = 1,000,000 at 09:50:00 + ⌊200,000,000 × 600 s ÷ 2,400 s⌋, next 201,000,000 at 10:30:00", "51,000,000"),
        ("C(11:00:00) = 201,000,000 at 10:30:00 + ⌊392,592,587 × 1,800 s ÷ 2,400 s⌋, next 593,592,587 at 11:10:00", "495,444,440"),
        ("10:00:00–11:00:00, counter (native), 2 intervals: the difference", "444,444,440"),
        ("device 1: held 3,600 s", "444,444,440"),
    ]  # fmt: skip
    assert steps(line, "price")[-1] == ("444,444,440 mJ × 1 ÷ 3,600,000,000", "11111111/90000000 ≈ 0.123456788889")
    assert steps(line, "rounding") == [
        ("the only line of its group: 444,444,440 mJ × 1 ÷ 3,600,000,000", "11111111/90000000 ≈ 0.123456788889"),
        ("rounded once, half to even, to 9 places", "0.123456789"),
    ]
    # The page shows this very line, as the command prints it.
    shown = (Path(__file__).parents[2] / "docs" / "why.md").read_text()
    printed = list(steps_text((*row.steps, *line.steps), 100))
    assert "\n".join(printed).strip() in shown


def test_a_line_that_was_altered_by_one_millijoule_or_one_billionth_is_said_to_differ() -> None:
    site = Site(
        readings=steady(1, 0, 3_600, 1_000),
        allocations=(holds(7, 1, 0, 3_600),),
        tariffs=(tariff(1, "0.2"),),
        prices=(price(1, "2"),),
        intensity=(intensity(1, "400"),),
        factors=(factor(1, "1.3"),),
    )
    result = site.close()
    for name, by, told in (
        ("billed_cost", Decimal("0.000000001"), "cost"),
        ("energy_mj", 1, "energy"),
        ("facility_mj", 1, "facility energy"),
        ("carbon_gco2e", Decimal("0.000000001"), "carbon"),
    ):
        owned = pl.col("charge_category") == "gpu_owned"
        moved = [row | {name: row[name] + by} for row in result.lines.filter(owned).to_dicts()]
        others = result.lines.filter(~owned)
        altered = pl.concat([pl.DataFrame(moved, schema=result.lines.schema), others])
        lines = explained(site.inputs(), replace(result, lines=altered), site.policy)  # type: ignore[arg-type]
        differs = [word for line, _ in lines for word in line.differs]
        assert any(word.startswith(f"{told}: ") for word in differs), (name, differs)


def test_the_leftovers_of_a_group_go_to_the_largest_remainders_and_equals_to_the_first_name() -> None:
    # 10 divided by 1 : 1 : 1 is 3 each, with 1/3 left of each: the first by name has the tenth.
    part = part_of(Fraction(10), [1, 1, 1], ["b", "a", "c"], 0)
    assert (part.floor, part.remainder, part.rank, part.left, part.part) == (3, 1, 2, 1, 3)
    assert part_of(Fraction(10), [1, 1, 1], ["b", "a", "c"], 1).part == 4
    # A negative total is divided like its absolute value.
    assert [part_of(Fraction(-10), [1, 1, 1], ["b", "a", "c"], at).part for at in range(3)] == [-3, -4, -3]
    # Without any weight the first has all of it.
    assert [part_of(Fraction(5), [0, 0], ["a", "b"], at).part for at in range(2)] == [5, 0]


def test_halves_go_to_the_even_neighbour() -> None:
    assert [half_even(Fraction(value, 2)) for value in (1, 3, -1, -3, 4)] == [0, 2, 0, -2, 2]


def test_a_counter_is_read_between_two_readings_rounded_down_and_at_one_as_it_stands() -> None:
    readings = [Reading(0, 100, 1, 60), Reading(30, 107, 1, 60)]
    between, at_one = cut(readings, 10, "counter"), cut(readings, 30, "counter")
    assert between is not None
    assert at_one is not None
    assert (between.value_mj, between.is_exact) == (102, False)  # 100 + floor(7 x 10/30)
    assert (at_one.value_mj, at_one.is_exact) == (107, True)
    assert cut(readings, 31, "counter") is None


def test_each_stretch_says_what_it_is() -> None:
    second = 1_000_000
    readings = [
        Reading(0, 1_000, 1, 60 * second),
        Reading(10 * second, 2_000, 1, 60 * second),
        Reading(100 * second, 9_000, 1, 60 * second),  # after a silence of 90 s
        Reading(110 * second, 500, 1, 60 * second),  # began anew
        Reading(120 * second, 600, 2, 60 * second),  # another epoch
        Reading(130 * second, 10**12, 2, 60 * second),  # no board draws that
    ]
    found = stretches(readings, 5 * second, 130 * second, "counter", LIMITS)
    assert [(each.kind, each.energy_mj) for each in found] == [
        ("covered", 500),
        (GAP, 7_000),
        ("counter_reset", 0),
        ("epoch_change", 0),
        ("implausible", 0),
    ]


def test_a_gauge_is_two_powers_by_their_mean() -> None:
    second = 1_000_000
    readings = [Reading(0, 100_000, 1, 60 * second), Reading(10 * second, 300_000, 1, 60 * second)]
    (found,) = stretches(readings, 0, 5 * second, "gauge", LIMITS)
    assert found.energy_mj == 1_000_000  # (100 W + 300 W)/2 x 10 s = 2 kJ, half of it


def test_a_tenant_that_may_not_see_the_rest_of_a_group_is_told_how_far_its_figure_is_held() -> None:
    site = Site(
        readings=steady(1, 0, 3_600, 1_000),
        allocations=(holds(7, 1, 0, 1_200), holds(8, 1, 1_200, 3_600)),
        tariffs=(tariff(1, "0.2"),),
    )
    result = site.close()
    every = [line for line, _ in explained(site.inputs(), result, site.policy, is_whole=False)]
    assert all(not line.differs for line in every)
    (told,) = {line.unseen for line in every if line.line["charge_category"] == "electricity"}
    assert told == ("cost: within the last place of its exact share",)
    words = [step.words for line in every for step in line.steps]
    assert not any("3,600,000,000 mJ" in word for word in words)  # what the hour took in all


@pytest.mark.parametrize(
    "rows",
    [
        [{"policy_id": 1, "policy": "proportional", "basis": "time"}],
        [{"policy_id": 1, "policy": "proportional", "basis": "energy"}],
        [{"policy_id": number, "policy": "fixed", "tenant_id": number, "fixed_ppm": 333_333} for number in (1, 2)],
    ],
)
def test_idle_cost_that_tenants_carry_comes_out_for_each_and_for_the_counter_line(rows: list[dict[str, Any]]) -> None:
    assert _carried(rows) == 3


def test_fixed_parts_that_begin_with_the_hour_are_in_force_in_it_and_those_that_end_with_it_are_not() -> None:
    fixed = {"policy": "fixed", "fixed_ppm": 333_333}
    first = {"policy_id": 1, "tenant_id": 1, **fixed}
    assert _carried([first, {"policy_id": 2, "tenant_id": 2, **fixed, "valid_from": at(0)}]) == 3
    assert _carried([first, {"policy_id": 2, "tenant_id": 2, **fixed, "valid_to": at(0)}]) == 2
    assert _carried([first, {"policy_id": 2, "tenant_id": 2, **fixed, "valid_from": at(3_600)}]) == 2


def _carried(rows: list[dict[str, Any]]) -> int:
    """How many lines carry idle cost, of which each is as it is worked out."""
    site = Site(
        readings=steady(1, 0, 3_600, 1_000),
        allocations=(holds(7, 1, 0, 700), holds(8, 1, 700, 1_900)),
        jobs=(job(7, account="a"), job(8, account="b")),
        tenants=({"tenant_id": 1, "path": "acme"}, {"tenant_id": 2, "path": "globex"}),
        bindings=(binding(1, 1, account="a"), binding(2, 2, account="b")),
        prices=(price(1, "1"),),
        tariffs=(tariff(1, "0.2"),),
        idle=[{"valid_from": LONG_AGO, **row} for row in rows],
    )
    found = [line for line, _ in explained(site.inputs(), site.close(), site.policy)]
    spread = [line for line in found if line.line["charge_category"] == "idle_spread"]
    assert [line.differs for line in found] == [()] * len(found)
    return len(spread)
