"""Where one holder gives way to another between two readings: the interval's energy is divided by the power each had, not by time alone.

The interpolated counter takes power as constant between readings (ADR 0006), which gives a job's first seconds the power of the
idle time before it. Here a holder's level is what the device drew in the interval next to it that the holder had for itself; of an
idle device without one its power at rest; of whoever has none, what is left. Only division among holders inside one interval and
hour: energy never moves between hours or devices, and a cut at which a reading stands is exact already and not touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from analytics.frames import HOLDER_IDLE
from analytics.model.authority import Measured
from analytics.model.energy import Meter, interpolated
from analytics.model.holding import Holdings
from analytics.model.money import spread
from analytics.policy import Policy
from analytics.units import US_PER_HOUR

Ints = NDArray[np.int64]
_UW_PER_MW: Final = 1_000_000
"""Microseconds of a milliwatt in a millijoule."""
_INTERVAL: Final = ["interval", "hour_us"]


def alone(holdings: Holdings) -> pl.DataFrame:
    """Return piece, holder_key of the pieces that one holder had as a whole."""
    whole = holdings.holders.filter(pl.col("weight") == pl.col("weights")).select("span", "holder_key")
    return holdings.pieces.select("piece", "span").join(whole, on="span").select("piece", "holder_key")


def split_edges(
    measured: Measured, sole: pl.DataFrame, meters: Sequence[Meter], devices: pl.DataFrame, policy: Policy
) -> Measured:
    """Return ``measured`` with the energy of pieces that meet inside an interval divided by levels.

    ``sole``: as of :func:`alone`; an interval that touches any other piece stays as it is.
    ``devices``: device_id, accelerators, idle_power_mw. What was divided is ``edged_mj``, an estimate: its bounds are the hull of
    this answer and the constant power's.
    """
    moved = [
        _of_meter(measured.taken.filter(pl.col("meter") == index), sole, meters[index], devices, policy)
        for index in measured.taken["meter"].unique().sort().to_list()
        if meters[index].instrument == "counter"
    ]
    changes = pl.concat([_NONE, *(part for part in moved if part is not None)])
    if changes.is_empty():
        return measured
    sums = changes.group_by("piece").agg(pl.exclude("piece").sum())
    pieces = (
        measured.pieces.join(sums, on="piece", how="left", maintain_order="left")
        .with_columns(
            (pl.col("energy_mj") + pl.col("moved_mj").fill_null(0)).alias("energy_mj"),
            *((pl.col(name) + pl.col(f"{name}:edge").fill_null(0)).alias(name) for name in _ADDED),
        )
        .select(measured.pieces.columns)
    )
    return replace(measured, pieces=pieces)


_ADDED: Final = ("edged_mj", "below_mj", "above_mj")
_NONE: Final = pl.DataFrame(
    schema={"piece": pl.UInt32, "moved_mj": pl.Int64, **{f"{name}:edge": pl.Int64 for name in _ADDED}}
)


def _of_meter(
    taken: pl.DataFrame, sole: pl.DataFrame, meter: Meter, devices: pl.DataFrame, policy: Policy
) -> pl.DataFrame | None:
    """Return piece, moved_mj and what is to be added to the :data:`_ADDED`, several rows a piece; None where nothing is to be moved."""
    rows = taken.join(sole, on="piece", how="inner").sort("device_id", "from_us")
    same = (
        (pl.col("device_id") == pl.col("device_id").shift())
        & (pl.col("hour_us") == pl.col("hour_us").shift())
        & (pl.col("from_us") == pl.col("to_us").shift())
    ).fill_null(value=False)
    other = (pl.col("holder_key") != pl.col("holder_key").shift()).fill_null(value=False)
    cuts = rows.filter(same & other).select("device_id", "hour_us", "from_us")
    cut = _inside(meter, cuts)
    if cut.is_empty():
        return None
    rows = rows.with_columns((~(same & ~other)).cum_sum().alias("run")).with_columns(
        pl.col("from_us").min().over("run").alias("run_from_us"), pl.col("to_us").max().over("run").alias("run_to_us")
    )
    parts = _levels(_parts(cut, rows, meter), meter, devices, policy)
    if parts.is_empty():
        return None
    parts = spread(
        parts, group=_INTERVAL, weight="weight", ties=["holder_key", "from_us"], total="total_mj", into="level_mj"
    )
    level, linear = pl.col("level_mj"), pl.col("linear_mj")
    return parts.select(
        "piece",
        (level - linear).alias("moved_mj"),
        level.alias("edged_mj:edge"),
        (level - pl.min_horizontal(level, linear)).alias("below_mj:edge"),
        (pl.max_horizontal(level, linear) - level).alias("above_mj:edge"),
    )


def _inside(meter: Meter, cuts: pl.DataFrame) -> pl.DataFrame:
    """Return the intervals that a cut lies strictly inside of, with an hour each: interval, hour_us, device_id, lo_us, hi_us, first_us, last_us."""
    key = cuts.select(meter.keys.key(pl.col("device_id"), pl.col("from_us"))).to_series()
    left = meter.key.search_sorted(key, side="right").cast(pl.Int64) - 1
    found = cuts.with_columns(left.alias("interval"), key.alias("key")).filter(
        (left >= 0) & (left < meter.key.len() - 1)
    )
    begun, ended, covered = _interval(meter, found["interval"].to_numpy())
    base = pl.col("device_id").cast(pl.Int64) * meter.keys.span_us - meter.keys.base_us
    return (
        found.with_columns(begun=begun, ended=ended, covered=covered)
        .filter((pl.col("covered") == pl.col("ended") - pl.col("begun")) & (pl.col("key") > pl.col("begun")))
        .with_columns((pl.col("begun") - base).alias("first_us"), (pl.col("ended") - base).alias("last_us"))
        .with_columns(
            pl.max_horizontal("first_us", "hour_us").alias("lo_us"),
            pl.min_horizontal(pl.col("last_us"), pl.col("hour_us") + US_PER_HOUR).alias("hi_us"),
        )
        .select("interval", "hour_us", "device_id", "lo_us", "hi_us", "first_us", "last_us")
        .unique(maintain_order=True)
    )


def _interval(meter: Meter, index: Ints) -> tuple[Ints, Ints, Ints]:
    """Return the keys at which intervals begin and end, and how much of each is covered."""
    key = meter.key.to_numpy()
    return key[index], key[np.minimum(index + 1, len(key) - 1)], _grown(meter, "covered_us", index)


def _grown(meter: Meter, name: str, index: Ints) -> Ints:
    sums = meter.sums[name].to_numpy()
    grown: Ints = sums[index] - np.where(index > 0, sums[np.maximum(index - 1, 0)], 0)
    return grown


def _parts(cut: pl.DataFrame, rows: pl.DataFrame, meter: Meter) -> pl.DataFrame:
    """Return each piece's part of the intervals, of those that lie wholly in pieces of one holder each."""
    starts = rows.select(meter.keys.key(pl.col("device_id"), pl.col("from_us"))).to_series()
    lo = cut.select(meter.keys.key(pl.col("device_id"), pl.col("lo_us"))).to_series()
    hi = cut.select(meter.keys.key(pl.col("device_id"), pl.col("hi_us"))).to_series()
    first = (starts.search_sorted(lo, side="right").cast(pl.Int64) - 1).clip(0, None)
    end = starts.search_sorted(hi, side="left").cast(pl.Int64)
    parts = cut.with_columns(pl.int_ranges(first, end).alias("row")).explode("row").drop_nulls("row")
    mine = rows.select("piece", "holder_key", "device_id", "from_us", "to_us", "run_from_us", "run_to_us")
    parts = pl.concat(
        [
            parts.rename({"device_id": "of_device"}),
            mine[parts["row"]],
        ],
        how="horizontal",
    ).with_columns(
        pl.max_horizontal("from_us", "lo_us").alias("from_us"), pl.min_horizontal("to_us", "hi_us").alias("to_us")
    )
    whole = ((pl.col("to_us") - pl.col("from_us")).sum() == (pl.col("hi_us") - pl.col("lo_us")).first()) & (
        pl.col("device_id") == pl.col("of_device")
    ).all()
    return parts.filter(whole.over(_INTERVAL)).drop("of_device", "row")


def _levels(parts: pl.DataFrame, meter: Meter, devices: pl.DataFrame, policy: Policy) -> pl.DataFrame:
    """Add linear_mj, the interval's total_mj within the hour, and each part's weight: its time at its level."""
    index = parts["interval"].to_numpy()
    before = _own(parts, meter, np.maximum(index - 1, 0), policy)
    after = _own(parts, meter, np.minimum(index + 1, meter.key.len() - 1), policy)
    rest = pl.coalesce("idle_power_mw", pl.col("accelerators") * policy.idle.default_idle_power_mw).cast(pl.Int64)
    width = pl.col("last_us") - pl.col("first_us")
    time = pl.col("to_us") - pl.col("from_us")
    known = pl.col("level_mw").is_not_null()
    left = pl.col("total_mj") * _UW_PER_MW - (time * pl.col("level_mw")).sum().over(_INTERVAL)
    least = pl.col("rest_mw") * pl.col("open_us")
    return (
        parts.with_columns(
            pl.Series("before_mw", before, dtype=pl.Int64),
            pl.Series("after_mw", after, dtype=pl.Int64),
            pl.Series("delta_mj", _grown(meter, "energy_mj", index), dtype=pl.Int64),
        )
        .join(devices.select("device_id", rest.alias("rest_mw")), on="device_id", how="left", maintain_order="left")
        .with_columns(
            (
                interpolated(pl.col("delta_mj"), pl.col("to_us") - pl.col("first_us"), width)
                - interpolated(pl.col("delta_mj"), pl.col("from_us") - pl.col("first_us"), width)
            ).alias("linear_mj"),
            pl.when((pl.col("from_us") == pl.col("first_us")) & (pl.col("before_mw") >= 0))
            .then(pl.col("before_mw"))
            .when((pl.col("to_us") == pl.col("last_us")) & (pl.col("after_mw") >= 0))
            .then(pl.col("after_mw"))
            .when(pl.col("holder_key") == HOLDER_IDLE)
            .then(pl.col("rest_mw"))
            .alias("level_mw"),
        )
        .with_columns(
            pl.col("linear_mj").sum().over(_INTERVAL).alias("total_mj"),
            pl.when(known).then(0).otherwise(time).sum().over(_INTERVAL).alias("open_us"),
        )
        .with_columns(pl.max_horizontal(left, least).alias("left"))
        .with_columns(
            pl.when(known)
            .then(time * pl.col("level_mw"))
            .otherwise((pl.col("left").cast(pl.Int128) * time // pl.col("open_us").clip(1, None)).cast(pl.Int64))
            .alias("weight")
        )
        .with_columns(
            pl.when(pl.col("weight").sum().over(_INTERVAL) > 0).then(pl.col("weight")).otherwise(time).alias("weight")
        )
    )


def _own(parts: pl.DataFrame, meter: Meter, index: Ints, policy: Policy) -> Ints:
    """Return the power (mW) of an interval of the meter where the part's holder had all of it for itself, else -1.

    Shorter than a counter may take to be refreshed, it says nothing of power.
    """
    begun, ended, covered = _interval(meter, index)
    base = parts["device_id"].to_numpy().astype(np.int64) * meter.keys.span_us - meter.keys.base_us
    width = ended - begun
    alone = (begun - base >= parts["run_from_us"].to_numpy()) & (ended - base <= parts["run_to_us"].to_numpy())
    fit = alone & (covered == width) & (width >= policy.gaps.refresh_us)
    power: Ints = _grown(meter, "energy_mj", index) * _UW_PER_MW // np.maximum(width, 1)
    return np.where(fit, power, -1)
