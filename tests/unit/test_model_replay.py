"""Intervals between readings one at a time: what each counts for, up to its limits, and what a window has of it."""

from __future__ import annotations

from fractions import Fraction
from typing import Final

import pytest

from analytics.model.explain import _compare, _exact
from analytics.model.replay import Instrument, Limits, Reading, Stretch, part_of, stretches

S: Final = 1_000_000
REACH_S: Final = 172_800
LIMITS: Final = Limits(REACH_S * S, S, 20_000_000)


def read(second: float, value: int, segment: int = 1) -> Reading:
    return Reading(round(second * S), value, segment, 60 * S)


def said(
    *readings: Reading, start: float = 0, stop: float = 10**6, instrument: Instrument = "counter"
) -> list[Stretch]:
    return stretches(readings, round(start * S), round(stop * S), instrument, LIMITS)


def kind(width_s: float, value: int, instrument: Instrument = "counter", segment: int = 1) -> str:
    first = 0 if instrument == "counter" else value
    (one,) = said(read(0, first), read(width_s, value, segment), instrument=instrument)
    return one.kind


@pytest.mark.parametrize(
    ("width_s", "value", "instrument", "expected"),
    [
        (60, 1, "counter", "covered"),
        (60.000001, 1, "counter", "telemetry_gap"),
        (REACH_S, 1, "counter", "telemetry_gap"),
        (REACH_S + 0.000001, 1, "counter", "no_data"),
        (60, 1, "gauge", "covered"),
        (60.000001, 1, "gauge", "no_data"),
        (10, -1, "counter", "counter_reset"),
        (10, 0, "counter", "covered"),
        # 20 kW for ten seconds and the one before: 220 kJ, and a millijoule for rounding.
        (10, 220_000_001, "counter", "covered"),
        (10, 220_000_002, "counter", "implausible"),
        # 0.9 ms more are 18 J more.
        (10.0009, 220_018_001, "counter", "covered"),
        (10.0009, 220_018_002, "counter", "implausible"),
        (10, 22_000_000, "gauge", "covered"),
        (10, 22_000_001, "gauge", "implausible"),
    ],
)
def test_an_interval_is_what_its_length_and_its_growth_allow(
    width_s: float, value: int, instrument: Instrument, expected: str
) -> None:
    assert kind(width_s, value, instrument) == expected


def test_an_interval_of_two_boots_is_neither_a_gap_nor_a_reset() -> None:
    assert kind(10, -1, segment=2) == kind(10**6, 5, segment=2) == "epoch_change"


def test_what_a_window_has_of_readings_begins_with_the_first_of_them_and_is_cut_at_its_ends() -> None:
    rows = [read(10, 0), read(20, 1_005), read(30, 2_010)]
    (whole,) = said(*rows, stop=100)
    assert (whole.from_us, whole.to_us, whole.energy_mj, whole.intervals) == (10 * S, 30 * S, 2_010, 2)
    # From 15 s: 1,005 less 502 of the first interval; to 25 s: 502 of the second.
    (part,) = said(*rows, start=15, stop=25)
    assert (part.from_us, part.to_us, part.energy_mj) == (15 * S, 25 * S, 503 + 502)
    assert said(*rows, start=20, stop=30)[0].energy_mj == 1_005
    assert said(*rows, start=30) == said(*rows, stop=10) == []


def test_a_negative_total_is_divided_like_a_positive_one_and_nothing_into_nothing() -> None:
    for total, parts in ((Fraction(10), [3, 7]), (Fraction(-10), [-3, -7]), (Fraction(0), [0, 0])):
        assert [part_of(total, [1, 2], ["a", "b"], mine).part for mine in (0, 1)] == parts


def test_a_fraction_is_told_as_a_decimal_of_as_few_places_as_it_has() -> None:
    assert [_exact(Fraction(1, 10**places)) for places in (0, 1, 3, 4)] == ["1", "0.1", "0.001", "0.0001"]
    assert _exact(Fraction(1, 8 * 10**18)) == "0.000000000000000000125"
    assert _exact(Fraction(1, 10**22)) == f"1/{10**22} ≈ 0.000000000000"
    assert _exact(Fraction(2, 3)) == "2/3 ≈ 0.666666666667"


def test_what_may_have_been_drawn_is_cut_to_watts_and_to_millijoules_and_has_one_to_spare() -> None:
    # 1,999 W for a second of a refresh and a microsecond: 1,999,001.999 mJ.
    small = Limits(REACH_S * S, S, 1_999_999)
    kinds = [
        stretches([read(0, 0), read(0.000001, value)], 0, S, "counter", small)[0].kind
        for value in (1_999_002, 1_999_003)
    ]
    assert kinds == ["covered", "implausible"]


@pytest.mark.parametrize(("stored", "said"), [(Fraction(149, 100), 0), (Fraction(3, 2), 1), (Fraction(-3, 2), 1)])
def test_a_figure_of_which_the_group_is_not_shown_may_be_off_by_less_than_one_and_a_half(
    stored: Fraction, said: int
) -> None:
    differs: list[str] = []
    unseen: list[str] = []
    _compare(differs, unseen, "cost", Fraction(0), stored, to_the_digit=False, scale=1)
    assert (len(differs), len(unseen)) == (said, 1 - said)
