"""What a node used beyond its boards, by its meter: the balance of each node hour, over the time that both sides cover.

Of several meters the first that speaks counts. An hour that a side does not cover as a whole is looked at in pieces, down to a minute.
It divides nothing among holders, and a balance below nothing is returned as it is: ``overhead`` says what becomes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import polars as pl

from analytics.units import PPM, US_PER_HOUR, US_PER_SECOND

PART: Final = "processors_and_memory"
"""Reason of overhead of which only a part was metered."""
AUTHORITY: Final = (
    "redfish",
    "ac",
    "pdu",
    "ipmi",
    "rapl/psys",
    "rapl-psys",
    "import",
    "hwmon",
    "dc",
    "hw",
    "rapl",
    "rapl-dram",
)
"""Of several meters of a node the first of these that speaks in an hour bills, then others by name; the rest check it. What is drawn
from the wall stands before what the board's own supplies say, a controller with a data model before one with a text protocol."""
STEPS_US: Final = (US_PER_HOUR, 600 * US_PER_SECOND, 60 * US_PER_SECOND)
"""A span that is not covered is looked at in pieces, down to a minute: what a hole costs."""
FEW_NODE_HOURS: Final = 60
"""So many are looked at minute by minute at once."""
GAUGE_ERROR_PPM: Final = 50_000
"""Half of the 90 % interval of a node's power gauge that is read now and then (docs/methodology.md §5)."""

NODE_HOUR: Final = ["node_id", "hour_us"]
Read = Callable[[pl.DataFrame], pl.DataFrame]
"""Takes device_id, hour_us, from_us, to_us; gives these rows with energy_mj, gap_mj, covered_us, gauge, feed and origin."""
BALANCE: Final = {
    "node_id": pl.Int32,
    "hour_us": pl.Int64,
    "overhead_mj": pl.Int64,
    "estimated_mj": pl.Int64,
    "low_mj": pl.Int64,
    "high_mj": pl.Int64,
    "known_us": pl.Int64,
    "feed": pl.Int16,
    "origin": pl.Int16,
    "method": pl.String,
    "reason": pl.String,
    "source": pl.String,
}


@dataclass(frozen=True, slots=True)
class NodeMeters:
    """The meters of nodes with boards, and how both sides are read."""

    meters: pl.DataFrame
    """meter_id, node_id, name, covers, from_us, to_us: those that bill, in hours that begin in [from, to)."""
    read_meters: Read
    """``device_id`` is the meter's id."""
    read_boards: Read


def in_force(hours: pl.DataFrame, meters: pl.DataFrame) -> pl.DataFrame:
    """Return the node hours with each meter of :class:`NodeMeters` that is one of theirs in that hour."""
    both = hours.join(meters, on="node_id", how="inner", suffix=":meter")
    return both.filter(
        (pl.col("from_us:meter") <= pl.col("hour_us")) & (pl.col("to_us:meter") > pl.col("hour_us"))
    ).drop("from_us:meter", "to_us:meter")


def speaking_meters(hours: pl.DataFrame, meters: pl.DataFrame, read: Read) -> pl.DataFrame:
    """Return per node hour the first meter that speaks in it, with what it shows of the hour."""
    asked = in_force(hours.select(*NODE_HOUR, "from_us", "to_us"), meters)
    if asked.is_empty():
        empty = {"energy_mj": pl.Int64, "gap_mj": pl.Int64, "covered_us": pl.Int64, "gauge": pl.Boolean}
        return asked.with_columns(
            *(pl.lit(None, dtype=kind).alias(name) for name, kind in empty.items()),
            pl.lit(None, dtype=pl.Int16).alias("feed"),
            pl.lit(None, dtype=pl.Int16).alias("origin"),
        )
    rank = pl.col("name").replace_strict(
        list(AUTHORITY), list(range(len(AUTHORITY))), default=len(AUTHORITY), return_dtype=pl.Int32
    )
    shown = read(
        asked.select(pl.col("meter_id").alias("device_id"), "hour_us", "from_us", "to_us").sort("device_id", "hour_us")
    )
    return (
        asked.join(shown.drop("from_us", "to_us"), left_on=["meter_id", "hour_us"], right_on=["device_id", "hour_us"])
        .filter(pl.col("covered_us") > 0)
        .sort(*NODE_HOUR, rank, "name")
        .unique(NODE_HOUR, keep="first", maintain_order=True)
    )


def metered_balance(
    hours: pl.DataFrame, spans: pl.DataFrame, board_hours: pl.DataFrame, chosen: pl.DataFrame, nodes: NodeMeters
) -> pl.DataFrame:
    """Return the :data:`BALANCE` of node hours with a meter: over the spans, down to minutes, that meter and all boards cover.

    ``hours``: node_id, hour_us, from_us, to_us, boards_error_mj, boards_origin. ``spans``: node_id, hour_us, device_id, from_us, to_us.
    ``board_hours``: as for ``overhead.book``. ``chosen``: of :func:`speaking_meters`. ``known_us`` is 0 where no minute is covered by both.
    """
    if chosen.is_empty():
        return pl.DataFrame(schema=BALANCE)
    length = pl.col("to_us") - pl.col("from_us")
    asked = chosen.select(*NODE_HOUR, "meter_id", "from_us", "to_us")
    boards = spans.join(asked.select(NODE_HOUR), on=NODE_HOUR, how="semi")
    # The hour as a whole is known of both sides already: nothing is read again where nothing is missing.
    # One that moved is in another node's sum too, so it is looked at by the minute.
    full = boards.join(hours.select(*NODE_HOUR, pl.col("from_us").alias("f"), pl.col("to_us").alias("t")), on=NODE_HOUR)
    full = (
        full.join(spans.group_by("device_id", "hour_us").agg(pl.len().alias("stays")), on=["device_id", "hour_us"])
        .join(board_hours, on=["device_id", "hour_us"], how="left")
        .group_by(NODE_HOUR)
        .agg(
            (
                (pl.col("stays") == 1)
                & (pl.col("from_us") == pl.col("f"))
                & (pl.col("to_us") == pl.col("t"))
                & (pl.col("covered_us") >= length).fill_null(value=False)
            )
            .all()
            .alias("complete"),
            pl.col("energy_mj").sum().alias("boards_mj"),
        )
    )
    now = chosen.join(full, on=NODE_HOUR, how="left").with_columns(
        (pl.col("complete").fill_null(value=False) & (pl.col("covered_us") >= length)).alias("complete")
    )
    counted = [now.filter("complete").select(*NODE_HOUR, "from_us", "to_us", "energy_mj", "boards_mj")]
    rest = now.filter(~pl.col("complete")).select(*NODE_HOUR, "meter_id", "from_us", "to_us")
    # A step is a look at both sides, which costs some milliseconds however little there is to see.
    steps = STEPS_US[1:] if rest.height > FEW_NODE_HOURS else STEPS_US[-1:]
    for step_us in steps:
        if rest.is_empty():
            break
        both = _both_sides(_cut(rest, step_us), boards, nodes)
        counted.append(both.filter("complete").select(*NODE_HOUR, "from_us", "to_us", "energy_mj", "boards_mj"))
        rest = both.filter(~pl.col("complete")).select(*NODE_HOUR, "meter_id", "from_us", "to_us")
    sums = (
        pl.concat(counted)
        .group_by(NODE_HOUR)
        .agg(
            pl.col("energy_mj").sum().alias("node_mj"),
            pl.col("boards_mj").sum(),
            length.sum().alias("known_us"),
        )
    )
    overhead = pl.col("node_mj") - pl.col("boards_mj")
    by_gauge = pl.when("gauge").then(pl.col("node_mj") * GAUGE_ERROR_PPM // PPM).otherwise(0)
    error = by_gauge + pl.col("boards_error_mj").fill_null(0)  # either side may be off
    gauged = (pl.col("gauge") | (pl.col("boards_error_mj") > 0)) & (overhead > 0)
    return (
        chosen.select(*NODE_HOUR, "gauge", "feed", "origin")
        .join(hours.select(*NODE_HOUR, "boards_error_mj", "boards_origin"), on=NODE_HOUR, how="left")
        .join(sums, on=NODE_HOUR, how="left")
        .with_columns(pl.col("node_mj", "boards_mj", "known_us").fill_null(0))
        .select(
            *NODE_HOUR,
            overhead.alias("overhead_mj"),
            pl.when(gauged).then(overhead).otherwise(0).alias("estimated_mj"),
            pl.when(gauged).then(pl.max_horizontal(overhead - error, pl.lit(0))).alias("low_mj"),
            pl.when(gauged).then(overhead + error).alias("high_mj"),
            "known_us",
            "feed",
            pl.max_horizontal("origin", "boards_origin"),
            pl.lit("overhead").alias("method"),
            pl.lit(None, dtype=pl.String).alias("reason"),
            pl.when(gauged).then(pl.lit("estimated")).otherwise(pl.lit("measured")).alias("source"),
        )
        .cast(BALANCE)  # type: ignore[arg-type]
    )


def _cut(spans: pl.DataFrame, step_us: int) -> pl.DataFrame:
    """Cut spans at multiples of a step."""
    first, last = pl.col("from_us") // step_us, (pl.col("to_us") - 1) // step_us + 1
    return (
        spans.with_columns(pl.int_ranges(first, last, dtype=pl.Int64).alias("step"))
        .explode("step", empty_as_null=False)
        .with_columns(
            pl.max_horizontal("from_us", pl.col("step") * step_us).alias("from_us"),
            pl.min_horizontal("to_us", (pl.col("step") + 1) * step_us).alias("to_us"),
        )
        .drop("step")
        .with_row_index("span")
    )


def _both_sides(spans: pl.DataFrame, boards: pl.DataFrame, nodes: NodeMeters) -> pl.DataFrame:
    """Return spans (span, node_id, hour_us, meter_id, from_us, to_us) with energy_mj, boards_mj and whether both sides are complete."""
    length = pl.col("to_us") - pl.col("from_us")
    asked = spans.select("span", pl.col("meter_id").alias("device_id"), "hour_us", "from_us", "to_us").sort(
        "device_id", "from_us"
    )
    shown = nodes.read_meters(asked.drop("span")).select(
        "energy_mj", (pl.col("covered_us") >= length).alias("meter_whole")
    )
    meter = asked.select("span").hstack(shown)
    start, end = pl.max_horizontal("from_us", "board_from_us"), pl.min_horizontal("to_us", "board_to_us")
    there = boards.rename({"from_us": "board_from_us", "to_us": "board_to_us"})
    pieces = (
        spans.select("span", *NODE_HOUR, "from_us", "to_us")
        .join(there, on=NODE_HOUR, how="inner")
        .select("span", "device_id", "hour_us", start.alias("from_us"), end.alias("to_us"))
        .filter(pl.col("from_us") < pl.col("to_us"))
        .sort("device_id", "from_us")
    )
    read = nodes.read_boards(pieces.drop("span")).select(
        "energy_mj", (pl.col("covered_us") >= length).alias("board_whole")
    )
    under = (
        pieces.select("span")
        .hstack(read)
        .group_by("span")
        .agg(pl.col("energy_mj").sum().alias("boards_mj"), pl.col("board_whole").all())
    )
    return (
        spans.join(meter, on="span")
        .join(under, on="span", how="left")
        .with_columns(
            pl.col("boards_mj").fill_null(0),
            # A minute in which no board was in the node has nothing to be missing.
            (pl.col("meter_whole") & pl.col("board_whole").fill_null(value=True)).alias("complete"),
        )
    )


def part_balance(chosen: pl.DataFrame) -> pl.DataFrame:
    """Return as :data:`BALANCE` what a meter of a part of the node says: a part of the overhead, whatever the boards did."""
    energy = pl.col("energy_mj") - pl.col("gap_mj")
    return chosen.select(
        *NODE_HOUR,
        energy.alias("overhead_mj"),
        pl.when("gauge").then(energy).otherwise(0).alias("estimated_mj"),
        pl.when("gauge").then(energy - energy * GAUGE_ERROR_PPM // PPM).alias("low_mj"),
        pl.when("gauge").then(energy + energy * GAUGE_ERROR_PPM // PPM).alias("high_mj"),
        pl.col("covered_us").alias("known_us"),
        "feed",
        pl.max_horizontal("origin", "boards_origin"),
        pl.lit("overhead").alias("method"),
        pl.lit(PART).alias("reason"),
        pl.when("gauge").then(pl.lit("estimated")).otherwise(pl.lit("measured")).alias("source"),
    ).cast(BALANCE)  # type: ignore[arg-type]
