"""Intervals between readings, all at once: how long, how much, in which state. Most are plain, and only the others need rules.

Arrays in, arrays out, one element a reading, of the interval that it begins. Millions of intervals pass through here for each hour
of a large site, so it is numpy and looks at each column once. Which odd interval counts, and why not, ``energy`` decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from analytics.model.readings import Timeline
from analytics.policy import THROTTLE_BITS, Policy
from analytics.units import MW_PER_W, NS_PER_US, US_PER_SECOND

Int64s = NDArray[np.int64]
Bools = NDArray[np.bool_]
_SAFE: Final = float(2**62)
_CHUNK: Final = 1 << 16
"""Intervals looked at together: what is made of them on the way stays in the processor's cache, which halves the time."""


@dataclass(frozen=True, slots=True)
class Steps:
    """The intervals of a timeline. The last of each device leads to the next device's first reading, and is none."""

    is_one: Bools
    """Whether the interval is one device's."""
    dt_us: Int64s
    growth: Int64s
    """Of the value, mJ; of a gauge the trapezoid. Where there is no interval, nothing."""


def steps(timeline: Timeline) -> Steps:
    rows = timeline.rows
    device, key = rows["device_id"].to_numpy(), rows["key"].to_numpy()
    value = rows["value"].to_numpy()
    is_one = np.zeros(len(key), dtype=np.bool_)
    dt_us = np.zeros(len(key), dtype=np.int64)
    growth = np.zeros(len(key), dtype=np.int64)
    np.equal(device[1:], device[:-1], out=is_one[:-1])
    np.subtract(key[1:], key[:-1], out=dt_us[:-1])
    if timeline.instrument == "counter":
        np.subtract(value[1:], value[:-1], out=growth[:-1])
    else:
        growth[:-1] = (value[1:] + value[:-1]) * dt_us[:-1] // (2 * US_PER_SECOND)
    return Steps(is_one, dt_us, growth)


def odd(timeline: Timeline, found: Steps, max_power_mw: Int64s | int, policy: Policy) -> Int64s:
    """Return the indices of intervals of one device that may not be covered; all others are, beyond doubt.

    ``max_power_mw``: of each reading's device, or one for all.
    """
    doubtful = [
        _doubtful(timeline, found, slice(start, start + _CHUNK), max_power_mw, policy)
        for start in range(0, len(found.is_one), _CHUNK)
    ]
    indices: Int64s = np.flatnonzero(np.concatenate(doubtful) & found.is_one)
    return indices


def _doubtful(timeline: Timeline, found: Steps, part: slice, max_power_mw: Int64s | int, policy: Policy) -> Bools:
    dt_us, growth = found.dt_us[part], found.growth[part]
    segment = timeline.rows["segment"].slice(part.start, len(dt_us) + 1).to_numpy()
    max_gap_us = timeline.rows["max_gap_us"].slice(part.start, len(dt_us)).to_numpy()
    doubtful: Bools = dt_us > np.minimum(max_gap_us, policy.gaps.reach_us)
    doubtful[: len(segment) - 1] |= segment[1:] != segment[:-1]
    if timeline.instrument == "counter":
        doubtful |= growth < 0
    most_mw = max_power_mw if isinstance(max_power_mw, int) else max_power_mw[part]
    # What is not above this cannot be above what the rules allow, which is more by a refresh.
    doubtful |= growth > most_mw // MW_PER_W * dt_us // MW_PER_W
    return doubtful


@dataclass(frozen=True, slots=True)
class Place:
    """Where instants lie among readings: behind which one, and which of them inside its interval, how far of how long."""

    here: Int64s
    """The reading at or before each; the first of all for what lies before any, where nothing has grown yet."""
    inside: Int64s
    """Which of them lie behind their reading; most cuts are made where one stands."""
    offset: Int64s
    width: Int64s

    @classmethod
    def of(cls, keys: Int64s, at: Int64s) -> Place:
        """Find each of ``at`` among ``keys``, which ascend."""
        here = np.maximum(np.searchsorted(keys, at, side="right") - 1, 0)
        offset = at - keys[here]
        inside = np.flatnonzero(offset > 0)
        between = here[inside]
        width = keys[np.minimum(between + 1, len(keys) - 1)] - keys[between]
        return cls(here, inside, offset[inside], np.maximum(width, 1))

    def read(self, running: Int64s) -> Int64s:
        """Return a running sum (one element a reading, inclusive) at these instants, floor(growth x offset / width) into the interval."""
        start = running[np.maximum(self.here - 1, 0)]
        start[self.here == 0] = 0
        growth = running[self.here[self.inside]] - start[self.inside]
        grown = growth * self.offset // self.width
        # Where the product needs more than 64 bits; told in floats, which are off by far less than the half that is left free.
        long = np.flatnonzero(np.abs(growth.astype(np.float64)) * np.abs(self.offset.astype(np.float64)) > _SAFE)
        for row in long.tolist():
            grown[row] = int(growth[row]) * int(self.offset[row]) // int(self.width[row])
        start[self.inside] += grown
        return start


def running_sums(
    rows: pl.DataFrame, energy_mj: Int64s, covered_us: Int64s, idle_below_mw: Int64s | int, policy: Policy
) -> pl.DataFrame:
    """Return the inclusive running sums of energy_mj, covered_us and the times in each state; a state nobody tells of is left out.

    ``rows``: as of a timeline. ``energy_mj`` and ``covered_us``: of each interval, 0 where it does not count, one more at the end; they are
    made into their sums, since to have memory costs as much as to fill it.
    """
    told = _Told.of(rows, policy)
    intervals = rows.height - 1
    sums: dict[str, Int64s] = {"energy_mj": energy_mj, "covered_us": covered_us}
    for start in range(0, max(intervals, 1), _CHUNK):
        end = min(start + _CHUNK, intervals)
        floor = idle_below_mw if isinstance(idle_below_mw, int) else idle_below_mw[start:end]
        times = _state_times(told, start, end, covered_us[start:end], floor)
        # Those that take the place of what they sum come last: times are made of what is covered.
        for name, each in {**times, **{name: sums[name][start:end] for name in ("energy_mj", "covered_us")}}.items():
            if name not in sums:
                sums[name] = np.empty(rows.height, dtype=np.int64)
            running = sums[name]
            np.cumsum(each, out=running[start:end])
            if start:
                running[start:end] += running[start - 1]
    for running in sums.values():
        running[intervals:] = running[intervals - 1] if intervals else 0
    if told.util is not None and not len(told.util.silent):
        sums["known_us"] = covered_us
    return pl.DataFrame(sums)


@dataclass(frozen=True, slots=True)
class _Spoken:
    """A column as readings speak of it; taken out of the frame a part at a time, since few parts are to be in memory together."""

    column: pl.Series
    silent: Int64s
    """The readings that say nothing, in order."""
    helped: Int64s
    """Those for which another one speaks, in order."""
    words: Int64s
    """What it says."""

    @classmethod
    def of(cls, column: pl.Series) -> _Spoken:
        none = np.zeros(0, dtype=np.int64)
        return cls(column, column.is_null().arg_true().to_numpy().astype(np.int64), none, none)

    def completed(self, device: Int64s, key: Int64s, soon_us: int) -> _Spoken:
        """Let the reading after one that carries no gauges (it was taken at an event) speak for it, if it comes soon."""
        lacks = self.silent[(self.silent > 0) & (self.silent < len(key) - 1)]
        # The interval that ends there must be of the same device as the reading that speaks for it.
        soon = (device[lacks + 1] == device[lacks - 1]) & (key[lacks + 1] - key[lacks] <= soon_us)
        lacks = lacks[soon]
        words = self.column.gather(lacks + 1)
        helped = lacks[words.is_not_null().to_numpy()]
        return _Spoken(self.column, np.setdiff1d(self.silent, helped), helped, words.drop_nulls().to_numpy())

    def said(self, start: int, end: int) -> tuple[Int64s, Bools | None]:
        """Return what these readings say, and where they say anything; null = everywhere."""
        values = self.column.slice(start, end - start).fill_null(0).to_numpy(writable=True)
        here = slice(*np.searchsorted(self.helped, (start, end)))
        values[self.helped[here] - start] = self.words[here]
        silent = self.silent[slice(*np.searchsorted(self.silent, (start, end)))]
        if not len(silent):
            return values, None
        known = np.ones(end - start, dtype=np.bool_)
        known[silent - start] = False
        return values, known


@dataclass(frozen=True, slots=True)
class _Told:
    """What readings tell of states; a column that none of them has is null."""

    util: _Spoken | None
    power: _Spoken
    reasons: _Spoken | None
    throttled: _Spoken | None

    @classmethod
    def of(cls, rows: pl.DataFrame, policy: Policy) -> _Told:
        device, key = rows["device_id"].to_numpy(), rows["key"].to_numpy()

        def gauge(name: str) -> _Spoken:
            return _Spoken.of(rows[name]).completed(device, key, policy.gaps.max_gap_us)

        said = {name: rows[name].null_count() < rows.height for name in rows.columns}
        return cls(
            gauge("gpu_util_percent") if said["gpu_util_percent"] else None,
            gauge("power_mw"),
            gauge("clocks_event_reasons") if said["clocks_event_reasons"] else None,
            _Spoken.of(rows["throttled_ns"]) if said["throttled_ns"] else None,
        )


def _state_times(
    told: _Told, start: int, end: int, covered_us: Int64s, idle_below_mw: Int64s | int
) -> dict[str, Int64s]:
    """Return the microseconds of each of these intervals in each state; ``known_us`` is left out where every reading tells."""
    times: dict[str, Int64s] = {}
    bits_us: Int64s | None = None
    if told.util is not None:
        util, known = told.util.said(start + 1, end + 1)
        power, powered = told.power.said(start + 1, end + 1)
        is_active, is_idle = util > 0, (util == 0) & (power <= idle_below_mw)
        if known is not None:
            is_active &= known
            is_idle &= known
        if powered is not None:
            is_idle &= powered
        if len(told.util.silent):
            times["known_us"] = covered_us if known is None else covered_us * known
        times["active_us"] = covered_us * is_active
        times["idle_us"] = covered_us * is_idle
        if told.reasons is not None:
            reasons, given = told.reasons.said(start + 1, end + 1)
            # An idle board reports power cap too (RTX 2080S at 39 W of 250 W): only work can be slowed.
            is_slowed = is_active & ((reasons & THROTTLE_BITS) != 0)
            bits_us = covered_us * (is_slowed if given is None else is_slowed & given)
    if told.throttled is not None:
        violation_us, counted = _violations(told.throttled, start, end)
        slowed_us = np.minimum(np.maximum(violation_us, 0), covered_us)
        times["throttle_counter_us"] = covered_us * counted
        times["throttled_us"] = np.where(counted, slowed_us, 0 if bits_us is None else bits_us)
    elif bits_us is not None:
        times["throttled_us"] = bits_us
    if bits_us is not None:
        times["throttle_bits_us"] = bits_us
    return times


def _violations(throttled: _Spoken, start: int, end: int) -> tuple[Int64s, Bools]:
    """Return by how many microseconds the counter of throttling grew in these intervals, and where that is known."""
    values, known = throttled.said(start, end + 1)
    grown_us = (values[1:] - values[:-1]) // NS_PER_US
    counted = grown_us >= 0
    if known is not None:
        counted &= known[1:] & known[:-1]
    return grown_us, counted
