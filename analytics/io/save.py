"""Writes the books of one hour in one transaction, or nothing.

Exclusion is a row: the transaction swaps ``ledger_hours`` from the run it was computed against to its own; whoever comes
second finds another run there and writes nothing. A closed hour gets revisions 1, 2, ...; its rows are append-only. The
open window is revision 0, replaced in place. An hour whose content did not change gets no new revision: what it was computed of
this time is on record as a run that attests the revision. Findings are no content: they come and go without a revision.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, LiteralString

import polars as pl
import psycopg
from psycopg.types.json import Jsonb

from analytics.io.findings import replace_findings
from analytics.io.manifest import Manifest
from analytics.io.readings import Silences
from analytics.io.references import Known
from analytics.io.rollups import replace_tenant_minutes
from analytics.pipeline import Window, content_hash
from analytics.policy import Policy
from analytics.version import METHOD_VERSION
from ingest.store.copy import copy_statement, encode

PROVISIONAL: Final = 0
"""Revision of the open window."""


class Saved(StrEnum):
    """What became of an hour."""

    WRITTEN = "written"
    UNCHANGED = "unchanged"
    LOST_RACE = "lost_race"


@dataclass(frozen=True, slots=True)
class HourState:
    """What ``ledger_hours`` said when the hour was picked; null fields = never closed."""

    site_id: int
    hour_at: datetime
    revision: int | None
    run_id: int | None
    status: str | None


@dataclass(frozen=True, slots=True)
class Run:
    """What is true of the computation behind the rows, enough to repeat it."""

    code_version: str
    as_of: Known
    seen_xid: str
    read: Manifest
    policy: Policy
    reason: str
    generation: int = 0
    """Of the sealed segments the hour's samples were read from; 0 = the hot tables."""


@dataclass(frozen=True, slots=True)
class HourBooks:
    """The rows of one hour, of the frames of the same names."""

    usage: pl.DataFrame
    lines: pl.DataFrame
    findings: pl.DataFrame
    quality: pl.DataFrame
    rollups: pl.DataFrame
    tenant_minutes: pl.DataFrame
    job_tenants: pl.DataFrame


def save_hour(
    connection: psycopg.Connection[Any], state: HourState, books: HourBooks, run: Run, *, closed: bool
) -> Saved:
    """Write one hour's books in one transaction; nothing is written if another run got there first or is at it."""
    try:
        return _save_in_transaction(connection, state, books, run, closed=closed)
    except (_LostRaceError, psycopg.errors.LockNotAvailable):
        return Saved.LOST_RACE


class _LostRaceError(Exception):
    """Another run took the hour; leaves the transaction so that it rolls back."""


def _save_in_transaction(
    connection: psycopg.Connection[Any], state: HourState, books: HourBooks, run: Run, *, closed: bool
) -> Saved:
    content = _content(books, closed=closed)
    with connection.transaction():
        current = connection.execute(
            "SELECT run_id, content_sha256, revision FROM ledger_hours WHERE site_id = %s AND hour_at = %s FOR UPDATE",
            (state.site_id, state.hour_at),
        ).fetchone()
        if (current[0] if current else None) != state.run_id:
            return Saved.LOST_RACE
        if current is not None and bytes(current[1]) == content:
            _attest(connection, state, books, run, revision=current[2], content=content, closed=closed)
            _replace_rollups(connection, state, books)  # a late reading may move energy between its minutes
            replace_findings(connection, state.site_id, state.hour_at, books.findings)
            return Saved.UNCHANGED
        revision = _next_revision(state, closed=closed)
        diff = _difference(connection, state, books) if state.status == "closed" else None
        run_id = _insert_run(connection, state, books, run, kind="close", revision=revision, content=content, diff=diff)
        if not _swap(connection, state, run, revision=revision, run_id=run_id, content=content, closed=closed):
            raise _LostRaceError
        if state.revision == PROVISIONAL:
            connection.execute("SELECT clear_provisional(%s, %s)", (state.site_id, state.hour_at))
        _insert_rows(connection, "usage_hours", state, revision, books.usage)
        _insert_rows(connection, "ledger_lines", state, revision, books.lines)
        _replace_rollups(connection, state, books)
        replace_findings(connection, state.site_id, state.hour_at, books.findings)
        _bind_jobs(connection, state, books.job_tenants)
        if closed:
            _pin(connection, state, run)
        return Saved.WRITTEN


def _attest(
    connection: psycopg.Connection[Any],
    state: HourState,
    books: HourBooks,
    run: Run,
    *,
    revision: int,
    content: bytes,
    closed: bool,
) -> None:
    """Note that later changes were seen; where they changed what was read, keep that, as the run the revision rests on now."""
    run_id = state.run_id
    known = connection.execute("SELECT inputs_sha256 FROM ledger_runs WHERE id = %s", (run_id,)).fetchone()
    if closed and (known is None or bytes(known[0]) != run.read.sha256()):
        run_id = _insert_run(
            connection, state, books, run, kind="attest", revision=revision, content=content, diff=None
        )
        _pin(connection, state, run)
    connection.execute(
        "UPDATE ledger_hours SET seen_xid = %s::xid8, run_id = %s, closed_at = now() WHERE site_id = %s AND hour_at = %s",
        (run.seen_xid, run_id, state.site_id, state.hour_at),
    )


def _pin(connection: psycopg.Connection[Any], state: HourState, run: Run) -> None:
    """Keep the files a run has read when later generations take their place: it could not be repeated without them."""
    files = run.read.files
    if not files:
        return
    connection.execute(
        """
        UPDATE hour_segments AS files SET pinned = true
        FROM unnest(%s::timestamptz[], %s::text[], %s::integer[]) AS read (hour_at, stream, generation)
        WHERE files.site_id = %s AND files.hour_at = read.hour_at AND files.stream = read.stream
        AND files.generation = read.generation AND NOT files.pinned
        """,
        (
            [file.hour_at for file in files],
            [file.stream for file in files],
            [file.generation for file in files],
            state.site_id,
        ),
    )


def _content(books: HourBooks, *, closed: bool) -> bytes:
    digest = hashlib.sha256(b"closed" if closed else b"provisional")
    for frame in (books.usage, books.lines):
        digest.update(content_hash(frame))
    return digest.digest()


def _next_revision(state: HourState, *, closed: bool) -> int:
    if not closed:
        return PROVISIONAL
    return (state.revision or 0) + 1


def _quality(counted: pl.DataFrame) -> dict[str, Any]:
    """Return what the close did not use or could not know, by reason; which devices it was their usage hours tell."""
    by_reason = counted.group_by("reason").agg(pl.len().alias("devices"), pl.col("readings", "time_us").sum())
    return {row.pop("reason"): row for row in by_reason.sort("reason").to_dicts()}


def _insert_run(
    connection: psycopg.Connection[Any],
    state: HourState,
    books: HourBooks,
    run: Run,
    *,
    kind: str,
    revision: int,
    content: bytes,
    diff: dict[str, Any] | None,
) -> int:
    row = connection.execute(
        """
        INSERT INTO ledger_runs (site_id, hour_at, revision, kind, code_version, method_version, policy, as_of_at, snapshot, seen_xid,
                                 inputs, inputs_sha256, content_sha256, usage_sha256, reason, generation, diff, quality)
        VALUES (%(site_id)s, %(hour_at)s, %(revision)s, %(kind)s, %(code_version)s, %(method_version)s, %(policy)s, %(as_of_at)s,
                %(snapshot)s, %(seen_xid)s::xid8, %(inputs)s, %(inputs_sha256)s, %(content)s, %(usage)s, %(reason)s, %(generation)s,
                %(diff)s, %(quality)s) RETURNING id
        """,
        {
            "site_id": state.site_id,
            "hour_at": state.hour_at,
            "revision": revision,
            "kind": kind,
            "code_version": run.code_version,
            "method_version": METHOD_VERSION,
            "policy": Jsonb(asdict(run.policy)),
            "as_of_at": run.as_of.at,
            "snapshot": run.as_of.snapshot,
            "seen_xid": run.seen_xid,
            "inputs": Jsonb(run.read.as_json()),
            "inputs_sha256": run.read.sha256(),
            "content": content,
            "usage": content_hash(books.usage),
            "reason": run.reason,
            "generation": run.generation,
            "diff": Jsonb(diff) if diff is not None else None,
            "quality": Jsonb(_quality(books.quality)),
        },
    ).fetchone()
    if row is None:
        raise psycopg.DataError("INSERT INTO ledger_runs returned no id")
    return int(row[0])


def _swap(
    connection: psycopg.Connection[Any],
    state: HourState,
    run: Run,
    *,
    revision: int,
    run_id: int,
    content: bytes,
    closed: bool,
) -> bool:
    """Make this run the one that counts, unless another run took its place since the hour was picked."""
    values = {
        "site_id": state.site_id,
        "hour_at": state.hour_at,
        "revision": revision,
        "run_id": run_id,
        "status": "closed" if closed else "provisional",
        "seen_xid": run.seen_xid,
        "content": content,
        "expected": state.run_id,
    }
    if state.run_id is None:
        cursor = connection.execute(
            """
            INSERT INTO ledger_hours (site_id, hour_at, revision, run_id, status, seen_xid, content_sha256)
            VALUES (%(site_id)s, %(hour_at)s, %(revision)s, %(run_id)s, %(status)s, %(seen_xid)s::xid8, %(content)s)
            ON CONFLICT DO NOTHING
            """,
            values,
        )
    else:
        cursor = connection.execute(
            """
            UPDATE ledger_hours SET revision = %(revision)s, run_id = %(run_id)s, status = %(status)s,
                   seen_xid = %(seen_xid)s::xid8, content_sha256 = %(content)s, closed_at = now()
            WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s AND run_id = %(expected)s
            """,
            values,
        )
    return cursor.rowcount == 1


_INSERT_FROM: Final[dict[str, LiteralString]] = {
    "usage_hours": "INSERT INTO usage_hours ({columns}) SELECT {columns} FROM incoming_usage_hours",
    "ledger_lines": "INSERT INTO ledger_lines ({columns}) SELECT {columns} FROM incoming_ledger_lines",
}


def _insert_rows(
    connection: psycopg.Connection[Any], table: str, state: HourState, revision: int, rows: pl.DataFrame
) -> None:
    """COPY into a temporary table, then INSERT ... SELECT: COPY itself does not work under row-level security."""
    if rows.is_empty():
        return
    stamped = rows.with_columns(
        pl.lit(state.site_id, pl.Int32).alias("site_id"), pl.lit(revision, pl.Int32).alias("revision")
    )
    names = psycopg.sql.SQL(", ").join(psycopg.sql.Identifier(name) for name in stamped.columns)
    staging = psycopg.sql.Identifier(f"incoming_{table}")
    # Once per connection: a table made for each of some thousand looks a day at the open window would bloat the catalog.
    connection.execute(
        psycopg.sql.SQL("CREATE TEMPORARY TABLE IF NOT EXISTS {} (LIKE {}) ON COMMIT DELETE ROWS").format(
            staging, psycopg.sql.Identifier(table)
        )
    )
    _copy(connection, f"incoming_{table}", stamped)
    connection.execute(psycopg.sql.SQL(_INSERT_FROM[table]).format(columns=names))


def _copy(connection: psycopg.Connection[Any], table: str, rows: pl.DataFrame) -> None:
    with connection.cursor() as cursor, cursor.copy(copy_statement(table, rows.columns)) as copy:
        for part in encode(rows):
            copy.write(part)


def _replace_rollups(connection: psycopg.Connection[Any], state: HourState, books: HourBooks) -> None:
    replace_tenant_minutes(connection, state.site_id, state.hour_at, books.tenant_minutes)
    rollups = books.rollups
    if rollups.is_empty():
        return
    connection.execute(
        """
        DELETE FROM minute_rollups WHERE minute_at >= %(hour_at)s AND minute_at < %(hour_at)s + interval '1 hour'
        AND device_id = ANY (%(devices)s)
        """,
        {"hour_at": state.hour_at, "devices": rollups["device_id"].unique().to_list()},
    )
    _copy(connection, "minute_rollups", rollups)


def _bind_jobs(connection: psycopg.Connection[Any], state: HourState, job_tenants: pl.DataFrame) -> None:
    """Note on each job the tenant its binding gives it, so that row-level security shows it there.

    The job's last hour says which: an older one that is closed again does not take the job back. A tenant without a binding
    was named by an import and stays.
    """
    if job_tenants.is_empty():
        return
    connection.execute(
        """
        UPDATE jobs SET tenant_id = bound.tenant_id, binding_id = bound.binding_id
        FROM unnest(%s::bigint[], %s::integer[], %s::integer[]) AS bound (job_id, tenant_id, binding_id)
        WHERE jobs.id = bound.job_id AND (jobs.tenant_id IS NULL OR jobs.binding_id IS NOT NULL)
        AND (jobs.tenant_id, jobs.binding_id) IS DISTINCT FROM (bound.tenant_id, bound.binding_id)
        AND NOT (SELECT EXISTS (SELECT FROM current_usage_hours AS later WHERE later.job_id = jobs.id AND later.hour_at > %s))
        """,
        [*(job_tenants[name].to_list() for name in ("job_id", "tenant_id", "binding_id")), state.hour_at],
    )


def _difference(connection: psycopg.Connection[Any], state: HourState, books: HourBooks) -> dict[str, Any]:
    """Return what a restatement moves: totals before and after, as text so that no digit is lost."""
    before = connection.execute(
        """
        SELECT count(*), coalesce(sum(effective_cost), 0)::text, coalesce(sum(energy_mj), 0)::text,
               coalesce(sum(carbon_gco2e), 0)::text
        FROM ledger_lines WHERE site_id = %s AND hour_at = %s AND revision = %s
        """,
        (state.site_id, state.hour_at, state.revision),
    ).fetchone()
    names = ("lines", "effective_cost", "energy_mj", "carbon_gco2e")
    after = (
        books.lines.height,
        str(books.lines["effective_cost"].sum() or 0),
        str(books.lines["energy_mj"].sum() or 0),
        str(books.lines["carbon_gco2e"].sum() or 0),
    )
    return {
        "before": dict(zip(names, before or (0, "0", "0", "0"), strict=True)),
        "after": dict(zip(names, after, strict=True)),
    }


_REMEMBER_GAP: Final = """
INSERT INTO changes (site_id, from_at, to_at, kind)
SELECT %(site_id)s, %(from_at)s, %(to_at)s, 'gap' WHERE EXISTS (
    SELECT FROM generate_series(date_trunc('hour', %(from_at)s, 'UTC'), %(to_at)s - interval '1 microsecond',
                                interval '1 hour') AS silent(hour_at)
    WHERE NOT EXISTS (
        SELECT FROM current_usage_hours AS known WHERE known.site_id = %(site_id)s AND known.hour_at = silent.hour_at
        AND known.device_id = %(device_id)s AND known.energy_mj IS NOT NULL))
"""


def remember_silences(
    connection: psycopg.Connection[Any],
    site_id: int,
    silences: Silences,
    window: Window,
    *,
    restated: bool,
) -> None:
    """Make hours due again whose energy hangs on a silence that this window's readings ended, or split.

    A silence that ends makes the hours it spans know their energy, once. If the window was ``restated``, late readings may lie
    inside a silence already told, which bends the line on both sides of them: all of it is looked at again. An hour that is
    closed again unchanged passes nothing on, so the worker comes to rest.
    """
    for gap in silences.ended:
        connection.execute(
            _REMEMBER_GAP,
            {"site_id": site_id, "device_id": gap.device_id, "from_at": gap.from_at, "to_at": gap.to_at},
        )
    if not restated:
        return
    for from_at, to_at in ((silences.before_at, window.from_at), (window.to_at, silences.after_at)):
        if from_at is not None and to_at is not None and from_at < to_at:
            connection.execute(
                "INSERT INTO changes (site_id, from_at, to_at, kind) VALUES (%s, %s, %s, 'gap')",
                (site_id, from_at, to_at),
            )
