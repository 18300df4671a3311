"""Power as a sum of rectangles in time, and its integral, exact at any microsecond.

Milliwatts x microseconds are nanojoules, so everything stays an integer. Powers in steps of 100 mW on a grid of 10 ms make
whole millijoules; what is finer is refused, for it would have to be rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
GRID_US: Final = 10_000
STEP_MW: Final = 100
NJ_PER_MJ: Final = 1_000_000
Rectangle = tuple[int, int, int]
"""From, to (µs), power (mW)."""


class Steps:
    """Piecewise-constant power. Zero before its first edge and after its last."""

    def __init__(self, rectangles: Sequence[Rectangle] | Ints) -> None:
        table = np.asarray(rectangles, dtype=np.int64).reshape(-1, 3)
        if (table[:, :2] % GRID_US).any() or (table[:, 2] % STEP_MW).any():
            raise ValueError(
                f"rectangles must lie on {GRID_US} µs and {STEP_MW} mW, or their energy is no whole number"
            )
        if (table[:, 1] < table[:, 0]).any():
            raise ValueError("a rectangle ends before it begins")
        at = np.concatenate([table[:, 0], table[:, 1]])
        edges, where = np.unique(at, return_inverse=True)
        change = np.zeros(len(edges), dtype=np.int64)
        np.add.at(change, where, np.concatenate([table[:, 2], -table[:, 2]]))
        self._edges = edges
        self._power_mw = np.cumsum(change)
        grown = self._power_mw[:-1] * np.diff(edges)
        self._nj = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(grown, dtype=np.int64)])

    def nj(self, at_us: Ints) -> Ints:
        """Return the energy (nJ) up to each instant."""
        if not len(self._edges):
            return np.zeros(len(at_us), dtype=np.int64)
        index = np.searchsorted(self._edges, at_us, side="right") - 1
        here = np.clip(index, 0, None)
        return np.where(index < 0, 0, self._nj[here] + self._power_mw[here] * (at_us - self._edges[here]))

    def power_mw(self, at_us: Ints) -> Ints:
        """Return the power from each instant on."""
        if not len(self._edges):
            return np.zeros(len(at_us), dtype=np.int64)
        index = np.searchsorted(self._edges, at_us, side="right") - 1
        return np.where(index < 0, 0, self._power_mw[np.clip(index, 0, None)])

    def mean_mw(self, from_us: Ints, to_us: Ints) -> Ints:
        """Return the mean power over each span, rounded down."""
        return (self.nj(to_us) - self.nj(from_us)) // (to_us - from_us)

    def energy_mj(self, from_us: int, to_us: int) -> int:
        """Return the energy of [from, to), both on the grid: a whole number of millijoules."""
        if from_us % GRID_US or to_us % GRID_US:
            raise ValueError(f"[{from_us}, {to_us}) is not on the grid of {GRID_US} µs: its energy is no whole number")
        first, last = self.nj(np.array([from_us, to_us], dtype=np.int64)).tolist()
        whole, rest = divmod(int(last) - int(first), NJ_PER_MJ)
        if rest:
            raise ArithmeticError(f"[{from_us}, {to_us}) holds {rest} nJ beyond whole millijoules")
        return whole


def on_grid(seconds: float) -> int:
    """Return seconds as microseconds, at the nearest grid point."""
    return round(seconds * 1_000_000 / GRID_US) * GRID_US


def in_steps(watts: float) -> int:
    """Return watts as milliwatts, in the nearest whole step."""
    return round(watts * 1_000 / STEP_MW) * STEP_MW


def runs(values: Ints) -> list[tuple[int, int, int]]:
    """Return (from, to, value) of each stretch of equal values that are not zero."""
    if not len(values):
        return []
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return [(start, stop, int(values[start])) for start, stop in pairwise(edges) if values[start]]
