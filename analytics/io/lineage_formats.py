"""A chain as JSON-ready mappings and as flat rows: every digit, units in the names."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from analytics.io.lineage import Chain, Hop
from analytics.io.lineage_jobs import named
from analytics.io.statement_formats import rfc3339
from analytics.units import MJ_PER_KWH

MAX_NAMED: Final = 100
"""Of the jobs of one hop, those whose names are in it; the count is of all."""


def as_dict(chain: Chain) -> dict[str, Any]:
    """Return the whole chain, ready for JSON."""
    broken = chain.breaks_at
    return {
        "response_id": chain.response_id,
        "complete": broken is None,
        "breaks_at": None if broken is None else broken.hop,
        "break_reason": None if broken is None else broken.reason,
        "hops": [hop_row(hop) for hop in chain.hops],
        "outcomes": [{name: _plain(value) for name, value in outcome.items()} for outcome in chain.outcomes],
    }


def hop_row(hop: Hop) -> dict[str, Any]:
    """Return one hop by name and unit. Amounts are decimal strings; null is unknown, and ``unknown`` says why."""
    figures = hop.figures
    return {
        "hop": hop.hop,
        "found": hop.found,
        "name": hop.name,
        "run_id": hop.run_id,
        "job": hop.job,
        "jobs": [] if hop.work is None else list(dict.fromkeys(named(job) for job in hop.work.jobs))[:MAX_NAMED],
        "job_count": 0 if hop.work is None else len(hop.work.jobs),
        "tenant": hop.tenant,
        "start_at": _plain(hop.start_at),
        "end_at": _plain(hop.end_at),
        "state": hop.state,
        "depth": hop.depth,
        "cost": _plain(figures.cost),
        "currency": figures.currency,
        "unpriced_lines": figures.unpriced_lines,
        "energy_kwh": None if figures.energy_mj is None else _plain(Decimal(figures.energy_mj) / MJ_PER_KWH),
        "carbon_gco2e": _plain(figures.carbon_gco2e),
        "coverage_ratio": None if figures.coverage is None else round(figures.coverage, 6),
        "books": figures.status,
        "basis": figures.basis,
        "sources": list(figures.sources),
        "origins": list(figures.origins),
        "reason": hop.reason,
        "unknown": list(figures.unknown),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return format(value.normalize(), "f")
    return rfc3339(value) if isinstance(value, datetime) else value
