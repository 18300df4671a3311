"""Node overhead: what a node uses beyond its accelerators (fans, processors, memory), booked to who used the accelerators.

DESIGN §7.2. A node's meter less its boards, over the minutes that both sides cover: elsewhere the difference would mix missing
telemetry with overhead, so that time is counted as ``overhead_unknown`` and nothing is booked for it. Where no meter speaks a
configured model stands in, ``assumed``; where neither is, a meter of processors and memory alone is the part that is known. It
invents nothing for a node of which nobody says anything, and it books no negative overhead: two instruments that disagree by more
than the overhead are a finding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import polars as pl

from analytics.frames import HOLDER_IDLE, PLATFORM_OVERHEAD
from analytics.model.findings import SCHEMA, to_json
from analytics.model.money import spread
from analytics.units import PPM, US_PER_HOUR, US_PER_SECOND

NEGATIVE: Final = "negative_remainder"
UNKNOWN: Final = "overhead_unknown"
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
ROWS: Final = {
    "hour_us": pl.Int64,
    "device_id": pl.Int32,
    "holder": pl.String,
    "job_id": pl.Int64,
    "holder_key": pl.String,
    "energy_mj": pl.Int64,
    "estimated_mj": pl.Int64,
    "energy_low_mj": pl.Int64,
    "energy_high_mj": pl.Int64,
    "spanned_us": pl.Int64,
    "feed": pl.Int16,
    "origin": pl.Int16,
    "method": pl.String,
    "reason": pl.String,
    "source": pl.String,
}
"""What a row of overhead or shared IT says. It holds no time: the accelerators' time is on their own rows."""
_QUALITY: Final = {
    "hour_us": pl.Int64,
    "device_id": pl.Int32,
    "reason": pl.String,
    "readings": pl.Int64,
    "time_us": pl.Int64,
}
_BALANCE: Final = {
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
    """meter_id, node_id, name, covers; those that bill."""
    read_meters: Read
    """``device_id`` is the meter's id."""
    read_boards: Read


@dataclass(frozen=True, slots=True)
class Overhead:
    """What the nodes' overhead is, by holder."""

    rows: pl.DataFrame
    findings: pl.DataFrame
    quality: pl.DataFrame


def spans_of(placed: pl.DataFrame, from_us: int, to_us: int) -> pl.DataFrame:
    """Return node_id, hour_us, device_id, from_us, to_us, in_service: where boards were in each hour of [from, to).

    ``placed``: device_id, node_id, from_us, to_us, in_service, of boards only.
    """
    first = from_us // US_PER_HOUR * US_PER_HOUR
    hours = pl.DataFrame({"hour_us": range(first, to_us, US_PER_HOUR)}, schema={"hour_us": pl.Int64})
    start = pl.max_horizontal("from_us", "hour_us", pl.lit(from_us))
    end = pl.min_horizontal("to_us", pl.col("hour_us") + US_PER_HOUR, pl.lit(to_us))
    return (
        placed.join(hours, how="cross")
        .select("node_id", "hour_us", "device_id", start.alias("from_us"), end.alias("to_us"), "in_service")
        .filter(pl.col("from_us") < pl.col("to_us"))
        .sort("node_id", "hour_us", "device_id", "from_us")
    )


def book(
    spans: pl.DataFrame,
    board_hours: pl.DataFrame,
    users: pl.DataFrame,
    chassis: pl.DataFrame,
    nodes: NodeMeters,
    models: pl.DataFrame,
) -> Overhead:
    """Return the overhead of every node that has a device to book it on.

    ``spans``: of :func:`spans_of`, with in_service. ``board_hours``: device_id, hour_us, energy_mj, gap_mj, covered_us, gap_us, error_mj,
    origin: what is known of the boards, and how far gauges may be off. ``users``: rows of the boards by hour_us, device_id, holder, job_id, holder_key, energy_mj. ``chassis``: device_id,
    node_id. ``models``: node_id, precedence, idle_mw, per_accelerator_active_ppm, error_ppm, from_us, to_us.
    """
    spans = spans.join(chassis.select("node_id"), on="node_id", how="semi")
    if spans.is_empty():
        return Overhead(pl.DataFrame(schema=ROWS), pl.DataFrame(schema=SCHEMA), pl.DataFrame(schema=_QUALITY))
    hours = _node_hours(spans, board_hours)
    whole = nodes.meters.filter(pl.col("covers") != "part")
    metered = _metered(
        hours, _speaking(spans, board_hours), board_hours, _chosen(hours, whole, nodes.read_meters), nodes
    )
    # A meter that spoke for less than what is looked at says nothing.
    metered = metered.filter(pl.col("known_us") > 0)
    left = hours.join(metered, on=NODE_HOUR, how="anti")
    modelled = _modelled(left, models)
    left = left.join(modelled, on=NODE_HOUR, how="anti")
    partly = _chosen(left, nodes.meters.filter(pl.col("covers") == "part"), nodes.read_meters)
    parts = _parts(partly.join(left.select(*NODE_HOUR, "boards_origin"), on=NODE_HOUR, how="left"))
    balance = pl.concat([metered, modelled, parts]).join(chassis.select("node_id", "device_id"), on="node_id")
    rows = _shared(balance.filter((pl.col("overhead_mj") >= 0) & (pl.col("known_us") > 0)), _users(spans, users))
    negative = balance.filter(pl.col("overhead_mj") < 0)
    return Overhead(rows, _negative(negative), _unknown(hours, balance, chassis, nodes.meters))


def _speaking(spans: pl.DataFrame, board_hours: pl.DataFrame) -> pl.DataFrame:
    """Return the spans but those of boards that are out of service and silent: nothing of them is missing."""
    said = (pl.col("covered_us") + pl.col("gap_us")).fill_null(0) > 0
    known = spans.join(board_hours, on=["device_id", "hour_us"], how="left", maintain_order="left")
    return known.filter(pl.col("in_service") | said).select(spans.columns)


def _node_hours(spans: pl.DataFrame, board_hours: pl.DataFrame) -> pl.DataFrame:
    """One row per node and hour: where it begins and ends, what its boards used, and how long it is known to have run."""
    whole = spans.group_by("device_id", "hour_us").agg((pl.col("to_us") - pl.col("from_us")).sum().alias("all_us"))
    used = spans.join(whole, on=["device_id", "hour_us"]).join(board_hours, on=["device_id", "hour_us"], how="left")
    # A board that moved in the hour is in each of its nodes by its time there.
    there, every = pl.col("to_us") - pl.col("from_us"), pl.col("all_us")
    running = pl.min_horizontal((pl.col("covered_us") + pl.col("gap_us")).fill_null(0), there)
    return (
        used.group_by(NODE_HOUR)
        .agg(
            pl.col("from_us").min(),
            pl.col("to_us").max(),
            (pl.col("energy_mj").cast(pl.Int128) * there // every).sum().cast(pl.Int64).alias("boards_mj"),
            (pl.col("error_mj").cast(pl.Int128) * there // every).sum().cast(pl.Int64).alias("boards_error_mj"),
            running.max().alias("running_us"),
            pl.col("origin").max().alias("boards_origin"),
        )
        .sort(NODE_HOUR)
    )


def _chosen(hours: pl.DataFrame, meters: pl.DataFrame, read: Read) -> pl.DataFrame:
    """Return per node hour the first meter that speaks in it, with what it shows of the hour."""
    asked = hours.select(*NODE_HOUR, "from_us", "to_us").join(meters, on="node_id", how="inner")
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


def _metered(
    hours: pl.DataFrame, spans: pl.DataFrame, board_hours: pl.DataFrame, chosen: pl.DataFrame, nodes: NodeMeters
) -> pl.DataFrame:
    """Return the balance of node hours with a meter: over the spans, down to minutes, that meter and all boards cover."""
    if chosen.is_empty():
        return pl.DataFrame(schema=_BALANCE)
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
        .cast(_BALANCE)  # type: ignore[arg-type]
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


def _modelled(hours: pl.DataFrame, models: pl.DataFrame) -> pl.DataFrame:
    """Return what models say of node hours in which some board is known to have run: so long the node ran too."""
    if models.is_empty() or hours.is_empty():
        return pl.DataFrame(schema=_BALANCE)
    start, end = pl.max_horizontal("from_us", "model_from_us"), pl.min_horizontal("to_us", "model_to_us")
    length = pl.col("to_us") - pl.col("from_us")
    mine = (
        hours.join(_in_force(models), on="node_id", how="inner")
        .with_columns((end - start).alias("model_us"))
        .filter((pl.col("model_us") > 0) & (pl.col("running_us") > 0))
        .with_columns(
            (pl.col("running_us").cast(pl.Int128) * pl.col("model_us") // length).cast(pl.Int64).alias("time_us")
        )
    )
    base = pl.col("idle_mw").cast(pl.Int128) * pl.col("time_us") // US_PER_SECOND
    more = (
        pl.col("boards_mj").cast(pl.Int128)
        * pl.col("per_accelerator_active_ppm")
        * pl.col("model_us")
        // (length.cast(pl.Int128) * PPM)
    )
    summed = (
        mine.with_columns((base + more).cast(pl.Int64).alias("energy_mj"))
        .with_columns(
            (pl.col("energy_mj").cast(pl.Int128) * pl.col("error_ppm") // PPM).cast(pl.Int64).alias("error_mj")
        )
        .group_by(NODE_HOUR)
        .agg(pl.col("energy_mj", "error_mj", "time_us").sum(), pl.col("boards_origin").first())
    )
    energy, error = pl.col("energy_mj"), pl.col("error_mj")
    return summed.select(
        *NODE_HOUR,
        energy.alias("overhead_mj"),
        energy.alias("estimated_mj"),
        pl.max_horizontal(energy - error, pl.lit(0)).alias("low_mj"),
        (energy + error).alias("high_mj"),
        pl.col("time_us").alias("known_us"),
        pl.lit(None, dtype=pl.Int16).alias("feed"),
        pl.col("boards_origin").alias("origin"),
        pl.lit("overhead_model").alias("method"),
        pl.lit(None, dtype=pl.String).alias("reason"),
        pl.lit("assumed").alias("source"),
    ).cast(_BALANCE)  # type: ignore[arg-type]


def _in_force(models: pl.DataFrame) -> pl.DataFrame:
    """Cut each node's models so that at any time the one of the lowest precedence holds alone."""
    edges = pl.concat([models.select("node_id", pl.col(name).alias("model_from_us")) for name in ("from_us", "to_us")])
    spans = (
        edges.unique()
        .sort("node_id", "model_from_us")
        .with_columns(pl.col("model_from_us").shift(-1).over("node_id").alias("model_to_us"))
        .drop_nulls()
    )
    return (
        spans.join(models, on="node_id", how="inner")
        .filter((pl.col("from_us") <= pl.col("model_from_us")) & (pl.col("to_us") >= pl.col("model_to_us")))
        .sort("node_id", "model_from_us", "precedence")
        .unique(["node_id", "model_from_us"], keep="first", maintain_order=True)
        .drop("from_us", "to_us", "precedence")
    )


def _parts(chosen: pl.DataFrame) -> pl.DataFrame:
    """Return what a meter of a part of the node says: a part of the overhead, whatever the boards did."""
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
    ).cast(_BALANCE)  # type: ignore[arg-type]


def _users(spans: pl.DataFrame, users: pl.DataFrame) -> pl.DataFrame:
    """Return node_id, hour_us, holder, job_id, holder_key, used_mj: who used the node's boards; a node only idle is the platform's."""
    there = spans.group_by("device_id", *NODE_HOUR).agg((pl.col("to_us") - pl.col("from_us")).sum().alias("there_us"))
    every = pl.col("there_us").sum().over("device_id", "hour_us")
    share = there.with_columns(every.alias("all_us"))
    used = (
        users.join(share, on=["device_id", "hour_us"], how="inner")
        .with_columns(
            (pl.col("energy_mj").fill_null(0).cast(pl.Int128) * pl.col("there_us") // pl.col("all_us"))
            .cast(pl.Int64)
            .alias("used_mj")
        )
        .group_by(*NODE_HOUR, "holder", "job_id", "holder_key")
        .agg(pl.col("used_mj").sum())
    )
    idle = (pl.col("holder") == HOLDER_IDLE).all().over(NODE_HOUR)
    named = [
        pl.when(idle).then(pl.lit(PLATFORM_OVERHEAD)).otherwise(pl.col(name)).alias(name)
        for name in ("holder", "holder_key")
    ]
    return used.with_columns(named)


def _shared(balance: pl.DataFrame, users: pl.DataFrame) -> pl.DataFrame:
    """Split each node hour's overhead over the holders of its boards in proportion to their energy."""
    parts = balance.join(users, on=NODE_HOUR, how="inner")
    names = {
        "overhead_mj": "energy_mj",
        "estimated_mj": "estimated_mj",
        "low_mj": "energy_low_mj",
        "high_mj": "energy_high_mj",
    }
    for total, into in names.items():
        # Each spread is a sort; a counter's overhead is neither estimated nor bounded.
        if into == "energy_mj" or parts.select((pl.col(total).fill_null(0) > 0).any()).item():
            parts = spread(parts, group=NODE_HOUR, weight="used_mj", ties=["holder_key"], total=total, into=into)
        else:
            parts = parts.with_columns(pl.col(total).alias(into))
    # Each was spread by itself: a leftover millijoule may have gone elsewhere.
    energy, guessed = (
        pl.col("energy_mj"),
        (pl.min_horizontal("estimated_mj", "energy_mj") > 0) | (pl.col("source") == "assumed"),
    )
    # Who used nothing has no part of an estimate, and so no interval of one.
    bounded = pl.col("energy_low_mj").is_not_null() & guessed
    return parts.with_columns(
        pl.min_horizontal("estimated_mj", "energy_mj").alias("estimated_mj"),
        pl.when(bounded).then(pl.min_horizontal("energy_low_mj", energy)).alias("energy_low_mj"),
        pl.when(bounded).then(pl.max_horizontal("energy_high_mj", energy)).alias("energy_high_mj"),
        pl.col("known_us").alias("spanned_us"),
    ).select(pl.col(name).cast(kind) for name, kind in ROWS.items())


def _unknown(hours: pl.DataFrame, balance: pl.DataFrame, chassis: pl.DataFrame, meters: pl.DataFrame) -> pl.DataFrame:
    """Return the time of metered nodes that no overhead is known of; a negative one is not known."""
    known = balance.filter((pl.col("overhead_mj") >= 0) & pl.col("reason").is_null()).select(
        *NODE_HOUR, "known_us", "method"
    )
    asked = hours.join(meters.select("node_id").unique(), on="node_id", how="semi")
    open_us = pl.col("to_us") - pl.col("from_us") - pl.col("known_us").fill_null(0)
    return (
        asked.join(known, on=NODE_HOUR, how="left")
        .filter((pl.col("method") != "overhead_model").fill_null(value=True))
        .join(chassis.select("node_id", "device_id"), on="node_id")
        .select(
            "hour_us",
            "device_id",
            pl.lit(UNKNOWN).alias("reason"),
            pl.lit(0, dtype=pl.Int64).alias("readings"),
            open_us.alias("time_us"),
        )
        .filter(pl.col("time_us") > 0)
        .sort("hour_us", "device_id")
    )


def _negative(balance: pl.DataFrame) -> pl.DataFrame:
    rows = balance.select(
        "hour_us",
        pl.lit(NEGATIVE).alias("kind"),
        "device_id",
        pl.lit(None, dtype=pl.Int64).alias("job_id"),
        pl.col("hour_us").alias("start_us"),
        (pl.col("hour_us") + US_PER_HOUR).alias("end_us"),
        pl.Series(
            "evidence",
            [
                to_json(missing_mj=-row["overhead_mj"], minutes=row["known_us"] // STEPS_US[-1])
                for row in balance.iter_rows(named=True)
            ],
            dtype=pl.String,
        ),
        pl.lit(None, dtype=pl.Int64).alias("waste_energy_mj"),
        pl.lit(None, dtype=pl.Int64).alias("capacity_freed_us"),
        pl.lit(1.0).alias("confidence"),
        "origin",
    )
    return rows.select(*SCHEMA).cast(SCHEMA)  # type: ignore[arg-type]
