"""What the model returns: the books, what was found, what could not be known, and minutes for dashboards."""

from __future__ import annotations

import dataframely as dy
import polars as pl

from analytics.frames.words import (
    BASES,
    CATEGORIES,
    GHG_SCOPES,
    METHODS,
    POOLS,
    SOURCES,
    STATES,
    bounded,
    instant,
    money,
    rate,
)


class UsageHours(dy.Schema):
    """Device x hour x holder: the grain of the books. Sorted by its key."""

    hour_at = instant(key=True)
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
        return bounded()

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

    hour_at = instant(key=True)
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
    carbon_gco2e = money()
    method = dy.String(nullable=True, check=lambda method: method.is_in(list(METHODS)))
    """The least exact of its usage hours'; null = of calls."""
    billed_cost = money()
    effective_cost = money()
    currency = dy.String()
    status = dy.String(check=lambda status: status.is_in(["provisional", "closed"]))
    source = dy.String(check=lambda source: source.is_in(list(SOURCES)))
    coverage = dy.Float64(min=0, max=1)
    origin = dy.Int16(min=1, max=4)
    # What came later (``model.later``): last, and null in lines of before, which are hashed and chained as they were.
    carbon_market_gco2e = money()
    carbon_marginal_gco2e = money()
    """At the margin: for decisions, never part of an inventory."""
    embodied_gco2e = money()
    water_ml = dy.Int64(nullable=True, min=0)
    list_cost = money()
    ghg_scope = dy.String(nullable=True, check=lambda scope: scope.is_in(list(GHG_SCOPES)))
    basis = dy.String(nullable=True, check=lambda basis: basis.is_in(list(BASES)))
    """What its cost is shared by; null = by what the line says itself."""
    terms = dy.String(nullable=True)
    """Tier, region and purchase it was priced by; null = its price says none."""
    intensity_id = dy.Int32(nullable=True)
    market_factor_id = dy.Int32(nullable=True)
    charge_id = dy.Int64(nullable=True)
    fx_rate_id = dy.Int32(nullable=True)
    source_currency = dy.String(nullable=True)
    source_cost = rate(nullable=True)
    """In ``source_currency``, before it was converted."""

    @dy.rule()
    def what_was_converted_says_from_what(cls) -> pl.Expr:  # noqa: N805
        return pl.col("source_cost").is_null() | pl.col("source_currency").is_not_null()

    @dy.rule()
    def bounds_hold_the_energy(cls) -> pl.Expr:  # noqa: N805
        return bounded()


class Findings(dy.Schema):
    """One detected episode, clipped to its hour so that any windowing finds the same; ``dedupe_key`` is its identity."""

    dedupe_key = dy.String(primary_key=True)
    hour_at = instant()
    kind = dy.String()
    device_id = dy.Int32(nullable=True)
    job_id = dy.Int64(nullable=True)
    tenant_id = dy.Int32(nullable=True)
    start_at = instant()
    end_at = instant()
    evidence = dy.String()
    """JSON: the signals, each with its instrument and values."""
    waste_energy_mj = dy.Int64(nullable=True, min=0)
    avoidable_cash = money()
    capacity_freed_us = dy.Int64(nullable=True, min=0)
    currency = dy.String(nullable=True)
    confidence = dy.Float64(min=0, max=1)
    origin = dy.Int16(min=1, max=4)


class Quality(dy.Schema):
    """What a close did not use or could not know, counted: readings dropped, time without a meter."""

    hour_at = instant(key=True)
    device_id = dy.Int32(primary_key=True)
    reason = dy.String(primary_key=True)
    """not_positive, repeated, spike, counter_reset, epoch_change, implausible, telemetry_gap, no_data, overhead_unknown."""
    readings = dy.Int64(min=0)
    time_us = dy.Int64(min=0)
    unbooked_mj = dy.Int64(nullable=True, min=0)
    """Energy that a new counter shows at its first reading: drawn since it began, told of and never booked."""


class Rollups(dy.Schema):
    """One device and minute, for dashboards; never the source of a bill."""

    minute_at = instant(key=True)
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

    minute_at = instant()
    tenant_id = dy.Int32(nullable=True)
    energy_mj = dy.Int64(min=0)

    @dy.rule()
    def one_row_each(cls) -> pl.Expr:  # noqa: N805 - dataframely passes the class
        return pl.struct("minute_at", "tenant_id").is_unique()
