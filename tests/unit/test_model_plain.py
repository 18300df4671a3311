"""Columns of a timeline at once: where instants lie between readings, what sums are there, and which intervals need the rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from analytics.model.plain import Int64s, Place, odd, running_sums, steps
from analytics.model.readings import Timeline
from analytics.policy import Policy

S = 1_000_000
SPAN = 10**12
HOT = 0x40
SCHEMA = {
    "key": pl.Int64, "device_id": pl.Int32, "segment": pl.Int32, "max_gap_us": pl.Int64, "value": pl.Int64, "power_mw": pl.Int32,
    "gpu_util_percent": pl.Int16, "clocks_event_reasons": pl.Int64, "throttled_ns": pl.Int64,
}  # fmt: skip


def ints(*values: int) -> Int64s:
    return np.array(values, dtype=np.int64)


def said(second: float, device: int = 1, **more: Any) -> dict[str, Any]:
    key = device * SPAN + round(second * S)
    return (
        dict.fromkeys(SCHEMA) | {"key": key, "device_id": device, "segment": 1, "max_gap_us": 60 * S, "value": 0} | more
    )


def states(*rows: dict[str, Any]) -> dict[str, list[int]]:
    """What each interval adds to the time in each state, all of it covered."""
    frame = pl.DataFrame(rows, schema=SCHEMA)
    same = frame["device_id"].diff(-1).fill_null(1).to_numpy() == 0
    covered = np.where(same, -frame["key"].diff(-1).fill_null(0).to_numpy(), 0).astype(np.int64)
    sums = running_sums(frame, np.zeros(len(rows), dtype=np.int64), covered, 100_000, Policy())
    return {name: sums[name].diff().fill_null(sums[name][0]).to_list() for name in sums.columns}


def doubted(*rows: dict[str, Any], most_mw: int = 20_000_000) -> list[int]:
    line = Timeline(1, 1, "counter", pl.DataFrame(rows, schema=SCHEMA), None)
    return list(odd(line, steps(line), most_mw, Policy()).tolist())


@pytest.mark.parametrize(("at", "energy_mj"), [(99, 0), (100, 0), (101, 5), (102, 10), (109, 45), (110, 51), (111, 51)])
def test_a_sum_is_read_on_the_line_between_two_readings_from_the_first_microsecond_on(at: int, energy_mj: int) -> None:
    # 51 mJ between 100 and 110, and nothing known before or behind.
    assert Place.of(ints(100, 110), ints(at)).read(ints(51, 51)).tolist() == [energy_mj]


def test_a_sum_inside_an_interval_needs_more_than_64_bits_for_years_of_energy() -> None:
    # 9 GJ in two days, after one day and a microsecond: half, and 52 mJ of the microsecond. 9e12 x 8.64e10 is no number of 64 bits.
    day = 86_400 * S
    place = Place.of(ints(0, 2 * day), ints(day, day + 1))
    assert place.read(ints(9 * 10**12, 9 * 10**12)).tolist() == [4_500_000_000_000, 4_500_000_000_052]


def test_the_last_interval_counts_as_the_first_does() -> None:
    assert doubted(said(0), said(10), said(20)) == []
    assert doubted(said(0), said(10), said(20, segment=2)) == [1]
    assert doubted(said(0), said(10, segment=2), said(20, segment=2)) == [0]
    # Two devices: what is between them is no interval.
    assert doubted(said(0), said(10), said(0, 2, segment=2), said(10, 2, segment=2), said(20, 2, segment=3)) == [3]


@pytest.mark.parametrize(("second", "found"), [(60, []), (60.000001, [0])])
def test_an_interval_up_to_the_longest_that_is_no_gap_needs_no_rule(second: float, found: list[int]) -> None:
    assert doubted(said(0), said(second)) == found


@pytest.mark.parametrize(("value", "found"), [(200_000, []), (200_001, [0]), (-1, [0])])
def test_a_step_that_the_board_cannot_have_drawn_or_a_fall_needs_the_rules(value: int, found: list[int]) -> None:
    # 20 kW for 10 s are 200 kJ.
    assert doubted(said(0), said(10, value=value * 1_000)) == found


def test_what_each_reading_says_is_of_the_interval_that_ends_with_it() -> None:
    idle, busy = {"gpu_util_percent": 0, "power_mw": 100_000}, {"gpu_util_percent": 1, "power_mw": 100_000}
    found = states(said(0, **busy), said(10, **idle), said(30, **busy), said(70, **idle))
    assert found["active_us"] == [0, 20 * S, 0, 0]
    assert found["idle_us"] == [10 * S, 0, 40 * S, 0]
    assert found["known_us"] == [10 * S, 20 * S, 40 * S, 0]


def test_idle_needs_a_power_that_is_told_and_no_more_than_the_floor() -> None:
    still = {"gpu_util_percent": 0}
    # Nobody speaks for 20 s: the next reading comes 61 s later.
    found = states(
        said(0, **still), said(10, power_mw=100_001, **still), said(20, **still), said(81, power_mw=1, **still)
    )
    assert found["idle_us"] == [0, 0, 61 * S, 0]


def test_slowed_is_time_at_work_by_the_bits_or_by_the_counter_where_there_is_one() -> None:
    hot = {"gpu_util_percent": 99, "clocks_event_reasons": HOT}
    cool = {"gpu_util_percent": 99, "clocks_event_reasons": 1}
    still = {"gpu_util_percent": 0, "clocks_event_reasons": HOT}
    assert states(said(0), said(10, **hot), said(30, **cool), said(70, **still))["throttled_us"] == [10 * S, 0, 0, 0]
    counted = [
        said(0, throttled_ns=5 * 10**9),
        said(10, throttled_ns=7 * 10**9, **cool),
        said(20, **hot),
        said(30, **cool),
    ]
    found = states(*counted)
    assert found["throttled_us"] == [2 * S, 10 * S, 0, 0]
    assert found["throttle_counter_us"] == [10 * S, 0, 0, 0]
    assert found["throttle_bits_us"] == [0, 10 * S, 0, 0]


def test_a_counter_of_slowed_time_counts_from_where_it_was_first_read() -> None:
    # Five seconds before the first reading, none since; then 1.5 s, and more than the ten seconds there were.
    told = [5 * 10**9, 5 * 10**9, 6_500_000_999, 60 * 10**9, 3]
    found = states(*(said(10 * number, throttled_ns=value) for number, value in enumerate(told)))
    assert found["throttled_us"] == [0, 1_500_000, 10 * S, 0, 0]
    assert found["throttle_counter_us"] == [10 * S, 10 * S, 10 * S, 0, 0]


def test_the_reading_after_an_event_speaks_for_it_where_it_comes_soon_and_is_of_its_device() -> None:
    busy = {"gpu_util_percent": 50}
    # The event is the second reading of device 2, behind the last one of device 1.
    found = states(said(0, **busy), said(10, **busy), said(0, 2, **busy), said(7, 2), said(10, 2, **busy))
    assert found["known_us"] == [10 * S, 0, 7 * S, 3 * S, 0]
    assert found["active_us"] == [10 * S, 0, 7 * S, 3 * S, 0]
    # An event in the end, before another device, has nobody to speak for it.
    found = states(said(0, **busy), said(10), said(0, 2, **busy), said(10, 2, **busy))
    assert found["known_us"] == [0, 0, 10 * S, 0]
    # Nor where the other device's first key is near: device 1's instants end where device 2's begin.
    found = states(said(999_980, **busy), said(999_990), said(5, 2, **busy))
    assert found["known_us"] == [0, 0, 0]
    late = states(said(0, **busy), said(7), said(67, **busy))
    assert late["known_us"] == [7 * S, 60 * S, 0]
    later = states(said(0, **busy), said(7), said(67.000001, **busy))
    assert later["known_us"] == [0, 60 * S + 1, 0]
