"""Instruments of a simulated world: when they look, and the integers they then say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tests.sim.fate import Fate
from tests.sim.jobs import MARGIN_US, Work
from tests.sim.spec import Gauge, Sampling
from tests.sim.steps import NJ_PER_MJ, Ints, Steps

_AVERAGE_US = 1_000_000
_WINDOW_US, _OF_US = 25_000, 100_000
PPM = 1_000_000


@dataclass(frozen=True, slots=True)
class Looks:
    """Instants of readings, ascending; ``exact`` marks those taken at an event, which carry no gauges."""

    at_us: Ints
    exact: np.ndarray[tuple[int], np.dtype[np.bool_]]


def looks(until_us: int, how: Sampling, events_us: list[int], draw: np.random.Generator) -> Looks:
    """Return when a board is read: every cadence, each time a little early or late, and at events."""
    step = round(how.cadence_s * 1e6)
    turns = np.arange(-(MARGIN_US // step) * step, until_us + MARGIN_US, step, dtype=np.int64)
    late = round(how.jitter_s * 1e6)
    turns = turns + draw.integers(-late, late + 1, len(turns)) if late else turns
    events = np.array(events_us if how.exact_at_events else [], dtype=np.int64)
    exact = np.unique(events + draw.integers(0, round(how.event_delay_s * 1e6) + 1, len(events)))
    periodic = np.setdiff1d(turns, exact)
    at = np.concatenate([periodic, exact])
    order = np.argsort(at, kind="stable")
    return Looks(at[order], np.concatenate([np.zeros(len(periodic), bool), np.ones(len(exact), bool)])[order])


def refreshed(at_us: Ints, refresh_s: float, resets_us: list[int]) -> Ints:
    """Return the instants that instruments speak of which are refreshed every so often, and where they begin anew."""
    period = max(1, round(refresh_s * 1e6))
    shown = at_us // period * period
    for reset in resets_us:
        shown = np.where(at_us >= reset, np.maximum(shown, reset), shown)
    return shown


def counter_mj(power: Steps, resets_us: list[int], at_us: Ints, offset_mj: int) -> Ints:
    """Return what the board's counter shows: whole millijoules since it last began at 0; before that, ``offset_mj`` more."""
    since = power.nj(np.array(resets_us, dtype=np.int64))
    index = np.searchsorted(np.array(resets_us, dtype=np.int64), at_us, side="right") - 1
    if not len(since):
        return power.nj(at_us) // NJ_PER_MJ + offset_mj
    began = since[np.clip(index, 0, None)]
    return np.where(index < 0, power.nj(at_us) // NJ_PER_MJ + offset_mj, (power.nj(at_us) - began) // NJ_PER_MJ)


def gauge_mw(power: Steps, kind: Gauge, at_us: Ints) -> Ints:
    """Return what the power gauge shows: the mean of the last second, or of the last 25 ms that it looked at of 100."""
    if kind != "instant_25_of_100":
        return power.mean_mw(at_us - _AVERAGE_US, at_us)
    looked = (at_us - _WINDOW_US) // _OF_US * _OF_US
    return power.mean_mw(looked, looked + _WINDOW_US)


def node_meter_mj(
    boards: Sequence[tuple[Steps, int | None, int | None]],
    overhead_mw: int,
    gain_ppm: int,
    wrap_mj: int | None,
    at_us: Ints,
) -> Ints:
    """Return what a node's meter shows: its boards while they stood there, and its overhead, times its gain, wrapped."""
    total = overhead_mw * (at_us + MARGIN_US)
    for power, start_us, end_us in boards:
        last = at_us if end_us is None else np.minimum(at_us, end_us)
        before = 0 if start_us is None else power.nj(np.minimum(at_us, start_us))
        total = total + power.nj(last) - before
    # Whole millijoules before the gain: the product of nanojoules and ppm leaves 64 bits within an hour.
    shown = total // NJ_PER_MJ * gain_ppm // PPM
    return shown if wrap_mj is None else shown % wrap_mj


def activity_ppm(work: Work, how: Sampling, distortion: float, draw: np.random.Generator) -> list[tuple[int, int, int]]:
    """Return (end of the span µs, its length µs, SM activity ppm) as seen: at the job's clocks, and with noise."""
    period = max(1, round(how.process_period_s))
    clocks = 1 + float(draw.uniform(-distortion, distortion))
    found = []
    first, count = work.first_s, len(work.sm_ratio)
    edges = sorted(
        {0, count, *(second - first for second in range(-(-first // period) * period, first + count, period))}
    )
    for start, end in pairwise(edges):
        true = float(work.sm_ratio[start:end].mean())
        seen = min(max(true * clocks + float(draw.normal(0, how.process_noise)), 0.0), 1.0)
        found.append(((first + end) * 1_000_000, (end - start) * 1_000_000, round(seen * PPM)))
    return found


def heard(at_us: Ints, board: int, fate: Fate) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Say of each instant whether the board was not silent then."""
    if board not in fate.silences:
        return np.ones(len(at_us), bool)
    start, end = fate.silences[board]
    return (at_us < start) | (at_us >= end)


def written(at_us: Ints, off_us: int, draw: np.random.Generator) -> Ints:
    """Return the instants as a clock that is off by up to ``off_us`` writes them, still in order and each its own."""
    if not off_us or not len(at_us):
        return at_us
    said = at_us + draw.integers(-off_us, off_us + 1, len(at_us))
    number = np.arange(len(said))
    return np.maximum.accumulate(said - number) + number
