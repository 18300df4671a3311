"""The words of the tables: types of money and time, holders, categories, methods; and the columns that many of them have."""

from __future__ import annotations

from typing import Final

import dataframely as dy
import polars as pl

INSTANT: Final = pl.Datetime("us", "UTC")
MONEY: Final = pl.Decimal(38, 9)
RATE: Final = pl.Decimal(38, 18)

HOLDER_IDLE: Final = "idle"
HOLDER_JOB_PREFIX: Final = "job:"
UNATTRIBUTED_PREFIX: Final = "unattributed:"
UNATTRIBUTED_OVERLAP: Final = "unattributed:overlap"
UNATTRIBUTED_GAP: Final = "unattributed:telemetry_gap"
UNATTRIBUTED_NO_JOB: Final = "unattributed:no_job"
"""Work of processes that belong to no job."""
UNATTRIBUTED_HINT_ONLY: Final = "unattributed:hint_only"
"""Held by the word of a process alone, which anybody could give."""
PLATFORM_PREFIX: Final = "platform:"
PLATFORM_OVERHEAD: Final = "platform:overhead"
"""Node overhead while nobody used the node."""
PLATFORM_SHARED_IT: Final = "platform:shared_it"

GPU_OWNED: Final = "gpu_owned"
NODE_OVERHEAD: Final = "node_overhead"
SHARED_IT: Final = "shared_it"
ELECTRICITY: Final = "electricity"
API_TOKENS: Final = "api_tokens"
IDLE_SPREAD: Final = "idle_spread"
CARRIERS: Final = (GPU_OWNED, NODE_OVERHEAD, SHARED_IT)
"""Charge categories that energy and carbon ride on: over their lines a sum is the meters'."""
CATEGORIES: Final = (*CARRIERS, ELECTRICITY, API_TOKENS, IDLE_SPREAD)
COSTLESS: Final = (NODE_OVERHEAD, SHARED_IT)
"""Carriers that cost what their electricity does, which has lines of its own."""
COSTED: Final = tuple(category for category in CATEGORIES if category not in COSTLESS)
"""The categories a bill's cost is made of, in the order of its columns."""
USED: Final = (GPU_OWNED, API_TOKENS)
"""Categories whose quantities are what was used, accelerator-time and tokens: of others they repeat it."""
POOLS: Final = ("job", "idle", "unattributed", "platform", "api")
METHODS: Final = (
    "whole", "node_meter", "slice", "process_utilization", "slice_activity", "mps_threads", "shards", "share", "count", "equal",
    "overhead", "overhead_model", "shared_it", "pool",
)  # fmt: skip
"""How energy came to a holder, the most exact first: of several in one figure the last is told."""

GHG_SCOPES: Final = ("2", "3.1", "3.2", "3.3", "3.8")
"""Greenhouse Gas Protocol: scope 2, and scope 3 by its category."""
BASES: Final = ("allocation", "usage")
STATES: Final = ("used", "allocated_idle", "reserved_unused", "available", "down")
SOURCES: Final = ("measured", "estimated", "forecast", "assumed")


def instant(*, nullable: bool = False, key: bool = False) -> dy.Datetime:
    """Return a column of UTC microseconds."""
    return dy.Datetime(time_unit="us", time_zone="UTC", nullable=nullable, primary_key=key)


def money(*, nullable: bool = True) -> dy.Decimal:
    """Return a column of an amount, to nine places."""
    return dy.Decimal(38, 9, nullable=nullable)


def rate(*, nullable: bool = False) -> dy.Decimal:
    """Return a column of a price, factor or intensity, to eighteen places."""
    return dy.Decimal(38, 18, nullable=nullable)


def bounded() -> pl.Expr:
    """Say of a row with an interval: both bounds or none, and the energy between them."""
    low, energy, high = (pl.col(name) for name in ("energy_low_mj", "energy_mj", "energy_high_mj"))
    both = low.is_null() == high.is_null()
    return both & ((low <= energy) & (energy <= high)).fill_null(value=True)
