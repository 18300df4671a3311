"""Composes the model: frames of a window of hours of one site in, the books of those hours out. Still pure.

A map over devices (any sharding gives the same rows) and a reduce per hour for rounding. The result is the same bytes
for any order of rows, any number of threads, any split into shards and any split of the window into hours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, TypeVar

import dataframely as dy
import polars as pl

from analytics.errors import InputError
from analytics.frames import (
    INSTANT,
    ApiCalls,
    Findings,
    JobTenants,
    LedgerLines,
    NamedUsage,
    Quality,
    Rollups,
    TenantMinutes,
    UsageHours,
)
from analytics.inputs import HourInputs, References, UsageInputs, Window
from analytics.model import states
from analytics.model.activity import cuts, looks
from analytics.model.anchors import insert
from analytics.model.authority import measure
from analytics.model.beyond import BEYOND, SiteFacts, book_beyond
from analytics.model.carbon import emit
from analytics.model.cost import carrier_lines, coverage, electricity_lines, gather, gpu_lines, in_books, metered_factor
from analytics.model.dated import Dated
from analytics.model.edges import alone, split_edges
from analytics.model.energy import Meter, meter
from analytics.model.facility import HourFactor, factors_of, with_facility
from analytics.model.findings import contradictions, idle_waste, instants, throttling
from analytics.model.holding import Resolved, hold, resolve
from analytics.model.idle import spread_lines
from analytics.model.later import LATER, said
from analytics.model.money import from_nano
from analytics.model.origins import fill_origin
from analytics.model.pools import POOL, pool_usage
from analytics.model.readings import KeySpace, timelines
from analytics.model.rollups import by_minute
from analytics.model.sensors import instruments
from analytics.model.sharing import at_rest
from analytics.model.tenancy import bind_hours, move
from analytics.model.tenant_minutes import by_tenant
from analytics.model.tokens import token_lines
from analytics.model.usage import Activity, attribute, quality
from analytics.policy import Policy
from analytics.units import MJ_PER_KWH, NANO, US_PER_HOUR
from analytics.units import from_us as from_us_of
from analytics.units import to_us as to_us_of

S = TypeVar("S", bound=dy.Schema)
_NOTHING_LATER: Final[dict[str, None]] = dict.fromkeys(LATER)
_PLAIN: Final = (pl.Int16, pl.Int32, pl.Int64, pl.Float64, INSTANT)


@dataclass(frozen=True, slots=True)
class Shard:
    """What the map returns for some devices: plain sums, so shards concatenate."""

    usage: pl.DataFrame
    findings: pl.DataFrame
    quality: pl.DataFrame


@dataclass(frozen=True, slots=True)
class HourResult:
    """The books of the window, each frame sorted by its key."""

    usage: dy.DataFrame[UsageHours]
    lines: dy.DataFrame[LedgerLines]
    findings: dy.DataFrame[Findings]
    quality: dy.DataFrame[Quality]
    job_tenants: dy.DataFrame[JobTenants]
    """By which binding each job of the window has its tenant; for showing jobs to their tenants, not for the books."""


@dataclass(frozen=True, slots=True)
class Metered:
    """The meters of some devices over a window: what books and minute rollups are both read from."""

    meters: list[Meter]
    dropped: pl.DataFrame


def read_meters(inputs: UsageInputs, policy: Policy) -> Metered:
    """Return the meters of the readings: most of the work of a close, so that who needs both makes them once."""
    from_us, to_us = _bounds(inputs.window)
    keys = KeySpace.around(from_us, to_us, policy.gaps.reach_us)
    lines, dropped = timelines(inputs.readings, inputs.epochs, keys, policy)
    devices, _ = _devices_and_pools(inputs)
    lines, rejected = insert(lines, inputs.anchors, devices, keys, policy)
    return Metered([meter(line, devices, keys, policy) for line in lines], pl.concat([dropped, rejected]))


def close_hours(inputs: HourInputs, policy: Policy, metered: Metered | None = None) -> HourResult:
    """Return the books of the window; raise :class:`BooksError` if a law of the books would be broken.

    ``metered``: what :func:`read_meters` says of the same inputs, if it was asked already.
    """
    shard = map_devices(inputs.usage, policy, metered)
    return reduce_shards(inputs.usage.window, [shard], inputs.references, inputs.api_calls)


def resolve_holds(inputs: UsageInputs, policy: Policy) -> Resolved:
    """Return who had what of these devices; no reading is looked at. Of several shards it is asked once, and cut like them."""
    return resolve(
        inputs.holds, inputs.placements, inputs.devices, inputs.epochs, policy, earlier=inputs.earlier_placements
    )


def map_devices(
    inputs: UsageInputs, policy: Policy, metered: Metered | None = None, resolved: Resolved | None = None
) -> Shard:
    """Return the usage of some devices, before tenants, carbon and money. Devices of one node stay in one shard.

    ``metered``, ``resolved``: what :func:`read_meters` and :func:`resolve_holds` say of the same inputs, if they were asked already.
    """
    from_us, to_us = _bounds(inputs.window)
    devices, pools = _devices_and_pools(inputs)
    metered = metered or read_meters(inputs, policy)
    meters = metered.meters
    resolved = resolved or resolve_holds(inputs, policy)
    held = resolved.held
    seen = looks(inputs.device_shares, inputs.instance_activity, held, inputs.devices, resolved.instances)
    declared = (inputs.assets, inputs.capacity_holds)
    holdings = hold(devices, inputs.placements, held, from_us, to_us, [cuts(seen, held)], *declared)
    measured = measure(holdings, meters, held, instruments(devices, policy))
    measured = split_edges(measured, alone(holdings), meters, devices, policy)
    rows = attribute(measured, holdings, Activity(seen, at_rest(devices, policy.idle), policy.sharing))
    rows = fill_origin(rows, inputs.readings, inputs.epochs, devices, inputs.placements, policy.gaps.reach_us)
    beyond = book_beyond(rows, measured.pieces, meters, inputs.devices, _facts(inputs), policy, (from_us, to_us))
    rows, booked = (
        each.join(
            inputs.devices.select(
                "device_id", "accelerators", pl.col("model").alias("device_model"), pl.col("uuid").alias("device_key")
            ),
            on="device_id",
            how="left",
            maintain_order="left",
        )
        for each in (rows, beyond.rows)
    )
    found = pl.concat(
        [
            throttling(rows, holdings.pieces, holdings.holders, policy),
            idle_waste(meters, measured.meter_of, rows, held, devices, policy, to_us),
            contradictions(
                resolved, holdings.pieces, rows.select("device_id", "hour_us", "origin").unique(), from_us, to_us
            ),
            beyond.findings,
        ]
    )
    pooled = pool_usage(pools, inputs.holds, from_us, to_us).with_columns(pl.lit(POOL).alias("method"))
    counted = pl.concat([quality(measured, metered.dropped, from_us, to_us), beyond.quality], how="diagonal")
    return Shard(pl.concat([booked, pooled], how="diagonal"), found, counted)


def reduce_shards(
    window: Window, shards: Iterable[Shard], references: References, api_calls: dy.DataFrame[ApiCalls]
) -> HourResult:
    """Merge shards of disjoint nodes, at least one, then map tenants, price, and round once per group."""
    parts = list(shards)
    # Only shards with something beyond their devices say what kind of figure a row is.
    told = pl.concat([part.usage for part in parts], how="diagonal")
    usage = _as_usage(told.sort("hour_us", "device_id", "holder"))
    found = pl.concat([part.findings for part in parts])
    hours = sorted({*usage["hour_us"].to_list(), *found["hour_us"].to_list()})
    factors = factors_of(hours, references.facility_factors, to_us_of(window.to_at))
    job_tenants = _job_tenants(usage, references)
    usage = _tenanted(usage, job_tenants, references)
    energy_prices = _energy_prices(hours, references, factors)
    counted = _completed(pl.concat([part.quality for part in parts]), Quality, unbooked_mj=None).with_columns(
        pl.col("hour_us").cast(INSTANT).alias("hour_at")
    )
    return HourResult(
        usage=_checked(UsageHours, usage, "hour_at", "device_id", "holder"),
        lines=_lines(window, usage, references, api_calls, factors),
        findings=_checked(Findings, _priced_findings(found, usage, energy_prices, references.currency), "dedupe_key"),
        quality=_checked(Quality, counted, "hour_at", "device_id", "reason"),
        job_tenants=_checked(JobTenants, job_tenants, "hour_at", "job_id"),
    )


@dataclass(frozen=True, slots=True)
class RatingInputs:
    """What a rating reads: usage hours as they are stored, what stands of their findings, dated references, API calls."""

    window: Window
    usage: dy.DataFrame[NamedUsage]
    findings: dy.DataFrame[Findings]
    references: References
    api_calls: dy.DataFrame[ApiCalls]


@dataclass(frozen=True, slots=True)
class Rated:
    """Books of the window with other tenants, prices or calls and the same usage; each frame sorted by its key."""

    usage: dy.DataFrame[UsageHours]
    lines: dy.DataFrame[LedgerLines]
    findings: dy.DataFrame[Findings]
    job_tenants: dy.DataFrame[JobTenants]


def rate_hours(inputs: RatingInputs) -> Rated:
    """Map tenants and price usage that was closed before, reading no sample; energy and who held what stay as they are.

    The result is what closing the hours as a whole would give, as long as nothing else changed: not who held what, and no reading.
    """
    references, window = inputs.references, inputs.window
    usage = inputs.usage.with_columns(pl.col("hour_at").dt.epoch("us").alias("hour_us"))
    found = inputs.findings.with_columns(pl.col("hour_at").dt.epoch("us").alias("hour_us"))
    job_tenants = _job_tenants(usage, references)
    usage = _tenanted(usage.drop("tenant_id"), job_tenants, references)
    hours = sorted({*usage["hour_us"].to_list(), *found["hour_us"].to_list()})
    factors = factors_of(hours, references.facility_factors, to_us_of(window.to_at))
    prices = _energy_prices(hours, references, factors)
    findings = _with_price(_with_tenant(found.drop("tenant_id"), usage), prices, references.currency)
    return Rated(
        usage=_checked(UsageHours, usage, "hour_at", "device_id", "holder"),
        lines=_lines(window, usage, references, inputs.api_calls, factors),
        findings=_checked(Findings, findings, "dedupe_key"),
        job_tenants=_checked(JobTenants, job_tenants, "hour_at", "job_id"),
    )


def _lines(
    window: Window,
    usage: pl.DataFrame,
    references: References,
    api_calls: dy.DataFrame[ApiCalls],
    factors: Mapping[int, HourFactor],
) -> dy.DataFrame[LedgerLines]:
    carriers, gathered = gather(usage, by_category=True), gather(usage, by_category=False)
    calls = api_calls.filter((pl.col("called_at") >= window.from_at) & (pl.col("called_at") < window.to_at))
    lines = pl.concat(
        [
            _as_lines(_carried(carriers, references, factors)),
            _as_lines(electricity_lines(gathered, references.tariffs, factors, references.currency)),
            _as_lines(_token_lines(calls, references)),
        ]
    )
    if references.idle_policies.height:
        used = gathered.filter(pl.col("pool") == "job").select("hour_us", "tenant_id", "accelerator_us", "energy_mj")
        spread = spread_lines(lines, used, references.idle_policies, references.tenants)
        lines = pl.concat([lines, spread], how="diagonal")
    status = pl.when(pl.col("hour_us") + US_PER_HOUR <= to_us_of(window.closed_before_at))
    lines = lines.with_columns(
        status.then(pl.lit("closed")).otherwise(pl.lit("provisional")).alias("status"),
        pl.lit(references.currency).alias("currency"),
        pl.col("hour_us").cast(INSTANT).alias("hour_at"),
    )
    return _checked(LedgerLines, lines, "hour_at", "line_key")


def roll_minutes(inputs: UsageInputs, policy: Policy, metered: Metered | None = None) -> dy.DataFrame[Rollups]:
    """Return one row per device and minute with data in the window, for dashboards. ``metered`` as in a close."""
    from_us, to_us = _bounds(inputs.window)
    devices, _ = _devices_and_pools(inputs)
    meters = (metered or read_meters(inputs, policy)).meters
    rows = by_minute(inputs.readings, meters, devices, from_us, to_us).with_columns(
        (pl.col("minute_us") // US_PER_HOUR * US_PER_HOUR).alias("hour_us")
    )
    rows = fill_origin(rows, inputs.readings, inputs.epochs, devices, inputs.placements, policy.gaps.reach_us)
    return _checked(Rollups, rows, "minute_at", "device_id")


def roll_tenants(
    inputs: UsageInputs,
    rollups: dy.DataFrame[Rollups],
    job_tenants: dy.DataFrame[JobTenants],
    metered: Metered,
    policy: Policy,
) -> dy.DataFrame[TenantMinutes]:
    """Return the energy of each tenant and minute of the window, for dashboards: the rollups by who held the devices."""
    from_us, to_us = _bounds(inputs.window)
    devices, _ = _devices_and_pools(inputs)
    resolved = resolve_holds(inputs, policy)
    holdings = hold(devices, inputs.placements, resolved.held, from_us, to_us)
    rows = by_tenant(rollups, metered.meters, holdings, job_tenants, from_us, to_us)
    return _checked(TenantMinutes, rows, "minute_at", "tenant_id")


def content_hash(frame: pl.DataFrame) -> bytes:
    """Return the SHA-256 of a frame's schema and values in row order: equal content, equal hash, whatever its chunks.

    Of lines without the columns that came later, where none of them says anything there: what was hashed before has its hash still.
    """
    frame = said(frame)
    digest = hashlib.sha256(repr((frame.height, [(name, str(kind)) for name, kind in frame.schema.items()])).encode())
    missing = frame.null_count().row(0)
    digest.update(repr(missing).encode())
    sparse = [name for name, count in zip(frame.columns, missing, strict=True) if count]
    plain = [name for name, kind in frame.schema.items() if kind in _PLAIN]
    texts = frame.select(pl.exclude(plain).cast(pl.String).fill_null(""))
    parts = (
        frame.select(pl.col(sparse).is_null().cast(pl.UInt8)),
        # As they lie in memory: through text they took half as long as all of a close's arithmetic.
        frame.select(pl.col(plain).to_physical().fill_null(0)),
        texts.select(pl.all().str.len_bytes()),
    )
    for part in parts:
        for series in part:
            digest.update(series.rechunk().to_numpy().data)
    for text in texts.select(pl.all().str.join("")).row(0) if texts.width else ():
        digest.update(text.encode())
    return digest.digest()


def _bounds(window: Window) -> tuple[int, int]:
    from_us, to_us = to_us_of(window.from_at), to_us_of(window.to_at)
    if from_us % US_PER_HOUR or from_us >= to_us:
        raise InputError(f"window {window.from_at} to {window.to_at} must begin on a full hour and end after it")
    if to_us % US_PER_HOUR and to_us_of(window.closed_before_at) > to_us:
        raise InputError(f"window ends at {window.to_at}, inside an hour that is to be closed; end it on a full hour")
    return from_us, to_us


def _devices_and_pools(inputs: UsageInputs) -> tuple[pl.DataFrame, pl.DataFrame]:
    devices = inputs.devices.filter(pl.col("parent_device_id").is_null()).sort("device_id")
    return devices.filter(~pl.col("kind").is_in([POOL, *BEYOND])), devices.filter(pl.col("kind") == POOL)


def _facts(inputs: UsageInputs) -> SiteFacts:
    return SiteFacts(
        inputs.node_meters,
        inputs.node_readings,
        inputs.overhead_models,
        inputs.shared_it,
        inputs.meter_periods,
        inputs.placements,
        inputs.epochs,
    )


def _job_tenants(usage: pl.DataFrame, references: References) -> pl.DataFrame:
    jobs = references.jobs
    hours = usage.filter(pl.col("job_id").is_not_null()).select(
        pl.col("hour_us").cast(INSTANT).alias("hour_at"), "job_id"
    )
    unknown = hours.join(jobs, on="job_id", how="anti")
    if unknown.height:
        raise InputError(
            f"allocations of jobs {sorted(set(unknown['job_id'].to_list()))[:5]} came without their job rows"
        )
    bound = bind_hours(jobs, hours, "job_id", references.bindings)
    named = jobs.select("job_id", "named_tenant_id")
    bound = bound.join(named, on="job_id", how="left", maintain_order="left").with_columns(*_named_first())
    return move(bound, references.tenant_moves)


def _tenanted(usage: pl.DataFrame, job_tenants: pl.DataFrame, references: References) -> pl.DataFrame:
    tenants = job_tenants.join(
        references.jobs.select("job_id", pl.col("origin").alias("job_origin")), on="job_id", how="left"
    )
    return (
        usage.with_columns(pl.col("hour_us").cast(INSTANT).alias("hour_at"))
        .join(tenants, on=["hour_at", "job_id"], how="left", maintain_order="left")
        .with_columns(pl.max_horizontal("origin", "job_origin").alias("origin"))
    )


def _called_by(calls: pl.DataFrame, references: References) -> pl.DataFrame:
    hourly = calls.with_columns(pl.col("called_at").dt.truncate("1h").alias("hour_at"))
    keys = hourly.select("api_key").unique()
    tenants = bind_hours(keys, hourly.select("hour_at", "api_key"), "api_key", references.bindings)
    called = hourly.join(tenants, on=["hour_at", "api_key"], how="left", nulls_equal=True, maintain_order="left")
    return move(called.with_columns(*_named_first()), references.tenant_moves)


def _named_first() -> tuple[pl.Expr, pl.Expr]:
    """Let a tenant that an import named outright stand before what the bindings say."""
    named = pl.col("named_tenant_id")
    return (
        pl.coalesce(named, "tenant_id").alias("tenant_id"),
        pl.when(named.is_null()).then(pl.col("binding_id")).alias("binding_id"),
    )


def _as_usage(usage: pl.DataFrame) -> pl.DataFrame:
    known = pl.col("known_us") > 0
    estimated = pl.when(pl.col("estimated_mj") > 0).then(pl.lit("estimated")).otherwise(pl.lit("measured"))
    usage = _completed(
        usage, UsageHours, source=None, reason=None, energy_low_mj=None, energy_high_mj=None, reserved_us=0, down_us=0
    )
    times = [pl.when(known).then(pl.col(name)).alias(name) for name in ("active_us", "idle_us", "throttled_us")]
    usage = usage.with_columns(states.word().alias("state"))
    return usage.with_columns(
        pl.coalesce("source", estimated).alias("source"),
        pl.coalesce("reason", states.reason()).alias("reason"),
        # Overhead and shared IT hold no time: of theirs the part of the hour that is known counts.
        pl.when(pl.col("method").is_in(["overhead", "overhead_model", "shared_it"]).fill_null(value=False))
        .then(pl.col("spanned_us").clip(0, US_PER_HOUR) / US_PER_HOUR)
        .otherwise(coverage("covered_us", "held_us"))
        .alias("coverage"),
        *times,
    )


def _completed(rows: pl.DataFrame, schema: type[dy.Schema], **otherwise: int | None) -> pl.DataFrame:
    """Give rows the columns of their schema that nothing has said anything of, or has of some rows only."""
    kinds = schema.create_empty().schema
    return rows.with_columns(
        (pl.col(name).fill_null(value) if name in rows.columns else pl.lit(value, dtype=kinds[name])).alias(name)
        for name, value in otherwise.items()
        if name not in rows.columns or value is not None
    )


def _carried(gathered: pl.DataFrame, references: References, factors: Mapping[int, HourFactor]) -> pl.DataFrame:
    """Return the lines that energy rides on, with their facility energy and carbon."""
    owned = gpu_lines(gathered, references.prices, references.currency)
    lines = pl.concat([owned, carrier_lines(gathered).select(owned.columns)])
    ties = ["holder_key", "device_model", "charge_category"]
    return emit(with_facility(lines, factors, group=["hour_us"], ties=ties), references.intensity, factors)


def _token_lines(calls: pl.DataFrame, references: References) -> pl.DataFrame:
    called = _called_by(calls, references)
    rules = references.aliases, references.price_policies
    return token_lines(called, references.prices, references.tenants, references.currency, *rules)


def _as_lines(lines: pl.DataFrame) -> pl.DataFrame:
    skipped = {"hour_at", "currency", "status"}
    lines = _completed(
        lines, LedgerLines, facility_mj=None, facility_category=None, carbon_gco2e=None, **_NOTHING_LATER
    )
    return lines.select("hour_us", *(name for name in LedgerLines.column_names() if name not in skipped))


def _priced_findings(
    found: pl.DataFrame, usage: pl.DataFrame, prices: dict[int, Fraction], currency: str
) -> pl.DataFrame:
    """Give findings tenant, identity and price. ``prices``: billionths per millijoule of each hour that has a tariff."""
    identity = [pl.col(name).cast(pl.String).fill_null("-") for name in ("kind", "device_id", "job_id", "start_us")]
    named = instants(found).with_columns(pl.concat_str(identity, separator="|").alias("dedupe_key"))
    return _with_price(_with_tenant(named, usage), prices, currency)


def _with_tenant(found: pl.DataFrame, usage: pl.DataFrame) -> pl.DataFrame:
    of_jobs = usage.filter(pl.col("job_id").is_not_null())
    tenants = of_jobs.select("hour_us", "job_id", "tenant_id").unique()
    # What is told of a simulated job is as simulated as its usage, whatever read the board.
    origins = of_jobs.select("hour_us", "device_id", "job_id", pl.col("origin").alias("job_origin"))
    return (
        found.join(tenants, on=["hour_us", "job_id"], how="left", maintain_order="left")
        .join(origins, on=["hour_us", "device_id", "job_id"], how="left", maintain_order="left")
        .with_columns(pl.max_horizontal("origin", "job_origin").alias("origin"))
        .drop("job_origin")
    )


def _with_price(found: pl.DataFrame, prices: dict[int, Fraction], currency: str) -> pl.DataFrame:
    cash = [
        None
        if waste is None or hour not in prices
        else _rounded(waste * prices[hour].numerator, prices[hour].denominator)
        for hour, waste in found.select("hour_us", "waste_energy_mj").iter_rows()
    ]
    return found.with_columns(pl.Series("nano", cash, dtype=pl.Int64), pl.lit(currency).alias("currency")).with_columns(
        from_nano(pl.col("nano")).alias("avoidable_cash")
    )


def _rounded(amount: int, by: int) -> int:
    """Return the quotient rounded half to even, as of a Fraction, which would look for common divisors of each of some ten thousand."""
    whole, rest = divmod(amount, by)
    return whole + (2 * rest > by or (2 * rest == by and whole % 2))


def _energy_prices(hours: list[int], references: References, factors: Mapping[int, HourFactor]) -> dict[int, Fraction]:
    found = {}
    dated = Dated(references.tariffs, "tariff_id")
    for hour in hours:
        row = dated.at(from_us_of(hour))
        if row is not None and row["metering_point"] != "included" and in_books(row, references.currency):
            per_kwh = Fraction(row["amount_per_kwh"]) * metered_factor(row, hour, factors)
            found[hour] = per_kwh * NANO / MJ_PER_KWH
    return found


def _checked(schema: type[S], rows: pl.DataFrame, *key: str) -> dy.DataFrame[S]:
    """Leave the core only in the declared shape, sorted by key, in one chunk: the same bytes however it was computed."""
    return schema.validate(rows.select(schema.column_names()).sort(*key).rechunk(), cast=False)
