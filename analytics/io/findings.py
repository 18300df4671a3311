"""Writes what a close found, and takes back what it no longer finds. Findings that ingest raises are not its business."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

import polars as pl
import psycopg
from psycopg.types.json import Jsonb

from analytics.errors import BooksError
from analytics.io.bill_spans import forget_spans
from analytics.io.book_rows import copy_rows
from analytics.model.findings import CONFLICT, IDLE_WASTE, NO_END, OVERLAP, THROTTLING, TOO_MANY
from analytics.model.overhead import NEGATIVE

BOOKS_UNBALANCED: Final = "books_unbalanced"
"""An hour that would break a law of the books and so was not written; stands until the hour is."""
ATTEST_DIFFERS: Final = "attest_differs"
"""An hour of which nothing changed came out otherwise from its sealed files than it had from hot rows: a fault of ours."""
CLOSE_OVER_MEMORY: Final = "close_over_memory"
"""An hour that ended the process it was closed in, again with few devices at a time; stands until the hour is closed."""
OF_A_CLOSE: Final = (
    THROTTLING, IDLE_WASTE, OVERLAP, CONFLICT, TOO_MANY, NO_END, NEGATIVE, BOOKS_UNBALANCED, CLOSE_OVER_MEMORY,
)  # fmt: skip
"""Kinds that a close of their hour finds, and a later close of it may not find again."""

_INCOMING: Final = """
CREATE TEMPORARY TABLE IF NOT EXISTS incoming_findings (
    dedupe_key text, kind text, device_id integer, job_id bigint, tenant_id integer, start_at timestamptz, end_at timestamptz,
    evidence text, waste_energy_mj bigint, avoidable_cash numeric, capacity_freed_us bigint, currency text,
    confidence double precision, origin smallint) ON COMMIT DELETE ROWS
"""
_UPSERT: Final = """
INSERT INTO findings (dedupe_key, site_id, kind, device_id, job_id, tenant_id, start_at, end_at, evidence,
                      waste_energy_mj, avoidable_cash, capacity_freed_us, currency, confidence, origin)
SELECT dedupe_key, %(site_id)s, kind, device_id, job_id, tenant_id, start_at, end_at, evidence::jsonb,
       waste_energy_mj, avoidable_cash, capacity_freed_us, currency, confidence, origin FROM incoming_findings
ON CONFLICT (dedupe_key) DO UPDATE SET
    tenant_id = excluded.tenant_id, end_at = excluded.end_at, evidence = excluded.evidence,
    waste_energy_mj = excluded.waste_energy_mj, avoidable_cash = excluded.avoidable_cash,
    capacity_freed_us = excluded.capacity_freed_us, confidence = excluded.confidence, recorded_at = now(),
    withdrawn_at = NULL
WHERE findings.withdrawn_at IS NOT NULL
OR (findings.tenant_id, findings.end_at, findings.evidence, findings.waste_energy_mj, findings.avoidable_cash,
    findings.capacity_freed_us, findings.confidence)
   IS DISTINCT FROM (excluded.tenant_id, excluded.end_at, excluded.evidence, excluded.waste_energy_mj, excluded.avoidable_cash,
    excluded.capacity_freed_us, excluded.confidence)
"""
_WITHDRAW: Final = """
UPDATE findings SET withdrawn_at = now()
WHERE site_id = %(site_id)s AND start_at >= %(hour_at)s AND start_at < %(hour_at)s + interval '1 hour'
AND kind = ANY (%(kinds)s) AND withdrawn_at IS NULL AND dedupe_key <> ALL (%(found)s)
"""
# The origin is that of the least trusted feed of the site.
_OF_AN_HOUR: Final = """
INSERT INTO findings (dedupe_key, site_id, kind, start_at, end_at, evidence, confidence, origin)
VALUES (%(dedupe_key)s, %(site_id)s, %(kind)s, %(start_at)s, %(end_at)s, %(evidence)s, 1.0,
        coalesce((SELECT max(epochs.origin) FROM epochs JOIN nodes ON nodes.id = epochs.node_id
                  WHERE nodes.site_id = %(site_id)s), 2))
ON CONFLICT (dedupe_key) DO UPDATE SET evidence = excluded.evidence, recorded_at = now(), withdrawn_at = NULL
"""


def replace_findings(
    connection: psycopg.Connection[Any], site_id: int, hour_at: datetime, findings: pl.DataFrame
) -> None:
    """Make ``findings`` all that stands of what closes of this hour ever found; the rest is withdrawn, not deleted.

    One that stands as it is is left alone.
    """
    withdraw_findings(connection, site_id, hour_at, keep=findings["dedupe_key"].to_list())
    if findings.is_empty():
        return
    with connection.transaction():
        # One statement for all: a site of 10,000 boards finds thousands in an hour, mostly the same as before.
        connection.execute(_INCOMING)
        copy_rows(connection, "incoming_findings", findings.drop("hour_at"))
        changed = connection.execute(_UPSERT, {"site_id": site_id}).rowcount
    if changed:
        forget_spans(connection, site_id, hour_at)


def withdraw_findings(connection: psycopg.Connection[Any], site_id: int, hour_at: datetime, *, keep: list[str]) -> None:
    """Withdraw what closes of this hour found, but for the dedupe keys to ``keep``."""
    hour = {"site_id": site_id, "hour_at": hour_at, "kinds": list(OF_A_CLOSE), "found": keep}
    if connection.execute(_WITHDRAW, hour).rowcount:
        forget_spans(connection, site_id, hour_at)


def report_unbalanced(connection: psycopg.Connection[Any], site_id: int, hour_at: datetime, error: BooksError) -> None:
    """Leave a finding on an hour whose books do not balance, one however often it is tried."""
    evidence = {"law": type(error).__name__, "message": str(error)}
    _report(connection, BOOKS_UNBALANCED, site_id, hour_at, evidence)


def report_over_memory(connection: psycopg.Connection[Any], site_id: int, hour_at: datetime, reason: str) -> None:
    """Leave a finding on an hour that ends whatever process closes it, one however often it is tried."""
    _report(connection, CLOSE_OVER_MEMORY, site_id, hour_at, {"message": reason})


def report_attest(connection: psycopg.Connection[Any], site_id: int, hour_at: datetime) -> None:
    """Leave a finding on an hour that its sealed files closed otherwise, though nobody told of a change; it stands for somebody to look at."""
    message = "sealed samples give other books than hot rows gave; the run has the difference"
    _report(connection, ATTEST_DIFFERS, site_id, hour_at, {"law": "repeatability", "message": message})


def _report(
    connection: psycopg.Connection[Any], kind: str, site_id: int, hour_at: datetime, evidence: dict[str, str]
) -> None:
    connection.execute(
        _OF_AN_HOUR,
        {
            "dedupe_key": f"{kind}|{site_id}|{hour_at.isoformat()}",
            "site_id": site_id,
            "kind": kind,
            "start_at": hour_at,
            "end_at": hour_at + timedelta(hours=1),
            "evidence": Jsonb(evidence),
        },
    )
