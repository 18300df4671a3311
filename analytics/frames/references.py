"""Who pays, and what things cost and emit: dated reference data, and the calls that are priced by it."""

from __future__ import annotations

import dataframely as dy

from analytics.frames.words import instant, rate


class IdlePolicies(dy.Schema):
    """Who pays for idle time of the site: the platform, tenants by use (``basis``), or by fixed parts, of which each has a row."""

    policy_id = dy.Int32(primary_key=True)
    policy = dy.String(check=lambda policy: policy.is_in(["keep", "proportional", "fixed"]))
    basis = dy.String(nullable=True, check=lambda basis: basis.is_in(["time", "energy"]))
    tenant_id = dy.Int32(nullable=True)
    fixed_ppm = dy.Int32(nullable=True, min=0, max=1_000_000)
    valid_from = instant()
    valid_to = instant(nullable=True)


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
    valid_from = instant()
    valid_to = instant(nullable=True)


class Tenants(dy.Schema):
    """A tenant's path: what its id stands for in any database."""

    tenant_id = dy.Int32(primary_key=True)
    path = dy.String()


class TenantMoves(dy.Schema):
    """A reorganization: what is the tenant's by then is paid by another. Of several in force the last begun counts."""

    move_id = dy.Int32(primary_key=True)
    tenant_id = dy.Int32()
    to_tenant_id = dy.Int32()
    valid_from = instant()
    valid_to = instant(nullable=True)


class JobTenants(dy.Schema):
    """Which tenant pays for a job in an hour; null tenant = unmapped."""

    hour_at = instant(key=True)
    job_id = dy.Int64(primary_key=True)
    tenant_id = dy.Int32(nullable=True)
    binding_id = dy.Int32(nullable=True)


class Prices(dy.Schema):
    """One dated price; ``provider`` is ``owned`` for our own accelerators, with meter ``accelerator_hour``."""

    price_id = dy.Int32(primary_key=True)
    provider = dy.String()
    model = dy.String()
    meter = dy.String()
    amount = rate()
    currency = dy.String()
    valid_from = instant()
    valid_to = instant(nullable=True)
    # Its conditions (``model.api_prices``); null = none.
    site_id = dy.Int32(nullable=True)
    region = dy.String(nullable=True)
    purchase = dy.String(nullable=True)
    service_tier = dy.String(nullable=True)
    above_tokens = dy.Int64(nullable=True, min=1)
    """Of calls whose prompt is longer; then the whole call is at it."""
    cache_ttl_s = dy.Int32(nullable=True, min=1)
    time_zone = dy.String(nullable=True)
    from_local = dy.Time(nullable=True)
    to_local = dy.Time(nullable=True)
    weekdays = dy.Int16(nullable=True, min=1, max=127)
    """Days on which its hours begin, by bit: 1 = Monday, 64 = Sunday."""


class ModelAliases(dy.Schema):
    """Names that providers answer with, and the models of the price book they stand for; the first by position counts."""

    alias_id = dy.Int32(primary_key=True)
    provider = dy.String()
    kind = dy.String(check=lambda kind: kind.is_in(["exact", "prefix", "regex"]))
    pattern = dy.String()
    model = dy.String()
    position = dy.Int32()
    valid_from = instant()
    valid_to = instant(nullable=True)


class PricePolicies(dy.Schema):
    """What is done of an unknown price, by globs of provider and model; the one that names most of them counts."""

    policy_id = dy.Int32(primary_key=True)
    provider = dy.String()
    model = dy.String()
    unknown = dy.String(check=lambda unknown: unknown.is_in(["deny", "estimate_high", "allow"]))
    valid_from = instant()
    valid_to = instant(nullable=True)


class Tariffs(dy.Schema):
    """Electricity price of the site over time; may be negative."""

    tariff_id = dy.Int32(primary_key=True)
    metering_point = dy.String(check=lambda point: point.is_in(["it", "facility", "included"]))
    amount_per_kwh = rate()
    currency = dy.String()
    valid_from = instant()
    valid_to = instant(nullable=True)


class Intensity(dy.Schema):
    """Location-based average carbon intensity of the site's grid zone over time."""

    intensity_id = dy.Int32(primary_key=True)
    gco2e_per_kwh = rate()
    estimated = dy.Bool()
    """By who publishes it, or because it is of another time: a mean carried forward."""
    life_cycle = dy.Bool()
    """Emissions of building plants and of fuel's way to them included; false = direct ones alone."""
    valid_from = instant()
    valid_to = instant(nullable=True)


class FacilityFactors(dy.Schema):
    """Facility energy / IT energy of the site over time, with its PUE measurement category (ISO/IEC 30134-2)."""

    factor_id = dy.Int32(primary_key=True)
    factor = rate()
    category = dy.Int16(min=0, max=3)
    valid_from = instant()
    valid_to = instant(nullable=True)


class ApiCalls(dy.Schema):
    """One LLM request, token parts disjoint; ``usage_known`` false = tokens were not reported."""

    called_at = instant()
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
    audio_input_tokens = dy.Int64(nullable=True, min=0)
    audio_output_tokens = dy.Int64(nullable=True, min=0)
    cache_write_1h_tokens = dy.Int64(nullable=True, min=0)
    """Written to be kept for an hour; ``cache_write_tokens`` are the others."""
    service_tier = dy.String(nullable=True)
    is_batch = dy.Bool(nullable=True)
    tool_calls = dy.String(nullable=True)
    """JSON: uses by tool of the provider."""
    images = dy.Int32(nullable=True, min=0)
    media_ms = dy.Int64(nullable=True, min=0)
    characters = dy.Int64(nullable=True, min=0)
    pages = dy.Int32(nullable=True, min=0)
    deployment = dy.String(nullable=True)
