"""Whose a board is at each instant, of all that claim it: the better evidence, the later of two that hand over, else nobody.

In time only, and of any window: two claims are weighed by all of what was told of them. It knows no energy and no hours.
"""

from __future__ import annotations

from math import lcm
from typing import Final

import polars as pl

from analytics.frames import HOLDER_IDLE, HOLDER_JOB_PREFIX, UNATTRIBUTED_HINT_ONLY, UNATTRIBUTED_OVERLAP
from analytics.model.methods import least_exact
from analytics.policy import HINT

MOST_PARTS: Final = 10**12
"""Fractions of one board are put over one denominator up to this; beyond it they are rounded down to so many parts."""
HELD: Final = {
    "segment": pl.Int64,
    "device_id": pl.Int32,
    "start_us": pl.Int64,
    "end_us": pl.Int64,
    "holder": pl.String,
    "job_id": pl.Int64,
    "holder_key": pl.String,
    "weight": pl.Int64,
    "weights": pl.Int64,
    "method": pl.String,
}
"""Who had a board: segments of a board are disjoint, and in each of them nothing changes. A holder's part is weight / weights; the
rows of a segment sum to it, ``idle`` among them. ``job_id`` is null of what is no job's."""
CONTESTS: Final = {
    "device_id": pl.Int32,
    "from_us": pl.Int64,
    "to_us": pl.Int64,
    "kind": pl.String,
    "jobs": pl.List(pl.Int64),
    "evidence": pl.List(pl.String),
}
"""Where claims contradict each other: ``overlap`` (nobody has it) or ``conflict`` (the better evidence has it), the jobs that claim
it, and by what, in the order of the jobs."""


def settle(claims: pl.DataFrame, handover_us: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return :data:`HELD` and :data:`CONTESTS` of all claims (``claims.CLAIMS``)."""
    busy = _busy(claims)
    plain = _plain(claims.join(busy, on="board_id", how="anti"))
    settled, contests = _settled(claims.join(busy, on="board_id", how="semi"), handover_us)
    held = _in_one_piece(_with_rest(settled))
    before = pl.lit(plain["segment"].max() or 0, dtype=pl.Int64)
    return pl.concat([plain, held.with_columns(pl.col("segment") + before)]), contests


def _plain(claims: pl.DataFrame) -> pl.DataFrame:
    """Return :data:`HELD` of boards of which no claims overlap, nearly all: a claim is a segment, or goes on with the one before."""
    rows = claims.sort("board_id", "start_us").select(
        pl.col("board_id").alias("device_id"),
        "start_us",
        "end_us",
        _holder(pl.col("job_id").cast(pl.String)).alias("holder"),
        pl.when(pl.col("rank") > HINT).then("job_id").alias("job_id"),
        _holder(pl.col("job_key")).alias("holder_key"),
        pl.col("num").alias("weight"),
        pl.col("den").alias("weights"),
        "method",
    )
    same = [pl.col(name) == pl.col(name).shift(1) for name in ("device_id", "holder", "weight", "weights", "method")]
    follows = pl.all_horizontal(*same, pl.col("start_us") == pl.col("end_us").shift(1)).fill_null(value=False)
    rows = rows.with_columns((~follows).cum_sum().cast(pl.Int64).alias("segment"))
    if rows.height and rows["segment"].item(-1) < rows.height:
        rows = rows.group_by("segment", maintain_order=True).agg(
            pl.exclude("end_us", "segment").first(), pl.col("end_us").last()
        )
    rest = _rest(rows.filter(pl.col("weight") < pl.col("weights")), pl.col("weights") - pl.col("weight"))
    return pl.concat([rows.select(*HELD), rest.select(*HELD)])


def _holder(name: pl.Expr) -> pl.Expr:
    return pl.when(pl.col("rank") > HINT).then(HOLDER_JOB_PREFIX + name).otherwise(pl.lit(UNATTRIBUTED_HINT_ONLY))


def _busy(claims: pl.DataFrame) -> pl.DataFrame:
    """Return the boards (board_id) of which claims overlap."""
    ordered = claims.select("board_id", "start_us", "end_us").sort("board_id", "start_us")
    if ordered.is_empty():
        return ordered.select("board_id")
    # Boards one after the other on one axis, so that the latest end so far is a running maximum and no window.
    first_us = int(ordered["start_us"].min())  # type: ignore[arg-type]
    last_us = int(ordered["start_us"].max()) + 1  # type: ignore[arg-type]
    place = pl.col("board_id").rank("dense").cast(pl.Int64) * (last_us - first_us)
    ends = (pl.col("end_us").clip(None, last_us) + place).cum_max().shift(1)
    return ordered.filter(pl.col("start_us") + place < ends).select("board_id").unique()


def _settled(claims: pl.DataFrame, handover_us: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return segment, device_id, start_us, end_us, holder, job_id, holder_key, weight, weights, method, and contests."""
    segments, parts = _cut(claims)
    parts = _of_jobs(_over_one_denominator(parts))
    pairs = _contradictions(parts)
    overlap = pl.min_horizontal("told_end_us", "told_end_us_b") - pl.max_horizontal("told_start_us", "told_start_us_b")
    pairs = pairs.with_columns((overlap < handover_us).alias("hands_over"))
    weaker = pairs.filter(pl.col("rank_b") > pl.col("rank"))
    standing = parts.join(weaker.select("claim").unique(), on="claim", how="anti")
    left = pairs.join(standing.select("claim"), on="claim", how="semi").join(
        standing.select(pl.col("claim").alias("claim_b")), on="claim_b", how="semi"
    )
    earlier = left.filter(pl.col("hands_over") & (pl.col("told_start_us_b") > pl.col("told_start_us")))
    standing = standing.join(earlier.select("claim").unique(), on="claim", how="anti")
    contested = left.join(standing.select("claim"), on="claim", how="semi").join(
        standing.select(pl.col("claim").alias("claim_b")), on="claim_b", how="semi"
    )
    lost = standing.join(contested.select("claim").unique(), on="claim", how="semi")
    won = standing.join(lost.select("claim"), on="claim", how="anti")
    won, beaten = _within_one(won)
    rows = pl.concat([_won(won), _nobodys(lost)])
    held = rows.join(segments, on="segment", how="inner").select(
        "segment", pl.col("board_id").alias("device_id"), "start_us", "end_us", "holder", "job_id", "holder_key",
        "weight", "weights", "method",
    )  # fmt: skip
    told = pl.concat([_both_sides(weaker.filter(~pl.col("hands_over"))), _beside(beaten, won, handover_us)])
    return held, _contests(parts, segments, {"overlap": contested.select("segment", "claim"), "conflict": told})


def _within_one(won: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the claims that stand, and those that do not: where parts pass the whole, those of the weakest word go first."""
    ranks = (
        won.group_by("segment", "rank")
        .agg(pl.col("num").sum(), pl.col("den").first())
        .sort("segment", "rank", descending=[False, True])
    )
    above = pl.col("num").cum_sum().over("segment") > pl.col("den")
    beaten = ranks.filter(above & (pl.col("rank") < pl.col("rank").max().over("segment"))).select("segment", "rank")
    on = ["segment", "rank"]
    return won.join(beaten, on=on, how="anti"), won.join(beaten, on=on, how="semi")


def _beside(beaten: pl.DataFrame, won: pl.DataFrame, handover_us: int) -> pl.DataFrame:
    """Return segment, claim of those that were left out and of those they gave way to, where that is more than a handover."""
    both = beaten.join(won, on="segment", how="inner", suffix="_b")
    overlap = pl.min_horizontal("told_end_us", "told_end_us_b") - pl.max_horizontal("told_start_us", "told_start_us_b")
    return _both_sides(both.filter((overlap >= handover_us) & (pl.col("job_id") != pl.col("job_id_b"))))


def _cut(claims: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the segments of boards (segment, board_id, start_us, end_us), and each claim once per segment it lasts through."""
    cuts = (
        pl.concat([claims.select("board_id", pl.col(name).alias("at_us")) for name in ("start_us", "end_us")])
        .unique()
        .sort("board_id", "at_us")
        .with_row_index("segment")
        .with_columns(pl.col("segment").cast(pl.Int64))
    )
    segments = cuts.with_columns(
        pl.when(pl.col("board_id").shift(-1) == pl.col("board_id")).then(pl.col("at_us").shift(-1)).alias("end_us")
    ).select("segment", "board_id", pl.col("at_us").alias("start_us"), "end_us")
    parts = (
        claims.join(cuts.rename({"at_us": "start_us", "segment": "first"}), on=["board_id", "start_us"], how="inner")
        .join(cuts.rename({"at_us": "end_us", "segment": "last"}), on=["board_id", "end_us"], how="inner")
        .with_columns(pl.int_ranges("first", "last").alias("segment"))
        .drop("first", "last", "start_us", "end_us")
        .explode("segment", empty_as_null=False)
    )
    return segments, parts


def _over_one_denominator(parts: pl.DataFrame) -> pl.DataFrame:
    """Return ``parts`` with ``num`` over ``den``, the same for all of a segment."""
    sets = parts.group_by("segment").agg(pl.col("den").unique().sort().alias("dens"))
    common = [(dens, min(lcm(*dens), MOST_PARTS)) for dens in sets["dens"].unique().to_list()]
    found = pl.DataFrame(common, schema={"dens": pl.List(pl.Int64), "common": pl.Int64}, orient="row")
    of_segment = sets.join(found, on="dens", how="left").select("segment", "common")
    parts = parts.join(of_segment, on="segment", how="left")
    num = pl.col("num").cast(pl.Int128) * pl.col("common") // pl.col("den")
    return parts.with_columns(num.cast(pl.Int64).alias("num"), pl.col("common").alias("den")).drop("common")


def _of_jobs(parts: pl.DataFrame) -> pl.DataFrame:
    """Return one row per segment, named device and job: its best evidence, its shares added up, a whole among them a whole."""
    best = parts.filter(pl.col("rank") == pl.col("rank").max().over("segment", "leaf_id", "job_id"))
    whole = pl.col("whole").any()
    largest = (
        pl.when(whole)
        .then(pl.col("num").filter("whole").max())
        .otherwise(pl.min_horizontal(pl.col("num").sum(), pl.col("den").first()))
    )
    return (
        best.group_by("segment", "board_id", "leaf_id", "job_id", "job_key", "rank", "den")
        .agg(
            largest.alias("num"),
            whole.alias("whole"),
            least_exact(pl.col("method")).alias("method"),
            pl.col("evidence").min(),
            pl.col("told_start_us").min(),
            pl.col("told_end_us").max(),
        )
        .sort("segment", "leaf_id", "job_key")
        .with_row_index("claim")
    )


def _contradictions(parts: pl.DataFrame) -> pl.DataFrame:
    """Return each claim beside each other job's (``_b``) that cannot be true with it: both of one device, one of them of all of it."""
    several = parts.filter((pl.col("job_id").n_unique().over("segment") > 1) & pl.col("whole").any().over("segment"))
    other = several.select("segment", "claim", "job_id", "leaf_id", "whole", "rank", "told_start_us", "told_end_us")
    same, on_board, other_on_board = (
        pl.col("leaf_id") == pl.col("leaf_id_b"),
        (pl.col("leaf_id") == pl.col("board_id")) & pl.col("whole"),
        (pl.col("leaf_id_b") == pl.col("board_id")) & pl.col("whole_b"),
    )
    return several.join(other, on="segment", how="inner", suffix="_b").filter(
        (pl.col("job_id") != pl.col("job_id_b"))
        & ((same & (pl.col("whole") | pl.col("whole_b"))) | on_board | other_on_board)
    )


def _won(parts: pl.DataFrame) -> pl.DataFrame:
    return (
        parts.with_columns(
            _holder(pl.col("job_id").cast(pl.String)).alias("holder"),
            _holder(pl.col("job_key")).alias("holder_key"),
            pl.when(pl.col("rank") > HINT).then("job_id").alias("job_id"),
        )
        .group_by("segment", "holder", "job_id", "holder_key", "den")
        .agg(pl.col("num").sum().alias("weight"), least_exact(pl.col("method")).alias("method"))
        .select("segment", "holder", "job_id", "holder_key", "weight", pl.col("den").alias("weights"), "method")
    )


def _nobodys(lost: pl.DataFrame) -> pl.DataFrame:
    """Return what of each segment nobody has, each device that was named counted once, at most the board."""
    return (
        lost.group_by("segment", "leaf_id", "den")
        .agg(pl.col("num").max(), least_exact(pl.col("method")).alias("method"))
        .group_by("segment", "den")
        .agg(
            pl.min_horizontal(pl.col("num").sum(), pl.col("den").first()).alias("weight"),
            least_exact(pl.col("method")).alias("method"),
        )
        .select(
            "segment",
            pl.lit(UNATTRIBUTED_OVERLAP).alias("holder"),
            pl.lit(None, dtype=pl.Int64).alias("job_id"),
            pl.lit(UNATTRIBUTED_OVERLAP).alias("holder_key"),
            "weight",
            pl.col("den").alias("weights"),
            "method",
        )
    )


def _with_rest(rows: pl.DataFrame) -> pl.DataFrame:
    """Return ``rows`` with what nobody claims of their segments as idle, and with shares beyond the whole scaled to it."""
    sums = pl.col("weight").sum().over("segment")
    rows = rows.with_columns(pl.max_horizontal("weights", sums).alias("weights"), sums.alias("taken"))
    unclaimed = (
        rows.filter(pl.col("taken") < pl.col("weights"))
        .group_by("segment")
        .agg(
            pl.col("device_id", "start_us", "end_us", "weights", "taken").first(),
            least_exact(pl.col("method")).alias("method"),
        )
    )
    rest = _rest(unclaimed, pl.col("weights") - pl.col("taken"))
    return pl.concat([rows.select(*HELD), rest.select(*HELD)])


def _rest(rows: pl.DataFrame, weight: pl.Expr) -> pl.DataFrame:
    return rows.with_columns(
        pl.lit(HOLDER_IDLE).alias("holder"),
        pl.lit(None, dtype=pl.Int64).alias("job_id"),
        pl.lit(HOLDER_IDLE).alias("holder_key"),
        weight.alias("weight"),
    )


def _in_one_piece(rows: pl.DataFrame) -> pl.DataFrame:
    """Return :data:`HELD`: segments of a board that follow each other with the same holders become one, numbered anew."""
    rows = rows.sort("device_id", "start_us", "holder_key", "holder")
    said = pl.concat_str("holder", "weight", "weights", "method", separator="|")
    whole = (
        rows.group_by("segment")
        .agg(pl.col("device_id", "start_us", "end_us").first(), said.str.join(";").alias("said"))
        .sort("device_id", "start_us")
    )
    follows = (
        (pl.col("device_id") == pl.col("device_id").shift(1))
        & (pl.col("start_us") == pl.col("end_us").shift(1))
        & (pl.col("said") == pl.col("said").shift(1))
    )
    numbered = whole.with_columns((~follows.fill_null(value=False)).cum_sum().cast(pl.Int64).alias("run"))
    runs = numbered.group_by("run").agg(pl.col("segment").first(), pl.col("start_us").first(), pl.col("end_us").last())
    return (
        rows.drop("start_us", "end_us")
        .join(runs, on="segment", how="inner")
        .with_columns(pl.col("run").alias("segment"))
        .select(*HELD)
    )


def _both_sides(pairs: pl.DataFrame) -> pl.DataFrame:
    return pl.concat(
        [pairs.select("segment", "claim"), pairs.select("segment", pl.col("claim_b").alias("claim"))]
    ).unique()


def _contests(parts: pl.DataFrame, segments: pl.DataFrame, found: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """Return :data:`CONTESTS`; of one that goes on over several segments with the same claims one row."""
    rows = []
    for kind, claims in found.items():
        by_segment = (
            parts.join(claims.unique(), on=["segment", "claim"], how="semi")
            .select("segment", "job_id", "evidence")
            .unique()
            .sort("segment", "job_id", "evidence")
            .group_by("segment")
            .agg(pl.col("job_id").alias("jobs"), "evidence")
            .join(segments, on="segment", how="inner")
            .sort("board_id", "start_us")
        )
        follows = (
            (pl.col("board_id") == pl.col("board_id").shift(1))
            & (pl.col("start_us") == pl.col("end_us").shift(1))
            & (pl.col("jobs") == pl.col("jobs").shift(1))
            & (pl.col("evidence") == pl.col("evidence").shift(1))
        )
        rows.append(
            by_segment.with_columns((~follows.fill_null(value=False)).cum_sum().alias("run"))
            .group_by("run")
            .agg(
                pl.col("board_id").first().alias("device_id"),
                pl.col("start_us").first().alias("from_us"),
                pl.col("end_us").last().alias("to_us"),
                pl.lit(kind).alias("kind"),
                pl.col("jobs", "evidence").first(),
            )
            .select(*CONTESTS)
        )
    return pl.concat(rows).sort("device_id", "from_us", "kind")
