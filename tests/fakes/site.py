"""A small site in memory: readings, holdings and prices a test writes down, as the frames the model takes.

Times are seconds from :data:`HOUR`, energies joules, powers watts: what one works out by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, TypeVar

import dataframely as dy
import polars as pl

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
    Placements,
    Prices,
    Tariffs,
    TenantMoves,
    Tenants,
)
from analytics.inputs import HourInputs, References, UsageInputs, Window
from analytics.pipeline import HourResult, close_hours
from analytics.policy import Policy

S = TypeVar("S", bound=dy.Schema)
HOUR: Final = datetime(2026, 3, 2, 10, tzinfo=UTC)
LONG_AGO: Final = datetime(2020, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return HOUR + timedelta(seconds=seconds)


def table(schema: type[S], rows: Iterable[Mapping[str, Any]]) -> dy.DataFrame[S]:
    """Return rows as a typed frame; what a row leaves out is null."""
    kinds = schema.create_empty().schema
    frame = pl.DataFrame([{name: row.get(name) for name in kinds} for row in rows], schema=kinds)
    return schema.validate(frame, cast=False)


def reading(
    device: int, seconds: float, joules: float | None = None, watts: float | None = None, **more: Any
) -> dict[str, Any]:
    return {
        "device_id": device,
        "at": at(seconds),
        "epoch_id": 1,
        "energy_mj": None if joules is None else round(joules * 1000),
        "power_mw": None if watts is None else round(watts * 1000),
        **more,
    }


def steady(device: int, start: float, stop: float, watts: float, step: float = 10, **more: Any) -> list[dict[str, Any]]:
    """Readings of a device that draws the same power all the time."""
    count = round((stop - start) / step)
    return [
        reading(device, start + i * step, watts * (start + i * step - start), watts, **more) for i in range(count + 1)
    ]


def epoch(epoch_id: int = 1, **more: Any) -> dict[str, Any]:
    usual = {"node_id": 1, "boot_id": "boot", "driver_epoch": 1, "feed": 1, "origin": 1, "cadence_us": 10_000_000}
    return {"epoch_id": epoch_id, "first_seen_at": LONG_AGO, **usual, **more}


def device(device_id: int = 1, **more: Any) -> dict[str, Any]:
    usual = {"node_id": 1, "model": "H100", "kind": "gpu", "accelerators": 1, "idle_power_mw": 70_000, "origin": 1}
    usual["slice_ppm"] = 1_000_000
    return {"device_id": device_id, "uuid": f"GPU-{device_id}", **usual, **more}


def holds(job: int, device_id: int, start: float, end: float | None, share: float | None = None) -> dict[str, Any]:
    return {
        "allocation_id": job * 1000 + device_id,
        "device_id": device_id,
        "job_id": job,
        "share_ppm": None if share is None else round(share * 1_000_000),
        "evidence": "cgroup",
        "accelerators": 1,
        "start_at": at(start),
        "end_at": None if end is None else at(end),
        "recorded_at": at(start),
    }


def placed(device_id: int, start: float | None = None, end: float | None = None, **more: Any) -> dict[str, Any]:
    """Return a stretch of a device in a node, since ever and for ever where nothing is said."""
    dates = {"valid_from": LONG_AGO if start is None else at(start), "valid_to": None if end is None else at(end)}
    return {"device_id": device_id, "node_id": 1, "in_service": True, **dates, **more}


def job(job_id: int, **more: Any) -> dict[str, Any]:
    return {"job_id": job_id, "cluster": "c", "native_id": str(job_id), "origin": 1, **more}


def binding(position: int, tenant: int, **more: Any) -> dict[str, Any]:
    return {"binding_id": position, "position": position, "tenant_id": tenant, "valid_from": LONG_AGO, **more}


def moved(move_id: int, tenant: int, to: int, seconds: float, **more: Any) -> dict[str, Any]:
    return {"move_id": move_id, "tenant_id": tenant, "to_tenant_id": to, "valid_from": at(seconds), **more}


def price(price_id: int, amount: str, **more: Any) -> dict[str, Any]:
    usual = {
        "provider": "owned",
        "model": "H100",
        "meter": "accelerator_hour",
        "currency": "USD",
        "valid_from": LONG_AGO,
    }
    return {"price_id": price_id, "amount": Decimal(amount), **usual, **more}


def tariff(tariff_id: int, amount: str, **more: Any) -> dict[str, Any]:
    usual = {"metering_point": "it", "currency": "USD", "valid_from": LONG_AGO}
    return {"tariff_id": tariff_id, "amount_per_kwh": Decimal(amount), **usual, **more}


def intensity(intensity_id: int, amount: str, **more: Any) -> dict[str, Any]:
    usual = {"gco2e_per_kwh": Decimal(amount), "estimated": False, "life_cycle": False, "valid_from": LONG_AGO}
    return {"intensity_id": intensity_id, **usual, **more}


def factor(factor_id: int, amount: str, **more: Any) -> dict[str, Any]:
    return {"factor_id": factor_id, "factor": Decimal(amount), "category": 1, "valid_from": LONG_AGO, **more}


def call(key: str | None, seconds: float, **more: Any) -> dict[str, Any]:
    usual = {"dedupe_key": f"{key}/{seconds}", "provider": "openai", "model": "gpt", "usage_known": True, "origin": 1}
    return {"called_at": at(seconds), "api_key": key, **usual, **more}


Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Site:
    """What a close reads; every table is rows, so that a test states only what it is about."""

    readings: Rows = ()
    allocations: Rows = ()
    devices: Rows = (device(),)
    placements: Rows | None = None
    """None: each device has always been in the node it names."""
    capacity: Rows = ()
    assets: Rows = ()
    shares: Rows = ()
    activity: Rows = ()
    epochs: Rows = (epoch(),)
    tenants: Rows = ()
    jobs: Rows = ()
    bindings: Rows = ()
    prices: Rows = ()
    tariffs: Rows = ()
    intensity: Rows = ()
    factors: Rows = ()
    moves: Rows = ()
    idle: Rows = ()
    calls: Rows = ()
    anchors: Rows = ()
    hours: int = 1
    policy: Policy = field(default_factory=Policy)

    def window(self, first: int = 0, count: int | None = None) -> Window:
        start = at(first * 3600)
        end = start + timedelta(hours=self.hours if count is None else count)
        return Window(start, end, end)

    def inputs(self, window: Window | None = None) -> HourInputs:
        known = {row["job_id"] for row in self.jobs}
        named = [job(job_id) for job_id in sorted({row["job_id"] for row in self.allocations} - known)]
        names = {row["job_id"]: f"{row['cluster']}|{row['native_id']}" for row in [*self.jobs, *named]}
        return HourInputs(
            UsageInputs(
                window or self.window(),
                table(Devices, self.devices),
                table(Epochs, self.epochs),
                table(DeviceReadings, self.readings),
                table(Placements, self._placements()),
                table(Holds, [{"job_key": names[row["job_id"]], **row} for row in self.allocations]),
                device_shares=table(DeviceShares, self.shares),
                instance_activity=table(InstanceActivity, self.activity),
                anchors=table(Anchors, self.anchors),
                capacity_holds=table(CapacityHolds, self.capacity),
                assets=table(Assets, self.assets),
            ),
            References(
                "USD",
                table(Tenants, self.tenants),
                table(Jobs, [*self.jobs, *named]),
                table(Bindings, self.bindings),
                table(Prices, self.prices),
                table(Tariffs, self.tariffs),
                table(Intensity, self.intensity),
                table(FacilityFactors, self.factors),
                table(TenantMoves, self.moves),
                table(IdlePolicies, self.idle),
            ),
            table(ApiCalls, self.calls),
        )

    def _placements(self) -> list[Mapping[str, Any]]:
        if self.placements is not None:
            return list(self.placements)
        return [
            placed(row["device_id"], node_id=row["node_id"]) for row in self.devices if row.get("node_id") is not None
        ]

    def close(self, window: Window | None = None) -> HourResult:
        return close_hours(self.inputs(window), self.policy)

    def usage(self) -> dict[str, dict[str, Any]]:
        """Usage of the first hour's device 1, by holder."""
        rows = self.close().usage.filter((pl.col("device_id") == 1) & (pl.col("hour_at") == HOUR))
        return {row["holder"]: row for row in rows.iter_rows(named=True)}
