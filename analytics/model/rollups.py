"""Minute rollups for dashboards: the interpolated counter at minute marks and the gauges between them. Never billed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import polars as pl

from analytics.frames import INSTANT
from analytics.model.authority import ask, grown, left_open, may_tell
from analytics.model.energy import Meter
from analytics.units import US_PER_HOUR, US_PER_MINUTE

_ON: Final = ["device_id", "minute_us"]
_NAMES: Final = ("energy_mj", "covered_us", "throttled_us", "known_us")


def by_minute(
    readings: pl.DataFrame, meters: Sequence[Meter], devices: pl.DataFrame, from_us: int, to_us: int
) -> pl.DataFrame:
    """Return minute rows of every device and minute with readings or metered time.

    Energy and origin are null where no meter spans the minute.
    """
    at_us = pl.col("at").dt.epoch("us")
    gauges = (
        readings.filter((at_us > from_us) & (at_us <= to_us))
        .with_columns(((at_us - 1) // US_PER_MINUTE * US_PER_MINUTE).alias("minute_us"))
        .group_by(_ON)
        .agg(
            pl.max_horizontal(pl.col("power_max_mw").max(), pl.col("power_mw").max()).alias("power_max_mw"),
            (pl.col("gpu_util_percent").cast(pl.Int64).sum() // pl.col("gpu_util_percent").count()).cast(pl.Int16),
            pl.col("temp_c").max(),
        )
    )
    marks = minute_marks(devices, from_us, to_us)
    metered = between_marks(meters, marks).rename({"at_us": "minute_us"})
    rows = metered.join(gauges, on=_ON, how="full", coalesce=True)
    return rows.with_columns(
        pl.col("minute_us").cast(INSTANT).alias("minute_at"),
        pl.col("covered_us").fill_null(0),
    )


def minute_marks(devices: pl.DataFrame, from_us: int, to_us: int) -> pl.DataFrame:
    """Return device_id and at_us: each device's minutes from ``from_us``, and ``to_us``; in order if the devices are."""
    edges = pl.DataFrame({"at_us": [*range(from_us, to_us, US_PER_MINUTE), to_us]}, schema={"at_us": pl.Int64})
    return devices.select("device_id").join(edges, how="cross")


def between_marks(meters: Sequence[Meter], left: pl.DataFrame) -> pl.DataFrame:
    """Return device_id, at_us, energy_mj, covered_us, throttled_us, origin of each interval a meter spans, by its start.

    ``left``: device_id and at_us where intervals begin and end, sorted, an interval inside one hour. Which meter tells of what is as
    in the books (``authority``).
    """
    same = pl.col("device_id").shift(-1) == pl.col("device_id")
    intervals = (
        left.select(
            "device_id",
            (pl.col("at_us") // US_PER_HOUR * US_PER_HOUR).alias("hour_us"),
            pl.col("at_us").alias("from_us"),
            pl.col("at_us").shift(-1).alias("to_us"),
            same.alias("same"),
        )
        .filter("same")
        .with_row_index("piece")
    )
    asked, found = ask(intervals), []
    for meter in meters:
        able, others = may_tell(asked, meter)
        if able.is_empty():
            continue
        read = able.hstack(grown(able, meter, _NAMES))
        spanned = (pl.col("covered_us") > 0) | (pl.col("energy_mj") > 0)
        found.append(read.filter(spanned).with_columns(pl.lit(meter.origin, dtype=pl.Int16).alias("origin")))
        short = read.filter(pl.col("covered_us") < pl.col("to_us") - pl.col("from_us"))
        asked = pl.concat([others, left_open(short.select(able.columns), meter)])
    columns = {"energy_mj": pl.Int64, "covered_us": pl.Int64, "throttled_us": pl.Int64, "origin": pl.Int16}
    if not found:
        return pl.DataFrame(schema={"device_id": pl.Int32, "at_us": pl.Int64, **columns})
    told = pl.concat(found)
    if told["piece"].n_unique() < told.height:
        told = told.group_by("piece", "device_id").agg(pl.col(_NAMES).sum(), pl.col("origin").max())
    throttled = pl.when(pl.col("known_us") > 0).then(pl.col("throttled_us")).alias("throttled_us")
    began = intervals.select("piece", pl.col("from_us").alias("at_us"))
    return told.join(began, on="piece").with_columns(throttled).select("device_id", "at_us", *columns)
