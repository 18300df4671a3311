"""How each figure came to its holder, in one word: the least exact of what it is made of. It computes no energy."""

from __future__ import annotations

from typing import Final

import polars as pl

from analytics.frames import METHODS, NODE_OVERHEAD, SHARED_IT
from analytics.units import US_PER_HOUR

_RANK: Final = {method: rank for rank, method in enumerate(METHODS)}
_OVERHEAD: Final = ("overhead", "overhead_model")


def least_exact(method: pl.Expr) -> pl.Expr:
    """Return the least exact of a group's methods, null where none of them is known."""
    return (
        method.replace_strict(_RANK, return_dtype=pl.Int64)
        .max()
        .replace_strict(dict(enumerate(METHODS)), return_dtype=pl.String)
    )


def category(method: pl.Expr, otherwise: pl.Expr) -> pl.Expr:
    """Return the charge category that energy of this method rides on: overhead and shared IT are no accelerator's time."""
    return (
        pl.when(method.is_in(_OVERHEAD))
        .then(pl.lit(NODE_OVERHEAD))
        .when(method == "shared_it")
        .then(pl.lit(SHARED_IT))
        .otherwise(otherwise)
    )


def with_method(rows: pl.DataFrame, allocations: pl.DataFrame, devices: pl.DataFrame) -> pl.DataFrame:
    """Return ``rows`` (hour_us, device_id, job_id, ...) with ``method``: of a job its holdings' of that hour, of the rest all holdings'.

    Overhead and shared IT say their own.
    """
    if "method" in rows.columns:
        return rows
    whole = pl.when(pl.col("kind") != "node").then(pl.lit("whole")).otherwise(pl.lit("node_meter"))
    base = devices.select("device_id", whole.alias("base"))
    start, end = pl.col("start_at").dt.epoch("us"), pl.col("end_at").dt.epoch("us")
    told = (
        rows.select("device_id", "hour_us")
        .unique()
        .join(allocations.select("device_id", "job_id", "method", start.alias("s"), end.alias("e")), on="device_id")
        .filter(
            (pl.col("s") < pl.col("hour_us") + US_PER_HOUR)
            & (pl.col("e") > pl.col("hour_us")).fill_null(value=True)
            & (pl.col("e") > pl.col("s")).fill_null(value=True)
        )
    )
    here = ["device_id", "hour_us"]
    of_job = told.group_by(*here, "job_id").agg(least_exact(pl.col("method")).alias("of_job"))
    of_all = told.group_by(here).agg(least_exact(pl.col("method")).alias("of_all"))
    ranks = [pl.col(name).replace_strict(_RANK, return_dtype=pl.Int64) for name in ("base", "held")]
    return (
        rows.join(base, on="device_id", how="left", maintain_order="left")
        .join(of_job, on=[*here, "job_id"], how="left", maintain_order="left")
        .join(of_all, on=here, how="left", maintain_order="left")
        .with_columns(pl.when(pl.col("job_id").is_null()).then("of_all").otherwise("of_job").alias("held"))
        .with_columns(
            pl.max_horizontal(ranks).replace_strict(dict(enumerate(METHODS)), return_dtype=pl.String).alias("method")
        )
        .drop("base", "of_job", "of_all", "held")
    )
