"""What a budget's subtree has spent in a period, split into what may be enforced and what may only warn.

A tenant's *own* spend is live usage of its jobs and keys, hour by hour the smaller of what the hour said when it was first
closed and what it says now. All that came later without the tenant's doing (late data, corrections, re-rating, changed
bindings) raises an hour above its first close, and so lands in ``other``, as do imports and spread idle. Books are
append-only per revision, so the first close is still there to be asked.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final

import sqlalchemy as sa

from analytics.frames import API_TOKENS, CARRIERS, GPU_OWNED
from analytics.model.budget import EXACT, NINE_PLACES, Budget, Measure, Spend
from analytics.model.period import bounds
from analytics.units import MJ_PER_KWH, US_PER_HOUR
from collector.wire import Origin

G_PER_KG: Final = 1000
# What a line counts in each measure, in the store's own exact unit, and how many of those make one of the budget's.
# Energy and carbon ride on lines of their carriers only, so nothing is counted twice.
_CARRIES: Final = f"l.charge_category IN {CARRIERS!r}"
AMOUNT: Final[dict[Measure, tuple[str, str, int]]] = {
    Measure.COST: ("CASE WHEN l.currency = :currency THEN l.billed_cost END", "true", 1),
    Measure.ENERGY_KWH: ("l.energy_mj", _CARRIES, MJ_PER_KWH),
    Measure.CARBON_KGCO2E: ("l.carbon_gco2e", _CARRIES, G_PER_KG),
    Measure.ACCELERATOR_HOURS: ("l.quantity", f"l.charge_category = '{GPU_OWNED}'", US_PER_HOUR),
    Measure.TOKENS: (
        "CASE WHEN l.quantity_unit = 'token' THEN l.quantity END",
        f"l.charge_category = '{API_TOKENS}'",
        1,
    ),
}

_SPEND: Final = """
WITH subtree AS MATERIALIZED (
    SELECT id FROM tenants WHERE path = :path OR starts_with(path, :path || '/')
), hours AS MATERIALIZED (
    SELECT site_id, hour_at, revision,
        CASE WHEN status = 'provisional' OR revision = 1 THEN revision
             ELSE coalesce((SELECT f.revision FROM ledger_lines AS f
                            WHERE f.site_id = h.site_id AND f.hour_at = h.hour_at AND f.status = 'closed'
                            ORDER BY f.revision LIMIT 1), revision) END AS first_revision
    FROM ledger_hours AS h WHERE hour_at >= :from_at AND hour_at < :to_at
), lines AS (
    SELECT l.site_id, l.hour_at, l.origin, {amount} AS amount,
        l.revision = h.revision AS is_now, l.revision = h.first_revision AS is_first,
        l.quantity, l.quantity_unit = 'request' AS tells_no_usage,
        l.pool IN ('job', 'api') AND l.status <> 'correction' AND l.origin = ANY (:own_origins) AS is_own
    FROM hours AS h JOIN ledger_lines AS l
        ON l.site_id = h.site_id AND l.hour_at = h.hour_at AND l.revision IN (h.revision, h.first_revision)
    WHERE l.tenant_id IN (SELECT id FROM subtree) AND {relevant}
    UNION ALL
    -- Corrections of closed months count in the month they are posted in, and are never a tenant's own doing.
    SELECT l.site_id, l.posted_hour_at, l.origin, {amount}, true, false, l.quantity, l.quantity_unit = 'request', false
    FROM ledger_corrections AS l WHERE l.posted_hour_at >= :from_at AND l.posted_hour_at < :to_at
    AND l.tenant_id IN (SELECT id FROM subtree) AND {relevant}
), by_hour AS (
    SELECT site_id, hour_at,
        coalesce(sum(amount) FILTER (WHERE is_now), 0) AS total,
        coalesce(sum(amount) FILTER (WHERE is_now AND is_own), 0) AS own_now,
        coalesce(sum(amount) FILTER (WHERE is_first AND is_own), 0) AS own_first,
        -- What told no usage has nothing to price: two gaps, and the lines of the first count their calls.
        count(*) FILTER (WHERE is_now AND amount IS NULL AND NOT tells_no_usage) AS uncounted_lines,
        sum(quantity) FILTER (WHERE is_now AND amount IS NULL AND tells_no_usage) AS usage_unknown_calls,
        array_agg(DISTINCT origin) FILTER (WHERE is_now AND is_own) AS own_origins,
        array_agg(DISTINCT origin) FILTER (WHERE is_now AND NOT is_own) AS other_origins
    FROM lines GROUP BY site_id, hour_at
)
SELECT coalesce(sum(total), 0) AS total, coalesce(sum(least(own_now, own_first)), 0) AS own,
    coalesce(sum(uncounted_lines), 0) AS uncounted_lines, coalesce(sum(usage_unknown_calls), 0) AS usage_unknown_calls,
    (SELECT array_agg(DISTINCT o) FROM by_hour, unnest(own_origins) AS o) AS own_origins,
    (SELECT array_agg(DISTINCT o) FROM by_hour, unnest(other_origins) AS o) AS other_origins,
    -- The books reach as far as the slowest of the sites this tenant works on; with no usage, as far as any.
    coalesce(
        (SELECT min(reached) FROM (SELECT max(hour_at) AS reached FROM hours
                                   WHERE site_id IN (SELECT site_id FROM by_hour) GROUP BY site_id) AS per_site),
        (SELECT max(hour_at) FROM hours)) AS last_hour_at
FROM by_hour
"""
_COVERAGE: Final = """
SELECT sum(u.covered_us * u.accelerators) AS covered, sum(u.held_us * u.accelerators) AS held
FROM current_usage_hours AS u JOIN tenants AS t ON t.id = u.tenant_id
WHERE u.hour_at >= :from_at AND u.hour_at < :to_at AND (t.path = :path OR starts_with(t.path, :path || '/'))
"""


def load_spend(conn: sa.Connection, budget: Budget, now: datetime) -> Spend:
    """Return what the subtree of ``budget`` spent in the period around ``now``, in the budget's unit to 9 places."""
    from_at, to_at = bounds(budget.period, budget.time_zone, now)
    amount, relevant, per_unit = AMOUNT[budget.measure]
    window: dict[str, Any] = {"path": budget.tenant_path, "from_at": from_at, "to_at": min(to_at, now)}
    parameters = {**window, "own_origins": [int(Origin.LIVE), int(Origin.SIMULATED)]}
    if budget.measure is Measure.COST:
        parameters["currency"] = budget.currency
    row = conn.execute(sa.text(_SPEND.format(amount=amount, relevant=relevant)), parameters).one()
    coverage: float | None = None
    if budget.measure is not Measure.TOKENS:  # tokens are counted, not metered
        held = conn.execute(sa.text(_COVERAGE), window).one()
        coverage = int(held.covered) / int(held.held) if held.held else None
    total, own = _in_unit(row.total, per_unit), _in_unit(row.own, per_unit)
    return Spend(
        own=own,
        other=EXACT.subtract(total, own),
        own_origins=frozenset(Origin(origin) for origin in row.own_origins or ()),
        other_origins=frozenset(Origin(origin) for origin in row.other_origins or ()),
        coverage=coverage,
        as_of_at=None if row.last_hour_at is None else min(row.last_hour_at + timedelta(hours=1), now),
        unpriced_lines=int(row.uncounted_lines) if budget.measure is Measure.COST else 0,
        usage_unknown_calls=int(row.usage_unknown_calls),
        unmeasured_lines=0 if budget.measure is Measure.COST else int(row.uncounted_lines),
    )


def _in_unit(amount: Any, per_unit: int) -> Decimal:
    return EXACT.divide(Decimal(amount), Decimal(per_unit)).quantize(NINE_PLACES, ROUND_HALF_EVEN, context=EXACT)
