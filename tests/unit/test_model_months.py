"""An amount of a month by its hours: they add up to it, whatever it is and however many there are. Figures are worked out by hand."""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analytics.model.month import month
from analytics.model.months import hour_part

pytestmark = pytest.mark.unit
NANO = 10**9


def hours_of(name: str, zone: str) -> int:
    of = month(name, zone)
    return (of.to_at - of.from_at) // timedelta(hours=1)


def test_the_month_in_which_a_clock_is_put_back_has_an_hour_more_and_adds_up() -> None:
    of = hours_of("2026-10", "Europe/Berlin")
    assert (of, hours_of("2026-03", "Europe/Berlin"), hours_of("2026-10", "UTC")) == (745, 743, 744)
    # 750 / 745 = 1.006711409395…; twice that is 2.013422818791…, less the first: 1.006711410.
    parts = [hour_part(Fraction(750), hour, of) for hour in range(of)]
    assert parts[:2] == [1_006_711_409, 1_006_711_410]
    assert sum(parts) == 750 * NANO


def test_a_month_of_utc_has_744_hours_of_october() -> None:
    assert hour_part(Fraction(750), 0, 744) == 1_008_064_516  # 1.008064516129…
    assert hour_part(Fraction(4800), 0, 744) == 6_451_612_903  # a demand charge of 400 kW at 12


def test_the_first_month_of_a_board_is_counted_by_the_hours_it_was_there() -> None:
    # In service from the 11th: 504 of the 744 hours have 750 / 744 each.
    of_month = sum(hour_part(Fraction(750), hour, 744) for hour in range(240, 744))
    assert of_month == 508_064_516_129 == round(Fraction(750 * 504, 744) * NANO)


def test_a_credit_is_the_charge_with_another_sign() -> None:
    for hour in range(744):
        assert hour_part(Fraction(-50, 3), hour, 744) == -hour_part(Fraction(50, 3), hour, 744)


@pytest.mark.parametrize("index", [-1, 744])
def test_an_hour_that_the_month_has_not_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match=f"a month of 744 hours has no hour {index}"):
        hour_part(Fraction(1), index, 744)


@given(st.fractions(min_value=-(10**9), max_value=10**9), st.integers(1, 745))
def test_hours_add_up_to_the_amount_rounded_once_and_differ_by_no_more_than_a_digit(total: Fraction, of: int) -> None:
    parts = [hour_part(total, hour, of) for hour in range(of)]
    assert sum(parts) == round(total * NANO)
    assert max(parts) - min(parts) <= 2
    assert all(abs(a - total * NANO / of) <= 1 for a, _ in pairwise([*parts, parts[-1]]))
