"""Composes the model: frames of a window of hours of one site in, the books of those hours out. Still pure.

A map over devices (any sharding gives the same rows) and a reduce per hour for rounding. The result is the same bytes
for any order of rows, any number of threads, any split into shards and any split of the window into hours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import dataframely as dy
import polars as pl

from analytics.frames import (
    Allocations,
    ApiCalls,
    Bindings,
    DeviceReadings,
    Devices,
    Epochs,
    FacilityFactors,
    Findings,
    Intensity,
    Jobs,
    LedgerLines,
    Prices,
    Quality,
    Rollups,
    Tariffs,
    UsageHours,
)
from analytics.policy import Policy


@dataclass(frozen=True, slots=True)
class Window:
    """Hours of one site: ``from_at`` is a full hour; ``to_at`` may cut the last hour short, which stays provisional."""

    from_at: datetime
    to_at: datetime
    closed_before_at: datetime
    """Hours that end at or before this instant are ``closed``, later ones ``provisional``."""


@dataclass(frozen=True, slots=True)
class UsageInputs:
    """What the map needs for some devices; split it by node as you like.

    ``readings``: all rows of these devices in [from - policy.margin_us, to + policy.margin_us) and, where the margin
    holds none with a counter (or a gauge), the nearest before and after, up to ``policy.gaps.reach_us`` away. More rows
    never change the result. ``allocations``: all that touch [from - reach, to + reach).
    """

    window: Window
    devices: dy.DataFrame[Devices]
    epochs: dy.DataFrame[Epochs]
    readings: dy.DataFrame[DeviceReadings]
    allocations: dy.DataFrame[Allocations]


@dataclass(frozen=True, slots=True)
class References:
    """Dated reference data as known at the run's ``as_of``, each row that is valid at some time in the window."""

    currency: str
    jobs: dy.DataFrame[Jobs]
    bindings: dy.DataFrame[Bindings]
    prices: dy.DataFrame[Prices]
    tariffs: dy.DataFrame[Tariffs]
    intensity: dy.DataFrame[Intensity]
    facility_factors: dy.DataFrame[FacilityFactors]


@dataclass(frozen=True, slots=True)
class HourInputs:
    """Everything a close reads: the map's part, dated references, and the API calls of the window."""

    usage: UsageInputs
    references: References
    api_calls: dy.DataFrame[ApiCalls]


@dataclass(frozen=True, slots=True)
class Shard:
    """What the map returns for some devices: plain sums, so shards concatenate."""

    usage: pl.DataFrame
    findings: pl.DataFrame
    quality: dy.DataFrame[Quality]


@dataclass(frozen=True, slots=True)
class HourResult:
    """The books of the window, each frame sorted by its key."""

    usage: dy.DataFrame[UsageHours]
    lines: dy.DataFrame[LedgerLines]
    findings: dy.DataFrame[Findings]
    quality: dy.DataFrame[Quality]


def close_hours(inputs: HourInputs, policy: Policy) -> HourResult:
    """Return the books of the window; raise :class:`BooksError` if a law of the books would be broken."""
    return reduce_shards(
        inputs.usage.window,
        inputs.usage.devices,
        [map_devices(inputs.usage, policy)],
        inputs.references,
        inputs.api_calls,
        policy,
    )


def map_devices(inputs: UsageInputs, policy: Policy) -> Shard:
    """Return the usage of some devices, before tenants, carbon and money."""
    raise NotImplementedError


def reduce_shards(
    window: Window,
    devices: dy.DataFrame[Devices],
    shards: Iterable[Shard],
    references: References,
    api_calls: dy.DataFrame[ApiCalls],
    policy: Policy,
) -> HourResult:
    """Merge shards of disjoint devices, then map tenants, price, and round once per group. ``devices`` is all of them."""
    raise NotImplementedError


def roll_minutes(inputs: UsageInputs, policy: Policy) -> dy.DataFrame[Rollups]:
    """Return one row per device and minute with data in the window, for dashboards."""
    raise NotImplementedError


def content_hash(frame: pl.DataFrame) -> bytes:
    """Return the SHA-256 of a frame's schema and values: equal content, equal hash, whatever its chunks."""
    raise NotImplementedError
