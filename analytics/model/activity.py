"""What was seen of who worked on a shared board: looks at processes and MIG instances, clipped to what each job held.

It divides nothing and knows no energy. An agent looks every few seconds and says, by job, how much of the SM time since the look before was
its processes'; a process that is gone by the next look is in none, so a look speaks on for as long as it spoke, while the job holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from analytics.frames import METHODS
from analytics.model.instants import Instants, Ints, distinct
from analytics.units import PPM, US_PER_MINUTE

PROCESS_UTILIZATION: Final = "process_utilization"
MPS_THREADS: Final = "mps_threads"
SLICE_ACTIVITY: Final = "slice_activity"
METHOD: Final = pl.Enum(METHODS)
"""A method as its place in ``frames.METHODS``."""
_ALONE: Final = "measured"
"""What an agent says where a look found one holder: whatever was worked then, was worked by it."""
_TOLD_APART: Final = (_ALONE, PROCESS_UTILIZATION, MPS_THREADS)
"""Methods of a look in which SM time is its holder's own; the driver's figures of MPS clients without caps are not to be trusted."""
LONGEST_US: Final = 5 * US_PER_MINUTE
"""A look that speaks of more is not heard: whoever reads an hour reads so far beyond it that all that are heard are found."""
LOOKS: Final[Mapping[str, pl.DataType | type[pl.DataType]]] = {
    "device_id": pl.Int32,
    "job_id": pl.Int64,
    "from_us": pl.Int64,
    "to_us": pl.Int64,
    "activity_ppm": pl.Int64,
    "threads_ppm": pl.Int64,
    "method": METHOD,
}
"""Mean activity of one job on one board over [from_us, to_us); null job = nobody who holds some of the board."""


def looks(
    shares: pl.DataFrame, instances: pl.DataFrame, held: pl.DataFrame, devices: pl.DataFrame, on_slices: pl.DataFrame
) -> pl.DataFrame:
    """Return :data:`LOOKS`, in no order, from what agents saw; the same whatever the window, if ``held`` reaches beyond it.

    ``shares``: ``DeviceShares``; ``instances``: ``InstanceActivity``; ``devices``: with instances. Of who held what (``Resolved``):
    ``held``: device_id (boards), job_id, start_us, end_us; ``on_slices``: instance_id, job_id, slice_ppm, start_us, end_us.
    """
    if shares.is_empty() and instances.is_empty():
        return pl.DataFrame(schema=LOOKS)
    slices = devices.filter(pl.col("parent_device_id").is_not_null()).select(
        pl.col("device_id").alias("instance_id"), pl.col("slice_ppm").cast(pl.Int64).alias("whole_ppm")
    )
    return pl.concat([_of_processes(shares, _joined(held)), _of_instances(instances, slices, on_slices)])


def cuts(seen: pl.DataFrame, held: pl.DataFrame) -> pl.DataFrame:
    """Return device_id, cut_us: where pieces that several hold are cut, so that within each of them activity is one figure."""
    several = held.filter(pl.col("weight") != pl.col("weights")).select("device_id", "start_us", "end_us").unique()
    if seen.is_empty():
        return pl.DataFrame(schema={"device_id": pl.Int32, "cut_us": pl.Int64})
    boards = seen["device_id"].unique().sort()
    instants = Instants.around(boards, seen["from_us"], seen["to_us"])
    # Looks follow each other, and several jobs are seen in one: each instant is told many times.
    edges = distinct(np.concatenate(instants.numbered(seen["device_id"], seen["from_us"], seen["to_us"])))
    return (
        instants.named(edges, "cut_us")
        .join_asof(
            several.sort("start_us"), left_on="cut_us", right_on="start_us", by="device_id", check_sortedness=False
        )
        .filter(pl.col("cut_us") < pl.col("end_us"))
        .select("device_id", "cut_us")
    )


@dataclass(frozen=True, slots=True)
class Worked:
    """Of each piece and holder, in arrays."""

    activity_ppm: Ints
    """Mean over the piece, rounded down; 0 of all where that of some is not known."""
    method: Ints
    """How that is known, as a place in ``frames.METHODS``; of no meaning where nobody was active."""


def worked(pieces: pl.DataFrame, first: Ints, of_span: pl.DataFrame, seen: pl.DataFrame) -> Worked:
    """Return the activity of each piece's holders: rows ``first[i]`` and on are piece i by the holders of its span, in their order.

    ``pieces``: span, device_id, from_us, to_us; sorted by device and time. ``of_span``: span, job_id, job; sorted by span, job -1 is
    everybody who holds nothing. A job that does not hold a piece has no activity in it.
    """
    look, place, overlap_us = _overlaps(pieces, seen)
    row = _row_of(pieces, first, of_span, seen, look, place)
    look, place, overlap_us, row = (values[row >= 0] for values in (look, place, overlap_us, row))
    by_time = seen["activity_ppm"].fill_null(-1).to_numpy()[look]
    by_threads = seen["threads_ppm"].fill_null(-1).to_numpy()[look]
    no_time, no_threads = np.zeros(pieces.height, dtype=bool), np.zeros(pieces.height, dtype=bool)
    no_time[place[by_time < 0]] = True
    no_threads[place[by_threads < 0]] = True
    rate = np.where(no_time[place], np.where(no_threads[place], 0, by_threads), by_time)
    rows = int(first[-1]) + int((of_span["span"] == pieces["span"][-1]).sum())
    total = np.zeros(rows, dtype=np.int64)
    np.add.at(total, row, rate * overlap_us)
    length = (pieces["to_us"] - pieces["from_us"]).to_numpy()
    many = np.diff(np.append(first, rows))
    of_look = seen["method"].to_physical().cast(pl.Int64).to_numpy()[look]
    of_look = np.where(no_time[place], METHODS.index(MPS_THREADS), of_look)
    of_piece = np.full(pieces.height, -1, dtype=np.int64)
    np.maximum.at(of_piece, place, of_look)
    return Worked(total // np.repeat(length, many), np.repeat(of_piece, many))


def _row_of(
    pieces: pl.DataFrame, first: Ints, of_span: pl.DataFrame, seen: pl.DataFrame, look: Ints, place: Ints
) -> Ints:
    """Return the row of each look's job in its piece, -1 where it does not hold the piece."""
    spans, starts = np.unique(of_span["span"].to_numpy(), return_index=True)
    jobs = of_span.select(pl.when(pl.col("job") > -2).then(pl.col("job_id").fill_null(-1)).otherwise(-2)).to_series()
    known = jobs.unique().sort()
    slot_of_job = known.search_sorted(jobs).to_numpy().astype(np.int64)
    wanted = seen["job_id"].fill_null(-1)
    is_known = wanted.is_in(known.implode()).to_numpy()
    slot_of_look = known.search_sorted(wanted).to_numpy().astype(np.int64)
    width = len(known) + 1
    span_of_holder = np.searchsorted(spans, of_span["span"].to_numpy())
    key_of_holder = span_of_holder * width + slot_of_job
    order = np.argsort(key_of_holder)
    span_of_piece = np.searchsorted(spans, pieces["span"].to_numpy())
    key = span_of_piece[place] * width + slot_of_look[look]
    found = np.clip(np.searchsorted(key_of_holder[order], key), 0, len(order) - 1)
    holder = order[found]
    right = is_known[look] & (key_of_holder[holder] == key)
    return np.where(right, first[place] + holder - starts[span_of_piece[place]], -1)


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
        .then(pl.lit(MPS_THREADS, dtype=METHOD))
        .otherwise(pl.lit(PROCESS_UTILIZATION, dtype=METHOD))
        .alias("method"),
    ).drop("sm_util_ppm", "share_ppm")
    theirs = own.join(held, on=["device_id", "job_id"], how="inner").filter(
        (pl.col("start_us") < pl.col("to_us")) & (pl.col("end_us") > pl.col("from_us"))
    )
    # Of processes of no job, and of jobs that held nothing of the board just then.
    nobodys = _without(own, theirs["look"]).with_columns(pl.lit(None, dtype=pl.Int64).alias("job_id"))
    return pl.concat([_clipped(theirs), nobodys.select(list(LOOKS))])


def _without(rows: pl.DataFrame, looks: pl.Series) -> pl.DataFrame:
    """Return the rows, numbered by ``look`` in their order, that are none of these."""
    others = np.ones(rows.height, dtype=np.bool_)
    others[looks.to_numpy()] = False
    return rows.filter(others)


def _joined(held: pl.DataFrame) -> pl.DataFrame:
    """Return device_id, job_id, pair, start_us, end_us: what a job held without a break is one, whatever changed for others.

    ``pair`` numbers device and job in their order; rows are sorted by it and by time.
    """
    rows = held.drop_nulls("job_id").select("device_id", "job_id", "start_us", "end_us").unique()
    rows = rows.sort("device_id", "job_id", "start_us", "end_us")
    same = pl.all_horizontal(pl.col(name) == pl.col(name).shift(1) for name in ("device_id", "job_id"))
    is_other = ~same.fill_null(value=False)
    # Segments of a board are disjoint: the one before is the one that ends last.
    begins = is_other | (pl.col("start_us") > pl.col("end_us").shift(1))
    return (
        rows.with_columns(is_other.cum_sum().cast(pl.Int64).alias("pair"), begins.cum_sum().alias("time"))
        .group_by("time", maintain_order=True)
        .agg(pl.col("device_id", "job_id", "pair", "start_us").first(), pl.col("end_us").last())
        .drop("time")
    )


def _clipped(theirs: pl.DataFrame) -> pl.DataFrame:
    """Return looks as activity over the time their job held: what was seen since the look before, was done while it held.

    ``theirs``: looks with a holding of their job that they touch: pair, start_us and end_us.
    """
    if theirs.is_empty():
        return pl.DataFrame(schema=LOOKS)
    if theirs["look"].is_duplicated().any():
        theirs = theirs.group_by("look", maintain_order=True).agg(
            pl.exclude("start_us", "end_us").first(), pl.col("start_us").min(), pl.col("end_us").max()
        )
    # One number sorts in a fifth of the time that several columns take.
    first_us, last_us = theirs.select(pl.col("from_us").min(), pl.col("from_us").max().alias("last")).row(0)
    rows = theirs.sort(pl.col("pair") * (last_us - first_us + 1) + (pl.col("from_us") - first_us))
    same = pl.col("pair") == pl.col("pair").shift(-1)
    following = pl.when(same).then(pl.col("from_us").shift(-1))
    span = pl.col("to_us") - pl.col("from_us")
    until = pl.min_horizontal(pl.col("to_us") + span, pl.max_horizontal(following, "to_us"), "end_us")
    alone = pl.min_horizontal(pl.col("to_us") + span, "end_us")
    inside = pl.min_horizontal("to_us", "end_us") - pl.max_horizontal("from_us", "start_us")
    return rows.select(
        "device_id",
        "job_id",
        pl.max_horizontal("from_us", "start_us").alias("from_us"),
        pl.when(following.is_null()).then(alone).otherwise(until).alias("to_us"),
        (pl.col("activity_ppm") * span // inside).clip(upper_bound=PPM).alias("activity_ppm"),
        "threads_ppm",
        "method",
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
    nobodys = _without(rows, both["look"]).select(
        "look",
        "device_id",
        pl.lit(None, dtype=pl.Int64).alias("job_id"),
        "from_us",
        "to_us",
        of_board_ppm.alias("activity_ppm"),
    )
    return pl.concat([theirs, nobodys]).select(
        *list(LOOKS)[:-2],
        pl.lit(None, dtype=pl.Int64).alias("threads_ppm"),
        pl.lit(SLICE_ACTIVITY, dtype=METHOD).alias("method"),
    )


def _overlaps(pieces: pl.DataFrame, seen: pl.DataFrame) -> tuple[Ints, Ints, Ints]:
    """Return look, piece and time shared (us) of every look and piece of its board that share some.

    By two searches: pieces of a board do not overlap, so a look touches consecutive ones. A join on the board would be every pair.
    """
    boards = pieces["device_id"].unique().sort()
    instants = Instants.around(boards, pieces["from_us"], pieces["to_us"])
    begins, finishes = instants.numbered(pieces["device_id"], pieces["from_us"], pieces["to_us"])
    since, until = instants.numbered(seen["device_id"], seen["from_us"], seen["to_us"])
    first = np.searchsorted(finishes, since, side="right")
    last = np.searchsorted(begins, until, side="left")
    here = seen["device_id"].is_in(boards.implode()).to_numpy()
    count = np.where(here, np.clip(last - first, 0, None), 0)
    look = np.repeat(np.arange(seen.height), count)
    place = np.arange(len(look)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    end_us = np.minimum(pieces["to_us"].to_numpy()[place], seen["to_us"].to_numpy()[look])
    overlap_us = end_us - np.maximum(pieces["from_us"].to_numpy()[place], seen["from_us"].to_numpy()[look])
    return look, place, overlap_us
