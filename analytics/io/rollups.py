"""Reads energy by tenant and step for dashboards, from the minutes that closing an hour writes. Never the source of a bill."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import psycopg

# A row a tenant, minute and site: as many as the answer has, so the time is that of telling it. Paths are put in order once for
# all tenants, and not once a row: texts compare ten times as slowly as their places.
_BY_TENANT: Final = """
WITH named AS MATERIALIZED (SELECT id, path, row_number() OVER (ORDER BY path) AS place FROM tenants)
SELECT at, path, energy_mj FROM (
    SELECT {step} AS at, tenant_id,
           sum(energy_mj)::bigint AS energy_mj
    FROM tenant_minutes WHERE minute_at >= %(from_at)s AND minute_at < %(to_at)s GROUP BY 1, 2
) AS steps LEFT JOIN named ON named.id = tenant_id ORDER BY at, place
"""
_MINUTE_S: Final = 60
# Whole minutes are steps as they are: to cut each of them down took a third of the time.
_STEP: Final = "date_bin(make_interval(secs => %(step_s)s), minute_at, timestamptz '2000-01-01 00:00:00Z')"


def energy_by_tenant(
    connection: psycopg.Connection[Any], from_at: datetime, to_at: datetime, step_s: int = 60
) -> list[tuple[datetime, str | None, int]]:
    """Return (start of step, tenant path, energy in millijoules) of [from_at, to_at), by time and path.

    A null path is energy nobody held, or whose holder has no tenant: it comes last. Minutes that no meter spans have no
    row. Under row-level security only what the connection may see. ``step_s`` is a multiple of 60 s.
    """
    given = {"from_at": from_at, "to_at": to_at, "step_s": step_s}
    query = _BY_TENANT.replace("{step}", "minute_at" if step_s == _MINUTE_S else _STEP)
    with connection.cursor(binary=True) as cursor:  # instants as text take longer to read than the rest of the answer
        return cursor.execute(query.encode(), given).fetchall()
