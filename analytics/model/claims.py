"""What was told of who held what becomes claims on devices: ends that nobody told, instances as parts of boards, counts as parts.

A claim is one job's part of one board during [start, end), as told by one instrument. It takes no side: which of several
contradicting claims stands is decided in ``contests``. It looks at no window, so that hours closed alone and together agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Final

import polars as pl

from analytics.policy import EVIDENCE, OTHER_EVIDENCE
from analytics.units import PPM

FOREVER_US: Final = 2**61
"""The end of what nobody has seen end."""
LARGEST_PARTS: Final = 500
"""Shares are kept to a millionth: 0.333333 is taken to mean 1/3, and any other fraction of up to so many parts likewise."""
ON_NODE_RANK: Final = 1
"""Of a count on a node: whoever tells it, he does not say which devices."""
CLAIMS: Final = {
    "board_id": pl.Int32,
    "leaf_id": pl.Int32,
    "job_id": pl.Int64,
    "job_key": pl.String,
    "rank": pl.Int64,
    "whole": pl.Boolean,
    "num": pl.Int64,
    "den": pl.Int64,
    "method": pl.String,
    "evidence": pl.String,
    "start_us": pl.Int64,
    "end_us": pl.Int64,
    "told_start_us": pl.Int64,
    "told_end_us": pl.Int64,
}
"""``leaf_id``: the device that was named, an instance or the board itself; ``whole``: of that; ``num / den``: of the board."""
COUNTS: Final[Mapping[str, pl.DataType | type[pl.DataType]]] = {
    "node_id": pl.Int32,
    "from_us": pl.Int64,
    "to_us": pl.Int64,
    "wanted": pl.Int64,
    "free": pl.Int64,
    "jobs": pl.List(pl.Int64),
}
"""Where jobs were said to hold more accelerators of a node than it has free."""
START_UNKNOWN: Final = "+start-unknown"


def boots(epochs: pl.DataFrame) -> pl.DataFrame:
    """Return node_id, at_us: when a node was first seen under another boot than before, by one feed's own numbering."""
    return (
        epochs.group_by("node_id", "feed", "boot_id")
        .agg(pl.col("first_seen_at").min().dt.epoch("us").alias("at_us"))
        .sort("node_id", "feed", "at_us", "boot_id")
        .filter(pl.int_range(pl.len()).over("node_id", "feed") > 0)
        .select("node_id", "at_us")
        .unique()
        .sort("node_id", "at_us")
    )


def stays(placements: pl.DataFrame) -> pl.DataFrame:
    """Return device_id, node_id, from_us, to_us: rows of one device that follow each other on one node are one stay."""
    rows = placements.select(
        "device_id",
        "node_id",
        pl.col("valid_from").dt.epoch("us").alias("from_us"),
        pl.col("valid_to").dt.epoch("us").fill_null(FOREVER_US).alias("to_us"),
    ).sort("device_id", "from_us")
    follows = (
        (pl.col("device_id") == pl.col("device_id").shift(1))
        & (pl.col("node_id") == pl.col("node_id").shift(1))
        & (pl.col("from_us") == pl.col("to_us").shift(1))
    )
    return (
        rows.with_columns((~follows.fill_null(value=False)).cum_sum().alias("stay"))
        .group_by("stay")
        .agg(pl.col("device_id", "node_id", "from_us").first(), pl.col("to_us").last())
        .drop("stay")
    )


def ended(holds: pl.DataFrame, stood: pl.DataFrame, booted: pl.DataFrame) -> pl.DataFrame:
    """Return ``holds`` (of devices and nodes) with rank, start_us, end_us and ended_by; those of no length vanish.

    An end that nobody told is the first of: the end of the job by its own record (``job_ended``), another boot of its node that
    the store saw after it knew of the holding (``node_rebooted``), a later holding of the whole device by no weaker evidence
    (``held_by_another``), the device's leaving its node (``device_left``). Without any of them it goes on. ``ended_by`` is
    null where the end was told, or there is none.
    """
    instrument = pl.col("evidence").str.strip_suffix(START_UNKNOWN)
    of_device = instrument.replace_strict(EVIDENCE, default=OTHER_EVIDENCE, return_dtype=pl.Int64)
    told = holds.with_columns(
        pl.when(pl.col("device_id").is_null())
        .then(pl.min_horizontal(of_device, ON_NODE_RANK))
        .otherwise(of_device)
        .alias("rank"),
        pl.col("start_at").dt.epoch("us").alias("start_us"),
        pl.col("end_at").dt.epoch("us").alias("end_us"),
        instrument.alias("evidence"),
    )
    closed = told.filter(pl.col("end_us").is_not_null()).with_columns(pl.lit(None, dtype=pl.String).alias("ended_by"))
    unended = told.filter(pl.col("end_us").is_null()).drop("end_us")
    if unended.height:
        closed = pl.concat([closed, _assumed_ends(unended, told, stood, booted).select(closed.columns)])
    return closed.filter(pl.col("start_us") < pl.col("end_us"))


def _assumed_ends(unended: pl.DataFrame, told: pl.DataFrame, stood: pl.DataFrame, booted: pl.DataFrame) -> pl.DataFrame:
    placed = unended.sort("start_us").join_asof(
        stood.rename({"node_id": "stood_on", "from_us": "stood_from_us", "to_us": "left_us"}).sort("stood_from_us"),
        left_on="start_us",
        right_on="stood_from_us",
        by="device_id",
        check_sortedness=False,
    )
    inside = pl.col("start_us") < pl.col("left_us")
    placed = placed.with_columns(
        pl.when(inside).then("stood_on").alias("stood_on"), pl.when(inside).then("left_us").alias("left_us")
    ).with_columns(
        pl.coalesce("node_id", "stood_on").alias("on_node"),
        # What is told after a boot was seen is told of after that boot, however late the store was to see either.
        pl.max_horizontal("start_us", pl.col("recorded_at").dt.epoch("us")).alias("known_us"),
    )
    placed = placed.sort("known_us").join_asof(
        booted.rename({"node_id": "on_node", "at_us": "boot_us"}).sort("boot_us"),
        left_on="known_us",
        right_on="boot_us",
        by="on_node",
        strategy="forward",
        allow_exact_matches=False,
        check_sortedness=False,
    )
    lasts = pl.col("end_us").is_null() | (pl.col("end_us") > pl.col("start_us"))
    wholes = told.filter(_is_whole() & lasts & pl.col("device_id").is_not_null()).select(
        "device_id",
        pl.col("job_id").alias("other"),
        pl.col("rank").alias("other_rank"),
        pl.col("start_us").alias("taken_us"),
    )
    taken = (
        placed.filter(pl.col("device_id").is_not_null())
        .join(wholes, on="device_id", how="inner")
        .filter(
            (pl.col("taken_us") > pl.col("start_us"))
            & (pl.col("other") != pl.col("job_id"))
            & (pl.col("other_rank") >= pl.col("rank"))
        )
        .group_by("allocation_id")
        .agg(pl.col("taken_us").min())
    )
    causes = {
        "job_ended": "job_end_us",
        "node_rebooted": "boot_us",
        "held_by_another": "taken_us",
        "device_left": "left_us",
    }
    first = pl.min_horizontal(*causes.values())
    cause = pl.coalesce(pl.when(pl.col(at) == pl.col("end_us")).then(pl.lit(why)) for why, at in causes.items())
    return (
        placed.join(taken, on="allocation_id", how="left")
        .with_columns(
            pl.col("job_ended_at").dt.epoch("us").alias("job_end_us"),
            pl.when(pl.col("left_us") < FOREVER_US).then("left_us").alias("left_us"),
        )
        .with_columns(first.alias("end_us"))
        .with_columns(cause.alias("ended_by"), pl.col("end_us").fill_null(FOREVER_US))
    )


def _is_whole() -> pl.Expr:
    return pl.col("share_ppm").fill_null(PPM) == PPM


def on_devices(holds: pl.DataFrame, devices: pl.DataFrame) -> pl.DataFrame:
    """Return the :data:`CLAIMS` of holdings of named devices. ``holds``: as of :func:`ended`; ``devices``: with instances."""
    mine = holds.filter(pl.col("device_id").is_not_null()).join(
        devices.select("device_id", "parent_device_id", "slice_ppm"), on="device_id", how="inner"
    )
    part = _fractions(mine["share_ppm"].fill_null(PPM), "share_num", "share_den")
    slices = _fractions(mine["slice_ppm"], "slice_num", "slice_den")
    of_instance, whole = pl.col("parent_device_id").is_not_null(), _is_whole()
    method = pl.when(of_instance).then(pl.lit("slice")).when(whole).then(pl.lit("whole")).otherwise(pl.lit("share"))
    one = pl.lit(1, dtype=pl.Int64)
    return (
        mine.hstack(part)
        .hstack(slices)
        .select(
            pl.coalesce("parent_device_id", "device_id").alias("board_id"),
            pl.col("device_id").alias("leaf_id"),
            "job_id",
            "job_key",
            "rank",
            whole.alias("whole"),
            (pl.col("share_num") * pl.when(of_instance).then("slice_num").otherwise(one)).alias("num"),
            (pl.col("share_den") * pl.when(of_instance).then("slice_den").otherwise(one)).alias("den"),
            method.alias("method"),
            "evidence",
            "start_us",
            "end_us",
            pl.col("start_us").alias("told_start_us"),
            pl.col("end_us").alias("told_end_us"),
        )
    )


def on_nodes(
    holds: pl.DataFrame, claims: pl.DataFrame, devices: pl.DataFrame, placements: pl.DataFrame, handover_us: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the :data:`CLAIMS` of counts on nodes, and :data:`COUNTS` where they pass what is free.

    ``claims``: of named devices. At each instant a count is of the devices in service on the node that no such claim of its
    rank or above holds: all of them where it says so many, else an equal part of each. Counts that are more together than what is
    free have it by how many each is, none of them more than all; of two that overlap by less than ``handover_us`` the later one counts.
    Of a board that is cut up its instances are counted. Devices that the job itself is known to hold are a part of its count.
    """
    counts = holds.filter(pl.col("device_id").is_null() & pl.col("node_id").is_not_null()).drop("device_id")
    if counts.is_empty():
        return pl.DataFrame(schema=CLAIMS), pl.DataFrame(schema=COUNTS)
    placed = _countable(placements, devices).join(counts.select("node_id").unique(), on="node_id", how="semi")
    taken = _taken(claims, placed)
    cuts = _cuts(counts, placed, taken)
    segments = _segments(cuts)
    there = _during(placed, segments, "node_id")
    # A board is counted by its instances while it has any.
    cut_up = there.select("segment", pl.col("parent_device_id").alias("device_id")).drop_nulls().unique()
    leaves = there.join(cut_up, on=["segment", "device_id"], how="anti")
    # A node that was metered as a whole stands for its accelerators only while none of them is known.
    leaves = leaves.filter((pl.col("kind") != "node") | (pl.col("kind") == "node").all().over("segment"))
    held = _during(taken, segments, "node_id").select("segment", "device_id", "job_id").unique()
    free = leaves.join(held, on=["segment", "device_id"], how="anti")
    # An instance is not free while somebody holds its board.
    whole_boards = held.select("segment", pl.col("device_id").alias("parent_device_id")).unique()
    free = free.join(whole_boards, on=["segment", "parent_device_id"], how="anti")
    own = (
        leaves.join(held, on=["segment", "device_id"], how="inner")
        .group_by("segment", "job_id")
        .agg(pl.col("accelerators").sum().alias("own"))
    )
    room = free.group_by("segment").agg(pl.col("accelerators").sum().alias("free"))
    known = leaves.select("segment").unique()
    asked = (
        _during(counts.rename({"start_us": "from_us", "end_us": "to_us"}), segments, "node_id")
        .join(known, on="segment", how="semi")
        .join(room, on="segment", how="left")
        .join(own, on=["segment", "job_id"], how="left")
        .with_columns(
            (pl.col("accelerators").cast(pl.Int64) - pl.col("own").fill_null(0)).clip(0).alias("wanted"),
            pl.col("free").fill_null(0).cast(pl.Int64),
        )
        .filter(pl.col("wanted") > 0)
    )
    asked = _handed_over(asked, handover_us)
    # The node's word is one, whoever passed it on: no count is more likely than another of its rank.
    alone = (pl.len() == 1).over("segment", "rank")
    all_of_it = alone & (pl.col("wanted") >= pl.col("free"))
    part = pl.min_horizontal("wanted", "free")
    asked = asked.with_columns(all_of_it.alias("whole"), part.alias("part")).with_columns(
        pl.max_horizontal("free", pl.col("part").sum().over("segment", "rank")).alias("parts")
    )
    parts = asked.join(
        free.select("segment", "device_id", "parent_device_id", "slice_ppm"), on="segment", how="inner"
    ).with_columns(
        pl.when("whole").then(1).otherwise("part").alias("part"),
        pl.when("whole").then(1).otherwise("parts").alias("parts"),
    )
    slices = _fractions(parts["slice_ppm"], "slice_num", "slice_den")
    found = parts.hstack(slices).select(
        pl.coalesce("parent_device_id", "device_id").alias("board_id"),
        pl.col("device_id").alias("leaf_id"),
        "job_id",
        "job_key",
        "rank",
        "whole",
        (pl.col("part").cast(pl.Int64) * pl.col("slice_num")).alias("num"),
        (pl.col("parts").cast(pl.Int64) * pl.col("slice_den")).alias("den"),
        pl.when(pl.col("whole") & pl.col("parent_device_id").is_null())
        .then(pl.lit("whole"))
        .otherwise(pl.lit("count"))
        .alias("method"),
        "evidence",
        pl.col("segment_from_us").alias("start_us"),
        pl.col("segment_to_us").alias("end_us"),
        pl.col("from_us").alias("told_start_us"),
        pl.col("to_us").alias("told_end_us"),
    )
    return found.cast(CLAIMS), _too_many(asked)  # type: ignore[arg-type]


def _handed_over(asked: pl.DataFrame, handover_us: int) -> pl.DataFrame:
    """Return ``asked`` without who hands what there is to a later one: schedulers tell one instant some seconds apart."""
    crowded = asked.filter(pl.col("wanted").sum().over("segment") > pl.col("free"))
    both = crowded.join(crowded.select("segment", "job_id", "rank", "from_us", "to_us"), on="segment", suffix="_b")
    overlap = pl.min_horizontal("to_us", "to_us_b") - pl.max_horizontal("from_us", "from_us_b")
    gone = both.filter(
        (pl.col("job_id") != pl.col("job_id_b"))
        & (pl.col("rank_b") >= pl.col("rank"))
        & (pl.col("from_us_b") > pl.col("from_us"))
        & (overlap < handover_us)
    )
    return asked.join(gone.select("segment", "job_id").unique(), on=["segment", "job_id"], how="anti")


def _countable(placements: pl.DataFrame, devices: pl.DataFrame) -> pl.DataFrame:
    """Return node_id, device_id, from_us, to_us, parent_device_id, slice_ppm, accelerators of accelerators in service."""
    kinds = devices.filter(pl.col("kind").is_in(["gpu", "mig", "node"]))
    return (
        placements.filter("in_service")
        .select(
            "node_id",
            "device_id",
            pl.col("valid_from").dt.epoch("us").alias("from_us"),
            pl.col("valid_to").dt.epoch("us").fill_null(FOREVER_US).alias("to_us"),
        )
        .join(
            kinds.select("device_id", "kind", "parent_device_id", "slice_ppm", pl.col("accelerators").cast(pl.Int64)),
            on="device_id",
            how="inner",
        )
    )


def _taken(claims: pl.DataFrame, placed: pl.DataFrame) -> pl.DataFrame:
    """Return node_id, device_id, job_id, from_us, to_us: what is held by name, while it is on a node that somebody counts on."""
    start, end = pl.max_horizontal("from_us", "start_us"), pl.min_horizontal("to_us", "end_us")
    strong = claims.filter(pl.col("rank") >= ON_NODE_RANK).select(
        pl.col("leaf_id").alias("device_id"), "job_id", "start_us", "end_us"
    )
    return (
        placed.select("node_id", "device_id", "from_us", "to_us")
        .join(strong, on="device_id", how="inner")
        .select("node_id", "device_id", "job_id", start.alias("from_us"), end.alias("to_us"))
        .filter(pl.col("from_us") < pl.col("to_us"))
    )


def _cuts(counts: pl.DataFrame, placed: pl.DataFrame, taken: pl.DataFrame) -> pl.DataFrame:
    spans = [
        counts.select("node_id", pl.col("start_us").alias("from_us"), pl.col("end_us").alias("to_us")),
        placed,
        taken,
    ]
    return pl.concat(
        [part.select("node_id", pl.col(name).alias("cut_us")) for part in spans for name in ("from_us", "to_us")]
    )


def _segments(cuts: pl.DataFrame) -> pl.DataFrame:
    """Return segment, node_id, segment_from_us, segment_to_us: the stretches between cuts, numbered in order."""
    return (
        cuts.unique()
        .sort("node_id", "cut_us")
        .with_row_index("segment")
        .select(
            pl.col("segment").cast(pl.Int64),
            "node_id",
            pl.col("cut_us").alias("segment_from_us"),
            pl.when(pl.col("node_id").shift(-1) == pl.col("node_id"))
            .then(pl.col("cut_us").shift(-1))
            .alias("segment_to_us"),
        )
    )


def _during(spans: pl.DataFrame, segments: pl.DataFrame, by: str) -> pl.DataFrame:
    """Return ``spans`` (``by``, from_us, to_us) once per segment inside; both ends of each are cuts."""
    number = segments.select(by, pl.col("segment_from_us").alias("at_us"), "segment")
    return (
        spans.join(number.rename({"at_us": "from_us", "segment": "first"}), on=[by, "from_us"], how="inner")
        .join(number.rename({"at_us": "to_us", "segment": "last"}), on=[by, "to_us"], how="inner")
        .with_columns(pl.int_ranges("first", "last").alias("segment"))
        .drop("first", "last")
        .explode("segment", empty_as_null=False)
        .join(segments.select("segment", "segment_from_us", "segment_to_us"), on="segment", how="inner")
    )


def _too_many(asked: pl.DataFrame) -> pl.DataFrame:
    return (
        asked.group_by("segment", "node_id", "segment_from_us", "segment_to_us")
        .agg(pl.col("wanted").sum(), pl.col("free").first(), pl.col("job_id").unique().sort().alias("jobs"))
        .filter(pl.col("wanted") > pl.col("free"))
        .sort("node_id", "segment_from_us")
        .select(
            "node_id",
            pl.col("segment_from_us").alias("from_us"),
            pl.col("segment_to_us").alias("to_us"),
            "wanted",
            "free",
            "jobs",
        )
    )


def _fractions(ppm: pl.Series, num: str, den: str) -> pl.DataFrame:
    """Return parts per million as the simplest fractions that they are to a millionth (:data:`LARGEST_PARTS`)."""
    known = {value: _fraction(value) for value in ppm.unique().to_list()}
    keys = list(known)
    return pl.DataFrame(
        {
            num: ppm.replace_strict(keys, [known[key].numerator for key in keys], return_dtype=pl.Int64),
            den: ppm.replace_strict(keys, [known[key].denominator for key in keys], return_dtype=pl.Int64),
        }
    )


def _fraction(ppm: int) -> Fraction:
    exact = Fraction(ppm, PPM)
    simple = exact.limit_denominator(LARGEST_PARTS)
    return simple if simple > 0 and abs(simple - exact) <= Fraction(1, PPM) else exact
