"""Node overhead: what a node's meter saw beyond its devices (fans, CPU, memory), shared by who used the devices.

DESIGN §7.2. Only for hours that both the node's meter and all its devices cover; elsewhere the difference would mix
missing telemetry with overhead, so none is booked and the hour is counted as ``overhead_unknown``.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from analytics.model.findings import SCHEMA, to_json
from analytics.model.money import spread
from analytics.units import US_PER_HOUR

NEGATIVE: Final = "negative_remainder"
_UNKNOWN: Final = {
    "hour_us": pl.Int64,
    "device_id": pl.Int32,
    "reason": pl.String,
    "readings": pl.Int64,
    "time_us": pl.Int64,
}
_TIMES: Final = (
    "held_us",
    "covered_us",
    "known_us",
    "active_us",
    "idle_us",
    "throttled_us",
    "throttle_bits_us",
    "throttle_counter_us",
)


def share_overhead(rows: pl.DataFrame, devices: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Return ``rows`` with node meters replaced by overhead, findings of negative ones, and the unknown node hours.

    ``rows``: attributed usage. A device of kind ``node`` with other devices on its node stands for the overhead; one
    alone on its node is left as it is. Overhead rows hold no time: the accelerators' time is on their own rows.
    """
    nodes = devices.filter(pl.col("kind") == "node").join(
        devices.filter(pl.col("kind") != "node"), on="node_id", how="semi"
    )
    if nodes.is_empty():
        return rows, pl.DataFrame(schema=SCHEMA), pl.DataFrame(schema=_UNKNOWN)
    meters = rows.join(nodes.select("device_id", "node_id"), on="device_id", how="inner")
    boards = rows.join(nodes, on="device_id", how="anti").join(devices.select("device_id", "node_id"), on="device_id")
    boards = boards.join(nodes.select("node_id"), on="node_id", how="semi")
    whole = (pl.col("covered_us").sum() >= pl.col("held_us").sum()) & pl.col("energy_mj").is_not_null().all()
    sums = meters.group_by("hour_us", "device_id", "node_id").agg(
        pl.col("energy_mj", "estimated_mj").sum(),
        pl.col("held_us").sum(),
        whole.alias("whole"),
        pl.col("feed", "origin").first(),
    )
    under = boards.group_by("hour_us", "node_id").agg(
        pl.col("energy_mj").sum().alias("boards_mj"), whole.alias("boards_whole")
    )
    balance = (
        sums.join(under, on=["hour_us", "node_id"], how="inner")
        .filter(pl.col("whole") & pl.col("boards_whole"))
        .with_columns((pl.col("energy_mj") - pl.col("boards_mj")).alias("overhead_mj"))
        .sort("hour_us", "device_id")
    )
    shared = _shared(balance.filter(pl.col("overhead_mj") >= 0), boards)
    rest = rows.join(nodes, on="device_id", how="anti")
    merged = pl.concat([rest, shared], how="diagonal").sort("hour_us", "device_id", "holder")
    unknown = sums.join(balance, on=["hour_us", "device_id"], how="anti").select(
        "hour_us",
        "device_id",
        pl.lit("overhead_unknown").alias("reason"),
        pl.lit(0, dtype=pl.Int64).alias("readings"),
        pl.col("held_us").alias("time_us"),
    )
    return merged, _negative(balance.filter(pl.col("overhead_mj") < 0)), unknown


def _shared(balance: pl.DataFrame, boards: pl.DataFrame) -> pl.DataFrame:
    """Split each node hour's overhead over the holders of its devices in proportion to their energy."""
    users = boards.group_by("hour_us", "node_id", "holder", "job_id", "holder_key").agg(
        pl.col("energy_mj").sum().alias("used_mj")
    )
    parts = balance.join(users, on=["hour_us", "node_id"], how="inner")
    group, ties = ["hour_us", "device_id"], ["holder_key"]
    parts = spread(parts, group=group, weight="used_mj", ties=ties, total="overhead_mj", into="part_mj")
    gauged = pl.col("estimated_mj") > 0
    return parts.select(
        "hour_us",
        "device_id",
        "holder",
        "job_id",
        "holder_key",
        pl.col("part_mj").alias("energy_mj"),
        pl.when(gauged).then(pl.col("part_mj")).otherwise(0).alias("estimated_mj"),
        pl.lit(1, dtype=pl.Int64).alias("spanned_us"),
        *(pl.lit(0, dtype=pl.Int64).alias(name) for name in _TIMES),
        "feed",
        "origin",
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
            [to_json(boards_mj=row["boards_mj"], node_mj=row["energy_mj"]) for row in balance.iter_rows(named=True)],
            dtype=pl.String,
        ),
        pl.lit(None, dtype=pl.Int64).alias("waste_energy_mj"),
        pl.lit(None, dtype=pl.Int64).alias("capacity_freed_us"),
        pl.lit(1.0).alias("confidence"),
        "origin",
    )
    return rows.select(*SCHEMA).cast(SCHEMA)  # type: ignore[arg-type]
