"""Stores a bindings file as dated rows and says what it leaves unmapped. A changed file supersedes rows, it updates none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from analytics.frames import Bindings
from analytics.io.bindings import EVER, BindingFile, check
from analytics.io.rows import fetch_frame
from analytics.io.tenant_moves import current
from analytics.model import tenancy

_FIELDS: Final = ", ".join(tenancy.FIELDS)


@dataclass(frozen=True, slots=True)
class Applied:
    """What a file changed. All zero: it says what was known."""

    rules_added: int
    rules_superseded: int
    tenants_added: int
    details_changed: int


@dataclass(frozen=True, slots=True)
class Unmapped:
    """Usage of the closed books that no rule gives to a tenant, by what a rule could match."""

    cluster: str | None
    account: str | None
    user_name: str | None
    partition: str | None
    namespace: str | None
    api_key: str | None
    currency: str
    billed_cost: Decimal
    accelerator_us: int
    tokens: int
    unpriced_lines: int
    usage_unknown_calls: int


@dataclass(frozen=True, slots=True)
class StoredExplanation:
    """Why one stored run of a job, or a key, is paid by whom."""

    subject: Mapping[str, str | None]
    at: datetime
    tenant: str | None
    steps: tuple[str, ...]


def apply(conn: psycopg.Connection[Any], text: str, now: datetime) -> Applied:
    """Make the file's rules the current ones; raise BindingsError and change nothing if it is not valid.

    Its hours are closed again with them, past ones included: rules are dated, so a rule for the future leaves the past.
    """
    file = check(text)
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('wattledger.bindings', 0))")
        tenant_ids, tenants_added = _tenants(conn, file)
        details = _details(conn, file, tenant_ids, now)
        added, superseded = _rules(conn, file, tenant_ids, now)
        return Applied(added, superseded, tenants_added, details)


def unmapped(conn: psycopg.Connection[Any], top: int) -> list[Unmapped]:
    """Return the largest unmapped usage of the current books, dearest first, then longest."""
    with conn.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT jobs.cluster, jobs.account, jobs.user_name, jobs.partition, jobs.namespace, lines.api_key, "
            "lines.currency, coalesce(sum(lines.billed_cost), 0) AS billed_cost, "
            "coalesce(sum(lines.quantity) FILTER (WHERE quantity_unit = 'accelerator-us'), 0)::bigint AS accelerator_us, "
            "coalesce(sum(lines.quantity) FILTER (WHERE quantity_unit = 'token'), 0)::bigint AS tokens, "
            "count(*) FILTER (WHERE lines.billed_cost IS NULL AND quantity_unit <> 'request') AS unpriced_lines, "
            "coalesce(sum(lines.quantity) FILTER (WHERE quantity_unit = 'request'), 0)::bigint AS usage_unknown_calls "
            "FROM current_ledger_lines AS lines LEFT JOIN jobs ON jobs.id = lines.job_id "
            "WHERE lines.tenant_id IS NULL AND lines.pool IN ('job', 'api') GROUP BY 1, 2, 3, 4, 5, 6, 7 "
            "ORDER BY billed_cost DESC, accelerator_us DESC, tokens DESC, 1, 2, 3, 4, 5, 6, 7 LIMIT %s",
            [top],
        )
        return [Unmapped(**row) for row in cursor]


def explain_stored(conn: psycopg.Connection[Any], identity: str, now: datetime) -> list[StoredExplanation]:
    """Explain each run of the job with this native id (latest first, 20 at most), or the API key of this name."""
    with conn.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT cluster, account, partition, user_name, namespace, label, started_at FROM jobs "
            "WHERE native_id = %s ORDER BY started_at DESC LIMIT 20",
            [identity],
        )
        jobs = cursor.fetchall()
        if not jobs:
            cursor.execute("SELECT api_key, now() AS started_at FROM api_calls WHERE api_key = %s LIMIT 1", [identity])
            jobs = cursor.fetchall()
    paths: dict[int, str] = dict(conn.execute("SELECT id, path FROM tenants").fetchall())
    query = (
        f"SELECT id AS binding_id, position, tenant_id, {_FIELDS}, valid_from, valid_to FROM bindings "  # noqa: S608 - constants
        "WHERE superseded_at IS NULL"
    )
    bindings = fetch_frame(conn, query, {}, Bindings)
    moves = current(conn)
    found = []
    for job in jobs:
        at = min(job.pop("started_at"), now)
        why = tenancy.explain(job, bindings, at)
        way = () if why.tenant_id is None else tenancy.follow(why.tenant_id, moves, at)
        steps = (*why.steps, *(f"{paths[one]} has moved: {paths[other]} pays" for one, other in pairwise(way)))
        found.append(StoredExplanation(job, at, paths[way[-1]] if way else None, steps))
    return found


def _tenants(conn: psycopg.Connection[Any], file: BindingFile) -> tuple[dict[str, int], int]:
    paths = sorted(tenant.path for tenant in file.tenants)
    added = conn.execute(
        "INSERT INTO tenants (path) SELECT wanted FROM unnest(%s::text[]) AS wanted "
        "WHERE NOT EXISTS (SELECT FROM tenants WHERE path = wanted) ON CONFLICT DO NOTHING",
        [paths],
    ).rowcount
    rows = conn.execute("SELECT path, id FROM tenants WHERE path = ANY (%s)", [paths]).fetchall()
    return dict(rows), added


def _details(conn: psycopg.Connection[Any], file: BindingFile, tenant_ids: Mapping[str, int], now: datetime) -> int:
    wanted = {
        tenant_ids[tenant.path]: (tenant.contact, tenant.cost_centre)
        for tenant in file.tenants
        if tenant.contact is not None or tenant.cost_centre is not None
    }
    known: dict[int, tuple[str | None, str | None]] = {
        tenant_id: (contact, cost_centre)
        for tenant_id, contact, cost_centre in conn.execute(
            "SELECT tenant_id, contact, cost_centre FROM tenant_details WHERE superseded_at IS NULL AND valid_to IS NULL"
        )
    }
    gone = [tenant_id for tenant_id in known if known[tenant_id] != wanted.get(tenant_id)]
    new = [tenant_id for tenant_id in wanted if known.get(tenant_id) != wanted[tenant_id]]
    conn.execute(
        "UPDATE tenant_details SET superseded_at = %s WHERE superseded_at IS NULL AND tenant_id = ANY (%s)", [now, gone]
    )
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO tenant_details (tenant_id, contact, cost_centre, valid_from, recorded_at) "
            "VALUES (%s, %s, %s, %s, %s)",
            [(tenant_id, *wanted[tenant_id], EVER, now) for tenant_id in new],
        )
    return len(set(gone) | set(new))


def _rules(
    conn: psycopg.Connection[Any], file: BindingFile, tenant_ids: Mapping[str, int], now: datetime
) -> tuple[int, int]:
    wanted: list[tuple[Any, ...]] = [
        (
            position,
            tenant_ids[rule.tenant],
            *(rule.patterns.get(field) for field in tenancy.FIELDS),
            rule.valid_from,
            rule.valid_to,
        )
        for position, rule in enumerate(file.rules, start=1)
    ]
    known = {
        row[1:]: row[0]
        for row in conn.execute(
            f"SELECT id, position, tenant_id, {_FIELDS}, valid_from, valid_to FROM bindings "  # noqa: S608 - constants
            "WHERE superseded_at IS NULL"
        )
    }
    added = [row for row in wanted if row not in known]
    gone = [row for row in known if row not in set(wanted)]
    conn.execute("UPDATE bindings SET superseded_at = %s WHERE id = ANY (%s)", [now, [known[row] for row in gone]])
    with conn.cursor() as cursor:
        cursor.executemany(
            f"INSERT INTO bindings (position, tenant_id, {_FIELDS}, valid_from, valid_to, recorded_at) "  # noqa: S608
            f"VALUES ({', '.join(['%s'] * (len(tenancy.FIELDS) + 5))})",
            [(*row, now) for row in added],
        )
    _mark_changed(conn, [*added, *gone], now)
    return len(added), len(gone)


def _mark_changed(conn: psycopg.Connection[Any], rows: Sequence[tuple[Any, ...]], now: datetime) -> None:
    if rows:
        latest = now + timedelta(hours=1)  # no later hour is closed
        from_at = min(row[-2] for row in rows)
        to_at = max(from_at, *(latest if row[-1] is None else row[-1] for row in rows))
        conn.execute("INSERT INTO changes (from_at, to_at, kind) VALUES (%s, %s, 'bindings')", [from_at, to_at])
