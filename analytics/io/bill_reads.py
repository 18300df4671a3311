"""Lines of a period by tenant, from sums where these hold: what a bill by tenant, its currency and its mapped share are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final

import sqlalchemy as sa

from analytics.io import bill_sql

SIX_PLACES: Final = Decimal("1E-6")
_USED: Final = ("job", "api")


@dataclass(frozen=True, slots=True)
class TenantLines:
    """Lines of one tenant, pool, category and currency, summed. Null amounts are unknown, not zero."""

    tenant: str
    """A path, or what stands in place of one."""
    is_mapped: bool
    pool: str
    charge_category: str
    currency: str
    cost: Decimal | None
    lines: int
    """That have something to price; ``unpriced`` of them have no price."""
    unpriced: int
    usage_unknown: int
    energy_mj: int | None
    carbon_gco2e: Decimal | None
    tokens: int | None
    source_bits: int
    origin_bits: int


def tenant_lines(conn: sa.Connection, window: Mapping[str, Any]) -> list[TenantLines]:
    """Return the lines of [from_at, to_at), of all that is visible or of the subtree ``path``."""
    return [
        TenantLines(
            tenant=row.tenant,
            is_mapped=row.tenant_id is not None,
            pool=row.pool,
            charge_category=row.charge_category,
            currency=row.currency,
            cost=row.cost,
            lines=int(row.lines),
            unpriced=int(row.unpriced),
            usage_unknown=int(row.usage_unknown or 0),
            energy_mj=None if row.energy_mj is None else int(row.energy_mj),
            carbon_gco2e=row.carbon_gco2e,
            tokens=None if row.tokens is None else int(row.tokens),
            source_bits=row.source_bits,
            origin_bits=row.origin_bits,
        )
        for row in conn.execute(sa.text(bill_sql.LINES), dict(window))
    ]


def currencies(lines: Iterable[TenantLines]) -> list[str]:
    """Return what the lines with a cost are in."""
    return sorted({line.currency for line in lines if line.cost is not None})


def share_mapped(lines: Iterable[TenantLines], currency: str | None) -> Decimal | None:
    """Return the share of used cost, of jobs and API calls, that belongs to a tenant, to 6 places; None where nothing was used."""
    used = [line for line in lines if line.pool in _USED and line.currency == currency and line.cost is not None]
    whole = sum((line.cost for line in used if line.cost is not None), Decimal(0))
    mapped = sum((line.cost for line in used if line.cost is not None and line.is_mapped), Decimal(0))
    return (mapped / whole).quantize(SIX_PLACES, ROUND_HALF_EVEN) if whole else None


def priced_in(lines: Iterable[TenantLines], currency: str | None) -> Iterator[dict[str, Any]]:
    """Yield each as figures in one currency: a line in another has no price in this."""
    for line in lines:
        ours = line.currency == currency
        yield {
            "key": line.tenant,
            "tenant": line.tenant,
            "charge_category": line.charge_category,
            "cost": line.cost if ours else None,
            "unpriced": line.unpriced if ours else line.lines,
            "usage_unknown": line.usage_unknown,
            "energy_mj": line.energy_mj,
            "carbon_gco2e": line.carbon_gco2e,
            "tokens": line.tokens,
            "source_bits": line.source_bits,
            "origin_bits": line.origin_bits,
        }
