"""What kind of data an hour without a meter stands in: live, imported, replayed or simulated.

An hour that nothing measured still has idle or held time, and that has to say whether its device is a simulated one. The
telemetry nearest to the hour says so, never the newest: a device that was simulated last month may be a real one today. Each
hour is asked for by itself, so that any window finds the same.
"""

from __future__ import annotations

import polars as pl

from analytics.units import US_PER_HOUR

_HOUR = ["device_id", "hour_us"]


def fill_origin(
    rows: pl.DataFrame,
    readings: pl.DataFrame,
    epochs: pl.DataFrame,
    devices: pl.DataFrame,
    placements: pl.DataFrame,
    reach_us: int,
) -> pl.DataFrame:
    """Return ``rows`` (device_id, hour_us, origin) with no origin left null.

    First the device's last reading before the hour's end, else the first after it, both within the reach; else the epoch of
    its node seen last before the hour's end, else the node's first; else what ``devices`` says. Of readings of one instant
    the most direct feed's counts.
    """
    asked = rows.filter(pl.col("origin").is_null()).select(_HOUR).unique()
    if asked.is_empty():
        return rows
    asked = asked.with_columns((pl.col("hour_us") + US_PER_HOUR - 1).alias("last_us")).sort("last_us")
    said, seen = _said(asked, readings, epochs), _seen(epochs)
    hour = pl.col("hour_us")
    before = asked.join_asof(
        said, left_on="last_us", right_on="at_us", by="device_id", strategy="backward", check_sortedness=False
    ).filter(pl.col("at_us") >= hour - reach_us)
    after = asked.join_asof(
        said, left_on="last_us", right_on="at_us", by="device_id", strategy="forward", check_sortedness=False
    ).filter(pl.col("at_us") < hour + US_PER_HOUR + reach_us)
    placed = _placed(asked, placements).join(devices.select("device_id", "origin"), on="device_id", how="left")
    epoch_before = placed.drop("origin").join_asof(
        seen, left_on="last_us", right_on="at_us", by="node_id", strategy="backward", check_sortedness=False
    )
    first = placed.drop("origin").join(seen.unique("node_id", keep="first", maintain_order=True), on="node_id")
    answers = [part.select(*_HOUR, "origin").drop_nulls() for part in (before, after, epoch_before, first, placed)]
    own = pl.concat(answers).unique(_HOUR, keep="first", maintain_order=True).rename({"origin": "own"})
    return (
        rows.join(own, on=_HOUR, how="left", maintain_order="left")
        .with_columns(pl.coalesce("origin", "own").alias("origin"))
        .drop("own")
    )


def _placed(asked: pl.DataFrame, placements: pl.DataFrame) -> pl.DataFrame:
    """Return ``asked`` with node_id: where the device stood last before the hour's end, null where it had stood nowhere yet."""
    stood = placements.select("device_id", pl.col("valid_from").dt.epoch("us").alias("at_us"), "node_id").sort("at_us")
    return asked.join_asof(
        stood, left_on="last_us", right_on="at_us", by="device_id", strategy="backward", check_sortedness=False
    ).drop("at_us")


def _said(asked: pl.DataFrame, readings: pl.DataFrame, epochs: pl.DataFrame) -> pl.DataFrame:
    usable = pl.col("energy_mj").is_not_null() | pl.col("power_mw").is_not_null()
    return (
        readings.filter(pl.col("device_id").is_in(asked["device_id"].unique().implode()) & usable)
        .select("device_id", pl.col("at").dt.epoch("us").alias("at_us"), "epoch_id")
        .join(epochs.select("epoch_id", "feed", "origin"), on="epoch_id")
        .sort("at_us", "device_id", "feed", "origin")
        .unique(["device_id", "at_us"], keep="first", maintain_order=True)
        .select("device_id", "at_us", "origin")
    )


def _seen(epochs: pl.DataFrame) -> pl.DataFrame:
    return (
        epochs.select("node_id", pl.col("first_seen_at").dt.epoch("us").alias("at_us"), "origin")
        .sort("at_us", "node_id", "origin")
        .unique(["node_id", "at_us"], keep="first", maintain_order=True)
    )
