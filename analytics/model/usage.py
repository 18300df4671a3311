"""Energy and time of pieces become usage hours: device x hour x holder, summing to the meter in integer millijoules.

Which meter speaks for a piece is settled before (``authority.py``). Knows no tenants and no prices.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from analytics.errors import BooksError
from analytics.frames import HOLDER_IDLE, UNATTRIBUTED_GAP
from analytics.model.authority import DEVICE_HOUR, Measured
from analytics.model.energy import QUANTITIES
from analytics.model.holding import Holdings
from analytics.model.money import spread
from analytics.units import US_PER_HOUR

_SPLIT: Final = (
    "metered_mj", "kept_mj", "gauged_mj", "edged_mj", "below_mj", "above_mj", "hole_us", "kept_us",
    "covered_us", "known_us", "active_us", "idle_us", "throttled_us", "throttle_bits_us", "throttle_counter_us",
)  # fmt: skip


def attribute(measured: Measured, holdings: Holdings) -> pl.DataFrame:
    """Return rows by hour_us, device_id, holder, job_id, holder_key with summed quantities; raise if they do not sum to the meter."""
    pieces = measured.pieces.with_columns(
        (pl.col("energy_mj") - pl.col("gap_mj")).alias("metered_mj"),
        (pl.col("to_us") - pl.col("from_us") - pl.col("covered_us")).alias("hole_us"),
    )
    parts = pieces.join(holdings.holders, on="piece", how="inner", maintain_order="left")
    parts = parts.filter(
        pl.col("placed") | (pl.col("holder") != HOLDER_IDLE) | (pl.col("covered_us") + pl.col("gap_us") > 0)
    )
    whole = parts.filter(pl.col("weight") == pl.col("weights"))
    shared = parts.filter(pl.col("weight") != pl.col("weights"))
    for name in _SPLIT:
        shared = spread(shared, group=["piece"], weight="weight", ties=["holder_key"], total=name, into=name)
    # Split one by one, parts of estimates may pass parts of the whole by the last millijoule.
    estimated = pl.min_horizontal(pl.col("gauged_mj") + pl.col("edged_mj"), "metered_mj") + pl.col("kept_mj")
    rows = (
        pl.concat([whole, shared.select(whole.columns)])
        .group_by("hour_us", "device_id", "holder", "job_id", "holder_key")
        .agg(
            (pl.col("metered_mj") + pl.col("kept_mj")).sum().alias("energy_mj"),
            estimated.sum().alias("estimated_mj"),
            pl.col("below_mj", "above_mj").sum(),
            (pl.col("covered_us") + pl.col("hole_us")).sum().alias("held_us"),
            (pl.col("covered_us") + pl.col("kept_us")).sum().alias("spanned_us"),
            *(pl.col(name).sum() for name in QUANTITIES if name != "energy_mj"),
            pl.col("feed").min(),
            pl.col("origin").max(),
        )
    )
    rows = pl.concat([rows, _lost_in_gaps(measured.pieces).select(rows.columns)]).sort("hour_us", "device_id", "holder")
    _check_balance(rows, measured.pieces)
    spanned, guessed = pl.col("spanned_us") > 0, (pl.col("spanned_us") > 0) & (pl.col("estimated_mj") > 0)
    low = (pl.col("energy_mj") - pl.col("below_mj")).clip(0, None)
    return rows.with_columns(
        pl.when(guessed).then(low).alias("energy_low_mj"),
        pl.when(guessed).then(pl.col("energy_mj") + pl.col("above_mj")).alias("energy_high_mj"),
        *(pl.when(spanned).then(pl.col(name)).alias(name) for name in ("energy_mj", "estimated_mj")),
    ).drop("below_mj", "above_mj")


def quality(measured: Measured, dropped: pl.DataFrame, from_us: int, to_us: int) -> pl.DataFrame:
    """Return hour_us, device_id, reason, readings, time_us, unbooked_mj: what was dropped and what time no meter covers."""
    none = pl.lit(0, dtype=pl.Int64)
    counted = (
        dropped.filter((pl.col("at_us") >= from_us) & (pl.col("at_us") < to_us))
        .group_by("device_id", (pl.col("at_us") // US_PER_HOUR * US_PER_HOUR).alias("hour_us"), "reason")
        .agg(pl.len().cast(pl.Int64).alias("readings"), none.alias("time_us"), none.alias("unbooked_mj"))
    )
    holes = measured.holes.select(*DEVICE_HOUR, "reason", none.alias("readings"), "time_us", "unbooked_mj")
    known = holes.group_by(DEVICE_HOUR).agg(pl.col("time_us").sum().alias("explained_us"))
    length = pl.col("to_us") - pl.col("from_us")
    silent = (
        measured.pieces.group_by(DEVICE_HOUR)
        .agg((length - pl.col("covered_us")).sum().alias("open_us"))
        .join(known, on=DEVICE_HOUR, how="left")
        .select(
            *DEVICE_HOUR,
            pl.lit("no_data").alias("reason"),
            none.alias("readings"),
            (pl.col("open_us") - pl.col("explained_us").fill_null(0)).alias("time_us"),
            none.alias("unbooked_mj"),
        )
        .filter(pl.col("time_us") > 0)
    )
    rows = pl.concat([counted.select(silent.columns), holes, silent])
    return rows.group_by("hour_us", "device_id", "reason").agg(pl.col("readings", "time_us", "unbooked_mj").sum())


def _lost_in_gaps(pieces: pl.DataFrame) -> pl.DataFrame:
    """Return the energy of gaps that no job held throughout: known energy, unknown cause, no time of its own."""
    lost = pl.col("gap_mj") - pl.col("kept_mj")
    nothing = [
        pl.lit(0, dtype=pl.Int64).alias(name) for name in ("held_us", *(q for q in QUANTITIES if q != "energy_mj"))
    ]
    return (
        pieces.filter(pl.col("gap_us") > pl.col("kept_us"))
        .group_by("hour_us", "device_id")
        .agg(
            lost.sum().alias("energy_mj"),
            (pl.col("gap_us") - pl.col("kept_us")).sum().alias("spanned_us"),
            pl.col("lost_below_mj").sum().alias("below_mj"),
            pl.col("lost_above_mj").sum().alias("above_mj"),
            pl.col("feed").min(),
            pl.col("origin").max(),
        )
        .with_columns(
            pl.lit(UNATTRIBUTED_GAP).alias("holder"),
            pl.lit(UNATTRIBUTED_GAP).alias("holder_key"),
            pl.lit(None, dtype=pl.Int64).alias("job_id"),
            pl.col("energy_mj").alias("estimated_mj"),
            *nothing,
        )
    )


def _check_balance(rows: pl.DataFrame, pieces: pl.DataFrame) -> None:
    books = rows.group_by("hour_us", "device_id").agg(pl.col("energy_mj").sum().alias("booked_mj"))
    meter = pieces.group_by("hour_us", "device_id").agg(pl.col("energy_mj").sum().alias("meter_mj"))
    off = meter.join(books, on=["hour_us", "device_id"], how="left").filter(
        pl.col("booked_mj").fill_null(0) != pl.col("meter_mj")
    )
    negative = rows.filter((pl.col("energy_mj") < 0) | (pl.col("estimated_mj") < 0) | (pl.col("held_us") < 0))
    if off.height or negative.height:
        raise BooksError(
            f"{off.height} device hours do not sum to their meter and {negative.height} rows are negative, "
            f"first: {(off if off.height else negative).row(0, named=True)}"
        )
