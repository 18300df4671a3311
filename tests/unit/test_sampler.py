"""When the agent reads, and what it makes of the readings."""

from __future__ import annotations

import pytest

from collector.probe import DeviceReading, Row, Values
from collector.sampler import Cadence, RowBuilder, exact_row
from collector.wire import Reading
from tests.fakes.clock import FixedClock

pytestmark = pytest.mark.unit

S = 1_000_000
HOUR = 1_800_000_000 * S  # 2027-01-15 08:00:00 UTC


def readings(at_us: int, **values: float | None) -> tuple[DeviceReading, ...]:
    given: Values = dict(values)
    return (DeviceReading(0, at_us, given),)


def builder() -> RowBuilder:
    return RowBuilder(period_us=S, row_us=10 * S)


def fill(rows: RowBuilder, first_s: int, last_s: int, **values: float | None) -> list[Row]:
    found: list[Row] = []
    for second in range(first_s, last_s + 1):
        found += rows.add(HOUR + second * S, readings(HOUR + second * S + 400, **values))
    return found


def test_ticks_fall_on_whole_seconds_of_the_wall_clock() -> None:
    clock = FixedClock(wall_us=HOUR + 300_000)
    cadence = Cadence(S, clock.now())
    due = []
    for _ in range(3):
        clock.wait(cadence.wait_s(clock.now()))
        tick = cadence.reached(clock.now())
        assert tick is not None
        due.append(tick.due_us)
    assert due == [HOUR + S, HOUR + 2 * S, HOUR + 3 * S]
    assert clock.waits_s == [0.7, 1.0, 1.0]


def test_nothing_is_due_before_its_time() -> None:
    clock = FixedClock()
    cadence = Cadence(S, clock.now())
    clock.advance(0.999)
    assert cadence.reached(clock.now()) is None


def test_a_reading_that_takes_too_long_costs_ticks_which_are_counted() -> None:
    clock = FixedClock()
    cadence = Cadence(S, clock.now())
    clock.advance(3.2)
    tick = cadence.reached(clock.now())
    assert tick is not None
    # Due were 1, 2 and 3 s; it is read now as the one of 3 s, so two are missed.
    assert (tick.due_us, tick.missed) == (HOUR + 3 * S, 2)
    assert cadence.wait_s(clock.now()) == pytest.approx(0.8)


@pytest.mark.parametrize("step_s", [-3600.0, -1.5, 0.4, 3600.0])
def test_a_clock_step_is_reported_and_the_next_tick_is_on_the_new_grid(step_s: float) -> None:
    clock = FixedClock()
    cadence = Cadence(S, clock.now())
    clock.advance(1.0)
    assert cadence.reached(clock.now()) is not None
    clock.advance(1.0)
    clock.step(step_s)
    tick = cadence.reached(clock.now())
    assert tick is not None
    assert tick.clock_step_us == round(step_s * S)
    wait_s = cadence.wait_s(clock.now())
    assert 0 < wait_s <= 1
    clock.wait(wait_s)
    after = cadence.reached(clock.now())
    assert after is not None
    assert after.clock_step_us == 0
    assert after.due_us == clock.wall_us


def test_a_slewed_wall_clock_is_followed_slowly_and_is_no_step() -> None:
    clock = FixedClock()
    cadence = Cadence(S, clock.now())
    for _ in range(100):
        clock.wait(cadence.wait_s(clock.now()))
        tick = cadence.reached(clock.now())
        assert tick is not None
        assert (tick.missed, tick.clock_step_us) == (0, 0)
        clock.step(0.0005)  # 500 ppm
    # 50 ms of slewing were followed: the ticks are still on the wall clock's seconds to within one correction.
    clock.wait(cadence.wait_s(clock.now()))
    assert min(clock.wall_us % S, S - clock.wall_us % S) < 1_000


def test_a_row_ends_with_the_reading_on_the_full_ten_seconds() -> None:
    rows = builder()
    assert fill(rows, 1, 9, energy_mj=1) == []
    (row,) = fill(rows, 10, 10, energy_mj=3_000)
    assert row["at_us"] == HOUR + 10 * S + 400
    assert row["energy_mj"] == 3_000
    assert (row["samples"], row["samples_missed"]) == (10, 0)
    # The first row speaks for the time since its first reading, at 1 s; the second for the ten seconds between the two.
    assert row["span_us"] == 9 * S
    (second,) = fill(rows, 11, 20, energy_mj=6_000)
    assert second["span_us"] == 10 * S


def test_power_is_averaged_and_its_extremes_come_from_either_gauge() -> None:
    rows = builder()
    for second, (average, instant) in enumerate([(300, 310), (305, 290), (301, 400)], start=8):
        found = rows.add(
            HOUR + second * S, readings(HOUR + second * S, power_average_mw=average, power_instant_mw=instant)
        )
    (row,) = found
    # (300 + 305 + 301) / 3 = 302; seen by any gauge: lowest 290, highest 400; the instant gauge is the last reading.
    assert row["power_average_mw"] == 302
    assert (row["power_min_mw"], row["power_max_mw"]) == (290, 400)
    assert row["power_instant_mw"] == 400


def test_whole_means_round_half_up_and_ratios_do_not_round() -> None:
    rows = builder()
    rows.add(HOUR + 9 * S, readings(HOUR + 9 * S, gpu_util_percent=50, sm_active_ratio=0.25))
    (row,) = rows.add(HOUR + 10 * S, readings(HOUR + 10 * S, gpu_util_percent=51, sm_active_ratio=0.5))
    assert row["gpu_util_percent"] == 51
    assert row["sm_active_ratio"] == 0.375


def test_throttle_bits_of_any_reading_are_kept() -> None:
    rows = builder()
    for second, bits in ((8, 0x4), (9, 0x40), (10, 0x0)):
        found = rows.add(HOUR + second * S, readings(HOUR + second * S, clocks_event_reasons=bits))
    assert found[0]["clocks_event_reasons"] == 0x44


def test_what_was_not_supported_stays_null_and_what_was_read_once_is_kept() -> None:
    rows = builder()
    rows.add(HOUR + 9 * S, readings(HOUR + 9 * S, processes=3, memory_temp_c=None))
    (row,) = rows.add(HOUR + 10 * S, readings(HOUR + 10 * S))
    assert row["processes"] == 3
    assert row.get("memory_temp_c") is None
    assert row["power_min_mw"] is None


def test_missed_readings_are_counted_and_not_made_up() -> None:
    rows = builder()
    fill(rows, 1, 10)
    fill(rows, 11, 13)
    (row,) = fill(rows, 18, 20)
    assert (row["samples"], row["samples_missed"]) == (6, 4)


def test_a_missed_full_ten_seconds_ends_the_row_with_its_last_reading() -> None:
    rows = builder()
    fill(rows, 1, 8)
    found = rows.add(HOUR + 12 * S, readings(HOUR + 12 * S))
    (row,) = found
    assert row["at_us"] == HOUR + 8 * S + 400
    # Due from 1 s to 10 s were ten, eight were read.
    assert (row["samples"], row["samples_missed"]) == (8, 2)
    (after,) = fill(rows, 13, 20)
    # The next row begins where the last reading was: 8.0004 s to 20.0004 s, 11 s itself missed.
    assert after["span_us"] == 12 * S
    assert (after["samples"], after["samples_missed"]) == (9, 1)


def test_after_a_long_silence_a_row_speaks_only_for_what_it_saw() -> None:
    rows = builder()
    fill(rows, 1, 10)
    (row,) = fill(rows, 305, 310)
    assert row["span_us"] == 5 * S
    assert (row["samples"], row["samples_missed"]) == (6, 4)


def test_a_device_that_says_nothing_has_no_row() -> None:
    rows = builder()
    found: list[Row] = []
    for second in range(1, 11):
        found += rows.add(HOUR + second * S, (DeviceReading(1, HOUR + second * S, {}),))
    assert [row["device"] for row in found] == [1]


def test_a_flush_keeps_the_partial_row_and_the_next_goes_on_from_there() -> None:
    rows = builder()
    fill(rows, 1, 4)
    (partial,) = rows.flush(HOUR + 4 * S)
    assert (partial["samples"], partial["samples_missed"], partial["at_us"]) == (4, 0, HOUR + 4 * S + 400)
    (rest,) = fill(rows, 5, 10)
    assert (rest["samples"], rest["samples_missed"], rest["span_us"]) == (6, 0, 6 * S)


def test_after_forgetting_no_span_reaches_back() -> None:
    rows = builder()
    fill(rows, 1, 10)
    rows.forget()
    (row,) = fill(rows, 12, 20)
    assert row["span_us"] == 8 * S
    assert row["samples_missed"] == 0


def test_an_exact_reading_stands_for_an_instant() -> None:
    row = exact_row(DeviceReading(2, HOUR, {"energy_mj": 5, "memory_temp_c": None}), Reading.ALLOCATION_START)
    assert row == {
        "at_us": HOUR,
        "device": 2,
        "reading": 1,
        "span_us": 0,
        "samples": 1,
        "samples_missed": 0,
        "energy_mj": 5,
    }
