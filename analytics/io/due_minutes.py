"""Finds hours whose minutes, by device and by tenant, are not those of their books, and writes those of one. The books themselves stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import dataframely as dy
import polars as pl
import psycopg

from analytics.frames import JobTenants
from analytics.io.book_rows import copy_rows
from analytics.io.references import Known
from analytics.io.rollups import replace_tenant_minutes
from analytics.io.rows import fetch_frame

# Expired hours have no samples to make minutes of. A rating moves nothing but tenants: where the minutes are of the usage it rates, those by
# device stand.
_DUE: Final = """
SELECT hours.site_id, hours.hour_at, hours.run_id, hours.status, runs.as_of_at, runs.snapshot,
       coalesce(runs.kind = 'rate' AND coalesce(runs.usage_revision, runs.revision) = coalesce(made.usage_revision, made.revision), false)
FROM ledger_hours AS hours JOIN ledger_runs AS runs ON runs.id = hours.run_id LEFT JOIN ledger_runs AS made ON made.id = hours.minutes_run_id
WHERE hours.minutes_run_id IS DISTINCT FROM hours.run_id
AND NOT EXISTS (SELECT FROM hour_catalog AS catalog WHERE catalog.site_id = hours.site_id
                AND catalog.hour_at = hours.hour_at AND catalog.expired_at IS NOT NULL)
ORDER BY hours.hour_at DESC, hours.site_id
"""
_JOB_TENANTS: Final = """
SELECT DISTINCT hour_at, job_id, tenant_id, NULL::integer AS binding_id FROM current_usage_hours
WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s AND job_id IS NOT NULL
"""
# All but those of devices in other sites' books of the hour: what a device left behind that is in nobody's any more goes too.
_DROP: Final = """
DELETE FROM minute_rollups WHERE minute_at >= %(hour_at)s AND minute_at < %(hour_at)s::timestamptz + interval '1 hour'
AND device_id NOT IN (SELECT device_id FROM current_usage_hours WHERE site_id <> %(site_id)s AND hour_at = %(hour_at)s)
"""
_MARK: Final = """
UPDATE ledger_hours SET minutes_run_id = run_id WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s AND run_id = %(run_id)s
"""
_KEEP: Final = """
UPDATE ledger_hours SET minutes_run_id = run_id WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s AND minutes_run_id = %(before)s
"""


@dataclass(frozen=True, slots=True)
class DueHour:
    """An hour whose minutes are to be made; ``as_of``: what its books were computed as known at."""

    site_id: int
    hour_at: datetime
    run_id: int
    status: str
    as_of: Known
    is_tenants_only: bool
    """Its minutes by device are those of its books; who had them changed."""


@dataclass(frozen=True, slots=True)
class Minutes:
    """The minutes of one hour: frames of Rollups and of TenantMinutes."""

    rollups: pl.DataFrame
    by_tenant: pl.DataFrame


def due_minutes(connection: psycopg.Connection[Any]) -> list[DueHour]:
    """Return the hours whose minutes are to be made, the newest first: those are looked at."""
    return [
        DueHour(site_id, hour_at, run_id, status, Known(as_of_at, snapshot), is_tenants_only)
        for site_id, hour_at, run_id, status, as_of_at, snapshot, is_tenants_only in connection.execute(_DUE).fetchall()
    ]


def job_tenants(connection: psycopg.Connection[Any], hour: DueHour) -> dy.DataFrame[JobTenants]:
    """Return who pays for each job of the hour, as its books say."""
    given = {"site_id": hour.site_id, "hour_at": hour.hour_at}
    return fetch_frame(connection, _JOB_TENANTS, given, JobTenants)


def write_minutes(connection: psycopg.Connection[Any], hour: DueHour, minutes: Minutes) -> bool:
    """Write an hour's minutes in one transaction; False, and nothing written, where other books took the place of those it had."""
    given = {"site_id": hour.site_id, "hour_at": hour.hour_at, "run_id": hour.run_id}
    with connection.transaction() as writing:
        if not hour.is_tenants_only:
            connection.execute(_DROP, given)
            copy_rows(connection, "minute_rollups", minutes.rollups)
        replace_tenant_minutes(connection, hour.site_id, hour.hour_at, minutes.by_tenant)
        # Last, so that who closes the hour meanwhile waits for no more than the commit.
        is_ours = connection.execute(_MARK, given).rowcount == 1
        if not is_ours:
            raise psycopg.Rollback(writing)
    return is_ours


def keep_minutes(connection: psycopg.Connection[Any], site_id: int, hour_at: datetime, before_run_id: int) -> None:
    """Have the minutes of the run before be those of the run that counts now, which moved none of them; inside its transaction."""
    connection.execute(_KEEP, {"site_id": site_id, "hour_at": hour_at, "before": before_run_id})
