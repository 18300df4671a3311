"""Facility energy: the factor of an hour by time, its category, integers that add up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics.frames import INSTANT, RATE
from analytics.model.facility import HourFactor, factors_of, with_facility
from analytics.units import US_PER_HOUR, to_us

pytestmark = pytest.mark.unit

HOUR = datetime(2026, 11, 1, 8, tzinfo=UTC)
HOUR_US = to_us(HOUR)


def _factors(*rows: tuple[str, int, int, int | None]) -> pl.DataFrame:
    """Factor, category, minutes from HOUR until when."""

    def at(minutes: int | None) -> datetime | None:
        return None if minutes is None else HOUR + timedelta(minutes=minutes)

    return pl.DataFrame(
        [
            (number, Decimal(factor), category, at(start), at(end))
            for number, (factor, category, start, end) in enumerate(rows)
        ],
        schema={
            "factor_id": pl.Int32,
            "factor": RATE,
            "category": pl.Int16,
            "valid_from": INSTANT,
            "valid_to": INSTANT,
        },
        orient="row",
    )


def _lines(*energies: int | None) -> pl.DataFrame:
    return pl.DataFrame(
        [{"hour_us": HOUR_US, "holder_key": f"job:{n}", "energy_mj": energy} for n, energy in enumerate(energies)],
        schema={"hour_us": pl.Int64, "holder_key": pl.String, "energy_mj": pl.Int64},
    )


def _facility(lines: pl.DataFrame, factors: dict[int, HourFactor]) -> list[tuple[Any, ...]]:
    found = with_facility(lines, factors, group=["hour_us"], ties=["holder_key"])
    return found.select("facility_mj", "facility_category").rows()


def test_a_factor_that_changes_at_a_quarter_past_counts_by_time() -> None:
    # 15 minutes at 1.2 and 45 at 1.4: 1.35; the worse category of the two is the hour's.
    found = factors_of([HOUR_US], _factors(("1.2", 2, -60, 15), ("1.4", 1, 15, None)))
    assert found == {HOUR_US: HourFactor(Fraction("1.35"), 1)}


def test_an_hour_that_is_known_in_part_has_no_category() -> None:
    # Half an hour at 1.5, half an hour of which nobody says anything: 1.25.
    found = factors_of([HOUR_US], _factors(("1.5", 3, 30, None)))
    assert found == {HOUR_US: HourFactor(Fraction("1.25"), None)}


def test_without_a_factor_there_is_no_facility_energy() -> None:
    assert factors_of([HOUR_US], _factors(("1.5", 3, 60, None))) == {}
    assert _facility(_lines(10, None), {}) == [(None, None), (None, None)]


def test_of_an_open_hour_what_is_over_counts() -> None:
    until = HOUR_US + US_PER_HOUR // 2
    found = factors_of([HOUR_US], _factors(("1.2", 2, -60, 15), ("1.4", 1, 15, None)), until)
    assert found[HOUR_US].factor == Fraction("1.3")


def test_lines_add_up_to_the_rounded_total_of_the_hour() -> None:
    # 14 mJ x 1.5 = 21: 7.5, 7.5 and 6; the leftover goes to the first of equal remainders. 1.5 alone rounds to the even 2.
    factors = {HOUR_US: HourFactor(Fraction("1.5"), 2)}
    lines = _lines(5, 5, 4)
    assert _facility(lines, factors) == [(8, 2), (7, 2), (6, 2)]
    assert _facility(_lines(1, None), factors) == [(2, 2), (None, None)]


@given(st.lists(st.integers(0, 10**13), min_size=1, max_size=12), st.decimals("1", "10", places=6))
def test_no_millijoule_is_lost_and_none_invented(energies: list[int], factor: Decimal) -> None:
    factors = {HOUR_US: HourFactor(Fraction(factor), 1)}
    parts = [part for part, _ in _facility(_lines(*energies), factors)]
    total = round(Fraction(sum(energies)) * Fraction(factor))
    assert sum(parts) == total
    # Each is within one of its share of the rounded total: 2, 2 and 22 by 2.863637 are 74, of which the last has 62.6.
    fair = [Fraction(total * energy, sum(energies) or 1) for energy in energies]
    assert all(abs(part - share) < 1 for part, share in zip(parts, fair, strict=True))


def test_a_part_is_fair_by_the_total_that_was_rounded() -> None:
    # 26 mJ x 2.863637 = 74.45: 74, of which 5.69, 5.69 and 62.62; the leftovers of 5, 5 and 62 go to the two first.
    assert _facility(_lines(2, 2, 22), {HOUR_US: HourFactor(Fraction("2.863637"), 1)}) == [(6, 1), (6, 1), (62, 1)]
