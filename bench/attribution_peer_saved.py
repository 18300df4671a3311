"""Writes what DuckDB made where the worker writes: tables like the books' in the same PostgreSQL, an hour a transaction, hashed and chained.

The tables have the books' columns, checks and indexes; they lack their triggers and row-level security, for which the peer is spared a
temporary table on the way.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Final

import duckdb
import polars as pl
import psycopg

from analytics.frames import Findings, LedgerLines, UsageHours
from analytics.io.book_rows import content_with, copy_rows
from analytics.io.line_names import names_of, site_name
from analytics.io.placeholders import ensure
from analytics.model.chain import stamp, start_of_hour
from analytics.model.later import LATER
from analytics.pipeline import content_hash
from bench.attribution_stand import SITE_ID
from ingest.store.engine import Database

_TABLES: Final = """
DROP SCHEMA IF EXISTS peer CASCADE;
CREATE SCHEMA peer;
CREATE TABLE peer.usage_hours (LIKE public.usage_hours INCLUDING ALL);
CREATE TABLE peer.ledger_lines (LIKE public.ledger_lines INCLUDING ALL);
CREATE TABLE peer.findings (LIKE public.findings INCLUDING ALL);
CREATE TABLE peer.runs (hour_at timestamptz PRIMARY KEY, content_sha256 bytea NOT NULL, head_sha256 bytea NOT NULL);
"""
_FINDINGS: Final = """
INSERT INTO peer.findings (dedupe_key, site_id, kind, device_id, job_id, tenant_id, start_at, end_at, evidence, waste_energy_mj, avoidable_cash,
                           capacity_freed_us, currency, confidence, origin)
SELECT dedupe_key, %s, kind, device_id, job_id, tenant_id, start_at, end_at, evidence::jsonb, waste_energy_mj, avoidable_cash, capacity_freed_us,
       currency, confidence, origin FROM incoming_findings
"""
_INCOMING: Final = """
CREATE TEMPORARY TABLE IF NOT EXISTS incoming_findings (
    dedupe_key text, kind text, device_id integer, job_id bigint, tenant_id integer, start_at timestamptz, end_at timestamptz,
    evidence text, waste_energy_mj bigint, avoidable_cash numeric, capacity_freed_us bigint, currency text,
    confidence double precision, origin smallint) ON COMMIT DELETE ROWS
"""
_KEYS: Final = {"usage_hours": "device_id, holder", "ledger_lines": "line_key", "findings": "dedupe_key"}


def prepare(database: Database) -> None:
    """Make empty tables like the books', and the devices that stand for nodes; before the peer's time begins."""
    with database.connect("admin", autocommit=True) as connection:
        connection.execute(_TABLES)
    with database.connect("worker", autocommit=True) as connection:
        ensure(connection, SITE_ID)


def save_hours(
    database: Database, base: duckdb.DuckDBPyConnection, hours: Sequence[datetime], at_once: int
) -> pl.DataFrame:
    """Write all hours, ``at_once`` of them at a time; return hour_at, content_sha256 and head_sha256 of each."""

    def save(hours: Sequence[datetime]) -> list[tuple[datetime, bytes, bytes]]:
        with base.cursor() as cursor, database.connect("admin", autocommit=True) as connection:
            connection.execute(_INCOMING)
            return [_save(connection, cursor, hour_at) for hour_at in hours]

    with ThreadPoolExecutor(at_once) as workers:
        saved = [row for rows in workers.map(save, [hours[place::at_once] for place in range(at_once)]) for row in rows]
    return pl.DataFrame(saved, schema=["hour_at", "content_sha256", "head_sha256"], orient="row").sort("hour_at")


def _save(
    connection: psycopg.Connection[Any], base: duckdb.DuckDBPyConnection, hour_at: datetime
) -> tuple[datetime, bytes, bytes]:
    usage, lines, findings = (
        base.sql(f"FROM {name} WHERE hour_at = ? ORDER BY {key}", params=[hour_at]).pl() for name, key in _KEYS.items()
    )
    usage = usage.select(UsageHours.column_names()).rechunk()
    # What no query gives no line says: these are what lines of other kinds tell.
    later = [
        pl.lit(None, kind).alias(name) for name, kind in LedgerLines.create_empty().schema.items() if name in LATER
    ]
    lines = lines.with_columns(later).select(LedgerLines.column_names()).rechunk()
    content = content_with(content_hash(usage), lines, closed=True)
    with connection.transaction():
        start = start_of_hour(site_name(connection, SITE_ID), hour_at)
        chained = stamp(lines, names_of(connection, lines), start, secrets.token_bytes(32))
        head = bytes(chained["chain_sha256"][-1])
        for name, rows in (("peer.usage_hours", usage), ("peer.ledger_lines", chained)):
            stamped = rows.with_columns(
                pl.lit(SITE_ID, pl.Int32).alias("site_id"), pl.lit(1, pl.Int32).alias("revision")
            )
            copy_rows(connection, name, stamped)
        copy_rows(connection, "incoming_findings", findings.select(Findings.column_names()).drop("hour_at"))
        connection.execute(_FINDINGS, [SITE_ID])
        connection.execute("INSERT INTO peer.runs VALUES (%s, %s, %s)", [hour_at, content, head])
    return hour_at, content, head
