"""What the model is given: the hours of one site, what was measured and held in them, dated references, and calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import dataframely as dy

from analytics.frames import (
    Anchors,
    ApiCalls,
    Assets,
    Bindings,
    CapacityHolds,
    DeviceReadings,
    Devices,
    DeviceShares,
    Epochs,
    FacilityFactors,
    Holds,
    IdlePolicies,
    InstanceActivity,
    Intensity,
    Jobs,
    MeterPeriods,
    Meters,
    NodeReadings,
    OverheadModels,
    Placements,
    Prices,
    SharedIt,
    Tariffs,
    TenantMoves,
    Tenants,
)
from analytics.frames.references import ModelAliases, PricePolicies


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
    never change the result. ``holds`` and ``placements``: all that touch [from - reach, to + reach), and of holdings that began before
    it and whose end nobody told what may have ended them: the first that took the device over whole, and ``earlier_placements``.
    """

    window: Window
    devices: dy.DataFrame[Devices]
    epochs: dy.DataFrame[Epochs]
    readings: dy.DataFrame[DeviceReadings]
    placements: dy.DataFrame[Placements]
    holds: dy.DataFrame[Holds]
    capacity_holds: dy.DataFrame[CapacityHolds] = field(default_factory=CapacityHolds.create_empty)
    assets: dy.DataFrame[Assets] = field(default_factory=Assets.create_empty)
    anchors: dy.DataFrame[Anchors] = field(default_factory=Anchors.create_empty)
    device_shares: dy.DataFrame[DeviceShares] = field(default_factory=DeviceShares.create_empty)
    instance_activity: dy.DataFrame[InstanceActivity] = field(default_factory=InstanceActivity.create_empty)
    node_meters: dy.DataFrame[Meters] = field(default_factory=Meters.create_empty)
    node_readings: dy.DataFrame[NodeReadings] = field(default_factory=NodeReadings.create_empty)
    overhead_models: dy.DataFrame[OverheadModels] = field(default_factory=OverheadModels.create_empty)
    shared_it: dy.DataFrame[SharedIt] = field(default_factory=SharedIt.create_empty)
    meter_periods: dy.DataFrame[MeterPeriods] = field(default_factory=MeterPeriods.create_empty)
    earlier_placements: dy.DataFrame[Placements] = field(default_factory=Placements.create_empty)


@dataclass(frozen=True, slots=True)
class References:
    """Dated reference data as known at the run's ``as_of``, each row that is valid at some time in the window."""

    currency: str
    tenants: dy.DataFrame[Tenants]
    jobs: dy.DataFrame[Jobs]
    bindings: dy.DataFrame[Bindings]
    prices: dy.DataFrame[Prices]
    tariffs: dy.DataFrame[Tariffs]
    intensity: dy.DataFrame[Intensity]
    facility_factors: dy.DataFrame[FacilityFactors]
    tenant_moves: dy.DataFrame[TenantMoves] = field(default_factory=TenantMoves.create_empty)
    idle_policies: dy.DataFrame[IdlePolicies] = field(default_factory=IdlePolicies.create_empty)
    aliases: dy.DataFrame[ModelAliases] = field(default_factory=ModelAliases.create_empty)
    price_policies: dy.DataFrame[PricePolicies] = field(default_factory=PricePolicies.create_empty)


@dataclass(frozen=True, slots=True)
class HourInputs:
    """Everything a close reads: the map's part, dated references, and the API calls of the window."""

    usage: UsageInputs
    references: References
    api_calls: dy.DataFrame[ApiCalls]
