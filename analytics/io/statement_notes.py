"""What a bill says beside its sums: corrections of closed months that it holds, each with its reason, and lines of it that are disputed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa

from analytics.io.bill_sql import IN_SUBTREE, TENANT_NAME

_CORRECTIONS: Final = f"""
SELECT {TENANT_NAME.format(pool="c.pool")} AS tenant, c.charge_category AS category, c.reason, min(c.hour_at) AS first_at, max(c.hour_at) + interval '1 hour' AS last_at,
       count(*) AS lines, sum(c.billed_cost) FILTER (WHERE c.currency = :currency) AS cost, sum(c.energy_mj)::bigint AS energy_mj,
       sum(c.carbon_gco2e) AS carbon_gco2e
FROM ledger_corrections AS c LEFT JOIN tenants AS t ON t.id = c.tenant_id
WHERE c.posted_hour_at >= :from_at AND c.posted_hour_at < :to_at AND {IN_SUBTREE}
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""  # noqa: S608 (constants)
_DISPUTED: Final = f"""
SELECT count(*) AS lines, coalesce(sum(d.billed_cost) FILTER (WHERE d.currency = :currency), 0) AS cost
FROM line_disputes AS d LEFT JOIN tenants AS t ON t.id = d.tenant_id
WHERE d.hour_at >= :from_at AND d.hour_at < :to_at AND d.resolved_at IS NULL AND {IN_SUBTREE}
"""  # noqa: S608 (constants)


@dataclass(frozen=True, slots=True)
class Correction:
    """Corrections of closed hours in [first_at, last_at) of one tenant, category and reason, counted in this bill; nulls are unknown."""

    tenant: str
    category: str
    reason: str
    first_at: datetime
    last_at: datetime
    lines: int
    cost: Decimal | None
    energy_mj: int | None
    carbon_gco2e: Decimal | None


@dataclass(frozen=True, slots=True)
class Disputed:
    """Lines of a bill that are disputed and not resolved, and what they cost in its currency."""

    lines: int = 0
    cost: Decimal = Decimal(0)


def corrections(conn: sa.Connection, window: Mapping[str, Any]) -> tuple[Correction, ...]:
    """Return the corrections posted in a window (from_at, to_at, path, currency), as far as visible."""
    return tuple(
        Correction(
            row.tenant,
            row.category,
            row.reason,
            row.first_at.astimezone(UTC),
            row.last_at.astimezone(UTC),
            *tuple(row)[5:],
        )
        for row in conn.execute(sa.text(_CORRECTIONS), window)
    )


def disputed(conn: sa.Connection, window: Mapping[str, Any]) -> Disputed:
    """Return what is disputed in a window, as far as visible."""
    row = conn.execute(sa.text(_DISPUTED), window).one()
    return Disputed(row.lines, row.cost)
