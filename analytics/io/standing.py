"""What of a past bill stands as it was stored, where of its inputs only what is now is kept: words of jobs, and API calls.

A person may have been erased since, a job described anew, a call reported again. Tenants of jobs then come from the books, and lines of
calls as they are there; everything else is computed. It compares nothing.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import dataframely as dy
import polars as pl
import psycopg

from analytics.frames import Bindings, Jobs, LedgerLines, TenantMoves
from analytics.inputs import References
from analytics.io.rows import fetch_frame

AS_STORED: Final = (
    "words of jobs or API calls are others than then: tenants of jobs and lines of calls as they are stored"
)
_PAID: Final = """
SELECT DISTINCT used.job_id, CASE WHEN rated.job_id IS NULL THEN used.tenant_id ELSE rated.tenant_id END AS tenant_id
FROM usage_hours AS used LEFT JOIN hour_jobs AS rated ON rated.site_id = used.site_id AND rated.hour_at = used.hour_at
    AND rated.revision = %(revision)s AND rated.job_id = used.job_id
WHERE used.site_id = %(site_id)s AND used.hour_at = %(hour_at)s AND used.revision = %(usage_revision)s AND used.job_id IS NOT NULL
"""
_CALLS: Final = f"""
SELECT {", ".join(LedgerLines.column_names())} FROM ledger_lines
WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s AND revision = %(revision)s AND pool = 'api'
"""  # noqa: S608 (names of a frame's columns)


def as_stored(
    connection: psycopg.Connection[Any],
    references: References,
    site_id: int,
    hour_at: datetime,
    revision: int,
    usage_revision: int,
) -> tuple[References, dy.DataFrame[LedgerLines]]:
    """Return references by which each job has the tenant it had in that revision of the hour, and its lines of calls."""
    given = {"site_id": site_id, "hour_at": hour_at, "revision": revision, "usage_revision": usage_revision}
    paid: dict[int, int | None] = dict(connection.execute(_PAID, given).fetchall())
    jobs = references.jobs.with_columns(
        pl.col("job_id").replace_strict(paid, default=None, return_dtype=pl.Int32).alias("named_tenant_id")
        if paid
        else pl.lit(None, dtype=pl.Int32).alias("named_tenant_id")
    )
    stood = replace(
        references,
        jobs=Jobs.validate(jobs),
        bindings=Bindings.create_empty(),
        tenant_moves=TenantMoves.create_empty(),
    )
    calls = fetch_frame(connection, _CALLS, given, LedgerLines)
    return stood, calls


def with_stored(lines: pl.DataFrame, calls: pl.DataFrame) -> pl.DataFrame:
    """Return computed lines with the stored ones of calls, in the order in which lines are hashed."""
    return pl.concat([lines, calls.select(lines.columns)]).sort("hour_at", "line_key").rechunk()
