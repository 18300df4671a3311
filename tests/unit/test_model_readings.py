"""Readings in the order of their keys: what is dropped, what is comparable, and where a register went on over its limit."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import polars as pl
import pytest

from analytics.errors import InputError
from analytics.frames import DeviceReadings, Epochs
from analytics.model.readings import KeySpace, Timeline, most_mj, timelines, unwrapped
from analytics.policy import Policy
from analytics.units import to_us
from tests.fakes.site import HOUR, epoch, reading, table

POLICY = Policy()
KEYS = KeySpace.around(to_us(HOUR), to_us(HOUR + timedelta(hours=1)), POLICY.gaps.reach_us)
WRAP = 2**32
S = 1_000_000


def lines(rows: list[dict[str, Any]], *epochs: dict[str, Any]) -> tuple[list[Timeline], list[tuple[Any, ...]]]:
    found, dropped = timelines(table(DeviceReadings, rows), table(Epochs, epochs or [epoch()]), KEYS, POLICY)
    return found, dropped.select("device_id", (pl.col("at_us") - to_us(HOUR)) // S, "reason").rows()


def values(line: Timeline) -> list[int]:
    return line.rows["value"].to_list()


def test_readings_in_any_order_are_one_line_by_time() -> None:
    (line,), dropped = lines([reading(1, 20, 3), reading(2, 0, 9), reading(1, 0, 1), reading(1, 10, 2)])
    assert (values(line), dropped) == ([1_000, 2_000, 3_000, 9_000], [])


def test_of_readings_of_one_instant_the_lowest_stays_and_each_other_one_is_told() -> None:
    # The first instant of all, twice, and another three times.
    rows = [reading(1, 0, 5), reading(1, 0, 4), *(reading(1, 10, joules) for joules in (8, 7, 9)), reading(1, 20, 10)]
    (line,), dropped = lines(rows)
    assert values(line) == [4_000, 7_000, 10_000]
    assert dropped == [(1, 0, "repeated"), (1, 10, "repeated"), (1, 10, "repeated")]


def test_each_epoch_has_its_own_longest_gap_of_three_cadences_but_a_minute_at_least() -> None:
    slow, quick = epoch(1, cadence_us=60 * S), epoch(2, cadence_us=S)
    (line,), _ = lines([reading(1, 0, 1), reading(1, 10, 2, epoch_id=2)], slow, quick)
    assert line.rows["max_gap_us"].to_list() == [180 * S, 60 * S]
    # One boot's, so that they compare.
    assert line.rows["segment"].n_unique() == 1
    (line,), _ = lines([reading(1, 0, 1)], epoch(1, cadence_us=2**63 - 1))
    assert line.rows["max_gap_us"].to_list() == [3 * POLICY.gaps.reach_us]
    (line,), _ = lines([reading(1, 0, 1), reading(1, 10, 2, epoch_id=2)], epoch(1), epoch(2, boot_id="next"))
    assert line.rows["segment"].n_unique() == 2


@pytest.mark.parametrize(
    ("joules", "kept"),
    [
        ((1, 2, 500, 4, 5), (1, 2, 4, 5)),  # above both
        ((1, 3, 2, 4, 5), (1, 2, 4, 5)),
        ((101, 102, 1, 104, 105), (101, 102, 104, 105)),  # below both
        ((1, 2, 500, 2, 5), (1, 2, 2, 5)),  # nothing was drawn
        ((1, 500, 3, 600, 7), (1, 3, 7)),  # twice
        ((1, 300, 120, 310, 320), (1, 120, 310, 320)),  # one of two, and nobody knows which
        ((100, 50, 110, 60, 70), (100, 60, 70)),  # began anew, once or twice
        ((5, 500, 4, 6, 7), (5, 500, 4, 6, 7)),  # began anew: below all before
        ((500, 3, 4, 5, 6), (500, 3, 4, 5, 6)),  # nothing before it that it could be compared with
        ((1, 2, 3, 4, 0), (1, 2, 3, 4, 0)),  # nothing after it
        ((1, 2, 2, 2, 3), (1, 2, 2, 2, 3)),
    ],
)
def test_a_reading_that_those_around_it_contradict_is_none(joules: tuple[int, ...], kept: tuple[int, ...]) -> None:
    (line,), dropped = lines([reading(1, 10 * place, each) for place, each in enumerate(joules)])
    assert values(line) == [1_000 * each for each in kept]
    assert [row[::2] for row in dropped] == [(1, "spike")] * (len(joules) - len(kept))


def test_readings_contradict_each_other_in_one_segment_of_one_device_and_up_to_five_minutes() -> None:
    # What is loaded around every window reaches ten minutes, and which of two is bad is seen in four: further apart, one window would know of it and another not.
    near = [reading(1, 0, 1), reading(1, 10, 500), reading(1, 300, 2)]
    assert lines(near)[1] == [(1, 10, "spike")]
    assert lines([*near[:2], reading(1, 300.000001, 2)])[1] == []
    boots = (epoch(1), epoch(2, boot_id="next"))
    for place in range(3):
        rows = [{**row, "epoch_id": 2 if at == place else 1} for at, row in enumerate(near)]
        assert lines(rows, *boots)[1] == []
    for place in range(3):
        rows = [{**row, "device_id": 2 if at == place else 1} for at, row in enumerate(near)]
        assert lines(rows)[1] == []


@pytest.mark.parametrize(
    ("milliwatts", "kept", "told"), [(1, 2, []), (0, 1, ["not_positive"]), (-1, 1, ["not_positive"])]
)
def test_a_gauge_that_shows_nothing_is_no_reading(milliwatts: int, kept: int, told: list[str]) -> None:
    rows = [{**reading(1, 0), "power_mw": milliwatts}, reading(1, 10, None, 100)]
    (line,), dropped = lines(rows)
    assert (line.instrument, line.rows.height) == ("gauge", kept)
    assert [reason for *_, reason in dropped] == told
    assert line.lacking is not None
    assert line.lacking.rows() == [(1, to_us(HOUR))]


def test_a_counter_below_nothing_is_dropped_and_at_nothing_counts() -> None:
    (line,), dropped = lines([reading(1, 0, 0), reading(1, 10, -1), reading(1, 20, 7)])
    assert (values(line), dropped) == ([0, 7_000], [(1, 10, "not_positive")])


def test_a_device_of_number_nought_is_one() -> None:
    (line,), _ = lines([reading(0, 0, 1), reading(0, 10, 2)])
    assert line.rows["device_id"].to_list() == [0, 0]


def test_readings_beyond_the_reach_are_left_out_and_at_its_ends_are_not() -> None:
    reach_s = POLICY.gaps.reach_us / S
    ends = [-reach_s, 3_600 + reach_s]
    (line,), _ = lines([reading(1, second, 5) for second in ends])
    assert line.rows.height == 2
    for second in (ends[0] - 0.000001, ends[1] + 0.000001):
        (line,), _ = lines([reading(1, 0, 4), reading(1, second, 5)])
        assert values(line) == [4_000]


def unwrap(*told: tuple[float, int], accelerators: int = 8) -> list[int]:
    """The values of a register of 32 bits from (second, mJ)."""
    (line,), _ = lines([{**reading(1, second), "energy_mj": value} for second, value in told])
    kinds = {"device_id": pl.Int32, "key": pl.Int64, "wrap_mj": pl.Int64, "accelerators": pl.Int32}
    wraps = pl.DataFrame(
        {"device_id": [1], "key": [0], "wrap_mj": [WRAP], "accelerators": [accelerators]}, schema=kinds
    )
    return values(unwrapped(line, wraps, POLICY))


def test_a_fall_at_the_end_is_judged_by_the_interval_before_it_and_at_the_beginning_by_the_one_behind() -> None:
    # 100 mW before and over the limit: it went on. 1 kW before and 100 kW over it: it began anew.
    assert unwrap((0, WRAP - 2_000), (10, WRAP - 1_000), (20, 0)) == [WRAP - 2_000, WRAP - 1_000, WRAP]
    anew = [(0, WRAP - 1_010_000_000), (10, WRAP - 1_000_000_000), (20, 5_000)]
    assert unwrap(*anew) == [value for _, value in anew]
    assert unwrap((0, WRAP - 1_000), (10, 0), (20, 1_000)) == [WRAP - 1_000, WRAP, WRAP + 1_000]
    anew = [(0, WRAP - 1_000_000_000), (10, 5_000), (20, 10_005_000)]
    assert unwrap(*anew) == [value for _, value in anew]


def test_a_register_that_stands_at_its_limit_and_shows_nothing_then_went_on() -> None:
    assert unwrap((0, WRAP), (10, WRAP), (20, 0)) == [WRAP, WRAP, WRAP]


def test_a_register_that_stood_still_went_over_no_limit() -> None:
    # In eleven hours eight boards can well have drawn all that it counts to.
    assert unwrap((0, 5), (40_000, 5)) == [5, 5]


def test_a_step_over_the_limit_may_be_at_ten_times_the_power_around_it_and_no_more() -> None:
    # 1 mW before, 10 mJ in 10 s; the register may be a second old, so that 110 mJ may be a step of ten seconds.
    for step, lifted in ((110, WRAP), (111, 0)):
        found = unwrap((0, WRAP - 20), (10, WRAP - 10), (20, step - 10))
        assert found[-1] == step - 10 + lifted


def test_a_step_over_the_limit_with_nothing_around_it_is_believed_up_to_what_the_boards_can_draw() -> None:
    # 20 kW for ten seconds and the one before: 220 kJ, and a millijoule for rounding.
    assert unwrap((0, WRAP - 1), (10, 220_000_000), accelerators=1) == [WRAP - 1, WRAP + 220_000_000]
    assert unwrap((0, WRAP - 1), (10, 220_000_001), accelerators=1) == [WRAP - 1, 220_000_001]


def test_what_a_counter_can_have_grown_by_is_cut_to_watts_and_to_millijoules_and_has_one_to_spare() -> None:
    # 1,999 W for a second of a refresh and a microsecond: 1,999,001.999 mJ.
    assert pl.select(most_mj(pl.lit(1_999_999), pl.lit(1), POLICY)).item() == 1_999_002


def test_of_readings_without_their_epoch_that_epoch_is_named() -> None:
    with pytest.raises(InputError, match=r"readings of epochs \[9\] came without"):
        lines([reading(1, 0, 1), reading(1, 10, 2, epoch_id=9)])
