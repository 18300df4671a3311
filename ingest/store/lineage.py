"""Writes lineage events and outcomes: each once, however often and in whatever order they come.

A run's row is made from all its events by rules that do not look at the order of arrival: the earliest event begins it, the
latest end ends it, and where events contradict each other about a word, the lesser text stays. A job's cluster and native id
are one word, a whole one before half of one. A run is of one tenant: its events come with tokens of that tenant, or all of
them with tokens of none.
"""
# ruff: noqa: S608 - the SQL is made of this module's own names; what senders say travels as parameters

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import sqlalchemy as sa
from psycopg.types.json import Jsonb

from ingest.errors import BadBodyError, ForbiddenError, UnavailableError
from ingest.receivers.open_lineage import ENDED, RunEvent
from ingest.receivers.outcomes import OutcomeReport
from ingest.store.outages import OUTAGES
from ingest.store.tenancy import ALL_TENANTS

_AT: Final = "timestamptz '1970-01-01 00:00:00+00' + %s * interval '1 microsecond'"
_ALONE: Final = ("kind", "parent_run_id", "model")
# Cluster and native id are one name of one job: put together from two events they would be a job that nobody named.
_JOB: Final = ("cluster", "native_id")
_NAMES_JOB_BETTER: Final = " < ".join(
    f"(num_nulls({row}.cluster, {row}.native_id), coalesce({row}.cluster, ''), coalesce({row}.native_id, ''))"
    for row in ("excluded", "old")
)
_WORDS: Final = (*_ALONE, *_JOB)
_RANK: Final = "array_position(ARRAY['other', 'start', 'running'], {0}.state)"
# least() takes the known one where the other is null, and the same one whichever came first.
_RUN: Final = (
    "INSERT INTO lineage_runs AS old (site_id, run_id, job_namespace, job_name, state, first_event_at, ended_at, origin, "
    f"tenant_id, {', '.join(_WORDS)}) VALUES (%s, %s, %s, %s, %s, {_AT}, {_AT}, %s, %s, {', '.join(['%s'] * len(_WORDS))}) "
    "ON CONFLICT (site_id, run_id) DO UPDATE SET "
    "job_namespace = least(old.job_namespace, excluded.job_namespace), job_name = least(old.job_name, excluded.job_name), "
    "first_event_at = least(old.first_event_at, excluded.first_event_at), "
    "ended_at = greatest(old.ended_at, excluded.ended_at), origin = greatest(old.origin, excluded.origin), "
    + ", ".join(f"{name} = least(old.{name}, excluded.{name})" for name in _ALONE)
    + "".join(f", {name} = CASE WHEN {_NAMES_JOB_BETTER} THEN excluded.{name} ELSE old.{name} END" for name in _JOB)
    + ", state = CASE "
    "WHEN old.ended_at = excluded.ended_at THEN least(old.state, excluded.state) "
    "WHEN excluded.ended_at > old.ended_at OR (excluded.ended_at IS NOT NULL AND old.ended_at IS NULL) THEN excluded.state "
    "WHEN old.ended_at IS NOT NULL THEN old.state "
    f"WHEN {_RANK.format('excluded')} > {_RANK.format('old')} THEN excluded.state ELSE old.state END "
    "WHERE old.tenant_id IS NOT DISTINCT FROM excluded.tenant_id RETURNING id"
)
_EVENT: Final = (
    "INSERT INTO lineage_events (lineage_run_id, event_type, event_at, producer, spec, facets, facets_ignored) "
    f"VALUES (%s, %s, {_AT}, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING true"
)
_DATASET: Final = (
    "INSERT INTO lineage_datasets AS old (lineage_run_id, direction, namespace, name, version, kind) "
    "SELECT * FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[]) "
    "ON CONFLICT (lineage_run_id, direction, namespace, name, version) "
    "DO UPDATE SET kind = least(old.kind, excluded.kind) WHERE old.kind IS DISTINCT FROM least(old.kind, excluded.kind)"
)
_AT_ONCE: Final = 20_000
"""Datasets a statement; one by one they take four times as long."""
_OUTCOME_COLUMNS: Final = (
    *("dedupe_key", "response_id", "trace_id", "span_id", "kind", "value", "value_unit", "score", "label"),
    *("serving_id", "model", "fine_tune_id", "dataset_ids", "source", "origin"),
)
_OUTCOME: Final = (
    f"INSERT INTO outcomes (site_id, tenant_id, judged_at, {', '.join(_OUTCOME_COLUMNS)}) VALUES (%s, %s, {_AT}, "
    f"{', '.join(['%s'] * len(_OUTCOME_COLUMNS))}) ON CONFLICT (site_id, dedupe_key) DO NOTHING RETURNING true"
)


@dataclass(frozen=True, slots=True)
class Kept:
    """How many were new, and how many were there already, word for word or by their own id."""

    new: int
    known: int


def write_events(engine: sa.Engine, site_id: int, tenant_path: str | None, events: Sequence[RunEvent]) -> Kept:
    """Commit run events; raises ForbiddenError, UnavailableError or BadBodyError."""
    return _committed(engine, tenant_path, lambda driver, tenant_id: _events(driver, site_id, tenant_id, events))


def write_outcomes(engine: sa.Engine, site_id: int, tenant_path: str | None, outcomes: Iterable[OutcomeReport]) -> Kept:
    """Commit outcomes; raises ForbiddenError, UnavailableError or BadBodyError."""
    # The same order for every writer: two that hold each other's keys would wait for ever.
    ordered = sorted(outcomes, key=lambda each: each.dedupe_key)
    return _committed(engine, tenant_path, lambda driver, tenant_id: _outcomes(driver, site_id, tenant_id, ordered))


def _events(
    driver: psycopg.Connection[Any], site_id: int, tenant_id: int | None, events: Sequence[RunEvent]
) -> list[bool]:
    new = []
    datasets: dict[tuple[int, str, str, str, str], str | None] = {}
    for event in sorted(events, key=lambda each: (each.run_id, each.event_at_us, each.event_type)):
        ended_us = event.event_at_us if event.event_type in ENDED else None
        whole = [
            site_id,
            event.run_id,
            event.job_namespace,
            event.job_name,
            event.event_type,
            event.event_at_us,
            ended_us,
        ]
        said = [getattr(event, name) for name in _WORDS]
        row = driver.execute(_RUN, [*whole, event.origin, tenant_id, *said]).fetchone()
        if row is None:
            raise ForbiddenError("run_of_another", f"run {event.run_id} was reported with a token of another tenant")
        facts = [event.producer, event.spec, Jsonb(dict(event.facets)), event.facets_ignored]
        inserted = driver.execute(_EVENT, [row[0], event.event_type, event.event_at_us, *facts]).fetchone()
        new.append(inserted is not None)
        if inserted is not None:
            for each in event.datasets:
                key = (row[0], each.direction, each.namespace, each.name, each.version)
                kinds = [kind for kind in (datasets.get(key), each.kind) if kind]
                datasets[key] = min(kinds, default=None)
    # The same order for every writer, as above.
    told = sorted(datasets)
    for at in range(0, len(told), _AT_ONCE):
        some = told[at : at + _AT_ONCE]
        driver.execute(_DATASET, [*map(list, zip(*some, strict=True)), [datasets[key] for key in some]])
    return new


def _outcomes(
    driver: psycopg.Connection[Any], site_id: int, tenant_id: int | None, outcomes: Sequence[OutcomeReport]
) -> list[bool]:
    new = []
    for outcome in outcomes:
        values = [getattr(outcome, name) for name in _OUTCOME_COLUMNS]
        values[_OUTCOME_COLUMNS.index("dataset_ids")] = (
            None if outcome.dataset_ids is None else list(outcome.dataset_ids)
        )
        inserted = driver.execute(_OUTCOME, [site_id, tenant_id, outcome.judged_at_us, *values]).fetchone()
        new.append(inserted is not None)
    return new


def _committed(engine: sa.Engine, tenant_path: str | None, write: Any) -> Kept:
    try:
        with engine.begin() as conn:
            driver: psycopg.Connection[Any] | None = conn.connection.driver_connection
            assert driver is not None  # noqa: S101 - a checked-out connection has one
            new = write(driver, _tenant_id(driver, tenant_path))
    except OUTAGES as error:
        raise UnavailableError("database_unavailable", "it cannot be kept now; send it again", 2) from error
    except (sa.exc.DBAPIError, psycopg.Error) as error:
        raise BadBodyError("refused_by_database", f"the database refuses it: {type(error).__name__}") from error
    return Kept(sum(new), len(new) - sum(new))


def _tenant_id(driver: psycopg.Connection[Any], path: str | None) -> int | None:
    """Return the tenant a token writes for; a token of all tenants, or of none, writes for nobody in particular."""
    if path is None or path == ALL_TENANTS:
        return None
    row = driver.execute("SELECT id FROM tenants WHERE path = %s", [path]).fetchone()
    if row is None:
        raise ForbiddenError("tenant_unknown", f"this token writes for {path!r}, which no tenants file names yet")
    return int(row[0])
