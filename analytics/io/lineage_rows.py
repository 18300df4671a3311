"""Reads what a chain of lineage is made of: calls, outcomes, runs, the datasets between runs, jobs.

What a connection may see decides what is found. ``any_call`` and ``outcomes_of`` are asked on a connection that sees every
tenant, because a call of the books' bindings carries no tenant of its own: their answer may leave only after
:func:`owner` said whose it is and the caller was found to cover that tenant.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psycopg
import sqlalchemy as sa

from analytics.frames import Bindings
from analytics.io.rows import fetch_frame
from analytics.io.tenant_moves import CURRENT
from analytics.model import tenancy
from ingest.store.call_stage import digest

_CALLS: Final = """
SELECT site_id, sites.name AS site, called_at, provider, model, api_key, response_id, trace_id, span_id, usage_known, status,
       source, origin, input_uncached_tokens, cache_read_tokens, cache_write_tokens, output_text_tokens, reasoning_tokens,
       audio_tokens, image_tokens, audio_input_tokens, audio_output_tokens, cache_write_1h_tokens, tenant_id, binding_id
FROM call_named(:name_key) AS named JOIN api_calls USING (site_id, called_at, dedupe_key)
JOIN sites ON sites.id = site_id ORDER BY called_at, site_id
"""
_OUTCOMES: Final = """
SELECT outcomes.*, tenants.path AS tenant FROM outcomes LEFT JOIN tenants ON tenants.id = outcomes.tenant_id
WHERE (CAST(:site_id AS integer) IS NULL OR site_id = :site_id)
AND (response_id = :response_id OR (trace_id = :trace_id AND span_id = :span_id))
ORDER BY judged_at, outcomes.id
"""
_RUN: Final = """
SELECT runs.*, sites.name AS site, tenants.path AS tenant FROM lineage_runs AS runs JOIN sites ON sites.id = runs.site_id
LEFT JOIN tenants ON tenants.id = runs.tenant_id
"""
_SERVING: Final = (
    _RUN
    + """
WHERE runs.kind = 'serving' AND runs.first_event_at <= :at AND (runs.ended_at IS NULL OR runs.ended_at >= :at)
AND (runs.model = :model OR EXISTS (SELECT FROM lineage_datasets AS given WHERE given.lineage_run_id = runs.id
     AND given.direction = 'input' AND given.name = :model))
ORDER BY runs.first_event_at DESC, runs.id DESC
"""
)
_WRITERS: Final = (
    _RUN
    + """
JOIN lineage_datasets AS made ON made.lineage_run_id = runs.id AND made.direction = 'output'
WHERE made.name = :name AND (CAST(:namespace AS text) IS NULL OR made.namespace = :namespace)
AND (:version = '' OR made.version IN ('', :version)) AND runs.kind IS DISTINCT FROM 'serving'
AND runs.first_event_at <= :before
ORDER BY (runs.state = 'complete' AND runs.ended_at <= :before) DESC, runs.ended_at DESC NULLS LAST, runs.id DESC
"""
)
BINDINGS: Final = """
SELECT id AS binding_id, position, tenant_id, cluster, account, partition, user_name, namespace, label, api_key, tag,
       valid_from, valid_to FROM bindings WHERE superseded_at IS NULL
"""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who pays for a call; ``path`` None = unmapped."""

    tenant_id: int | None
    path: str | None


def any_call(conn: sa.Connection, response_id: str) -> list[Any]:
    """Return the calls that count under this response (or request) id, one per site."""
    name_key = uuid.UUID(bytes=digest(f"id/{response_id}"))
    return list(conn.execute(sa.text(_CALLS), {"name_key": name_key}))


def outcomes_of(conn: sa.Connection, response_id: str, call: Any | None, owner: Owner | None) -> list[Any]:
    """Return what became of a response, oldest first: outcomes nobody in particular or somebody of its tenant's line told."""
    asked = {
        "response_id": response_id if call is None else call.response_id or response_id,
        "site_id": None if call is None else call.site_id,
        "trace_id": None if call is None else call.trace_id,
        "span_id": None if call is None else call.span_id,
    }
    found = list(conn.execute(sa.text(_OUTCOMES), asked))
    if owner is None:
        return found
    return [row for row in found if row.tenant is None or _related(row.tenant, owner.path)]


def owner(conn: sa.Connection, call: Any) -> Owner:
    """Return who pays for a call, as the books find it: a tenant an import named, else by the bindings of its hour."""
    tenant_id = call.tenant_id if call.binding_id is None else None
    hour_at = call.called_at.replace(minute=0, second=0, microsecond=0)
    if tenant_id is None:
        driver: psycopg.Connection[Any] | None = conn.connection.driver_connection
        assert driver is not None  # noqa: S101 - a checked-out connection has one
        bindings = fetch_frame(driver, BINDINGS, {}, Bindings)
        tenant_id = tenancy.explain({"api_key": call.api_key}, bindings, hour_at).tenant_id
    if tenant_id is None:
        return Owner(None, None)
    tenant_id = tenancy.follow(tenant_id, [dict(row) for row in conn.execute(sa.text(CURRENT)).mappings()], hour_at)[-1]
    path = conn.execute(sa.text("SELECT path FROM tenants WHERE id = :id"), {"id": tenant_id}).scalar_one_or_none()
    return Owner(tenant_id, path)


def serving_runs(conn: sa.Connection, model: str, at: datetime) -> list[Any]:
    """Return the runs that served a model at an instant, the latest begun first."""
    return list(conn.execute(sa.text(_SERVING), {"model": model, "at": at}))


def run_by_id(conn: sa.Connection, run_id: str) -> Any | None:
    statement = sa.text(_RUN + " WHERE runs.run_id = :run_id ORDER BY runs.id LIMIT 1")
    return conn.execute(statement, {"run_id": run_id}).one_or_none()


def run_of_job(conn: sa.Connection, job: Any, native_id: str) -> Any | None:
    """Return the first run that says it is a job, by the job's own id or by ``native_id``, which may be of all its parts."""
    statement = sa.text(
        _RUN
        + " WHERE runs.cluster = :cluster AND runs.native_id IN (:native_id, :asked) AND runs.first_event_at >= :started_at "
        "- interval '10 minutes' AND (CAST(:ended_at AS timestamptz) IS NULL OR runs.first_event_at <= :ended_at) "
        "ORDER BY runs.parent_run_id NULLS FIRST, runs.first_event_at, runs.id LIMIT 1"
    )
    asked = {name: getattr(job, name) for name in ("cluster", "native_id", "started_at", "ended_at")}
    return conn.execute(statement, {**asked, "asked": native_id}).one_or_none()


def datasets(conn: sa.Connection, run: Any, direction: str) -> list[Any]:
    """Return what a run read or wrote, by name."""
    statement = sa.text(
        "SELECT namespace, name, version, kind FROM lineage_datasets WHERE lineage_run_id = :id AND direction = :direction "
        "ORDER BY namespace, name, version"
    )
    return list(conn.execute(statement, {"id": run.id, "direction": direction}))


def writers(conn: sa.Connection, namespace: str | None, name: str, version: str, before: datetime) -> list[Any]:
    """Return the runs that wrote a dataset before an instant: completed ones first, the latest of them ahead."""
    asked = {"namespace": namespace, "name": name, "version": version, "before": before}
    return list(conn.execute(sa.text(_WRITERS), asked))


def tokens_of(call: Any) -> Mapping[str, int]:
    """Return the token parts a call reports, by part; what is not reported or none is left out."""
    parts = (
        *("input_uncached", "cache_read", "cache_write", "cache_write_1h", "audio_input"),
        *("output_text", "reasoning", "audio_output", "audio", "image"),
    )
    found = {f"{part}_tokens": getattr(call, f"{part}_tokens") for part in parts}
    return {name: count for name, count in found.items() if count}


def _related(path: str, other: str | None) -> bool:
    return other is not None and (path == other or path.startswith(f"{other}/") or other.startswith(f"{path}/"))
