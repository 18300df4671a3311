"""Node overhead: what a node uses beyond its accelerators (fans, processors, memory), booked to who used the accelerators.

DESIGN §7.2. A node's meter less its boards, over the minutes that both sides cover: elsewhere the difference would mix missing
telemetry with overhead, so that time is counted as ``overhead_unknown`` and nothing is booked for it. Where no meter speaks a
configured model stands in, ``assumed``; where neither is, a meter of processors and memory alone is the part that is known. It
invents nothing for a node of which nobody says anything, and it books no negative overhead: two instruments that disagree by more
than the overhead are a finding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import polars as pl

from analytics.frames import HOLDER_IDLE, PLATFORM_OVERHEAD
from analytics.model.findings import SCHEMA, to_json
from analytics.model.money import spread
from analytics.model.node_balance import (
    NODE_HOUR,
    STEPS_US,
    NodeMeters,
    in_force,
    metered_balance,
    part_balance,
    speaking_meters,
)
from analytics.model.overhead_models import modelled_balance
from analytics.units import US_PER_HOUR

NEGATIVE: Final = "negative_remainder"
UNKNOWN: Final = "overhead_unknown"
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
    metered = metered_balance(
        hours, _speaking(spans, board_hours), board_hours, speaking_meters(hours, whole, nodes.read_meters), nodes
    )
    # A meter that spoke for less than what is looked at says nothing.
    metered = metered.filter(pl.col("known_us") > 0)
    left = hours.join(metered, on=NODE_HOUR, how="anti")
    modelled = modelled_balance(left, models)
    left = left.join(modelled, on=NODE_HOUR, how="anti")
    partly = speaking_meters(left, nodes.meters.filter(pl.col("covers") == "part"), nodes.read_meters)
    parts = part_balance(partly.join(left.select(*NODE_HOUR, "boards_origin"), on=NODE_HOUR, how="left"))
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
    asked = hours.join(in_force(hours, meters), on=NODE_HOUR, how="semi")
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
