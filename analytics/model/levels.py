"""How much power an activity of each job is: jobs that keep the SMs equally busy do not draw equally much.

Which one draws more is in the board's own meter: its power goes up and down with who is active. Levels are fitted to that, by hour and
board, and stay near 1 where an hour says little. Floats are used here, one operation after the other in a fixed order, and leave as
thousandths; energy is divided elsewhere, in integers.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

EVEN: Final = 1_000
"""The level, in thousandths, of work that draws what its board's work draws on the average."""
_PRIOR_MS: Final = 5_000.0
"""As if each job had been fully active, alone and at the mean level, for so long. Chosen on simulated boards (docs/methodology.md §3)."""
_LEAST: Final = 0.125
_MOST: Final = 8.0
"""Beyond what boards do: a kernel that waits for memory and one on tensor cores lie a factor of 3 to 5 apart."""
_SWEEPS: Final = 40
_ALIKE: Final = 8
"""Boards of up to so many jobs are fitted with those of as many; of more, with those of up to the next power of two: jobs that are not there
take nothing from any, to the last bit, and a site has few widths however many jobs its boards had."""
_PPM_OF_PART: Final = 100
_PARTS: Final = 10_000.0
"""Activity is fitted in ten-thousandths, time in milliseconds: their products stay exact in 64 bits over an hour."""


def levels(pieces: pl.DataFrame, place: Ints, job: Ints, activity_ppm: Ints, active_mj: Ints) -> Ints:
    """Return of each row the level of its job in its board and hour, in thousandths of the mean; 0 where it was never active there.

    ``pieces``: device_id, hour_us, from_us, to_us; sorted by device and time. Rows are pieces by job: ``place`` the piece, ascending, ``job``
    a number that orders jobs the same wherever they come from, 0 ``activity_ppm`` leaves a row out. ``active_mj``: of each piece.
    Ridge least squares: the sum over pieces of time x (active power - sum_j level_j x activity_j)^2, plus the prior's.
    """
    level = np.zeros(len(place), dtype=np.int64)
    row = np.flatnonzero(activity_ppm)
    if not len(row):
        return level
    board = _numbered(pieces)
    place, job, part = place[row], job[row], (activity_ppm[row] // _PPM_OF_PART).astype(np.float64)
    jobs = int(job.max() - job.min()) + 1
    keys, unknown = np.unique(board[place] * jobs + job - job.min(), return_inverse=True)
    board_of = keys // jobs
    first = np.searchsorted(board_of, np.arange(int(board.max()) + 1))
    count = np.bincount(board_of, minlength=len(first))
    ms = ((pieces["to_us"] - pieces["from_us"]).to_numpy() // 1_000).astype(np.float64)
    work = _sums(unknown, part * ms[place], len(keys))
    seen = _sums(unknown, part * active_mj[place], len(keys))
    is_first = np.concatenate([[True], place[1:] != place[:-1]])
    energy = _sums(board[place[is_first]], active_mj[place[is_first]].astype(np.float64), len(first))
    offset = np.cumsum(count * count) - count * count
    both = np.zeros(int((count * count).sum()))
    at = unknown - first[board[place]]
    base = offset[board[place]]
    size = count[board[place]]
    for apart in range(int(np.bincount(place).max())):
        same = place[apart:] == place[: len(place) - apart]
        i, j = np.flatnonzero(same), np.flatnonzero(same) + apart
        product = part[i] * part[j] * ms[place[i]]
        both += _sums(base[i] + at[i] * size[i] + at[j], product, len(both))
        if apart:
            both += _sums(base[i] + at[j] * size[i] + at[i], product, len(both))
    fitted = np.zeros(len(keys), dtype=np.int64)
    width = np.where(count > _ALIKE, 2 ** np.ceil(np.log2(np.maximum(count, 1))).astype(np.int64), count)
    for columns in np.unique(width[count > 0]):
        boards = np.flatnonzero(width == columns)
        column, there = np.arange(columns), count[boards]
        is_job = column < there[:, None]
        mine = np.where(is_job, first[boards][:, None] + column, 0)
        is_pair = is_job[:, :, None] & is_job[:, None, :]
        pairs = offset[boards][:, None, None] + column[:, None] * there[:, None, None] + column
        overlaps = np.where(is_pair, both[np.where(is_pair, pairs, 0)], 0.0)
        of_boards = _fit(overlaps, np.where(is_job, seen[mine], 0.0), np.where(is_job, work[mine], 0.0), energy[boards])
        fitted[mine[is_job]] = of_boards[is_job]
    level[row] = fitted[unknown]
    return level


def _sums(place: Ints, values: Floats, count: int) -> Floats:
    """Return the sums of the values of each place, added in their order."""
    return np.asarray(np.bincount(place, values, count), dtype=np.float64)


def _numbered(pieces: pl.DataFrame) -> Ints:
    """Return the number of each piece's board and hour."""
    changed = pl.any_horizontal(pl.col(name) != pl.col(name).shift(1) for name in ("device_id", "hour_us"))
    return pieces.select(changed.fill_null(value=False).cum_sum().cast(pl.Int64)).to_series().to_numpy()


def _fit(both: Floats, seen: Floats, work: Floats, energy: Floats) -> Ints:
    """Return the levels of boards (rows) with up to as many jobs as there are columns, by sweeps over the normal equations.

    Overlaps are subtracted one after the other in the order of jobs, as ``np.subtract.reduce`` does: sums of floats depend on it.
    """
    both = np.moveaxis(both, 0, 2) / (_PARTS * _PARTS)
    mean_w = np.maximum(energy / np.maximum(work.sum(axis=1) / _PARTS, 1.0), 1e-9)
    wanted = (seen / _PARTS / mean_w[:, None]).T
    jobs = range(len(wanted))
    begin, whole = wanted + _PRIOR_MS, [both[job, job] + _PRIOR_MS for job in jobs]
    both[jobs, jobs] = 0.0
    level: Floats = np.ones(wanted.shape)
    taken = np.empty((len(wanted) + 1, wanted.shape[1]))
    for _ in range(_SWEEPS):
        for job in jobs:
            taken[0] = begin[job]
            np.multiply(both[job], level, out=taken[1:])
            rest = np.subtract.reduce(taken, axis=0)
            # As np.clip does, which takes longer to begin than to do it.
            level[job] = np.minimum(np.maximum(rest / whole[job], _LEAST), _MOST)
    return np.rint(level.T * EVEN).astype(np.int64)
