"""Every table the model reads or returns, declared once: what one row is, its key, dtypes and bounds.

Declarations only: nothing here computes, and nothing here knows SQL. Column names and types are the store's
(``ingest/store/tables``), less what the store adds itself (site, revision, run). Instants are UTC microseconds, money is
Decimal(38, 9), rates and factors are Decimal(38, 18); no column of money shares a frame expression with a float.
"""

from __future__ import annotations

from typing import Any, Final

import dataframely as dy
import polars as pl

INSTANT: Final = pl.Datetime("us", "UTC")
MONEY: Final = pl.Decimal(38, 9)
RATE: Final = pl.Decimal(38, 18)

HOLDER_IDLE: Final = "idle"
HOLDER_JOB_PREFIX: Final = "job:"
UNATTRIBUTED_OVERLAP: Final = "unattributed:overlap"
UNATTRIBUTED_GAP: Final = "unattributed:telemetry_gap"

STATES: Final = ("used", "allocated_idle", "reserved_unused", "available", "down")
SOURCES: Final = ("measured", "estimated", "forecast", "assumed")


def _instant(*, nullable: bool = False, key: bool = False) -> dy.Datetime:
    return dy.Datetime(time_unit="us", time_zone="UTC", nullable=nullable, primary_key=key)


def _money(*, nullable: bool = True) -> dy.Decimal:
    return dy.Decimal(38, 9, nullable=nullable)


def _rate(*, nullable: bool = False) -> dy.Decimal:
    return dy.Decimal(38, 18, nullable=nullable)


class DeviceReadings(dy.Schema):
    """One reading of one device, any order, repeats allowed (the model drops and counts them).

    A node metered as a whole is a device of kind ``node``: its rows carry energy or power and null elsewhere.
    """

    device_id = dy.Int32()
    at = _instant()
    epoch_id = dy.Int32()
    energy_mj = dy.Int64(nullable=True)
    """Raw cumulative counter, comparable only inside an epoch."""
    power_mw = dy.Int32(nullable=True)
    """``power_average_mw`` of a device sample, ``power_mw`` of a node meter."""
    power_max_mw = dy.Int32(nullable=True)
    gpu_util_percent = dy.Int16(nullable=True)
    temp_c = dy.Int16(nullable=True)
    clocks_event_reasons = dy.Int64(nullable=True)
    """Bits seen in any reading of the span."""
    throttled_ns = dy.Int64(nullable=True)
    """Raw cumulative: sum of power cap, SW thermal, HW thermal and power brake violation time; null = none supported."""


class Epochs(dy.Schema):
    """One boot and driver load of a node, as one feed saw it."""

    epoch_id = dy.Int32(primary_key=True)
    node_id = dy.Int32()
    boot_id = dy.String()
    driver_epoch = dy.Int64()
    feed = dy.Int16(min=1)
    origin = dy.Int16(min=1, max=4)
    cadence_us = dy.Int64(min=0)
    first_seen_at = _instant()


class Devices(dy.Schema):
    """One device of the site in the window, at its last placement in it; a pool has no node and no placement."""

    device_id = dy.Int32(primary_key=True)
    uuid = dy.String()
    """Vendor UUID. Ties of rounding are ordered by it: ids are the database's own and differ in one that was rebuilt."""
    node_id = dy.Int32(nullable=True)
    """Null for a pool only."""
    model = dy.String()
    kind = dy.String(check=lambda kind: kind.is_in(["gpu", "mig", "node", "pool"]))
    accelerators = dy.Int32(min=1)
    """Of a pool always 1: how many it has nobody knows, each holder brings its own count."""
    idle_power_mw = dy.Int32(nullable=True)
    """Power of the whole device at rest, where known; null = the policy's default per accelerator."""
    placed_from_at = _instant(nullable=True)
    placed_to_at = _instant(nullable=True)
    origin = dy.Int16(min=1, max=4)
    """Marks rows of hours of which neither a reading near them nor an epoch of the node tells."""


class Allocations(dy.Schema):
    """A job holds a device, or a share of it, during [start, end).

    (node, count) is already resolved to devices, and a MIG instance to its slice of the board.
    """

    allocation_id = dy.Int64()
    device_id = dy.Int32()
    job_id = dy.Int64()
    job_key = dy.String()
    """Cluster, native id and start of the job, by which ties of rounding are ordered, as by a device's UUID."""
    share_ppm = dy.Int32(nullable=True, min=1, max=1_000_000)
    """Parts per million of the device; null = the whole device."""
    accelerators = dy.Int32(min=1)
    """Held by this allocation; what a pool's time is multiplied by, and of no effect on other devices."""
    start_at = _instant()
    end_at = _instant(nullable=True)


class Jobs(dy.Schema):
    """One run of a job with what bindings match on."""

    job_id = dy.Int64(primary_key=True)
    cluster = dy.String()
    native_id = dy.String()
    account = dy.String(nullable=True)
    partition = dy.String(nullable=True)
    user_name = dy.String(nullable=True)
    namespace = dy.String(nullable=True)
    label = dy.String(nullable=True)
    """``key=value``, several joined by commas."""
    named_tenant_id = dy.Int32(nullable=True)
    """Tenant named outright when the job was imported; it stands before any binding."""
    origin = dy.Int16(min=1, max=4)


class Bindings(dy.Schema):
    """Ordered, dated rule to a tenant; a null pattern matches anything, the first rule that matches wins."""

    binding_id = dy.Int32(primary_key=True)
    position = dy.Int32()
    tenant_id = dy.Int32()
    cluster = dy.String(nullable=True)
    account = dy.String(nullable=True)
    partition = dy.String(nullable=True)
    user_name = dy.String(nullable=True)
    namespace = dy.String(nullable=True)
    label = dy.String(nullable=True)
    api_key = dy.String(nullable=True)
    tag = dy.String(nullable=True)
    valid_from = _instant()
    valid_to = _instant(nullable=True)


class Tenants(dy.Schema):
    """A tenant's path: what its id stands for in any database."""

    tenant_id = dy.Int32(primary_key=True)
    path = dy.String()


class JobTenants(dy.Schema):
    """Which tenant pays for a job in an hour; null tenant = unmapped."""

    hour_at = _instant(key=True)
    job_id = dy.Int64(primary_key=True)
    tenant_id = dy.Int32(nullable=True)
    binding_id = dy.Int32(nullable=True)


class Prices(dy.Schema):
    """One dated price; ``provider`` is ``owned`` for our own accelerators, with meter ``accelerator_hour``."""

    price_id = dy.Int32(primary_key=True)
    provider = dy.String()
    model = dy.String()
    meter = dy.String()
    amount = _rate()
    currency = dy.String()
    valid_from = _instant()
    valid_to = _instant(nullable=True)


class Tariffs(dy.Schema):
    """Electricity price of the site over time; may be negative."""

    tariff_id = dy.Int32(primary_key=True)
    metering_point = dy.String(check=lambda point: point.is_in(["it", "facility", "included"]))
    amount_per_kwh = _rate()
    currency = dy.String()
    valid_from = _instant()
    valid_to = _instant(nullable=True)


class Intensity(dy.Schema):
    """Location-based average carbon intensity of the site's grid zone over time."""

    intensity_id = dy.Int32(primary_key=True)
    gco2e_per_kwh = _rate()
    valid_from = _instant()
    valid_to = _instant(nullable=True)


class FacilityFactors(dy.Schema):
    """Facility energy / IT energy of the site over time."""

    factor_id = dy.Int32(primary_key=True)
    factor = _rate()
    valid_from = _instant()
    valid_to = _instant(nullable=True)


class ApiCalls(dy.Schema):
    """One LLM request, token parts disjoint; ``usage_known`` false = tokens were not reported."""

    called_at = _instant()
    dedupe_key = dy.String()
    api_key = dy.String(nullable=True)
    named_tenant_id = dy.Int32(nullable=True)
    """Tenant named outright when the call was imported; it stands before any binding."""
    provider = dy.String()
    model = dy.String()
    input_uncached_tokens = dy.Int64(nullable=True, min=0)
    cache_read_tokens = dy.Int64(nullable=True, min=0)
    cache_write_tokens = dy.Int64(nullable=True, min=0)
    output_text_tokens = dy.Int64(nullable=True, min=0)
    reasoning_tokens = dy.Int64(nullable=True, min=0)
    audio_tokens = dy.Int64(nullable=True, min=0)
    image_tokens = dy.Int64(nullable=True, min=0)
    usage_known = dy.Bool()
    origin = dy.Int16(min=1, max=4)


class UsageHours(dy.Schema):
    """Device x hour x holder: the grain of the books. Sorted by its key."""

    hour_at = _instant(key=True)
    device_id = dy.Int32(primary_key=True)
    holder = dy.String(primary_key=True)
    """``job:<id>``, ``idle`` or ``unattributed:<reason>``."""
    job_id = dy.Int64(nullable=True)
    tenant_id = dy.Int32(nullable=True)
    state = dy.String(check=lambda state: state.is_in(list(STATES)))
    energy_mj = dy.Int64(nullable=True, min=0)
    estimated_mj = dy.Int64(nullable=True, min=0)
    held_us = dy.Int64(min=0)
    covered_us = dy.Int64(min=0)
    active_us = dy.Int64(nullable=True, min=0)
    idle_us = dy.Int64(nullable=True, min=0)
    throttled_us = dy.Int64(nullable=True, min=0)
    accelerators = dy.Int32(min=1)
    """Of the device, in a pool of the job; 1 where its count changed in the hour: held_us is accelerator-time then."""
    carbon_gco2e = _money()
    intensity_id = dy.Int32(nullable=True)
    source = dy.String(check=lambda source: source.is_in(list(SOURCES)))
    coverage = dy.Float64(min=0, max=1)
    feed = dy.Int16(nullable=True)
    origin = dy.Int16(min=1, max=4)

    @dy.rule()
    def estimated_is_part_of_energy(cls) -> pl.Expr:  # noqa: N805
        return (pl.col("estimated_mj") <= pl.col("energy_mj")).fill_null(value=True)

    @dy.rule()
    def covered_is_part_of_held(cls) -> pl.Expr:  # noqa: N805
        return pl.col("covered_us") <= pl.col("held_us")


class NamedUsage(UsageHours):
    """A usage hour as it is stored, with the names that lines are made of and leftovers of rounding are ordered by."""

    holder_key = dy.String()
    device_model = dy.String()


class LedgerLines(dy.Schema):
    """Tenant x job / key / pool x model x charge category of one hour, priced. Sorted by its key.

    Energy and carbon ride on ``gpu_owned`` lines only, so that a sum over lines is the meter's. A null cost is the state
    *unpriced*: nobody told us the price. A null tenant is the platform (pool idle, unattributed) or unmapped (job, api).
    """

    hour_at = _instant(key=True)
    line_key = dy.String(primary_key=True)
    tenant_id = dy.Int32(nullable=True)
    job_id = dy.Int64(nullable=True)
    api_key = dy.String(nullable=True)
    pool = dy.String(check=lambda pool: pool.is_in(["job", "idle", "unattributed", "api"]))
    device_model = dy.String(nullable=True)
    charge_category = dy.String(check=lambda kind: kind.is_in(["gpu_owned", "electricity", "api_tokens"]))
    price_id = dy.Int32(nullable=True)
    tariff_id = dy.Int32(nullable=True)
    quantity = dy.Int64(min=0)
    quantity_unit = dy.String(check=lambda unit: unit.is_in(["accelerator-us", "mJ", "token", "request"]))
    energy_mj = dy.Int64(nullable=True, min=0)
    carbon_gco2e = _money()
    billed_cost = _money()
    effective_cost = _money()
    currency = dy.String()
    status = dy.String(check=lambda status: status.is_in(["provisional", "closed"]))
    source = dy.String(check=lambda source: source.is_in(list(SOURCES)))
    coverage = dy.Float64(min=0, max=1)
    origin = dy.Int16(min=1, max=4)


class Findings(dy.Schema):
    """One detected episode, clipped to its hour so that any windowing finds the same; ``dedupe_key`` is its identity."""

    dedupe_key = dy.String(primary_key=True)
    hour_at = _instant()
    kind = dy.String()
    device_id = dy.Int32(nullable=True)
    job_id = dy.Int64(nullable=True)
    tenant_id = dy.Int32(nullable=True)
    start_at = _instant()
    end_at = _instant()
    evidence = dy.String()
    """JSON: the signals, each with its instrument and values."""
    waste_energy_mj = dy.Int64(nullable=True, min=0)
    avoidable_cash = _money()
    capacity_freed_us = dy.Int64(nullable=True, min=0)
    currency = dy.String(nullable=True)
    confidence = dy.Float64(min=0, max=1)
    origin = dy.Int16(min=1, max=4)


class Quality(dy.Schema):
    """What a close did not use or could not know, counted: readings dropped, time without a meter."""

    hour_at = _instant(key=True)
    device_id = dy.Int32(primary_key=True)
    reason = dy.String(primary_key=True)
    """not_positive, repeated, counter_reset, epoch_change, implausible, telemetry_gap, no_data, overhead_unknown."""
    readings = dy.Int64(min=0)
    time_us = dy.Int64(min=0)


class Rollups(dy.Schema):
    """One device and minute, for dashboards; never the source of a bill."""

    minute_at = _instant(key=True)
    device_id = dy.Int32(primary_key=True)
    energy_mj = dy.Int64(nullable=True, min=0)
    power_max_mw = dy.Int32(nullable=True)
    gpu_util_percent = dy.Int16(nullable=True)
    temp_c = dy.Int16(nullable=True)
    throttled_us = dy.Int64(nullable=True, min=0)
    covered_us = dy.Int64(min=0)
    origin = dy.Int16(min=1, max=4)


class TenantMinutes(dy.Schema):
    """One tenant and minute, for dashboards; null tenant = held by nobody, or by a job without a tenant."""

    minute_at = _instant()
    tenant_id = dy.Int32(nullable=True)
    energy_mj = dy.Int64(min=0)

    @dy.rule()
    def one_row_each(cls) -> pl.Expr:  # noqa: N805 - dataframely passes the class
        return pl.struct("minute_at", "tenant_id").is_unique()


def empty(schema: type[dy.Schema]) -> Any:
    """Return the table with no rows."""
    return schema.create_empty()
