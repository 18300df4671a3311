"""Energy of each tenant by minute: the counter at minute marks, and wherever holders change inside a minute. Never billed.

A device that changes hands inside a minute has it cut there, by the same counter, so the parts sum to the minute. Energy of a
gap goes to whoever held the device then: the books are stricter (DESIGN §7.1), since a bill has to prove it.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from analytics.frames import INSTANT
from analytics.model.energy import Meter
from analytics.model.holding import Holdings
from analytics.model.money import spread
from analytics.model.rollups import between_marks, minute_marks
from analytics.units import US_PER_MINUTE


def by_tenant(
    rollups: pl.DataFrame,
    meters: Sequence[Meter],
    holdings: Holdings,
    job_tenants: pl.DataFrame,
    from_us: int,
    to_us: int,
) -> pl.DataFrame:
    """Return minute_at, tenant_id, energy_mj of the window's minutes; null tenant = held by nobody, or by a job without one.

    ``rollups``: the minutes of the same devices; ``job_tenants``: hour_at, job_id, tenant_id. A minute no meter spans has
    no row. The rows of a minute sum to its rollups.
    """
    pieces = holdings.pieces
    cuts = pieces.filter(pl.col("from_us") % US_PER_MINUTE != 0).select("device_id", pl.col("from_us").alias("at_us"))
    odd = cuts.select("device_id").unique()
    plain = (
        rollups.filter(pl.col("energy_mj").is_not_null())
        .select("device_id", pl.col("minute_at").dt.epoch("us").alias("at_us"), "energy_mj")
        .join(odd, on="device_id", how="anti")
    )
    edges = pl.concat([minute_marks(odd, from_us, to_us), cuts]).unique().sort("device_id", "at_us")
    fine = between_marks(meters, edges).select(plain.columns)
    parts = (
        pl.concat([plain, fine])
        .sort("device_id", "at_us")
        .join_asof(
            pieces.select("device_id", "piece", "span", "hour_us", pl.col("from_us").alias("at_us")),
            on="at_us",
            by="device_id",
            check_sortedness=False,  # sorted by device and time just now, and pieces are so by their declaration
        )
        .join(holdings.holders, on="span", how="inner")
    )
    is_whole = pl.col("weight") == pl.col("weights")
    shared = spread(
        parts.filter(~is_whole),
        group=["piece", "at_us"],
        weight="weight",
        ties=["holder_key"],
        total="energy_mj",
        into="energy_mj",
    )
    tenants = job_tenants.select(pl.col("hour_at").dt.epoch("us").alias("hour_us"), "job_id", "tenant_id")
    return (
        pl.concat([parts.filter(is_whole), shared.select(parts.columns)])
        .join(tenants, on=["hour_us", "job_id"], how="left")
        .group_by((pl.col("at_us") // US_PER_MINUTE * US_PER_MINUTE).cast(INSTANT).alias("minute_at"), "tenant_id")
        .agg(pl.col("energy_mj").sum())
    )
