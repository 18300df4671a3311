"""Paces the readings and turns them into rows.

:class:`Cadence` says when to read: at whole multiples of the period on the wall clock, counted on the monotonic clock.
:class:`RowBuilder` turns readings into rows that end at whole multiples of the row length, so that there is a reading on
each full hour. Both are pure: they are told the time, they read no device, keep nothing on disk and start no thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from collector.clock import Instant
from collector.probe import DeviceReading, Row
from collector.wire import Reading

STEP_US: Final = 100_000
"""A change of wall minus monotonic time between two ticks beyond this is a clock step, not slewing (at most 500 ppm)."""
_SLEW_SHARE: Final = 100  # a tick moves by at most a hundredth of the period to follow a slewed wall clock

_MEAN_INTEGERS: Final = ("gpu_util_percent", "memory_util_percent", "encoder_util_percent", "decoder_util_percent")
_MEAN_RATIOS: Final = ("sm_active_ratio", "tensor_active_ratio", "dram_active_ratio")
_POWER_GAUGES: Final = ("power_average_mw", "power_instant_mw")


@dataclass(frozen=True, slots=True)
class Tick:
    """One moment to read at: ``due_us`` is its place on the wall clock's grid, ``missed`` how many before it passed by.

    Where ``clock_step_us`` is not 0 the wall clock jumped by that much: rows end here and nothing is read, as the next
    tick is the first on the new grid.
    """

    due_us: int
    missed: int
    clock_step_us: int


class Cadence:
    """Steady ticks. The wall clock sets their phase, the monotonic clock their distance."""

    def __init__(self, period_us: int, start: Instant) -> None:
        """Let the first tick be the next whole multiple of the period after ``start``."""
        self._period_us = period_us
        self._offset_us = start.offset_us
        self._due_monotonic_us = self._aligned_after(start)

    def wait_s(self, now: Instant) -> float:
        """Return how long until the next tick; never negative."""
        return max(0, self._due_monotonic_us - now.monotonic_us) / 1_000_000

    def reached(self, now: Instant) -> Tick | None:
        """Return the tick that is due now, if any, and move on to the next.

        A reading that took longer than the period, or a machine that slept, costs ticks; they are counted, not made up.
        """
        step_us = self._clock_step(now)
        if step_us:
            self._due_monotonic_us = self._aligned_after(now)
            return Tick(self._grid(now.wall_us), 0, step_us)
        late_us = now.monotonic_us - self._due_monotonic_us
        if late_us < 0:
            return None
        missed = late_us // self._period_us
        due_monotonic_us = self._due_monotonic_us + missed * self._period_us
        tick = Tick(self._grid(due_monotonic_us + now.offset_us), missed, 0)
        self._due_monotonic_us = due_monotonic_us + self._period_us
        self._follow_slewing(now.offset_us)
        return tick

    def _clock_step(self, now: Instant) -> int:
        change_us = now.offset_us - self._offset_us
        self._offset_us = now.offset_us
        return change_us if abs(change_us) > STEP_US else 0

    def _follow_slewing(self, offset_us: int) -> None:
        phase_us = (self._due_monotonic_us + offset_us) % self._period_us
        error_us = phase_us if phase_us <= self._period_us // 2 else phase_us - self._period_us
        limit_us = self._period_us // _SLEW_SHARE
        self._due_monotonic_us -= max(-limit_us, min(limit_us, error_us))

    def _aligned_after(self, now: Instant) -> int:
        return now.monotonic_us + self._period_us - now.wall_us % self._period_us

    def _grid(self, wall_us: int) -> int:
        """Return the nearest multiple of the period."""
        return (wall_us + self._period_us // 2) // self._period_us * self._period_us


class RowBuilder:
    """Aggregates the readings of each device over rows of ``row_us``, which must be a multiple of ``period_us``."""

    def __init__(self, *, period_us: int, row_us: int) -> None:
        """Start with no readings."""
        self._period_us = period_us
        self._row_us = row_us
        self._open: dict[int, _OpenRow] = {}
        self._ended: dict[int, tuple[int, int]] = {}  # device: (grid end, instant) of its last row

    def add(self, due_us: int, readings: tuple[DeviceReading, ...]) -> list[Row]:
        """Add the readings of the tick that was due at ``due_us``; return the rows this completes.

        A row ends with the tick on its end, or, where that tick was missed, as soon as a later one comes.
        """
        end_us = -(-due_us // self._row_us) * self._row_us
        rows = [
            self._close(device, entry.end_us) for device, entry in list(self._open.items()) if entry.end_us != end_us
        ]
        for reading in readings:
            entry = self._open.get(reading.device)
            if entry is None:
                entry = self._open[reading.device] = self._begin(reading, due_us, end_us)
            entry.add(reading)
        if due_us == end_us:
            rows += [self._close(device, end_us) for device in list(self._open)]
        return rows

    def flush(self, due_us: int) -> list[Row]:
        """Close all rows early, at the tick that was due last: at shutdown, before a clock step, at an epoch's end."""
        return [self._close(device, min(due_us, entry.end_us)) for device, entry in list(self._open.items())]

    def change_period(self, period_us: int) -> None:
        """Expect readings at another distance from now on; to be called while no row is begun."""
        self._period_us = period_us

    def forget(self) -> None:
        """Let the next rows begin with their own first reading: what lies before them is another epoch or clock."""
        self._open.clear()
        self._ended.clear()

    def _begin(self, reading: DeviceReading, due_us: int, end_us: int) -> _OpenRow:
        grid_end_us, at_us = self._ended.get(reading.device, (None, reading.at_us))
        row_start_us = end_us - self._row_us
        if grid_end_us is not None and row_start_us <= grid_end_us < due_us:
            return _OpenRow(end_us, first_due_us=grid_end_us + self._period_us, since_us=at_us)
        # The device was not read in the row before: this row speaks for the time since its own first reading only,
        # but still counts the readings that were due in it.
        first_due_us = due_us if grid_end_us is None else row_start_us + self._period_us
        return _OpenRow(end_us, first_due_us=first_due_us, since_us=reading.at_us)

    def _close(self, device: int, grid_end_us: int) -> Row:
        entry = self._open.pop(device)
        expected = (grid_end_us - entry.first_due_us) // self._period_us + 1
        row = entry.row(device, missed=max(0, expected - entry.count))
        self._ended[device] = (grid_end_us, entry.last_at_us)
        return row


def exact_row(reading: DeviceReading, why: Reading) -> Row:
    """Return the row of one reading taken at an event: it stands for an instant, not for a span."""
    row: Row = {name: value for name, value in reading.values.items() if value is not None}
    row.update(at_us=reading.at_us, device=reading.device, reading=int(why), span_us=0, samples=1, samples_missed=0)
    return row


class _OpenRow:
    """One device's readings since its last row: sums for the means, extremes, seen bits, and the last of the rest."""

    __slots__ = ("_high_mw", "_last", "_low_mw", "_sums", "count", "end_us", "first_due_us", "last_at_us", "since_us")

    def __init__(self, end_us: int, *, first_due_us: int, since_us: int) -> None:
        self.end_us = end_us
        self.first_due_us = first_due_us
        self.since_us = since_us
        self.last_at_us = since_us
        self.count = 0
        self._last: Row = {}
        self._sums: dict[str, tuple[int | float, int]] = {}
        self._low_mw: int | float | None = None
        self._high_mw: int | float | None = None

    def add(self, reading: DeviceReading) -> None:
        self.count += 1
        self.last_at_us = reading.at_us
        values = reading.values
        reasons = self._last.get("clocks_event_reasons")
        for name, value in values.items():
            if value is not None:
                self._last[name] = value
        if isinstance(reasons, int) and isinstance(seen := values.get("clocks_event_reasons"), int):
            self._last["clocks_event_reasons"] = reasons | seen
        for name in ("power_average_mw", *_MEAN_INTEGERS, *_MEAN_RATIOS):
            value = values.get(name)
            if value is not None:
                total, count = self._sums.get(name, (0, 0))
                self._sums[name] = (total + value, count + 1)
        for name in _POWER_GAUGES:
            power_mw = values.get(name)
            if power_mw is not None:
                self._low_mw = power_mw if self._low_mw is None else min(self._low_mw, power_mw)
                self._high_mw = power_mw if self._high_mw is None else max(self._high_mw, power_mw)

    def row(self, device: int, missed: int) -> Row:
        row = dict(self._last)
        for name, (total, count) in self._sums.items():
            # Whole columns round half up, in integers: the same on every machine.
            row[name] = total / count if name in _MEAN_RATIOS else (2 * int(total) + count) // (2 * count)
        row["power_min_mw"], row["power_max_mw"] = self._low_mw, self._high_mw
        row.update(
            at_us=self.last_at_us,
            device=device,
            reading=int(Reading.PERIODIC),
            span_us=max(0, self.last_at_us - self.since_us),
            samples=self.count,
            samples_missed=missed,
        )
        return row
