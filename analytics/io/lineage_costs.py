"""What one hop of a chain cost and drew, from the books that count: a job's lines, or a call's share of its line.

An amount nobody knows is None with the reason beside it, never 0. It prices nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any, Final

import sqlalchemy as sa

from analytics.io.lineage_rows import Owner, tokens_of
from collector.wire import Origin

PLACES: Final = Decimal("1E-15")
"""A call is a small part of a line: its share is rounded, once, to places at which a million calls still add up to it."""
_JOB_COST: Final = """
SELECT currency, sum(billed_cost) AS cost, count(*) FILTER (WHERE billed_cost IS NULL) AS unpriced,
       bool_or(status = 'provisional') AS provisional, array_agg(DISTINCT source) AS sources, array_agg(DISTINCT origin) AS origins
FROM current_ledger_lines WHERE job_id = :job_id AND site_id = :site_id AND hour_at >= :from_at
AND (CAST(:to_at AS timestamptz) IS NULL OR hour_at <= :to_at) GROUP BY currency
"""
_JOB_ENERGY: Final = """
SELECT sum(energy_mj) AS energy_mj, sum(carbon_gco2e) AS carbon_gco2e, sum(covered_us) AS covered_us, sum(held_us) AS held_us,
       array_agg(DISTINCT source) FILTER (WHERE energy_mj IS NOT NULL) AS sources, array_agg(DISTINCT origin) AS origins
FROM current_usage_hours WHERE job_id = :job_id
"""
# The key of a line ends in part, category and price; what is before is the tenant, the key and the model.
_CALL_LINES: Final = """
SELECT split_part(substr(line_key, length(:prefix) + 1), '|', 1) AS part, billed_cost, quantity, lines.currency, lines.status,
       lines.source, lines.origin
FROM current_ledger_lines AS lines LEFT JOIN prices ON prices.id = lines.price_id
WHERE site_id = :site_id AND hour_at = :hour_at AND pool = 'api' AND starts_with(line_key, :prefix)
AND (prices.id IS NULL OR (prices.valid_from <= :called_at AND (prices.valid_to IS NULL OR prices.valid_to > :called_at))
     OR prices.superseded_at IS NOT NULL)
"""
_CLOSED: Final = "SELECT status FROM ledger_hours WHERE site_id = :site_id AND hour_at = :hour_at"


@dataclass(frozen=True, slots=True)
class HopFigures:
    """``cost`` and ``energy_mj`` None: unknown, and ``unknown`` says why. ``coverage``: share of the time with a meter, 0 to 1."""

    cost: Decimal | None = None
    currency: str | None = None
    energy_mj: int | None = None
    carbon_gco2e: Decimal | None = None
    coverage: float | None = None
    unpriced_lines: int = 0
    """Of a cost that is known in part: it is at least what is given."""
    status: str | None = None
    basis: str | None = None
    sources: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def of_job(conn: sa.Connection, job: Any) -> HopFigures:
    """Return what a job cost and drew so far, all its hours together."""
    margin = timedelta(hours=1)
    asked = {
        "job_id": job.id,
        "site_id": job.site_id,
        "from_at": job.started_at - margin,
        "to_at": None if job.ended_at is None else job.ended_at + margin,
    }
    lines = list(conn.execute(sa.text(_JOB_COST), asked))
    energy = conn.execute(sa.text(_JOB_ENERGY), {"job_id": job.id}).one()
    unknown = []
    if not lines:
        unknown.append("no hour of this job is in the books yet")
    elif len(lines) > 1:
        unknown.append(f"its lines are in several currencies: {', '.join(sorted(line.currency for line in lines))}")
    elif lines[0].cost is None:
        unknown.append("none of its lines has a price")
    if energy.energy_mj is None and lines:
        unknown.append("no meter saw its energy")
    one = lines[0] if len(lines) == 1 else None
    return HopFigures(
        cost=None if one is None else one.cost,
        currency=None if one is None else one.currency,
        energy_mj=None if energy.energy_mj is None else int(energy.energy_mj),
        carbon_gco2e=energy.carbon_gco2e,
        coverage=float(energy.covered_us / energy.held_us) if energy.held_us else None,
        unpriced_lines=sum(line.unpriced for line in lines),
        status=None if not lines else "provisional" if any(line.provisional for line in lines) else "closed",
        basis="all hours of the job" if lines else None,
        sources=tuple(sorted({*(energy.sources or ()), *(each for line in lines for each in line.sources)})),
        origins=_origins({*(energy.origins or ()), *(each for line in lines for each in line.origins)}),
        unknown=tuple(unknown),
    )


def of_call(conn: sa.Connection, call: Any, owner: Owner) -> HopFigures:
    """Return the share of one call in the lines of its hour, key and model, by tokens of each part."""
    hour_at = call.called_at.replace(minute=0, second=0, microsecond=0)
    tenant = "-" if owner.tenant_id is None else str(owner.tenant_id)
    prefix = f"{tenant}|api:{call.api_key or '-'}|{call.provider}/{call.model}/"
    asked = {"site_id": call.site_id, "hour_at": hour_at, "prefix": prefix, "called_at": call.called_at}
    lines = {line.part: line for line in conn.execute(sa.text(_CALL_LINES), asked)}
    status = conn.execute(sa.text(_CLOSED), asked).scalar_one_or_none()
    used = tokens_of(call)
    why = _why_unknown(call, used, lines, status)
    currencies = {lines[part].currency for part in used if part in lines}
    cost = None
    if not why and used:
        with localcontext() as context:
            context.prec = 60
            shares = [lines[part].billed_cost * count / lines[part].quantity for part, count in used.items()]
            cost = sum(shares, Decimal(0)).quantize(PLACES, ROUND_HALF_EVEN)
    return HopFigures(
        cost=cost,
        currency=next(iter(currencies)) if len(currencies) == 1 else None,
        status=status,
        basis="its share, by tokens, of the ledger lines of its hour, key and model" if cost is not None else None,
        sources=tuple(sorted({line.source for line in lines.values()})),
        origins=_origins({call.origin}),
        unknown=(*why, "the energy of a call is in its serving job, where that is known"),
    )


def _why_unknown(call: Any, used: Any, lines: Any, status: str | None) -> tuple[str, ...]:
    if not call.usage_known:
        return ("its sender told no token counts",)
    if status is None:
        return ("its hour is not in the books yet",)
    missing = [part for part in used if part not in lines]
    if missing:
        return (f"the books of its hour do not hold it yet: no line for {', '.join(missing)}",)
    unpriced = [part for part in used if lines[part].billed_cost is None]
    if unpriced:
        return (f"no price for {', '.join(unpriced)} of {call.provider}/{call.model}",)
    return () if used else ("it used no tokens",)


def _origins(origins: set[int]) -> tuple[str, ...]:
    return tuple(Origin(each).name.lower() for each in sorted(origins))
