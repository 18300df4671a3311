"""Writes the rows of one revision of an hour, and says how they differ from those before; inside the transaction of whoever closes or rates it."""

from __future__ import annotations

import hashlib
from typing import Any, Final, LiteralString

import polars as pl
import psycopg

from analytics.io.runs import HourState, in_turn
from analytics.pipeline import content_hash
from ingest.store.copy import copy_statement, encode


def content_of(usage: pl.DataFrame, lines: pl.DataFrame, *, closed: bool) -> bytes:
    """Return the SHA-256 of what makes a revision: equal content is no new one."""
    return content_with(content_hash(usage), lines, closed=closed)


def content_with(of_usage: bytes, lines: pl.DataFrame, *, closed: bool) -> bytes:
    """Return the same of usage hours of which only the hash is at hand."""
    digest = hashlib.sha256(b"closed" if closed else b"provisional")
    digest.update(of_usage)
    digest.update(content_hash(lines))
    return digest.digest()


_INSERT_FROM: Final[dict[str, LiteralString]] = {
    "usage_hours": "INSERT INTO usage_hours ({columns}) SELECT {columns} FROM incoming_usage_hours",
    "hour_jobs": "INSERT INTO hour_jobs ({columns}) SELECT {columns} FROM incoming_hour_jobs",
    "ledger_lines": "INSERT INTO ledger_lines ({columns}) SELECT {columns} FROM incoming_ledger_lines",
}

# Whether a later hour that counts has the job is asked of the job's own rows: through the view current_usage_hours PostgreSQL goes by hours, and
# reads each of them for each job.
_BIND: Final = """
UPDATE jobs SET tenant_id = bound.tenant_id, binding_id = bound.binding_id
FROM unnest(%s::bigint[], %s::integer[], %s::integer[]) AS bound (job_id, tenant_id, binding_id)
WHERE jobs.id = bound.job_id AND (jobs.tenant_id IS NULL OR jobs.binding_id IS NOT NULL)
AND (jobs.tenant_id, jobs.binding_id) IS DISTINCT FROM (bound.tenant_id, bound.binding_id)
AND NOT (SELECT EXISTS (
    SELECT FROM (SELECT site_id, hour_at, revision FROM usage_hours WHERE job_id = jobs.id AND hour_at > %s OFFSET 0) AS later
    JOIN ledger_hours AS hours USING (site_id, hour_at)
    WHERE later.revision = hours.revision OR EXISTS (
        SELECT FROM ledger_runs AS runs JOIN hour_jobs AS rated ON rated.site_id = runs.site_id AND rated.hour_at = runs.hour_at
        WHERE runs.id = hours.run_id AND runs.usage_revision = later.revision AND rated.revision = hours.revision AND rated.job_id = jobs.id)))
"""


def insert_rows(
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
    copy_rows(connection, f"incoming_{table}", stamped)
    connection.execute(psycopg.sql.SQL(_INSERT_FROM[table]).format(columns=names))


def insert_posted(connection: psycopg.Connection[Any], rows: pl.DataFrame) -> None:
    """Insert corrections, with all their columns but the id; a temporary table, as above."""
    connection.execute(
        "CREATE TEMPORARY TABLE IF NOT EXISTS incoming_corrections (LIKE ledger_corrections) ON COMMIT DELETE ROWS"
    )
    connection.execute("ALTER TABLE incoming_corrections DROP COLUMN IF EXISTS id")
    connection.execute("TRUNCATE incoming_corrections")  # several hours may be posted in one transaction
    copy_rows(connection, "incoming_corrections", rows)
    names = psycopg.sql.SQL(", ").join(psycopg.sql.Identifier(name) for name in rows.columns)
    insert = psycopg.sql.SQL(
        "INSERT INTO ledger_corrections ({names}) SELECT {names} FROM incoming_corrections ORDER BY ordinal"
    )
    connection.execute(insert.format(names=names))


def copy_rows(connection: psycopg.Connection[Any], table: str, rows: pl.DataFrame) -> None:
    with connection.cursor() as cursor, cursor.copy(copy_statement(table, rows.columns)) as copy:
        for part in encode(rows):
            copy.write(part)


def bind_jobs(connection: psycopg.Connection[Any], state: HourState, job_tenants: pl.DataFrame) -> None:
    """Note on each job the tenant its binding gives it, so that row-level security shows it there.

    The job's last hour says which: an older one that is closed again does not take the job back. A tenant without a binding
    was named by an import and stays. Call it last, once the hour's rows are written: others wait until the transaction ends.
    """
    if job_tenants.is_empty():
        return
    in_turn(connection, state.site_id)
    connection.execute(
        _BIND, [*(job_tenants[name].to_list() for name in ("job_id", "tenant_id", "binding_id")), state.hour_at]
    )


def difference(connection: psycopg.Connection[Any], state: HourState, lines: pl.DataFrame) -> dict[str, Any]:
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
        lines.height,
        str(lines["effective_cost"].sum() or 0),
        str(lines["energy_mj"].sum() or 0),
        str(lines["carbon_gco2e"].sum() or 0),
    )
    return {
        "before": dict(zip(names, before or (0, "0", "0", "0"), strict=True)),
        "after": dict(zip(names, after, strict=True)),
    }
