"""Devices of kind ``pool``: what jobs held of which nobody says more than (pool, model, count).

A pool stands for nothing physical. It has no node, no capacity and no meter, so it is never idle and never unattributed:
it only gives a job's time a place in the books.
"""
# ruff: noqa: S608 - the SQL is made of this package's own names; what a file says is data in columns

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

KIND: Final = "pool"
UNKNOWN_MODEL: Final = "unknown"
"""Of a pool whose jobs do not say what they ran on; no price book has it, so its time is unpriced."""


def _escaped(name: str) -> str:
    # A slash inside a name would let two pools share one identity.
    return f"replace(replace({name}, '%%', '%%25'), '/', '%%2F')"


def model_sql(model: str) -> str:
    """Return SQL for the device model of a pool allocation."""
    return f"coalesce({model}, '{UNKNOWN_MODEL}')"


def uuid_sql(site: str, pool: str, model: str) -> str:
    """Return SQL for ``pool:<site>/<pool>/<model>``; percent signs are doubled, as statements with parameters want them."""
    parts = (_escaped(site), _escaped(pool), _escaped(model_sql(model)))
    return f"'pool:' || {parts[0]} || '/' || {parts[1]} || '/' || {parts[2]}"


def make_pool_devices(conn: sa.Connection, site_id: int) -> int:
    """Make the devices of this site's pool allocations that are not there yet; return how many."""
    uuid = uuid_sql("sites.name", "held.pool", "held.model")
    model = model_sql("held.model")
    # In order of identity, so that two imports that make overlapping sets wait for each other instead of deadlocking.
    # exec_driver_sql: sa.text would leave the doubled percent signs as they are.
    return conn.exec_driver_sql(
        "INSERT INTO devices (uuid, vendor, model, kind) "
        f"SELECT DISTINCT {uuid} AS uuid, 'unknown', {model}, '{KIND}' "
        "FROM allocations AS held JOIN sites ON sites.id = held.site_id "
        "WHERE held.site_id = %(site_id)s AND held.pool IS NOT NULL AND held.superseded_at IS NULL "
        "ORDER BY uuid ON CONFLICT (uuid) DO NOTHING",
        {"site_id": site_id},
    ).rowcount
