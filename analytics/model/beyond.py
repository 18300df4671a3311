"""What a site uses beyond its accelerators: puts node overhead and shared IT together for the devices of a shard.

Nodes of which nothing more is known than their boards cost nothing here: readings of boards are looked at again only where a node's
meter and its boards do not both cover an hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import dataframely as dy
import polars as pl

from analytics.frames import (
    Epochs,
    MeterPeriods,
    Meters,
    NodeReadings,
    OverheadModels,
    Placements,
    SharedIt,
)
from analytics.model.energy import Meter
from analytics.model.findings import SCHEMA
from analytics.model.node_balance import NodeMeters, Read
from analytics.model.node_meters import metered, reader
from analytics.model.overhead import book, spans_of
from analytics.model.readings import KeySpace
from analytics.model.sensors import gauge_error_mj, instruments
from analytics.model.shared_it import share
from analytics.policy import Policy

BEYOND: Final = ("chassis", "site")
"""Kinds of devices that nothing measures by themselves: their rows are made here."""
_ALWAYS_US: Final = 2**61
_QUALITY: Final = {
    "hour_us": pl.Int64,
    "device_id": pl.Int32,
    "reason": pl.String,
    "readings": pl.Int64,
    "time_us": pl.Int64,
}
_STATES: Final = ("energy_mj", "gap_mj", "covered_us", "gap_us")


@dataclass(frozen=True, slots=True)
class SiteFacts:
    """What is known of a site beside its devices, and of where its devices are."""

    meters: dy.DataFrame[Meters]
    readings: dy.DataFrame[NodeReadings]
    models: dy.DataFrame[OverheadModels]
    shared: dy.DataFrame[SharedIt]
    periods: dy.DataFrame[MeterPeriods]
    placements: dy.DataFrame[Placements]
    epochs: dy.DataFrame[Epochs]


@dataclass(frozen=True, slots=True)
class Beyond:
    """``rows``: of the boards and of what is beyond them; ``findings`` and ``quality`` of the latter alone."""

    rows: pl.DataFrame
    findings: pl.DataFrame
    quality: pl.DataFrame


def book_beyond(
    rows: pl.DataFrame,
    pieces: pl.DataFrame,
    meters: Sequence[Meter],
    devices: pl.DataFrame,
    facts: SiteFacts,
    policy: Policy,
    window: tuple[int, int],
) -> Beyond:
    """Return the usage of the devices with node overhead and shared IT of [from, to).

    ``rows``: attributed usage; ``pieces``: what ``meters`` measured of it. ``devices``: all, those of :data:`BEYOND` among them.
    A device of kind ``node`` is the meter of the boards beside it; of the time before they were known ``rows`` have it by itself, and
    if nothing else stands for what their node uses beside them, it does not in that hour.
    """
    from_us, to_us = window
    # A MIG instance is a part of its board.
    boards = devices.filter(~pl.col("kind").is_in([*BEYOND, "node", "pool"]) & pl.col("parent_device_id").is_null())
    nodes = devices.filter(pl.col("kind") == "node").select("device_id", "node_id")
    chassis = devices.filter(pl.col("kind") == "chassis").select("device_id", "node_id")
    items = _dated(facts.shared.select("device_id", "power_mw", "meter_id", "error_ppm", "valid_from", "valid_to"))
    if chassis.is_empty() and nodes.is_empty() and items.is_empty():
        return Beyond(rows, pl.DataFrame(schema=SCHEMA), pl.DataFrame(schema=_QUALITY))
    spans = spans_of(_placed(boards, facts.placements), from_us, to_us)
    as_meters = nodes.join(spans, on="node_id", how="semi").join(chassis, on="node_id", how="anti")
    chassis = pl.concat([chassis, as_meters]).unique("node_id", keep="first", maintain_order=True)
    keys = KeySpace.around(from_us, to_us, policy.gaps.reach_us)
    read_boards = reader(meters)
    known = _dated(facts.meters)
    of_nodes = metered(facts.readings, facts.epochs, known, keys, policy)
    read_meters = _both(reader(of_nodes), read_boards)
    # What cools a node is none of its own.
    its_own = pl.col("node_id").is_not_null() & (pl.col("covers") != "cooling")
    told = pl.concat(
        [
            known.filter(its_own).select("meter_id", "node_id", "name", "covers", "from_us", "to_us"),
            as_meters.select(
                (-pl.col("device_id")).alias("meter_id"),
                "node_id",
                pl.lit("import").alias("name"),
                pl.lit("it").alias("covers"),
                pl.lit(0, dtype=pl.Int64).alias("from_us"),
                pl.lit(_ALWAYS_US, dtype=pl.Int64).alias("to_us"),
            ),
        ]
    )
    of_boards = rows.join(boards.select("device_id"), on="device_id", how="semi")
    overhead = book(
        spans,
        _board_hours(pieces, instruments(boards, policy)),
        of_boards,
        chassis,
        NodeMeters(told, read_meters, read_boards),
        _dated(facts.models).drop("model_id"),
    )
    shared, unknown = (
        share(items, _periods(facts.periods), read_meters, _of_nodes(facts.meters), from_us, to_us)
        if items.height
        else (overhead.rows.clear(), overhead.quality.clear())
    )
    more = pl.concat([overhead.rows, shared]).join(rows, on=["device_id", "hour_us"], how="anti")
    times = [
        pl.lit(0, dtype=pl.Int64).alias(name) for name in rows.columns if _is_time(name) and name not in more.columns
    ]
    return Beyond(
        pl.concat([rows, more.with_columns(times)], how="diagonal").sort("hour_us", "device_id", "holder"),
        overhead.findings,
        pl.concat([overhead.quality, unknown]),
    )


def _of_nodes(meters: pl.DataFrame) -> pl.Series:
    return meters.filter(level="node")["meter_id"]


def _is_time(name: str) -> bool:
    return name.endswith("_us") and name != "hour_us"


def _placed(boards: pl.DataFrame, placements: pl.DataFrame) -> pl.DataFrame:
    """Return device_id, node_id, from_us, to_us of the boards."""
    start, end = pl.col("valid_from").dt.epoch("us"), pl.col("valid_to").dt.epoch("us").fill_null(_ALWAYS_US)
    return placements.join(boards.select("device_id"), on="device_id", how="semi").select(
        "device_id", "node_id", start.alias("from_us"), end.alias("to_us"), "in_service"
    )


def _board_hours(pieces: pl.DataFrame, boards: pl.DataFrame) -> pl.DataFrame:
    error = gauge_error_mj(pl.col("gauged_mj").sum(), pl.col("gauge_error_ppm").first())
    return (
        pieces.join(boards.select("device_id", "gauge_error_ppm"), on="device_id", how="inner")
        .group_by("device_id", "hour_us")
        .agg(pl.col(_STATES).sum(), error.alias("error_mj"), pl.col("origin").max())
    )


def _dated(facts: pl.DataFrame) -> pl.DataFrame:
    start, end = (
        pl.col(name).dt.epoch("us").fill_null(open_us)
        for name, open_us in (("valid_from", 0), ("valid_to", _ALWAYS_US))
    )
    return facts.with_columns(start.alias("from_us"), end.alias("to_us")).drop("valid_from", "valid_to")


def _periods(periods: pl.DataFrame) -> pl.DataFrame:
    return periods.select(
        "meter_id",
        pl.col("from_at").dt.epoch("us").alias("from_us"),
        pl.col("to_at").dt.epoch("us").alias("to_us"),
        "energy_mj",
    )


def _both(read_meters: Read, read_boards: Read) -> Read:
    """Return what reads meters by their id, and devices that stand for a node's meter by their id's negative."""

    def read(asked: pl.DataFrame) -> pl.DataFrame:
        numbered = asked.with_row_index("asked")
        of_meters = numbered.filter(pl.col("device_id") >= 0)
        of_devices = numbered.filter(pl.col("device_id") < 0).with_columns(-pl.col("device_id"))
        found = [
            part.select("asked").hstack(reads(part.drop("asked")).drop(asked.columns))
            for part, reads in ((of_meters, read_meters), (of_devices, read_boards))
            if part.height or reads is read_meters
        ]
        return asked.hstack(pl.concat(found).sort("asked").drop("asked"))

    return read
