"""The SQL of statements: lines, time held and waste, each grouped by tenant (``bill_sql``), job, training run or device.

Every query returns ``key`` and ``tenant``, so that three results of one grouping meet on them. Costs by device are the line's
cost split by time held (standard rate) or energy (electricity), and its carbon split by energy, to the last decimal by largest remainder.
A correction of a closed month is of an hour whose devices may be others: it is no device's.
"""

from __future__ import annotations

from typing import Final

from analytics.io import bill_sql

DETAILS: Final = ("cluster", "native_id", "started_at", "job_name", "user_name", "state", "model", "node")

_LINE_TENANT: Final = bill_sql.TENANT_NAME.format(pool="l.pool")
_USAGE_POOL: Final = bill_sql.USAGE_POOL
_USAGE_TENANT: Final = bill_sql.TENANT_NAME.format(pool=f"({_USAGE_POOL})")
_IN_WINDOW: Final = "{alias}.hour_at >= :from_at AND {alias}.hour_at < :to_at"
_COST: Final = "sum(CASE WHEN l.currency = :currency THEN l.billed_cost END)"
# A line of calls whose sender told no usage has nothing to price: it is another gap than a missing price.
_UNPRICED: Final = """count(*) FILTER (
        WHERE l.quantity_unit <> 'request' AND (l.billed_cost IS NULL OR l.currency IS DISTINCT FROM :currency))"""
_USAGE_UNKNOWN: Final = "sum(l.quantity) FILTER (WHERE l.quantity_unit = 'request')"

# The text that names a job, or what stands there instead: the key of an API key's calls, or a pool.
_JOB_KEY: Final = """
    coalesce(j.cluster || '/' || j.native_id || '@' || to_char(j.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), {rest})
"""
_JOB_DETAILS: Final = """, j.cluster, j.native_id, j.name AS job_name, j.user_name, j.state,
    to_char(j.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS started_at"""
_JOB_GROUP: Final = ", j.cluster, j.native_id, j.name, j.user_name, j.started_at, j.state"
# A training run by its name in its cluster: a job that is requeued starts again under the same.
_IS_TRAINING: Final = "j.workload_kind IN ('training', 'fine-tuning')"
_RUN_KEY: Final = f"CASE WHEN {_IS_TRAINING} THEN j.cluster || '/' || j.native_id ELSE '(no training run)' END"
_RUN_DETAILS: Final = f""", CASE WHEN {_IS_TRAINING} THEN j.cluster END AS cluster,
    CASE WHEN {_IS_TRAINING} THEN j.native_id END AS native_id, CASE WHEN {_IS_TRAINING} THEN j.name END AS job_name"""
_RUN_GROUP: Final = f""", CASE WHEN {_IS_TRAINING} THEN j.cluster END, CASE WHEN {_IS_TRAINING} THEN j.native_id END,
    CASE WHEN {_IS_TRAINING} THEN j.name END"""

_LINES: Final = """
SELECT {key} AS key, {tenant} AS tenant{details}, l.charge_category,
    {cost} AS cost, {outcomes}, {unpriced} AS unpriced, {usage_unknown} AS usage_unknown,
    sum(l.energy_mj) AS energy_mj, sum(l.carbon_gco2e) AS carbon_gco2e,
    sum(l.quantity) FILTER (WHERE l.quantity_unit = 'token') AS tokens,
    array_agg(DISTINCT l.source) AS sources, array_agg(DISTINCT l.origin) AS origins
FROM current_ledger_lines AS l LEFT JOIN tenants AS t ON t.id = l.tenant_id {joins}
WHERE {window} AND {subtree}
GROUP BY {key}, {tenant}{group}, l.charge_category
"""
_TIMES: Final = """
SELECT {key} AS key, {tenant} AS tenant{details}, {energy}
    sum(u.held_us * u.accelerators) AS held_us, sum(u.covered_us * u.accelerators) AS covered_us,
    sum(u.held_us * u.accelerators) FILTER (WHERE u.job_id IS NOT NULL) AS allocated_us,
    sum(u.active_us * u.accelerators) FILTER (WHERE u.job_id IS NOT NULL) AS active_us,
    sum(u.idle_us * u.accelerators) FILTER (WHERE u.job_id IS NOT NULL) AS idle_us,
    sum(u.throttled_us * u.accelerators) AS throttled_us
FROM current_usage_hours AS u LEFT JOIN tenants AS t ON t.id = u.tenant_id {joins}
WHERE {window} AND {subtree}
GROUP BY {key}, {tenant}{group}
"""
_WASTE: Final = """
SELECT {key} AS key, {tenant} AS tenant, CASE WHEN f.kind = 'idle_waste' THEN f.kind ELSE 'throttling' END AS kind,
    sum(f.avoidable_cash) AS waste
FROM findings AS f LEFT JOIN tenants AS t ON t.id = f.tenant_id {joins}
WHERE f.kind IN ('idle_waste', 'throttling') AND f.start_at >= :from_at AND f.start_at < :to_at
    AND f.withdrawn_at IS NULL AND f.currency = :currency AND {subtree}
GROUP BY {key}, {tenant}, f.kind
"""
# Each line's cost in billionths, an integer, split over the devices behind it: whole parts first, then one more billionth to
# the largest remainders, ties by device. Integer arithmetic in NUMERIC is exact, so the parts add up to the line. Nulls are
# joined as 0, which no id is: IS NOT DISTINCT FROM would forbid a hash join (2.6 s for a day of 1,000 devices instead of 0.7).
_DEVICE_LINES: Final = """
WITH lines AS MATERIALIZED (
    SELECT row_number() OVER () AS n, l.site_id, l.hour_at, coalesce(l.tenant_id, 0) AS tenant_id,
        coalesce(l.job_id, 0) AS job_id, l.pool, l.device_model, l.charge_category, l.corrects_hour_at, {tenant} AS tenant,
        trunc(sum(CASE WHEN l.currency = :currency THEN l.billed_cost END) * 1000000000) AS nanos,
        trunc(sum(l.carbon_gco2e) * 1000000000) AS nanograms,
        {unpriced} AS unpriced, {usage_unknown} AS usage_unknown,
        sum(l.quantity) FILTER (WHERE l.quantity_unit = 'token') AS tokens,
        bit_or(CASE l.source WHEN 'measured' THEN 1 WHEN 'estimated' THEN 2 WHEN 'forecast' THEN 4 ELSE 8 END) AS sources,
        bit_or(1 << l.origin) AS origins
    FROM current_ledger_lines AS l LEFT JOIN tenants AS t ON t.id = l.tenant_id
    WHERE {window} AND {subtree}
    GROUP BY l.site_id, l.hour_at, l.tenant_id, l.job_id, l.pool, l.device_model, l.charge_category, l.corrects_hour_at, t.path
), usage AS MATERIALIZED (
    SELECT u.site_id, u.hour_at, coalesce(u.tenant_id, 0) AS tenant_id, coalesce(u.job_id, 0) AS job_id,
        {usage_pool} AS pool, d.uuid, d.model, sum(u.held_us * u.accelerators) AS held_us, sum(u.energy_mj) AS energy_mj
    FROM current_usage_hours AS u JOIN devices AS d ON d.id = u.device_id
    WHERE {usage_window} GROUP BY u.site_id, u.hour_at, u.tenant_id, u.job_id, pool, d.uuid, d.model
), weighed AS (
    SELECT l.*, u.uuid, row_number() OVER (PARTITION BY l.n ORDER BY u.uuid) AS part,
        CASE WHEN l.charge_category = 'electricity' AND sum(u.energy_mj) OVER (PARTITION BY l.n) > 0
             THEN coalesce(u.energy_mj, 0) ELSE u.held_us END AS weight, coalesce(u.energy_mj, 0) AS drawn
    FROM lines AS l LEFT JOIN usage AS u
        ON u.site_id = l.site_id AND u.hour_at = l.hour_at AND u.tenant_id = l.tenant_id AND u.job_id = l.job_id
        AND u.pool = l.pool AND u.model = l.device_model AND l.corrects_hour_at IS NULL -- of another hour than it is posted in
), summed AS (
    SELECT *, sum(weight) OVER (PARTITION BY n) AS whole, sum(drawn) OVER (PARTITION BY n) AS all_drawn FROM weighed
), floored AS (
    SELECT *, CASE WHEN whole > 0 THEN div(abs(nanos) * weight, whole) WHEN part = 1 THEN abs(nanos) ELSE 0 END AS base,
        CASE WHEN whole > 0 THEN mod(abs(nanos) * weight, whole) ELSE 0 END AS rest,
        CASE WHEN all_drawn > 0 THEN div(abs(nanograms) * drawn, all_drawn) WHEN part = 1 THEN abs(nanograms) ELSE 0 END AS base_grams,
        CASE WHEN all_drawn > 0 THEN mod(abs(nanograms) * drawn, all_drawn) ELSE 0 END AS rest_grams
    FROM summed
), shared AS (
    SELECT *, base + CASE WHEN row_number() OVER (PARTITION BY n ORDER BY rest DESC, uuid)
                               <= abs(nanos) - sum(base) OVER (PARTITION BY n) THEN 1 ELSE 0 END AS portion,
        base_grams + CASE WHEN row_number() OVER (PARTITION BY n ORDER BY rest_grams DESC, uuid)
                               <= abs(nanograms) - sum(base_grams) OVER (PARTITION BY n) THEN 1 ELSE 0 END AS portion_grams
    FROM floored
)
SELECT coalesce(uuid, '(no device)') AS key, tenant, charge_category,
    CAST(sum(sign(nanos) * portion) / 1000000000 AS numeric(38, 9)) AS cost,
    CAST(sum(sign(nanograms) * portion_grams) FILTER (WHERE nanograms IS NOT NULL) / 1000000000 AS numeric(38, 9)) AS carbon_gco2e,
    sum(unpriced) FILTER (WHERE part = 1) AS unpriced, sum(usage_unknown) FILTER (WHERE part = 1) AS usage_unknown,
    sum(tokens) FILTER (WHERE part = 1) AS tokens,
    array_remove(ARRAY[
        CASE WHEN bit_or(sources) & 1 > 0 THEN 'measured' END, CASE WHEN bit_or(sources) & 2 > 0 THEN 'estimated' END,
        CASE WHEN bit_or(sources) & 4 > 0 THEN 'forecast' END, CASE WHEN bit_or(sources) & 8 > 0 THEN 'assumed' END
    ], NULL) AS sources,
    array_remove(ARRAY[{origin_bits}], NULL) AS origins
FROM shared GROUP BY coalesce(uuid, '(no device)'), tenant, charge_category
"""

STATUS: Final = """
SELECT count(*) FILTER (WHERE status = 'closed') AS closed, count(*) FILTER (WHERE status = 'provisional') AS provisional,
    max(hour_at) + interval '1 hour' AS as_of_at
FROM ledger_hours WHERE hour_at >= :from_at AND hour_at < :to_at
"""


def queries(group_by: str) -> tuple[str | None, str, str]:
    """Return the queries of lines, times and waste for one grouping; of tenants no lines: ``bill_reads`` sums those from what is kept.

    Raises ValueError for what is no grouping.
    """
    if group_by == "tenant":
        return None, bill_sql.TIMES, bill_sql.WASTE
    if group_by not in {"job", "run", "device"}:
        raise ValueError(f"{group_by!r} is no grouping: tenant, job, run or device")
    line = {
        "tenant": _LINE_TENANT,
        "cost": _COST,
        "outcomes": bill_sql.OUTCOME_COSTS.format(cost="CASE WHEN l.currency = :currency THEN l.billed_cost END"),
        "unpriced": _UNPRICED,
        "usage_unknown": _USAGE_UNKNOWN,
        "subtree": bill_sql.IN_SUBTREE,
    }
    usage = {
        "tenant": _USAGE_TENANT,
        "subtree": bill_sql.IN_SUBTREE,
        "window": _IN_WINDOW.format(alias="u"),
        "energy": "",
    }
    waste = {"tenant": bill_sql.TENANT_NAME.format(pool="'job'"), "subtree": bill_sql.IN_SUBTREE}
    line_window = _IN_WINDOW.format(alias="l")
    if group_by == "job":
        job = {"details": _JOB_DETAILS, "group": _JOB_GROUP}
        keys = (
            _JOB_KEY.format(
                rest="CASE WHEN l.pool = 'api' THEN 'key/' || coalesce(l.api_key, '(none)') ELSE '(platform)/' || l.pool END"
            ),
            _JOB_KEY.format(rest=f"'(platform)/' || {_USAGE_POOL}"),
            _JOB_KEY.format(rest="'(no job)'"),
        )
        joins = "LEFT JOIN jobs AS j ON j.id = {alias}.job_id"
        return (
            _LINES.format(key=keys[0], window=line_window, joins=joins.format(alias="l"), **line, **job).replace(
                "GROUP BY", "GROUP BY l.pool, l.api_key,", 1
            ),
            _TIMES.format(key=keys[1], joins=joins.format(alias="u"), **usage, **job),
            _WASTE.format(key=keys[2], joins=joins.format(alias="f"), **waste),
        )
    if group_by == "run":
        run = {"key": _RUN_KEY, "details": _RUN_DETAILS, "group": _RUN_GROUP}
        joins = "LEFT JOIN jobs AS j ON j.id = {alias}.job_id"
        return (
            _LINES.format(window=line_window, joins=joins.format(alias="l"), **line, **run),
            _TIMES.format(joins=joins.format(alias="u"), **usage, **run),
            _WASTE.format(key=_RUN_KEY, joins=joins.format(alias="f"), **waste),
        )
    device = {"details": ", d.model", "group": ", d.model", "joins": "JOIN devices AS d ON d.id = u.device_id"}
    energy = "sum(u.energy_mj) AS energy_mj,"
    return (
        _DEVICE_LINES.format(
            window=line_window,
            usage_window=_IN_WINDOW.format(alias="u"),
            usage_pool=_USAGE_POOL,
            origin_bits=", ".join(f"CASE WHEN bit_or(origins) & {1 << o} > 0 THEN {o} END" for o in range(1, 5)),
            **{key: value for key, value in line.items() if key not in {"cost", "outcomes"}},
        ),
        _TIMES.format(key="d.uuid", **{**usage, "energy": energy}, **device),
        _WASTE.format(
            key="coalesce(d.uuid, '(no device)')", joins="LEFT JOIN devices AS d ON d.id = f.device_id", **waste
        ),
    )
