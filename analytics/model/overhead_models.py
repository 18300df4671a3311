"""Overhead of nodes without a meter, by a model of what such a node draws: so much at rest, so much more with its boards.

``assumed`` throughout, with the model's own error. It says nothing of a node hour in which no board is known to have run.
"""

from __future__ import annotations

import polars as pl

from analytics.model.node_balance import BALANCE, NODE_HOUR
from analytics.units import PPM, US_PER_SECOND


def modelled_balance(hours: pl.DataFrame, models: pl.DataFrame) -> pl.DataFrame:
    """Return as :data:`BALANCE` what models say of node hours in which some board is known to have run: so long the node ran too."""
    if models.is_empty() or hours.is_empty():
        return pl.DataFrame(schema=BALANCE)
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
    ).cast(BALANCE)  # type: ignore[arg-type]


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
