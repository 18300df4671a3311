"""Time held in pools: jobs of which only (pool, model, count) is known, billed by time and by nothing else.

A pool is a device held by any number of jobs at once. Its capacity is unknown, so it has no idle and no unattributed time;
nothing meters it, so energy and states are null and coverage is 0. Its time is the scheduler's: start, end and count of
accelerators as the job table says. It invents no energy and prices nothing.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from analytics.frames import HOLDER_JOB_PREFIX
from analytics.model.energy import QUANTITIES
from analytics.units import US_PER_HOUR

POOL: Final = "pool"


def pool_usage(pools: pl.DataFrame, allocations: pl.DataFrame, from_us: int, to_us: int) -> pl.DataFrame:
    """Return one row per hour, pool and job over [from, to): the job's held time and its accelerators.

    ``pools``: device_id, uuid, model, origin. A job that holds the same count throughout its part of the hour has ``held_us`` in
    time and ``accelerators`` as that count; where the count changes, or two allocations of one job overlap, ``accelerators``
    is 1 and ``held_us`` their sum of time x count, so that the product is exact either way.
    """
    start = pl.max_horizontal(pl.col("start_at").dt.epoch("us"), from_us)
    # Who has ended holds nothing more, whether or not the scheduler said so of this holding.
    end = pl.min_horizontal(pl.coalesce("end_at", "job_ended_at").dt.epoch("us"), to_us)
    pieces = (
        allocations.join(pools.select("device_id"), on="device_id", how="semi")
        .select("device_id", "job_id", "job_key", "accelerators", start.alias("start_us"), end.alias("end_us"))
        .filter(pl.col("start_us") < pl.col("end_us"))
        .with_columns(
            pl.int_ranges(
                pl.col("start_us") // US_PER_HOUR, (pl.col("end_us") - 1) // US_PER_HOUR + 1, dtype=pl.Int64
            ).alias("hour")
        )
        .explode("hour", empty_as_null=False)
        .with_columns((pl.col("hour") * US_PER_HOUR).alias("hour_us"))
        .with_columns(
            pl.max_horizontal("start_us", "hour_us").alias("start_us"),
            pl.min_horizontal("end_us", pl.col("hour_us") + US_PER_HOUR).alias("end_us"),
        )
        .sort("hour_us", "device_id", "job_id", "start_us", "end_us")
    )
    key = ["hour_us", "device_id", "job_id"]
    time = pl.col("end_us") - pl.col("start_us")
    # Sorted by start: no piece begins before the latest end of those before it.
    apart = (pl.col("start_us") >= pl.col("end_us").cum_max().shift(1)).fill_null(value=True).all()
    held = (
        pieces.group_by(key, maintain_order=True)
        .agg(
            time.sum().alias("time_us"),
            (time * pl.col("accelerators")).sum().alias("accelerator_us"),
            pl.col("accelerators", "job_key").first(),
            (apart & (pl.col("accelerators").n_unique() == 1)).alias("even"),
        )
        .with_columns(
            pl.when("even").then("time_us").otherwise("accelerator_us").alias("held_us"),
            pl.when("even").then("accelerators").otherwise(1).cast(pl.Int32).alias("accelerators"),
        )
    )
    return held.join(pools, on="device_id", how="left", maintain_order="left").select(
        "hour_us",
        "device_id",
        (HOLDER_JOB_PREFIX + pl.col("job_id").cast(pl.String)).alias("holder"),
        "job_id",
        (HOLDER_JOB_PREFIX + pl.col("job_key")).alias("holder_key"),
        pl.lit(None, dtype=pl.Int64).alias("energy_mj"),
        pl.lit(None, dtype=pl.Int64).alias("estimated_mj"),
        "held_us",
        pl.lit(0, dtype=pl.Int64).alias("spanned_us"),
        *(pl.lit(0, dtype=pl.Int64).alias(name) for name in QUANTITIES if name != "energy_mj"),
        pl.lit(None, dtype=pl.Int16).alias("feed"),
        "origin",
        "accelerators",
        pl.col("model").alias("device_model"),
        pl.col("uuid").alias("device_key"),
    )
