"""Finds closed hours whose minutes by tenant were never written, and writes those of one. The books themselves stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import dataframely as dy
import polars as pl
import psycopg

from analytics.frames import JobTenants
from analytics.io.references import Known
from analytics.io.rollups import replace_tenant_minutes
from analytics.io.rows import fetch_frame

# An hour of energy without a minute is one that a version before 0029 closed. Expired ones have no samples to make them of.
# Each hour is looked up by itself, hence LIMIT: as joins, the planner would go through every usage hour there ever was.
_MISSING: Final = """
WITH bare AS MATERIALIZED (
    SELECT site_id, hour_at, revision, run_id FROM ledger_hours AS hours WHERE status = 'closed'
    AND (SELECT 1 FROM tenant_minutes AS minutes WHERE minutes.site_id = hours.site_id
         AND minutes.minute_at >= hours.hour_at AND minutes.minute_at < hours.hour_at + interval '1 hour' LIMIT 1) IS NULL
)
SELECT hours.site_id, hours.hour_at, hours.run_id, runs.as_of_at, runs.snapshot
FROM bare AS hours JOIN ledger_runs AS runs ON runs.id = hours.run_id
WHERE (SELECT 1 FROM usage_hours AS used WHERE used.site_id = hours.site_id AND used.hour_at = hours.hour_at
       AND used.revision = coalesce(runs.usage_revision, hours.revision) AND used.energy_mj > 0 LIMIT 1) IS NOT NULL
AND NOT EXISTS (SELECT FROM hour_catalog AS catalog WHERE catalog.site_id = hours.site_id
                AND catalog.hour_at = hours.hour_at AND catalog.expired_at IS NOT NULL)
ORDER BY hours.hour_at DESC, hours.site_id
"""
_JOB_TENANTS: Final = """
SELECT DISTINCT hour_at, job_id, tenant_id, NULL::integer AS binding_id FROM current_usage_hours
WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s AND job_id IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class MissingHour:
    """A closed hour without minutes; ``as_of``: what its books were computed as known at."""

    site_id: int
    hour_at: datetime
    run_id: int
    as_of: Known


def missing_hours(connection: psycopg.Connection[Any]) -> list[MissingHour]:
    """Return the hours that could have minutes by tenant and have none, the newest first: those are looked at."""
    return [
        MissingHour(site_id, hour_at, run_id, Known(as_of_at, snapshot))
        for site_id, hour_at, run_id, as_of_at, snapshot in connection.execute(_MISSING).fetchall()
    ]


def job_tenants(connection: psycopg.Connection[Any], hour: MissingHour) -> dy.DataFrame[JobTenants]:
    """Return who pays for each job of the hour, as its books say."""
    given = {"site_id": hour.site_id, "hour_at": hour.hour_at}
    return fetch_frame(connection, _JOB_TENANTS, given, JobTenants)


def write_minutes(connection: psycopg.Connection[Any], hour: MissingHour, minutes: pl.DataFrame) -> bool:
    """Write an hour's minutes; False, and nothing written, where another run's books took the place of those it had."""
    with connection.transaction():
        current = connection.execute(
            "SELECT run_id FROM ledger_hours WHERE site_id = %s AND hour_at = %s FOR UPDATE",
            (hour.site_id, hour.hour_at),
        ).fetchone()
        if current != (hour.run_id,):
            return False
        replace_tenant_minutes(connection, hour.site_id, hour.hour_at, minutes)
        return True
