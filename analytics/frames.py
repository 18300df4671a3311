"""Every table the model reads or returns, declared once: what one row is, its key, dtypes and bounds.

Declarations only: nothing here computes, and nothing here knows SQL. Column names and types are the store's
(``ingest/store/tables``), less what the store adds itself (site, revision, run). Instants are UTC microseconds, money is
Decimal(38, 9), rates and factors are Decimal(38, 18); no column of money shares a frame expression with a float.
"""

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
POOLS: Final = ("job", "idle", "unattributed", "platform", "api")
METHODS: Final = (
    "whole", "node_meter", "slice", "process_utilization", "slice_activity", "mps_threads", "shards", "share", "count", "equal",
    "overhead", "overhead_model", "shared_it", "pool",
)  # fmt: skip
"""How energy came to a holder, the most exact first: of several in one figure the last is told."""

STATES: Final = ("used", "allocated_idle", "reserved_unused", "available", "down")
SOURCES: Final = ("measured", "estimated", "forecast", "assumed")


def _instant(*, nullable: bool = False, key: bool = False) -> dy.Datetime:
    return dy.Datetime(time_unit="us", time_zone="UTC", nullable=nullable, primary_key=key)


def _money(*, nullable: bool = True) -> dy.Decimal:
    return dy.Decimal(38, 9, nullable=nullable)


def _rate(*, nullable: bool = False) -> dy.Decimal:
    return dy.Decimal(38, 18, nullable=nullable)


def _bounded() -> pl.Expr:
    """Both bounds or none, and the energy between them."""
    low, energy, high = (pl.col(name) for name in ("energy_low_mj", "energy_mj", "energy_high_mj"))
    both = low.is_null() == high.is_null()
    return both & ((low <= energy) & (energy <= high)).fill_null(value=True)


class DeviceReadings(dy.Schema):
    """One reading of one device, any order, repeats allowed (the model drops and counts them).

    A node metered as a whole is a device of kind ``node`` or ``chassis``: its rows carry energy or power and null elsewhere.
    """

    device_id = dy.Int32()
    at = _instant()
    epoch_id = dy.Int32()
    energy_mj = dy.Int64(nullable=True)
    """Raw cumulative counter, comparable only inside an epoch."""
    power_mw = dy.Int32(nullable=True)
    """``power_average_mw`` of a device sample, ``power_mw`` of a node meter."""
    gpu_util_percent = dy.Int16(nullable=True)
    clocks_event_reasons = dy.Int64(nullable=True)
    """Bits seen in any reading of the span."""
    throttled_ns = dy.Int64(nullable=True)
    """Raw cumulative: sum of power cap, SW thermal, HW thermal and power brake violation time; null = none supported."""
    power_max_mw = dy.Int32(nullable=True)
    """This and the next for dashboards: nothing of a bill is made of them."""
    temp_c = dy.Int16(nullable=True)


class Anchors(dy.Schema):
    """A counter value that was read where a holding begins or ends, by who told of it; of the device's epoch then."""

    device_id = dy.Int32()
    at = _instant()
    energy_mj = dy.Int64()


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


class Placements(dy.Schema):
    """Where a device was, and whether in service, during [valid_from, valid_to); rows of one device do not overlap."""

    device_id = dy.Int32()
    node_id = dy.Int32()
    in_service = dy.Bool()
    asset = dy.String(nullable=True)
    """Number of the asset in the books of fixed assets; null = not told."""
    valid_from = _instant()
    valid_to = _instant(nullable=True)


class Devices(dy.Schema):
    """One device that stood in the site in the window or within the reach around it, or a pool that something was held of."""

    device_id = dy.Int32(primary_key=True)
    uuid = dy.String()
    """Vendor UUID. Ties of rounding are ordered by it: ids are the database's own and differ in one that was rebuilt."""
    node_id = dy.Int32(nullable=True)
    """The last it stood in, around a moving window: ``Placements`` say where it was when. Null for a pool and shared IT only."""
    model = dy.String()
    kind = dy.String(check=lambda kind: kind.is_in(["gpu", "mig", "node", "chassis", "site", "pool"]))
    """``chassis``: what a node draws beyond its devices; ``site``: shared IT of the site, in no node."""
    parent_device_id = dy.Int32(nullable=True)
    """Board of a MIG instance; null = a device of its own."""
    slice_ppm = dy.Int32(min=1, max=1_000_000)
    """Of the board that an instance is; a million for any other device."""
    accelerators = dy.Int32(min=1)
    """Of a pool always 1: how many it has nobody knows, each holder brings its own count."""
    idle_power_mw = dy.Int32(nullable=True)
    """Power of the whole device at rest, where known; null = the policy's default per accelerator."""
    origin = dy.Int16(min=1, max=4)
    """Marks rows of hours of which neither a reading near them nor an epoch of the node tells."""


class Holds(dy.Schema):
    """What somebody said of who held what, as it was told: of a device, of a count on a node, or of a count in a pool."""

    allocation_id = dy.Int64()
    job_id = dy.Int64()
    job_key = dy.String()
    """Cluster, native id and start of the job, by which ties of rounding are ordered."""
    device_id = dy.Int32(nullable=True)
    """The device, MIG instance or pool; null = a count of the node's."""
    node_id = dy.Int32(nullable=True)
    """Of a count; null where the device is told."""
    accelerators = dy.Int32(min=1)
    share_ppm = dy.Int32(nullable=True, min=1, max=1_000_000)
    """Parts per million of what is held; null = all of it."""
    evidence = dy.String()
    """Instrument that told: cgroup, slurmctld, job-mapping, import, environ, ..."""
    start_at = _instant()
    end_at = _instant(nullable=True)
    """Null = nobody told of an end."""
    job_ended_at = _instant(nullable=True)
    """End of the job by its own record, where there is one."""
    recorded_at = _instant()
    """When the store learned of it: a boot that had been seen by then ended nothing that was told of later."""


class DeviceShares(dy.Schema):
    """Measured activity of one holder on a shared board over the ``span_us`` before ``at``; null job = processes of no job."""

    device_id = dy.Int32()
    at = _instant()
    span_us = dy.Int64(min=1)
    job_id = dy.Int64(nullable=True)
    sm_util_ppm = dy.Int32(nullable=True, min=0)
    """Time with work on the multiprocessors, parts per million of the span; several processes may pass a million."""
    memory_used_bytes = dy.Int64(nullable=True, min=0)
    share_ppm = dy.Int32(nullable=True, min=0, max=1_000_000)
    """As configured: threads of an MPS client, shards of a device; null = none."""
    method = dy.String()


class InstanceActivity(dy.Schema):
    """Measured activity of one MIG instance, a device too, over the ``span_us`` before ``at``; ``device_id`` is its board."""

    device_id = dy.Int32()
    instance_id = dy.Int32()
    at = _instant()
    span_us = dy.Int64(min=1)
    sm_active_ppm = dy.Int32(min=0, max=1_000_000)
    """Of the instance's own multiprocessors."""


class Meters(dy.Schema):
    """One meter of the site and where it hangs: utility over PDU over node."""

    meter_id = dy.Int32(primary_key=True)
    parent_meter_id = dy.Int32(nullable=True)
    level = dy.String(check=lambda level: level.is_in(["utility", "pdu", "cdu", "node", "other"]))
    name = dy.String()
    """As its source names it: redfish, rapl, ac; of several of one node it decides which bills."""
    covers = dy.String(check=lambda covers: covers.is_in(["it", "part", "cooling", "all"]))
    node_id = dy.Int32(nullable=True)
    """Null = of the site itself, or of shared IT, whichever node speaks for it."""
    wrap_mj = dy.Int64(nullable=True, min=1)
    """Where its counter begins anew; null = it does not, or nobody knows."""
    gain_ppm = dy.Int32(min=0)
    """Its error, 90 %, parts per million of what it reads."""


class NodeReadings(dy.Schema):
    """One reading of a meter of a node, any order, repeats allowed; without a node, of one that shared IT is metered by."""

    meter_id = dy.Int32()
    node_id = dy.Int32(nullable=True)
    at = _instant()
    epoch_id = dy.Int32()
    energy_mj = dy.Int64(nullable=True)
    power_mw = dy.Int32(nullable=True)


class MeterPeriods(dy.Schema):
    """Energy of a meter over [from_at, to_at)."""

    meter_id = dy.Int32()
    from_at = _instant()
    to_at = _instant()
    energy_mj = dy.Int64(min=0)
    source = dy.String(check=lambda source: source.is_in(list(SOURCES)))


class OverheadModels(dy.Schema):
    """What a node draws beyond its devices where no meter tells; ``assumed``."""

    model_id = dy.Int32(primary_key=True)
    node_id = dy.Int32(primary_key=True)
    """A node whose name the model's glob matches."""
    precedence = dy.Int32(min=0)
    """Of several that hold at once the lowest counts: the longest glob."""
    idle_mw = dy.Int64(min=0)
    per_accelerator_active_ppm = dy.Int32(min=0)
    """Parts per million of its devices' energy beside that."""
    error_ppm = dy.Int32(min=0)
    """Half of the 90 % interval, relative."""
    valid_from = _instant()
    valid_to = _instant(nullable=True)


class SharedIt(dy.Schema):
    """Switches, storage and management of the site: by their meter or by a configured power, ``assumed`` then."""

    shared_it_id = dy.Int32(primary_key=True)
    device_id = dy.Int32()
    """Of kind ``site``: what it is booked on."""
    name = dy.String()
    kind = dy.String()
    power_mw = dy.Int64(nullable=True, min=0)
    meter_id = dy.Int32(nullable=True)
    error_ppm = dy.Int32(min=0)
    """Of a configured power: half of the 90 % interval, relative."""
    valid_from = _instant()
    valid_to = _instant(nullable=True)


class CapacityHolds(dy.Schema):
    """Capacity that is kept from jobs during [valid_from, valid_to): of a device, a node, or the site."""

    hold_id = dy.Int32(primary_key=True)
    node_id = dy.Int32(nullable=True)
    device_id = dy.Int32(nullable=True)
    kind = dy.String(check=lambda kind: kind.is_in(["reservation", "maintenance", "stranded"]))
    tenant_id = dy.Int32(nullable=True)
    valid_from = _instant()
    valid_to = _instant(nullable=True)


class Assets(dy.Schema):
    """From when to when something is on the books: each hour between is in one state."""

    asset = dy.String()
    device_id = dy.Int32(nullable=True)
    node_id = dy.Int32(nullable=True)
    capitalized_at = _instant()
    disposed_at = _instant(nullable=True)


class IdlePolicies(dy.Schema):
    """Who pays for idle time of the site: the platform, tenants by use (``basis``), or by fixed parts, of which each has a row."""

    policy_id = dy.Int32(primary_key=True)
    policy = dy.String(check=lambda policy: policy.is_in(["keep", "proportional", "fixed"]))
    basis = dy.String(nullable=True, check=lambda basis: basis.is_in(["time", "energy"]))
    tenant_id = dy.Int32(nullable=True)
    fixed_ppm = dy.Int32(nullable=True, min=0, max=1_000_000)
    valid_from = _instant()
    valid_to = _instant(nullable=True)


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


class TenantMoves(dy.Schema):
    """A reorganization: what is the tenant's by then is paid by another. Of several in force the last begun counts."""

    move_id = dy.Int32(primary_key=True)
    tenant_id = dy.Int32()
    to_tenant_id = dy.Int32()
    valid_from = _instant()
    valid_to = _instant(nullable=True)


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
    estimated = dy.Bool()
    """By who publishes it, or because it is of another time: a mean carried forward."""
    life_cycle = dy.Bool()
    """Emissions of building plants and of fuel's way to them included; false = direct ones alone."""
    valid_from = _instant()
    valid_to = _instant(nullable=True)


class FacilityFactors(dy.Schema):
    """Facility energy / IT energy of the site over time, with its PUE measurement category (ISO/IEC 30134-2)."""

    factor_id = dy.Int32(primary_key=True)
    factor = _rate()
    category = dy.Int16(min=0, max=3)
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
    """``job:<id>``, ``idle``, ``unattributed:<reason>`` or ``platform:<what>``."""
    job_id = dy.Int64(nullable=True)
    tenant_id = dy.Int32(nullable=True)
    state = dy.String(check=lambda state: state.is_in(list(STATES)))
    energy_mj = dy.Int64(nullable=True, min=0)
    estimated_mj = dy.Int64(nullable=True, min=0)
    energy_low_mj = dy.Int64(nullable=True, min=0)
    """90 % interval of the energy; null = nothing in it is estimated, or not said."""
    energy_high_mj = dy.Int64(nullable=True, min=0)
    held_us = dy.Int64(min=0)
    covered_us = dy.Int64(min=0)
    active_us = dy.Int64(nullable=True, min=0)
    idle_us = dy.Int64(nullable=True, min=0)
    throttled_us = dy.Int64(nullable=True, min=0)
    reserved_us = dy.Int64(min=0)
    """Of held_us: kept for somebody, and not used."""
    down_us = dy.Int64(min=0)
    """Of held_us: out of service."""
    accelerators = dy.Int32(min=1)
    """Of the device, in a pool of the job; 1 where its count changed in the hour: held_us is accelerator-time then."""
    method = dy.String(nullable=True, check=lambda method: method.is_in(list(METHODS)))
    """Null = closed before it was said."""
    reason = dy.String(nullable=True)
    """Why the time is nobody's, or the state what it is; null = plain."""
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

    @dy.rule()
    def bounds_hold_the_energy(cls) -> pl.Expr:  # noqa: N805
        return _bounded()

    @dy.rule()
    def bounds_where_estimated(cls) -> pl.Expr:  # noqa: N805
        """Where something was estimated or assumed, and nowhere else; hours of before methods were said had none."""
        guessed = (pl.col("estimated_mj") > 0).fill_null(value=False) | (
            (pl.col("source") == "assumed") & pl.col("energy_mj").is_not_null()
        )
        return pl.col("method").is_null() | (pl.col("energy_low_mj").is_not_null() == guessed)

    @dy.rule()
    def states_are_part_of_held(cls) -> pl.Expr:  # noqa: N805
        return pl.col("reserved_us") + pl.col("down_us") <= pl.col("held_us")


class NamedUsage(UsageHours):
    """A usage hour as it is stored, with the names that lines are made of and leftovers of rounding are ordered by."""

    holder_key = dy.String()
    device_model = dy.String()


class LedgerLines(dy.Schema):
    """Tenant x job / key / pool x model x charge category of one hour, priced. Sorted by its key.

    Energy and carbon ride on lines of :data:`CARRIERS` only, so that a sum over lines is the meter's. A null cost is the state
    *unpriced*: nobody told us the price. A null tenant is the platform (pool idle, unattributed, platform) or unmapped (job, api).
    """

    hour_at = _instant(key=True)
    line_key = dy.String(primary_key=True)
    tenant_id = dy.Int32(nullable=True)
    job_id = dy.Int64(nullable=True)
    api_key = dy.String(nullable=True)
    holder_key = dy.String()
    """Who or what by names: the usage hours' holder, or ``api:provider/model/part``; no id, no person and no key."""
    pool = dy.String(check=lambda pool: pool.is_in(list(POOLS)))
    device_model = dy.String(nullable=True)
    charge_category = dy.String(check=lambda kind: kind.is_in(list(CATEGORIES)))
    price_id = dy.Int32(nullable=True)
    tariff_id = dy.Int32(nullable=True)
    quantity = dy.Int64(min=0)
    quantity_unit = dy.String(check=lambda unit: unit.is_in(["accelerator-us", "mJ", "token", "request"]))
    energy_mj = dy.Int64(nullable=True, min=0)
    energy_low_mj = dy.Int64(nullable=True, min=0)
    energy_high_mj = dy.Int64(nullable=True, min=0)
    facility_mj = dy.Int64(nullable=True, min=0)
    """``energy_mj`` with cooling and losses; null = no facility factor is known."""
    facility_category = dy.Int16(nullable=True, min=0, max=3)
    carbon_gco2e = _money()
    method = dy.String(nullable=True, check=lambda method: method.is_in(list(METHODS)))
    """The least exact of its usage hours'; null = of calls."""
    billed_cost = _money()
    effective_cost = _money()
    currency = dy.String()
    status = dy.String(check=lambda status: status.is_in(["provisional", "closed"]))
    source = dy.String(check=lambda source: source.is_in(list(SOURCES)))
    coverage = dy.Float64(min=0, max=1)
    origin = dy.Int16(min=1, max=4)

    @dy.rule()
    def bounds_hold_the_energy(cls) -> pl.Expr:  # noqa: N805
        return _bounded()


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
    unbooked_mj = dy.Int64(nullable=True, min=0)
    """Energy that a new counter shows at its first reading: drawn since it began, told of and never booked."""


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
