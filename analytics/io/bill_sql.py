"""The SQL of bills by tenant: sums of whole days and hours where they are of the revisions that count, lines elsewhere.

Each statement chooses its spans itself, in the snapshot it sums in: a span whose hours have another revision by now is passed
over, and those hours' lines are read. Corrections of closed months are few, and always read themselves.
"""

# ruff: noqa: S608 - built of this module's own words

from __future__ import annotations

from typing import Final

_SUMS: Final = "3|"
"""Which columns a span has sums of; those of another number are of no use, and made again."""
_REVISION: Final = "to_char(hour_at AT TIME ZONE 'UTC', 'HH24') || ':' || revision"
SIGNATURE: Final = f"'{_SUMS}' || string_agg({_REVISION}, ',' ORDER BY hour_at)"
"""Hours of a span and their revisions, as ``bill_spans.revisions`` holds them."""
SIGNATURE_OF_HOUR: Final = f"'{_SUMS}' || {_REVISION}"
"""The same of one hour."""
LATER_SUMMED: Final = "carbon_market_gco2e, carbon_marginal_gco2e, embodied_gco2e, water_ml, list_cost"
# Bits instead of arrays: they add up without being taken apart.
SOURCE_BIT: Final = (
    "CASE {alias}.source WHEN 'measured' THEN 1 WHEN 'estimated' THEN 2 WHEN 'forecast' THEN 4 ELSE 8 END"
)
SOURCES: Final = ("measured", "estimated", "forecast", "assumed")
"""By bit, from the lowest."""
USAGE_POOL: Final = "CASE WHEN u.job_id IS NOT NULL THEN 'job' ELSE split_part(u.holder, ':', 1) END"
WASTE_KIND: Final = "CASE WHEN f.kind = 'idle_waste' THEN f.kind ELSE 'throttling' END"

CHOSEN: Final = f"""
WITH hours AS MATERIALIZED (
    SELECT site_id, hour_at, revision, status FROM ledger_hours WHERE hour_at >= :from_at AND hour_at < :to_at
), days AS (
    SELECT site_id, date_trunc('day', hour_at, 'UTC') AS from_at, {SIGNATURE} AS revisions FROM hours GROUP BY 1, 2
), whole AS MATERIALIZED (
    SELECT span.id AS span_id, site_id, span.from_at FROM bill_spans AS span JOIN days USING (site_id, from_at, revisions)
    WHERE span.to_at = span.from_at + interval '1 day' AND span.from_at >= :from_at AND span.to_at <= :to_at
), others AS MATERIALIZED (
    SELECT hours.*, span.id AS span_id FROM hours
    LEFT JOIN bill_spans AS span ON span.site_id = hours.site_id AND span.from_at = hours.hour_at
        AND span.to_at = hours.hour_at + interval '1 hour' AND hours.status = 'closed'
        AND span.revisions = {SIGNATURE_OF_HOUR}
    LEFT JOIN whole ON whole.site_id = hours.site_id AND whole.from_at = date_trunc('day', hour_at, 'UTC')
    WHERE whole.span_id IS NULL
), chosen AS MATERIALIZED (
    SELECT span_id FROM whole UNION ALL SELECT span_id FROM others WHERE span_id IS NOT NULL
), plain AS MATERIALIZED (
    SELECT site_id, hour_at, revision FROM others WHERE span_id IS NULL
)
"""
# What a line comes to, of the lines themselves.
_OF_LINE: Final = f"""
    l.tenant_id, l.pool, l.charge_category, l.currency, (l.quantity_unit <> 'request')::integer::bigint AS lines,
    (l.quantity_unit <> 'request' AND l.billed_cost IS NULL)::integer::bigint AS unpriced_lines,
    CASE WHEN l.quantity_unit = 'request' THEN l.quantity END AS usage_unknown_calls, l.billed_cost, l.effective_cost, l.energy_mj,
    l.facility_mj, l.carbon_gco2e, CASE WHEN l.quantity_unit = 'token' THEN l.quantity END AS tokens,
    {SOURCE_BIT.format(alias="l")} AS sources, 1 << l.origin AS origins, {", ".join(f"l.{name}" for name in LATER_SUMMED.split(", "))}
"""
_LINES: Final = f"""
    SELECT tenant_id, pool, charge_category, currency, lines, unpriced_lines, usage_unknown_calls, billed_cost, effective_cost, energy_mj,
           facility_mj, carbon_gco2e, tokens, sources::integer, origins::integer, {LATER_SUMMED}
    FROM bill_lines JOIN chosen USING (span_id)
    UNION ALL
    SELECT {_OF_LINE} FROM plain JOIN ledger_lines AS l USING (site_id, hour_at, revision)
    UNION ALL
    SELECT {_OF_LINE} FROM ledger_corrections AS l WHERE l.posted_hour_at >= :from_at AND l.posted_hour_at < :to_at
"""
_OF_USAGE: Final = f"""
    {USAGE_POOL} AS pool, u.held_us * u.accelerators AS held_us, u.covered_us * u.accelerators AS covered_us,
    CASE WHEN u.job_id IS NOT NULL THEN u.active_us * u.accelerators END AS active_us,
    CASE WHEN u.job_id IS NOT NULL THEN u.idle_us * u.accelerators END AS idle_us, u.throttled_us * u.accelerators AS throttled_us
"""
# As current_usage_hours has it, with the hours first: through the view PostgreSQL would read the whole period to find them.
_USAGE: Final = f"""
    SELECT u.tenant_id, {_OF_USAGE} FROM plain JOIN usage_hours AS u USING (site_id, hour_at, revision)
    UNION ALL
    SELECT rated.tenant_id, {_OF_USAGE} FROM plain JOIN ledger_hours AS hour USING (site_id, hour_at)
    JOIN ledger_runs AS run ON run.id = hour.run_id AND run.usage_revision IS NOT NULL
    JOIN usage_hours AS u ON u.site_id = plain.site_id AND u.hour_at = plain.hour_at AND u.revision = run.usage_revision
    LEFT JOIN hour_jobs AS rated ON rated.site_id = plain.site_id AND rated.hour_at = plain.hour_at
        AND rated.revision = plain.revision AND rated.job_id = u.job_id
    WHERE u.job_id IS NULL OR rated.job_id IS NOT NULL
"""
_TIMES: Final = f"""
    SELECT tenant_id, pool, held_us, covered_us, active_us, idle_us, throttled_us FROM bill_times JOIN chosen USING (span_id)
    UNION ALL
    {_USAGE}
"""
_OF_FINDING: Final = "f.kind IN ('idle_waste', 'throttling') AND f.withdrawn_at IS NULL AND f.currency IS NOT NULL"
_WASTE: Final = f"""
    SELECT tenant_id, kind, currency, avoidable_cash FROM bill_waste JOIN chosen USING (span_id)
    UNION ALL
    SELECT f.tenant_id, {WASTE_KIND}, f.currency, f.avoidable_cash FROM plain JOIN findings AS f
        ON f.site_id = plain.site_id AND f.start_at >= plain.hour_at AND f.start_at < plain.hour_at + interval '1 hour'
    WHERE {_OF_FINDING}
"""
# Whose a row is: a tenant, a pool of the platform, or nobody's yet.
TENANT_NAME: Final = """
    CASE WHEN t.path IS NOT NULL THEN t.path WHEN {pool} IN ('job', 'api') THEN 'unmapped' ELSE '(platform)/' || {pool} END
"""
IN_SUBTREE: Final = "(CAST(:path AS text) IS NULL OR t.path = :path OR starts_with(t.path, :path || '/'))"

# First by what the rows have, then by name: names made for each row take longer than all else.
LINES: Final = f"""
{CHOSEN}, rows AS ({_LINES}), sums AS (
    SELECT tenant_id, pool, charge_category, currency, sum(billed_cost) AS cost, sum(lines) AS lines, sum(unpriced_lines) AS unpriced,
        sum(usage_unknown_calls) AS usage_unknown, sum(energy_mj) AS energy_mj, sum(carbon_gco2e) AS carbon_gco2e, sum(tokens) AS tokens,
        bit_or(sources) AS source_bits, bit_or(origins) AS origin_bits
    FROM rows GROUP BY tenant_id, pool, charge_category, currency
)
SELECT {TENANT_NAME.format(pool="l.pool")} AS tenant, l.* FROM sums AS l LEFT JOIN tenants AS t ON t.id = l.tenant_id WHERE {IN_SUBTREE}
"""
TIMES: Final = f"""
{CHOSEN}, rows AS ({_TIMES}), sums AS (
    SELECT tenant_id, pool, sum(held_us) AS held_us, sum(covered_us) AS covered_us, sum(held_us) FILTER (WHERE pool = 'job') AS allocated_us,
        sum(active_us) AS active_us, sum(idle_us) AS idle_us,
        sum(throttled_us) AS throttled_us
    FROM rows GROUP BY tenant_id, pool
)
SELECT {TENANT_NAME.format(pool="u.pool")} AS key, {TENANT_NAME.format(pool="u.pool")} AS tenant, u.*
FROM sums AS u LEFT JOIN tenants AS t ON t.id = u.tenant_id WHERE {IN_SUBTREE}
"""
WASTE: Final = f"""
{CHOSEN}, rows AS ({_WASTE})
SELECT {TENANT_NAME.format(pool="'job'")} AS key, {TENANT_NAME.format(pool="'job'")} AS tenant, f.kind, sum(f.avoidable_cash) AS waste
FROM rows AS f LEFT JOIN tenants AS t ON t.id = f.tenant_id
WHERE f.currency = :currency AND {IN_SUBTREE} GROUP BY 1, 2, 3
"""

OUTCOME_COSTS: Final = """
    sum(CASE WHEN j.state IN ('failed', 'timeout') THEN {cost} END) AS failed_cost,
    sum(CASE WHEN j.state = 'preempted' THEN {cost} END) AS preempted_cost,
    sum(CASE WHEN j.state = 'cancelled' THEN {cost} END) AS cancelled_cost
"""
# The state is the job's as it is known now, and so in no sum: a job ends after most of its hours were closed.
OUTCOMES: Final = f"""
WITH ended AS MATERIALIZED (
    SELECT id, state FROM jobs WHERE state IN ('failed', 'timeout', 'preempted', 'cancelled') AND started_at < :to_at
        AND (ended_at IS NULL OR ended_at > :from_at)
), rows AS (
    SELECT l.tenant_id, l.job_id, l.currency, l.billed_cost
    FROM ended JOIN ledger_lines AS l ON l.job_id = ended.id JOIN ledger_hours USING (site_id, hour_at, revision)
    WHERE l.hour_at >= :from_at AND l.hour_at < :to_at
    UNION ALL
    SELECT l.tenant_id, l.job_id, l.currency, l.billed_cost FROM ended JOIN ledger_corrections AS l ON l.job_id = ended.id
    WHERE l.posted_hour_at >= :from_at AND l.posted_hour_at < :to_at
)
SELECT {TENANT_NAME.format(pool="'job'")} AS key, {TENANT_NAME.format(pool="'job'")} AS tenant, {OUTCOME_COSTS.format(cost="l.billed_cost")}
FROM rows AS l JOIN ended AS j ON j.id = l.job_id LEFT JOIN tenants AS t ON t.id = l.tenant_id
WHERE l.currency = :currency AND {IN_SUBTREE} GROUP BY 1, 2
"""

# How a span is made, once the hours it is of are locked.
_PLAIN: Final = """
WITH plain AS MATERIALIZED (
    SELECT site_id, hour_at, revision FROM ledger_hours
    WHERE site_id = %(site_id)s AND hour_at >= %(from_at)s AND hour_at < %(to_at)s
)
"""
LINES_SUMMED: Final = f"""
tenant_id, pool, charge_category, currency, lines, unpriced_lines, usage_unknown_calls, billed_cost, effective_cost, energy_mj, facility_mj,
carbon_gco2e, tokens, sources, origins, {LATER_SUMMED}
"""
TIMES_SUMMED: Final = "tenant_id, pool, held_us, covered_us, active_us, idle_us, throttled_us"
WASTE_SUMMED: Final = "tenant_id, kind, currency, avoidable_cash"
"""Columns of the sums, in the order in which the statements below return them."""
SUM_LINES: Final = f"""
{_PLAIN}
SELECT tenant_id, pool, charge_category, currency, sum(lines), sum(unpriced_lines), coalesce(sum(usage_unknown_calls), 0),
       sum(billed_cost), sum(effective_cost), sum(energy_mj), sum(facility_mj), sum(carbon_gco2e), sum(tokens), bit_or(sources),
       bit_or(origins), {", ".join(f"sum({name})" for name in LATER_SUMMED.split(", "))}
FROM (SELECT {_OF_LINE} FROM plain JOIN ledger_lines AS l USING (site_id, hour_at, revision)) AS rows
GROUP BY tenant_id, pool, charge_category, currency
"""
SUM_TIMES: Final = f"""
{_PLAIN}
SELECT tenant_id, pool, sum(held_us), sum(covered_us), sum(active_us), sum(idle_us), sum(throttled_us)
FROM ({_USAGE}) AS rows GROUP BY tenant_id, pool
"""
SUM_WASTE: Final = f"""
SELECT f.tenant_id, {WASTE_KIND}, f.currency, sum(f.avoidable_cash) FROM findings AS f
WHERE {_OF_FINDING} AND f.site_id = %(site_id)s AND f.start_at >= %(from_at)s AND f.start_at < %(to_at)s AND f.avoidable_cash IS NOT NULL
GROUP BY 1, 2, 3
"""
BUILD_LINES: Final = (
    f"INSERT INTO bill_lines (span_id, {LINES_SUMMED}) SELECT %(span_id)s, summed.* FROM ({SUM_LINES}) AS summed"
)
BUILD_TIMES: Final = (
    f"INSERT INTO bill_times (span_id, {TIMES_SUMMED}) SELECT %(span_id)s, summed.* FROM ({SUM_TIMES}) AS summed"
)
BUILD_WASTE: Final = (
    f"INSERT INTO bill_waste (span_id, {WASTE_SUMMED}) SELECT %(span_id)s, summed.* FROM ({SUM_WASTE}) AS summed"
)
