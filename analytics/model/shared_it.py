"""Shared IT: switches, storage and management of a site, by their meter or by a configured power. Nobody's job: the platform's.

A configured power is ``assumed`` for as long as it holds, with the bounds its configuration states. A metered one is known for the
hours that its meter covers and null in others, which are counted as ``shared_it_unknown``. It shares nothing out.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from analytics.frames import PLATFORM_SHARED_IT
from analytics.model.node_balance import GAUGE_ERROR_PPM, Read
from analytics.model.overhead import ROWS
from analytics.units import PPM, US_PER_HOUR, US_PER_SECOND

UNKNOWN: Final = "shared_it_unknown"
IMPORTED: Final = 2
"""``collector.wire.Origin``: told by people, as a configured power is and readings of a building's meters are."""
_QUALITY: Final = {
    "hour_us": pl.Int64,
    "device_id": pl.Int32,
    "reason": pl.String,
    "readings": pl.Int64,
    "time_us": pl.Int64,
}


def share(
    items: pl.DataFrame, periods: pl.DataFrame, read: Read, metered_nodes: pl.Series, from_us: int, to_us: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return usage rows (:data:`ROWS`) of shared IT in each hour of [from, to), and the time of it that is not known.

    ``items``: device_id, power_mw, meter_id, error_ppm, from_us, to_us. ``periods``: meter_id, from_us, to_us, energy_mj of meters of
    the site. ``metered_nodes``: the meters of nodes, whose readings ``read`` gives.
    """
    asked = _hours(items, from_us, to_us)
    if asked.is_empty():
        return pl.DataFrame(schema=ROWS), pl.DataFrame(schema=_QUALITY)
    by_node = pl.col("meter_id").is_in(metered_nodes.implode()).fill_null(value=False)
    parts = pl.concat(
        [
            _configured(asked.filter(pl.col("power_mw").is_not_null())),
            _by_periods(asked.filter(pl.col("power_mw").is_null() & ~by_node), periods),
            _by_readings(asked.filter(pl.col("power_mw").is_null() & by_node), read),
        ]
    )
    summed = parts.group_by("hour_us", "device_id").agg(
        pl.col("energy_mj", "estimated_mj", "below_mj", "above_mj", "known_us", "length_us").sum(),
        pl.col("feed").min(),
        pl.col("origin").max(),
        pl.col("assumed").any(),
    )
    estimated = pl.col("estimated_mj") > 0
    energy, known = pl.col("energy_mj"), pl.col("known_us") > 0
    rows = summed.with_columns(
        pl.lit(PLATFORM_SHARED_IT).alias("holder"),
        pl.lit(PLATFORM_SHARED_IT).alias("holder_key"),
        pl.lit(None, dtype=pl.Int64).alias("job_id"),
        pl.when(known).then(energy).alias("energy_mj"),
        pl.when(known).then(pl.col("estimated_mj")).alias("estimated_mj"),
        pl.when(estimated).then(pl.max_horizontal(energy - pl.col("below_mj"), pl.lit(0))).alias("energy_low_mj"),
        pl.when(estimated).then(energy + pl.col("above_mj")).alias("energy_high_mj"),
        pl.col("known_us").alias("spanned_us"),
        pl.lit("shared_it").alias("method"),
        pl.lit(None, dtype=pl.String).alias("reason"),
        pl.when("assumed")
        .then(pl.lit("assumed"))
        .when(estimated)
        .then(pl.lit("estimated"))
        .otherwise(pl.lit("measured"))
        .alias("source"),
    )
    unknown = summed.select(
        "hour_us",
        "device_id",
        pl.lit(UNKNOWN).alias("reason"),
        pl.lit(0, dtype=pl.Int64).alias("readings"),
        (pl.col("length_us") - pl.col("known_us")).alias("time_us"),
    ).filter(pl.col("time_us") > 0)
    return rows.select(pl.col(name).cast(kind) for name, kind in ROWS.items()), unknown


def _hours(items: pl.DataFrame, from_us: int, to_us: int) -> pl.DataFrame:
    first = from_us // US_PER_HOUR * US_PER_HOUR
    hours = pl.DataFrame({"hour_us": range(first, to_us, US_PER_HOUR)}, schema={"hour_us": pl.Int64})
    start = pl.max_horizontal("from_us", "hour_us", pl.lit(from_us))
    end = pl.min_horizontal("to_us", pl.col("hour_us") + US_PER_HOUR, pl.lit(to_us))
    return (
        items.join(hours, how="cross")
        .with_columns(start.alias("from_us"), end.alias("to_us"))
        .filter(pl.col("from_us") < pl.col("to_us"))
        .with_columns((pl.col("to_us") - pl.col("from_us")).alias("length_us"))
        .sort("device_id", "hour_us", "from_us")
    )


def _part(frame: pl.DataFrame, *, assumed: bool) -> pl.DataFrame:
    return frame.select(
        "hour_us",
        "device_id",
        "length_us",
        *(pl.col(name).cast(pl.Int64) for name in ("known_us", "energy_mj", "estimated_mj", "below_mj", "above_mj")),
        pl.col("feed").cast(pl.Int16),
        pl.col("origin").cast(pl.Int16),
        pl.lit(assumed).alias("assumed"),
    )


def _configured(asked: pl.DataFrame) -> pl.DataFrame:
    energy = (pl.col("power_mw").cast(pl.Int128) * pl.col("length_us") // US_PER_SECOND).cast(pl.Int64)
    error = (pl.col("energy_mj").cast(pl.Int128) * pl.col("error_ppm") // PPM).cast(pl.Int64)
    told = asked.with_columns(energy.alias("energy_mj"), pl.col("length_us").alias("known_us"))
    return _part(
        told.with_columns(
            pl.col("energy_mj").alias("estimated_mj"),
            error.alias("below_mj"),
            error.alias("above_mj"),
            pl.lit(None).alias("feed"),
            pl.lit(IMPORTED).alias("origin"),
        ),
        assumed=True,
    )


def _by_periods(asked: pl.DataFrame, periods: pl.DataFrame) -> pl.DataFrame:
    """Of a period that reaches beyond the hour the part is estimated: any of it may lie elsewhere."""
    start, end = pl.max_horizontal("from_us", "period_from_us"), pl.min_horizontal("to_us", "period_to_us")
    width = pl.col("period_to_us") - pl.col("period_from_us")

    def until(instant: pl.Expr) -> pl.Expr:
        return (pl.col("energy_mj").cast(pl.Int128) * (instant - pl.col("period_from_us")) // width).cast(pl.Int64)

    named = periods.rename({"from_us": "period_from_us", "to_us": "period_to_us"})
    touched = (
        asked.with_row_index("item")
        .join(named, on="meter_id", how="left")
        .with_columns(start.alias("s"), end.alias("e"))
        .with_columns(((pl.col("s") < pl.col("e")) & pl.col("period_from_us").is_not_null()).alias("here"))
        .with_columns(pl.when("here").then(until(pl.col("e")) - until(pl.col("s"))).otherwise(0).alias("part_mj"))
        .with_columns((pl.col("here") & ((pl.col("e") - pl.col("s")) < width)).alias("cut"))
    )
    cut = pl.col("cut")
    summed = touched.group_by("item").agg(
        pl.col("hour_us", "device_id", "length_us").first(),
        pl.when("here").then(pl.col("e") - pl.col("s")).otherwise(0).sum().alias("known_us"),
        pl.col("part_mj").sum().alias("energy_mj"),
        pl.col("part_mj").filter(cut).sum().alias("estimated_mj"),
        pl.col("part_mj").filter(cut).sum().alias("below_mj"),
        (pl.col("energy_mj") - pl.col("part_mj")).filter(cut).sum().alias("above_mj"),
    )
    return _part(summed.with_columns(pl.lit(None).alias("feed"), pl.lit(IMPORTED).alias("origin")), assumed=False)


def _by_readings(asked: pl.DataFrame, read: Read) -> pl.DataFrame:
    of_meter = asked.select(pl.col("meter_id").alias("device_id"), "hour_us", "from_us", "to_us")
    order = of_meter.with_row_index("item").sort("device_id", "from_us")
    shown = order.select("item").hstack(read(order.drop("item")).drop("device_id", "hour_us", "from_us", "to_us"))
    told = (
        asked.with_row_index("item")
        .join(shown, on="item", how="left")
        .with_columns(
            (pl.col("energy_mj") - pl.col("gap_mj")).alias("energy_mj"), pl.col("covered_us").alias("known_us")
        )
    )
    # Of an hour in which it was silent nobody knows anything, wherever else it was heard.
    heard = pl.col("known_us") > 0
    told = told.with_columns(
        pl.when(heard).then("energy_mj").otherwise(0).alias("energy_mj"),
        pl.when(heard).then("feed").alias("feed"),
        pl.when(heard).then("origin").otherwise(IMPORTED).alias("origin"),
    )
    error = pl.when("gauge").then(pl.col("energy_mj") * GAUGE_ERROR_PPM // PPM).otherwise(0)
    return _part(
        told.with_columns(
            pl.when("gauge").then(pl.col("energy_mj")).otherwise(0).alias("estimated_mj"),
            error.alias("below_mj"),
            error.alias("above_mj"),
        ),
        assumed=False,
    )
