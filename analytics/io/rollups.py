"""Reads minute rollups for dashboards: energy by tenant and step. Never the source of a bill, which cuts at allocations."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import psycopg

# Whole minutes go to whoever held the device when they began, by the share granted; what nobody held is told under null.
_BY_TENANT: Final = """
WITH held AS MATERIALIZED (
    SELECT coalesce(devices.parent_device_id, devices.id) AS device_id, jobs.tenant_id, start_at,
           coalesce(end_at, 'infinity') AS end_at,
           CASE WHEN devices.parent_device_id IS NOT NULL OR share_ratio IS NOT NULL
                THEN coalesce(share_ratio, 1) * coalesce(devices.slice_ratio, 1) END AS part
    FROM allocations JOIN jobs ON jobs.id = allocations.job_id JOIN devices ON devices.id = allocations.device_id
    WHERE allocations.superseded_at IS NULL AND start_at < %(to_at)s AND coalesce(end_at, 'infinity') > %(from_at)s
), by_minute AS (
    SELECT minute_at, held.tenant_id,
           sum(CASE WHEN part IS NULL THEN energy_mj ELSE floor(energy_mj * part)::bigint END) AS energy_mj
    FROM minute_rollups AS minutes LEFT JOIN held ON held.device_id = minutes.device_id
        AND minutes.minute_at >= held.start_at AND minutes.minute_at < held.end_at
    WHERE minute_at >= %(from_at)s AND minute_at < %(to_at)s
    GROUP BY minute_at, held.tenant_id
)
SELECT date_bin(make_interval(secs => %(step_s)s), minute_at, timestamptz '2000-01-01 00:00:00Z') AS at, tenants.path,
       sum(energy_mj)::bigint AS energy_mj
FROM by_minute LEFT JOIN tenants ON tenants.id = tenant_id GROUP BY 1, 2 ORDER BY 1, 2
"""


def energy_by_tenant(
    connection: psycopg.Connection[Any], from_at: datetime, to_at: datetime, step_s: int = 60
) -> list[tuple[datetime, str | None, int | None]]:
    """Return (start of step, tenant path, energy in millijoules) of [from_at, to_at), by time and path.

    A null path is energy nobody held, or whose holder has no tenant; null energy, minutes that no meter spans. Of a device
    that is granted in part the rest is told to nobody. ``step_s`` is a multiple of 60 s.
    """
    given = {"from_at": from_at, "to_at": to_at, "step_s": step_s}
    return connection.execute(_BY_TENANT, given).fetchall()
