"""What one hop of a chain cost and drew, from the books that count: the lines of its jobs, or a call's share of its line.

An amount nobody knows is None with the reason beside it, never 0. It prices nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any, Final

import sqlalchemy as sa

from analytics.io.lineage_jobs import Work, some
from analytics.io.lineage_rows import Owner, tokens_of
from collector.wire import Origin

PLACES: Final = Decimal("1E-15")
"""A call is a small part of a line: its share is rounded, once, to places at which a million calls still add up to it."""
_JOB_COST: Final = """
SELECT job_id, currency, sum(billed_cost) AS cost, sum(carbon_gco2e) AS carbon_gco2e, count(*) FILTER (WHERE billed_cost IS NULL) AS unpriced,
       bool_or(status = 'provisional') AS provisional, array_agg(DISTINCT source) AS sources, array_agg(DISTINCT origin) AS origins
FROM current_ledger_lines WHERE job_id = ANY (:job_ids) AND site_id = ANY (:site_ids) AND hour_at >= :from_at
AND (CAST(:to_at AS timestamptz) IS NULL OR hour_at <= :to_at) GROUP BY job_id, currency
"""
_JOB_ENERGY: Final = """
SELECT job_id, sum(energy_mj) AS energy_mj, sum(covered_us) AS covered_us,
       sum(held_us) AS held_us, array_agg(DISTINCT source) FILTER (WHERE energy_mj IS NOT NULL) AS sources,
       array_agg(DISTINCT origin) AS origins
FROM current_usage_hours WHERE job_id = ANY (:job_ids) GROUP BY job_id
"""
# The key of a line ends in part, category and price; what is before is the tenant, the key and the model.
_CALL_LINES: Final = """
SELECT split_part(substr(line_key, length(:prefix) + 1), '|', 1) AS part, billed_cost, quantity, lines.currency, lines.status,
       lines.source, lines.origin
FROM current_ledger_lines AS lines LEFT JOIN prices ON prices.id = lines.price_id
WHERE lines.site_id = :site_id AND hour_at = :hour_at AND pool = 'api' AND starts_with(line_key, :prefix)
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


def of_work(conn: sa.Connection, work: Work) -> HopFigures:
    """Return what all jobs of a hop cost and drew so far, all their hours together; ``unknown`` names what is in no sum."""
    margin = timedelta(hours=1)
    ends = [job.ended_at for job in work.jobs]
    asked = {
        "job_ids": [job.id for job in work.jobs],
        "site_ids": sorted({job.site_id for job in work.jobs}),
        "from_at": min(job.started_at for job in work.jobs) - margin,
        "to_at": None if None in ends else max(ends) + margin,
    }
    lines = list(conn.execute(sa.text(_JOB_COST), asked))
    drawn = list(conn.execute(sa.text(_JOB_ENERGY), {"job_ids": asked["job_ids"]}))
    currencies = sorted({line.currency for line in lines})
    priced = [line for line in lines if line.cost is not None]
    metered = [row for row in drawn if row.energy_mj is not None]
    held_us = sum(int(row.held_us or 0) for row in drawn)
    in_books = {line.job_id for line in lines}
    return HopFigures(
        cost=_sum(line.cost for line in priced) if len(currencies) == 1 else None,
        currency=currencies[0] if len(currencies) == 1 else None,
        energy_mj=sum(int(row.energy_mj) for row in metered) if metered else None,
        carbon_gco2e=_sum(line.carbon_gco2e for line in lines),
        coverage=float(sum(int(row.covered_us or 0) for row in drawn) / held_us) if held_us else None,
        unpriced_lines=sum(line.unpriced for line in lines),
        status=None if not lines else "provisional" if any(line.provisional for line in lines) else "closed",
        basis=work.basis if lines else None,
        sources=tuple(
            sorted({each for row in drawn for each in row.sources or ()} | {s for line in lines for s in line.sources})
        ),
        origins=_origins({each for row in (*drawn, *lines) for each in row.origins or ()}),
        unknown=(
            *_not_in(work, in_books, currencies, {row.job_id for row in metered}, priced=bool(priced)),
            *work.missing,
        ),
    )


def _not_in(
    work: Work, in_books: set[int], currencies: Sequence[str], metered: set[int], *, priced: bool
) -> Iterator[str]:
    """Yield what the sums of a hop are without."""
    if not in_books:
        yield (
            "no hour of this job is in the books yet"
            if len(work.jobs) == 1
            else f"no hour of its {len(work.jobs)} jobs is in the books yet"
        )
        return
    absent = [job for job in work.jobs if job.id not in in_books]
    if absent:
        yield f"of {len(absent)} of its {len(work.jobs)} jobs no hour is in the books yet: {some(absent)}"
    if len(currencies) > 1:
        yield f"its lines are in several currencies: {', '.join(currencies)}"
    elif not priced:
        yield "none of its lines has a price"
    dark = [job for job in work.jobs if job.id in in_books and job.id not in metered]
    if len(dark) == len(in_books):
        yield "no meter saw its energy"
    elif dark:
        yield f"no meter saw the energy of {len(dark)} of its {len(work.jobs)} jobs: {some(dark)}"


def _sum(amounts: Iterable[Decimal | None]) -> Decimal | None:
    known = [amount for amount in amounts if amount is not None]
    with localcontext() as context:
        context.prec = 60
        return sum(known, Decimal(0)) if known else None


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
