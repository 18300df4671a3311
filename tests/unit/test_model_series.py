"""Means by time of what holds for a part of an hour: prices of quarters, intensities of half hours. Worked out by hand."""

from __future__ import annotations

import random
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics.frames import Intensity, Tariffs
from analytics.model.series import HourRate, Row, Series
from analytics.units import US_PER_HOUR, to_us
from tests.fakes.site import HOUR, at, intensity, table, tariff

pytestmark = pytest.mark.unit
HOUR_US = to_us(HOUR)
QUARTER_S = 900
S = 1_000_000


def price(row: Row) -> Fraction | None:
    return Fraction(row["amount_per_kwh"]) if row["currency"] == "EUR" else None


def quarters(*eur_per_mwh: int | None) -> list[dict[str, Any]]:
    return [
        tariff(
            place + 1,
            str(Decimal(amount) / 1000),
            currency="EUR",
            valid_from=at(place * QUARTER_S),
            valid_to=at((place + 1) * QUARTER_S),
        )
        for place, amount in enumerate(eur_per_mwh)
        if amount is not None
    ]


def mean(rows: list[dict[str, Any]], start_us: int = HOUR_US, length_us: int = US_PER_HOUR) -> HourRate:
    return Series(table(Tariffs, rows), "tariff_id").mean(start_us, start_us + length_us, price)


def test_day_ahead_prices_of_quarters_are_weighed_by_time_and_may_be_negative() -> None:
    # (-10 - 10 + 30 + 50) / 4 = 15 EUR/MWh; at the hour's first instant it would be -10.
    assert mean(quarters(-10, -10, 30, 50)) == HourRate(Fraction(15, 1000), US_PER_HOUR, (1, 2, 3, 4), estimated=False)


def test_half_hours_of_intensity_are_weighed_by_time_and_one_that_is_estimated_makes_the_hour_so() -> None:
    rows = [
        intensity(1, "200", valid_from=at(0), valid_to=at(1800)),
        intensity(2, "301", valid_from=at(1800), valid_to=at(3600), estimated=True),
    ]
    found = Series(table(Intensity, rows), "intensity_id").mean(
        HOUR_US, HOUR_US + US_PER_HOUR, lambda row: Fraction(row["gco2e_per_kwh"])
    )
    assert found == HourRate(Fraction(501, 2), US_PER_HOUR, (1, 2), estimated=True)


def test_an_hour_of_which_a_part_is_missing_has_no_mean_and_says_how_much_of_it_is_known() -> None:
    assert mean(quarters(-10, None, 30, 50)) == HourRate(None, 2700 * S, (1, 3, 4), estimated=False)
    assert mean([]) == HourRate(None, 0, (), estimated=False)


def test_what_cannot_be_used_is_missing_and_nothing_older_takes_its_place() -> None:
    ever = tariff(9, "0.5", currency="EUR")
    abroad = tariff(1, "0.1", currency="USD", valid_from=at(600), valid_to=at(1200))
    assert mean([ever, abroad]) == HourRate(None, 3000 * S, (9,), estimated=False)


def test_of_rows_that_overlap_the_one_that_began_last_counts_while_it_holds() -> None:
    # 0.3 for the ten minutes in the middle, 0.2 before and after: (50 x 0.2 + 10 x 0.3) / 60.
    rows = [tariff(1, "0.2", currency="EUR"), tariff(2, "0.3", currency="EUR", valid_from=at(600), valid_to=at(1200))]
    assert mean(rows) == HourRate(Fraction(13, 60), US_PER_HOUR, (1, 2), estimated=False)


def test_edges_of_the_hour_belong_to_the_row_that_begins_there() -> None:
    rows = [
        tariff(1, "1", currency="EUR", valid_to=at(0)),
        tariff(2, "2", currency="EUR", valid_from=at(0), valid_to=at(3600)),
        tariff(3, "4", currency="EUR", valid_from=at(3600)),
    ]
    assert mean(rows) == HourRate(Fraction(2), US_PER_HOUR, (2,), estimated=False)
    # Half of one hour and half of the next.
    assert mean(rows, HOUR_US + 1800 * S).value == 3


@given(
    st.lists(st.integers(-500, 3000), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
    st.integers(1, 3599),
)
def test_a_mean_is_of_the_prices_and_not_of_how_they_are_cut_or_ordered(
    amounts: list[int], shuffled: random.Random, cut_s: int
) -> None:
    length_s = 3600 // len(amounts)
    ends = [*(place * length_s for place in range(len(amounts))), 3600]
    rows = [
        tariff(place + 1, str(amount), currency="EUR", valid_from=at(ends[place]), valid_to=at(ends[place + 1]))
        for place, amount in enumerate(amounts)
    ]
    wanted = Fraction(sum(amount * (ends[place + 1] - ends[place]) for place, amount in enumerate(amounts)), 3600)
    whole = mean(shuffled.sample(rows, len(rows)))
    assert whole.value == wanted
    first, second = mean(rows, HOUR_US, cut_s * S), mean(rows, HOUR_US + cut_s * S, (3600 - cut_s) * S)
    assert first.value is not None
    assert second.value is not None
    assert (first.value * cut_s + second.value * (3600 - cut_s)) / 3600 == wanted
