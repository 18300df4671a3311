"""The arithmetic of the books once more, in Python's integers and fractions: what a line is checked against when it is explained.

Written apart from the expressions that make the books (``energy``, ``money``), so that neither can hide the other's fault. One value
at a time, for a handful of lines; nothing here is made for a fleet, and it decides nothing about who pays.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, Final, Literal

NANO: Final = 10**9
Instrument = Literal["counter", "gauge"]
COVERED, GAP = "covered", "telemetry_gap"


@dataclass(frozen=True, slots=True)
class Reading:
    """One usable reading of one device: ``value`` in mJ of a counter, in mW of a gauge; equal ``segment`` = comparable counters."""

    at_us: int
    value: int
    segment: int
    max_gap_us: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What two readings that follow each other may be apart, in time and in what a counter grew by."""

    reach_us: int
    refresh_us: int
    most_mw: int


@dataclass(frozen=True, slots=True)
class Cut:
    """The counter at an instant: C(t) = c0 + floor((c1 - c0) (t - t0) / (t1 - t0)); ``after`` is ``before`` where a reading stands at t.

    ``value_mj``: of a gauge, what it adds up to since ``before``.
    """

    at_us: int
    before: Reading
    after: Reading
    value_mj: int

    @property
    def is_exact(self) -> bool:
        return self.before is self.after


@dataclass(frozen=True, slots=True)
class Stretch:
    """Neighbouring intervals of one kind within [from, to): ``covered``, ``telemetry_gap``, or why nothing is known of them."""

    kind: str
    from_us: int
    to_us: int
    energy_mj: int
    first: Cut
    last: Cut
    intervals: int


def half_even(value: Fraction) -> int:
    """Return the nearest integer, a half to the even one."""
    whole, rest = divmod(value.numerator, value.denominator)
    twice = 2 * rest
    return whole + (1 if twice > value.denominator or (twice == value.denominator and whole % 2) else 0)


@dataclass(frozen=True, slots=True)
class Part:
    """How one line came to its part of a rounded total; ``total``, ``floor`` and ``part`` in the last place of the figure."""

    exact: Fraction
    total: int
    weight: int
    weights: int
    floor: int
    remainder: int
    """Of total x weight / weights, in ``weights``ths."""
    rank: int
    """By remainder, from 1; equals by name."""
    left: int
    """How many lines get one more."""
    lines: int
    part: int


def part_of(exact: Fraction, weights: Sequence[int], names: Sequence[Any], mine: int) -> Part:
    """Return how ``exact``, rounded once, is divided by largest remainder, for the line at ``mine``.

    ``names`` order equal remainders. A negative total is divided like its absolute value; without any weight the first has all.
    """
    total, sum_of = half_even(exact), sum(weights)
    size, sign = abs(total), -1 if total < 0 else 1
    split = [divmod(size * weight, sum_of) if sum_of else (0, 0) for weight in weights]
    order = sorted(range(len(weights)), key=lambda at: (-split[at][1], names[at]))
    rank = order.index(mine) + 1
    left = size - sum(floor for floor, _ in split)
    floor, remainder = split[mine]
    part = floor + (1 if rank <= left else 0) if sum_of else (size if rank == 1 else 0)
    return Part(
        exact,
        total,
        weights[mine],
        sum_of,
        sign * floor,
        remainder,
        rank,
        left if sum_of else 1,
        len(weights),
        sign * part,
    )


def cut(readings: Sequence[Reading], at_us: int, instrument: Instrument) -> Cut | None:
    """Return the counter at an instant between two readings, or at one; None before the first and after the last."""
    place = bisect_right(readings, at_us, key=lambda each: each.at_us) - 1
    if place < 0:
        return None
    before = readings[place]
    if before.at_us == at_us:
        return Cut(at_us, before, before, before.value if instrument == "counter" else 0)
    if place + 1 == len(readings):
        return None
    after = readings[place + 1]
    grown = _growth(before, after, instrument) * (at_us - before.at_us) // (after.at_us - before.at_us)
    return Cut(at_us, before, after, (before.value if instrument == "counter" else 0) + grown)


def stretches(
    readings: Sequence[Reading], from_us: int, to_us: int, instrument: Instrument, limits: Limits
) -> list[Stretch]:
    """Return what these readings, in order of time, say of [from, to): no row for time before the first and after the last of them."""
    found: list[Stretch] = []
    start = max(0, bisect_right(readings, from_us, key=lambda each: each.at_us) - 1)
    for before, after in pairwise(readings[start:]):
        if before.at_us >= to_us:
            break
        begin, end = max(before.at_us, from_us), min(after.at_us, to_us)
        if begin >= end:
            continue
        kind = _kind(before, after, instrument, limits)
        first, last = (_between(before, after, at, instrument) for at in (begin, end))
        energy = 0
        if kind in (COVERED, GAP):
            grown, width = _growth(before, after, instrument), after.at_us - before.at_us
            energy = grown * (end - before.at_us) // width - grown * (begin - before.at_us) // width
        if found and found[-1].kind == kind == COVERED and found[-1].to_us == begin:
            head = found.pop()
            found.append(
                Stretch(kind, head.from_us, end, head.energy_mj + energy, head.first, last, head.intervals + 1)
            )
        else:
            found.append(Stretch(kind, begin, end, energy, first, last, 1))
    return found


def _between(before: Reading, after: Reading, at_us: int, instrument: Instrument) -> Cut:
    at_one = next((each for each in (before, after) if each.at_us == at_us), None)
    if at_one is not None:
        return Cut(at_us, at_one, at_one, at_one.value if instrument == "counter" else 0)
    found = cut([before, after], at_us, instrument)
    assert found is not None  # noqa: S101 - the instant lies between the two
    return found


def _growth(before: Reading, after: Reading, instrument: Instrument) -> int:
    if instrument == "counter":
        return after.value - before.value
    return (before.value + after.value) * (after.at_us - before.at_us) // 2_000_000


def _kind(before: Reading, after: Reading, instrument: Instrument, limits: Limits) -> str:
    width = after.at_us - before.at_us
    if after.segment != before.segment:
        return "epoch_change"
    if width > (limits.reach_us if instrument == "counter" else before.max_gap_us):
        return "no_data"
    if instrument == "counter" and after.value < before.value:
        return "counter_reset"
    if _growth(before, after, instrument) > limits.most_mw // 1_000 * (width + limits.refresh_us) // 1_000 + 1:
        return "implausible"
    return GAP if instrument == "counter" and width > before.max_gap_us else COVERED
