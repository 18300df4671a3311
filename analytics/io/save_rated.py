"""Writes what a rating of one closed hour changed, in one transaction, or nothing: lines, tenants of jobs, findings. No usage hour.

The same compare-and-swap as for a close guards it (``runs``). Minutes by tenant hang on readings, which a rating does not read: where a job
changed hands they are made anew with the other minutes that are due (``due_minutes``), else they stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl
import psycopg

from analytics.io.book_rows import bind_jobs, content_with, difference, insert_rows
from analytics.io.counted import count_lines
from analytics.io.due_minutes import keep_minutes
from analytics.io.findings import replace_findings
from analytics.io.runs import HourState, Kind, LostRaceError, Made, Run, Saved, locked
from analytics.pipeline import content_hash

_MOVED = """
SELECT EXISTS (
    SELECT FROM current_usage_hours AS used JOIN unnest(%(jobs)s::bigint[], %(tenants)s::integer[]) AS rated (job_id, tenant_id) USING (job_id)
    WHERE used.site_id = %(site_id)s AND used.hour_at = %(hour_at)s AND used.tenant_id IS DISTINCT FROM rated.tenant_id)
"""


@dataclass(frozen=True, slots=True)
class RatedBooks:
    """The rows of one hour, of the frames of the same names; ``usage`` is what is stored, under the tenants of now."""

    usage: pl.DataFrame
    lines: pl.DataFrame
    findings: pl.DataFrame
    job_tenants: pl.DataFrame


def save_rated(connection: psycopg.Connection[Any], state: HourState, books: RatedBooks, run: Run) -> Saved:
    """Write one closed hour's rating in one transaction; nothing is written if another run got there first or is at it."""
    try:
        with connection.transaction():
            return _save(connection, state, books, run)
    except (LostRaceError, psycopg.errors.LockNotAvailable):
        return Saved.LOST_RACE


def _save(connection: psycopg.Connection[Any], state: HourState, books: RatedBooks, run: Run) -> Saved:
    of_usage = content_hash(books.usage)
    content = content_with(of_usage, books.lines, closed=True)
    current = locked(connection, state)
    if current is None:
        raise LostRaceError
    at = {"site_id": state.site_id, "hour_at": state.hour_at}
    if current.content == content:
        connection.execute(
            "UPDATE ledger_hours SET seen_xid = %(seen_xid)s::xid8, closed_at = now() "
            "WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s",
            at | {"seen_xid": run.seen_xid},
        )
        replace_findings(connection, state.site_id, state.hour_at, books.findings)
        return Saved.UNCHANGED
    owners = {name: books.job_tenants[f"{name}_id"].to_list() for name in ("job", "tenant")}
    given = at | {"jobs": owners["job"], "tenants": owners["tenant"]}
    is_moved = connection.execute(_MOVED, given).fetchone() == (True,)
    revision = current.revision + 1
    diff = difference(connection, state, books.lines)
    made = Made(Kind.RATE, revision, current.usage_revision, content, of_usage, diff)
    count_lines(connection, state, run, current, made, books.lines)
    insert_rows(connection, "hour_jobs", state, revision, books.job_tenants)
    replace_findings(connection, state.site_id, state.hour_at, books.findings)
    bind_jobs(connection, state, books.job_tenants)
    if not is_moved:
        keep_minutes(connection, state.site_id, state.hour_at, current.run_id)
    return Saved.WRITTEN
