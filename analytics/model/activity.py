"""What was seen of who worked on a shared board: looks at processes and MIG instances, clipped to what each job held.

It divides nothing and knows no energy. An agent looks every few seconds and says, by job, how much of the SM time since the look before was
its processes'; a process that is gone by the next look is in none, so a look speaks on for as long as it spoke, while the job holds.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from analytics.units import PPM, US_PER_MINUTE

PROCESS_UTILIZATION: Final = "process_utilization"
MPS_THREADS: Final = "mps_threads"
SLICE_ACTIVITY: Final = "slice_activity"
_ALONE: Final = "measured"
"""What an agent says where a look found one holder: whatever was worked then, was worked by it."""
_TOLD_APART: Final = (_ALONE, PROCESS_UTILIZATION, MPS_THREADS)
"""Methods of a look in which SM time is its holder's own; the driver's figures of MPS clients without caps are not to be trusted."""
LONGEST_US: Final = 5 * US_PER_MINUTE
"""A look that speaks of more is not heard: whoever reads an hour reads so far beyond it that all that are heard are found."""
LOOKS: Final = {
    "device_id": pl.Int32,
    "job_id": pl.Int64,
    "from_us": pl.Int64,
    "to_us": pl.Int64,
    "activity_ppm": pl.Int64,
    "threads_ppm": pl.Int64,
    "method": pl.String,
}
"""Mean activity of one job on one board over [from_us, to_us); null job = nobody who holds some of the board."""


def looks(
    shares: pl.DataFrame, instances: pl.DataFrame, held: pl.DataFrame, slices: pl.DataFrame, on_slices: pl.DataFrame
) -> pl.DataFrame:
    """Return :data:`LOOKS`, sorted, from what agents saw; the same whatever the window, if ``held`` reaches beyond it.

    ``shares``: ``DeviceShares``; ``instances``: ``InstanceActivity``. ``held``: device_id, job_id, start_us, end_us, of boards.
    ``slices``: instance_id, whole_ppm (of its board); ``on_slices``: instance_id, job_id, slice_ppm (the job's part of the board by this
    instance), start_us, end_us.
    """
    seen = pl.concat([_of_processes(shares, _joined(held)), _of_instances(instances, slices, on_slices)])
    return seen.sort("device_id", "from_us", "job_id", "to_us", "activity_ppm", nulls_last=True)


def instants(seen: pl.DataFrame) -> pl.DataFrame:
    """Return device_id, cut_us: where pieces of a shared board are cut, so that within each of them activity is one figure."""
    edges = [seen.select("device_id", pl.col(name).alias("cut_us")) for name in ("from_us", "to_us")]
    return pl.concat(edges).unique().sort("device_id", "cut_us")


def on_pieces(pieces: pl.DataFrame, holders: pl.DataFrame, seen: pl.DataFrame) -> pl.DataFrame:
    """Return place, job_id, activity_ppm (mean over the piece, rounded down), seen_method of pieces of which all activity is known.

    ``pieces``: place (its row number), device_id, from_us, to_us; sorted. ``holders``: place, job_id. A job that does not hold a piece has no
    row in it; null ``job_id`` is everybody who holds nothing of the board.
    """
    pairs = _overlaps(pieces, seen)
    mine = holders.select("place", "job_id", pl.lit(value=True).alias("holds"))
    pairs = (
        pairs.join(mine, on=["place", "job_id"], how="left", maintain_order="left")
        .filter(pl.col("holds") | pl.col("job_id").is_null())
        .drop("holds")
    )
    by_threads = pl.col("activity_ppm").is_null().any().over("place")
    unknown = pl.col("activity_ppm").is_null().any().over("place") & pl.col("threads_ppm").is_null().any().over("place")
    length = pl.col("length_us").first()
    return (
        pairs.filter(~unknown)
        .with_columns(
            pl.when(by_threads).then("threads_ppm").otherwise("activity_ppm").alias("rate_ppm"),
            pl.when(by_threads).then(pl.lit(MPS_THREADS)).otherwise("method").alias("method"),
        )
        .group_by("place", "job_id", maintain_order=True)
        .agg(
            ((pl.col("rate_ppm") * pl.col("overlap_us")).sum() // length).alias("activity_ppm"),
            pl.col("method").first().alias("seen_method"),
        )
    )


def _of_processes(shares: pl.DataFrame, held: pl.DataFrame) -> pl.DataFrame:
    end_us = pl.col("at").dt.epoch("us")
    rows = (
        shares.filter(pl.col("span_us").is_between(1, LONGEST_US))
        .select(
            pl.col("device_id").cast(pl.Int32),
            pl.col("job_id").cast(pl.Int64),
            (end_us - pl.col("span_us")).alias("from_us"),
            end_us.alias("to_us"),
            pl.col("sm_util_ppm").cast(pl.Int64),
            pl.col("share_ppm").cast(pl.Int64),
            "method",
        )
        .with_row_index("look")
    )
    alone = pl.col("method") == _ALONE
    own = rows.with_columns(
        pl.when(pl.col("method").is_in(_TOLD_APART))
        .then(pl.coalesce("sm_util_ppm", pl.when(alone).then(PPM)))
        .alias("activity_ppm"),
        pl.when(pl.col("method") == MPS_THREADS).then("share_ppm").when(alone).then(PPM).alias("threads_ppm"),
        pl.when(pl.col("method") == MPS_THREADS)
        .then(pl.lit(MPS_THREADS))
        .otherwise(pl.lit(PROCESS_UTILIZATION))
        .alias("method"),
    ).drop("sm_util_ppm", "share_ppm")
    return pl.concat([_clipped(own, held), _nobodys(own, held)])


def _joined(held: pl.DataFrame) -> pl.DataFrame:
    """Return device_id, job_id, start_us, end_us: what a job held without a break is one, whatever changed for others."""
    rows = held.drop_nulls("job_id").select("device_id", "job_id", "start_us", "end_us").unique()
    rows = rows.sort("device_id", "job_id", "start_us", "end_us")
    reached = pl.col("end_us").cum_max().shift(1).over("device_id", "job_id")
    begins = (pl.col("start_us") > reached).fill_null(value=True)
    return (
        rows.with_columns(begins.cum_sum().over("device_id", "job_id").alias("time"))
        .group_by("device_id", "job_id", "time", maintain_order=True)
        .agg(pl.col("start_us").min(), pl.col("end_us").max())
        .drop("time")
    )


def _clipped(rows: pl.DataFrame, held: pl.DataFrame) -> pl.DataFrame:
    """Return looks as activity over the time their job held: what was seen since the look before, was done while it held."""
    order = ["device_id", "job_id", "from_us"]
    following = pl.col("from_us").shift(-1).over("device_id", "job_id").fill_null(pl.col("to_us").max() * 2)
    longer = rows.drop_nulls("job_id").sort(*order)
    longer = longer.with_columns(
        pl.min_horizontal(2 * pl.col("to_us") - pl.col("from_us"), pl.max_horizontal(following, "to_us")).alias(
            "until_us"
        )
    )
    both = longer.join(held, on=["device_id", "job_id"], how="inner").filter(
        (pl.col("start_us") < pl.col("to_us")) & (pl.col("end_us") > pl.col("from_us"))
    )
    whole = both.group_by("look", maintain_order=True).agg(
        pl.exclude("start_us", "end_us").first(), pl.col("start_us").min(), pl.col("end_us").max()
    )
    span = pl.col("to_us") - pl.col("from_us")
    inside = pl.min_horizontal("to_us", "end_us") - pl.max_horizontal("from_us", "start_us")
    return whole.select(
        "device_id",
        "job_id",
        pl.max_horizontal("from_us", "start_us").alias("from_us"),
        pl.min_horizontal("until_us", "end_us").alias("to_us"),
        (pl.col("activity_ppm") * span // inside).clip(upper_bound=PPM).alias("activity_ppm"),
        "threads_ppm",
        "method",
    )


def _nobodys(rows: pl.DataFrame, held: pl.DataFrame) -> pl.DataFrame:
    """Return looks at processes of no job, and of jobs that held nothing of the board just then, as nobody's."""
    theirs = rows.join(held, on=["device_id", "job_id"], how="inner").filter(
        (pl.col("start_us") < pl.col("to_us")) & (pl.col("end_us") > pl.col("from_us"))
    )
    return rows.join(theirs, on="look", how="anti").select(
        "device_id", pl.lit(None, dtype=pl.Int64).alias("job_id"), *list(LOOKS)[2:]
    )


def _of_instances(instances: pl.DataFrame, slices: pl.DataFrame, on_slices: pl.DataFrame) -> pl.DataFrame:
    """Return looks at MIG instances: SM activity of an instance x its slice, by who held it; nobody's where nobody did.

    All of an instance's activity was worked while it was held, so those who held a part of it, or for a part of the time, have all of it.
    """
    end_us = pl.col("at").dt.epoch("us")
    rows = (
        instances.filter(pl.col("span_us").is_between(1, LONGEST_US))
        .select(
            pl.col("device_id").cast(pl.Int32),
            pl.col("instance_id").cast(pl.Int32),
            (end_us - pl.col("span_us")).alias("from_us"),
            end_us.alias("to_us"),
            pl.col("sm_active_ppm").cast(pl.Int64),
        )
        .join(slices, on="instance_id", how="inner")
        .with_row_index("look")
    )
    of_board_ppm = pl.col("sm_active_ppm") * pl.col("whole_ppm") // PPM
    first, last = pl.max_horizontal("from_us", "start_us"), pl.min_horizontal("to_us", "end_us")
    both = rows.join(on_slices, on="instance_id", how="inner").filter(first < last)
    held = (pl.col("slice_ppm") * (last - first)).sum().over("look")
    part_ppm = of_board_ppm.cast(pl.Int128) * pl.col("slice_ppm") * (pl.col("to_us") - pl.col("from_us")) // held
    theirs = both.select(
        "look",
        "device_id",
        "job_id",
        first.alias("from_us"),
        last.alias("to_us"),
        part_ppm.clip(upper_bound=PPM).cast(pl.Int64).alias("activity_ppm"),
    )
    nobodys = rows.join(both, on="look", how="anti").select(
        "look",
        "device_id",
        pl.lit(None, dtype=pl.Int64).alias("job_id"),
        "from_us",
        "to_us",
        of_board_ppm.alias("activity_ppm"),
    )
    return pl.concat([theirs, nobodys]).select(
        *list(LOOKS)[:-2], pl.lit(None, dtype=pl.Int64).alias("threads_ppm"), pl.lit(SLICE_ACTIVITY).alias("method")
    )


def _overlaps(pieces: pl.DataFrame, seen: pl.DataFrame) -> pl.DataFrame:
    """Return one row per look and piece of its board that share time, with ``overlap_us`` and the piece's ``length_us``.

    By two searches: pieces of a board do not overlap, so a look touches consecutive ones. A join on the board would be every pair.
    """
    seen = seen.filter(pl.col("device_id").is_in(pieces["device_id"].unique().implode()))
    if seen.is_empty():
        return seen.with_columns(pl.lit(0, dtype=pl.UInt32).alias("place"), *_times()).clear()
    boards = pieces["device_id"].unique().sort()
    board_of_piece = boards.search_sorted(pieces["device_id"]).to_numpy().astype(np.int64)
    board_of_look = boards.search_sorted(seen["device_id"]).to_numpy().astype(np.int64)
    starts, ends = pieces["from_us"].to_numpy(), pieces["to_us"].to_numpy()
    first_us, last_us = int(starts.min()), int(ends.max())
    width = last_us - first_us + 2

    def key(board: NDArray[np.int64], at_us: NDArray[np.int64]) -> NDArray[np.int64]:
        return board * width + np.clip(at_us - first_us, 0, width - 1)

    first = np.searchsorted(key(board_of_piece, ends), key(board_of_look, seen["from_us"].to_numpy()), side="right")
    last = np.searchsorted(key(board_of_piece, starts), key(board_of_look, seen["to_us"].to_numpy()), side="left")
    count = np.clip(last - first, 0, None)
    look = np.repeat(np.arange(seen.height), count)
    place = np.arange(len(look)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    overlap = np.minimum(ends[place], seen["to_us"].to_numpy()[look]) - np.maximum(
        starts[place], seen["from_us"].to_numpy()[look]
    )
    return seen[look].with_columns(
        pl.Series("place", place, dtype=pl.UInt32),
        pl.Series("overlap_us", overlap, dtype=pl.Int64),
        pl.Series("length_us", ends[place] - starts[place], dtype=pl.Int64),
    )


def _times() -> list[pl.Expr]:
    return [pl.lit(0, dtype=pl.Int64).alias(name) for name in ("overlap_us", "length_us")]
