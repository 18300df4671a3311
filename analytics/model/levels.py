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

Floats = NDArray[np.float64]

EVEN: Final = 1_000
"""The level, in thousandths, of work that draws what its board's work draws on the average."""
_PRIOR_MS: Final = 5_000.0
"""As if each job had been fully active, alone and at the mean level, for so long. Chosen on simulated boards (docs/methodology.md §4)."""
_LEAST: Final = 0.125
_MOST: Final = 8.0
"""Beyond what boards do: a kernel that waits for memory and one on tensor cores lie a factor of 3 to 5 apart."""
_SWEEPS: Final = 40
_PPM_OF_PART: Final = 100
_PARTS: Final = 10_000.0
"""Activity is fitted in ten-thousandths, time in milliseconds: their products stay exact in 64 bits over an hour."""
_BOARD_HOUR: Final = ["device_id", "hour_us"]


def levels(rows: pl.DataFrame) -> pl.DataFrame:
    """Return device_id, hour_us, job_id, level (thousandths of the mean) of each job that was active.

    ``rows``: device_id, hour_us, place, job_id, activity_ppm, active_mj (of the whole piece), length_us; all active jobs of each piece.
    Ridge least squares: the sum over pieces of time x (active power - sum_j level_j x activity_j)^2, plus the prior's.
    """
    known = rows.select(
        pl.col("device_id").cast(pl.Int32),
        "hour_us",
        "place",
        "job_id",
        (pl.col("activity_ppm") // _PPM_OF_PART).alias("part"),
        (pl.col("length_us") // 1_000).alias("ms"),
        "active_mj",
    )
    jobs = (
        known.group_by(*_BOARD_HOUR, "job_id")
        .agg(
            (pl.col("active_mj") * pl.col("part")).sum().alias("seen"),
            (pl.col("part") * pl.col("ms")).sum().alias("work"),
        )
        .sort(*_BOARD_HOUR, "job_id", nulls_last=True)
        .with_columns(
            pl.int_range(pl.len()).over(_BOARD_HOUR).alias("number"), pl.len().over(_BOARD_HOUR).alias("count")
        )
    )
    energy = known.unique("place").group_by(_BOARD_HOUR).agg(pl.col("active_mj").sum().alias("active_mj"))
    jobs = jobs.join(energy, on=_BOARD_HOUR, how="left", maintain_order="left")
    numbered = known.join(jobs.select(*_BOARD_HOUR, "job_id", "number"), on=[*_BOARD_HOUR, "job_id"], nulls_equal=True)
    pairs = (
        numbered.join(numbered.select("place", "part", pl.col("number").alias("other")), on="place")
        .group_by(*_BOARD_HOUR, "number", "other")
        .agg((pl.col("part") * pl.col("part_right") * pl.col("ms")).sum().alias("both"))
    )
    fitted = [
        of_size.select(*_BOARD_HOUR, "job_id", pl.Series("level", _fit(of_size, pairs, int(count)), dtype=pl.Int64))
        for (count,), of_size in jobs.group_by("count")
    ]
    return pl.concat([_NO_LEVELS, *fitted])


_NO_LEVELS: Final = pl.DataFrame(
    schema={"device_id": pl.Int32, "hour_us": pl.Int64, "job_id": pl.Int64, "level": pl.Int64}
)


def _fit(jobs: pl.DataFrame, pairs: pl.DataFrame, count: int) -> NDArray[np.int64]:
    """Return the levels of all boards with ``count`` jobs, in the order of ``jobs`` (sorted by board, hour and number)."""
    boards = jobs.filter(pl.col("number") == 0).select(*_BOARD_HOUR).with_row_index("board")
    mine = pairs.join(boards, on=_BOARD_HOUR)
    both: Floats = np.zeros((count, count, boards.height))
    where = (mine["number"].to_numpy(), mine["other"].to_numpy(), mine["board"].to_numpy())
    both[where] = mine["both"].to_numpy() / (_PARTS * _PARTS)
    work = jobs["work"].to_numpy().reshape(-1, count).sum(axis=1) / _PARTS
    mean_w = np.maximum(jobs["active_mj"].to_numpy().reshape(-1, count)[:, 0] / np.maximum(work, 1.0), 1e-9)
    seen = (jobs["seen"].to_numpy().reshape(-1, count) / _PARTS / mean_w[:, None]).T
    level: Floats = np.ones((count, boards.height))
    for _ in range(_SWEEPS):
        for job in range(count):
            rest = seen[job] + _PRIOR_MS
            for other in range(count):
                if other != job:
                    rest = rest - both[job, other] * level[other]
            level[job] = np.clip(rest / (both[job, job] + _PRIOR_MS), _LEAST, _MOST)
    return np.rint(level.T.reshape(-1) * EVEN).astype(np.int64)
