"""Means by time of dated facts over an hour, or a part of one: which rows were in force for how long, and what that comes to. Exact.

It refuses to fill what is missing: an hour of which a part has no row has no mean, and says how much of it is covered.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import polars as pl

from analytics.model.dated import Dated
from analytics.units import from_us, to_us

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class HourRate:
    """What a series comes to over an hour.

    ``value``: the mean by time, null where a part of the hour is not covered. ``row_ids``: of the rows that count, in the order of time,
    each once. ``estimated``: some of them says so of itself.
    """

    value: Fraction | None
    covered_us: int
    row_ids: tuple[int, ...]
    estimated: bool


class Series:
    """A dated table, asked for spans of time: who of several rows counts at an instant is as of :class:`Dated`."""

    def __init__(self, facts: pl.DataFrame, key: str) -> None:
        """Take rows with valid_from and valid_to (null = open end); ``key`` decides between two that began together."""
        self._key, self._dated = key, Dated(facts, key)
        ends = {at for name in ("valid_from", "valid_to") for at in facts[name].drop_nulls().to_list()}
        self._edges = sorted(map(to_us, ends))

    def pieces(self, start_us: int, end_us: int) -> list[tuple[dict[str, Any] | None, int]]:
        """Return the rows in force over [start, end), each with its length in microseconds; None where there is none."""
        inside = self._edges[bisect_right(self._edges, start_us) : bisect_left(self._edges, end_us)]
        return [(self._dated.at(from_us(at)), to - at) for at, to in pairwise((start_us, *inside, end_us))]

    def mean(self, start_us: int, end_us: int, worth: Callable[[Row], Fraction | None]) -> HourRate:
        """Return the mean by time over [start, end), not empty; ``worth``: what a row says, null = nothing that can be used here."""
        found = [(row, length, worth(row)) for row, length in self.pieces(start_us, end_us) if row is not None]
        counted = [(row, length, value) for row, length, value in found if value is not None]
        covered_us = sum(length for _, length, _ in counted)
        total = sum((value * length for _, length, value in counted), Fraction(0))
        return HourRate(
            total / covered_us if covered_us == end_us - start_us else None,
            covered_us,
            tuple(dict.fromkeys(int(row[self._key]) for row, _, _ in counted)),
            any(bool(row.get("estimated")) for row, _, _ in counted),
        )
