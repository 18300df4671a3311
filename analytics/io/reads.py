"""Plain reads for the API: findings and fleet power. The action log has its own module, bills theirs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from ingest.store.tables import books, reference, work

_POWER = """
SELECT date_bin(make_interval(secs => :step_s), r.minute_at, TIMESTAMPTZ '2000-01-01 00:00:00Z') AS at, s.name AS site,
    CASE WHEN :by_model THEN d.model END AS model,
    sum(r.energy_mj) AS energy_mj, sum(r.covered_us) AS covered_us,
    count(*) AS device_minutes, sum(r.throttled_us) AS throttled_us,
    array_agg(DISTINCT r.origin) AS origins
FROM minute_rollups AS r JOIN devices AS d ON d.id = r.device_id
-- One placement of a device is open at a time; a join by hash costs a third of a look-up per row.
JOIN placements AS placed ON placed.device_id = r.device_id AND placed.superseded_at IS NULL
    AND placed.valid_from <= r.minute_at AND (placed.valid_to IS NULL OR placed.valid_to > r.minute_at)
JOIN nodes AS n ON n.id = placed.node_id JOIN sites AS s ON s.id = n.site_id
WHERE r.minute_at >= :from_at AND r.minute_at < :to_at
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""


def findings(
    conn: sa.Connection,
    *,
    from_at: datetime | None,
    to_at: datetime | None,
    kind: str | None,
    before_id: int | None,
    limit: int,
) -> list[Any]:
    """Return findings that stand and are visible to the connection, newest first, with the names of what they are about."""
    f, t, j, d, s = books.findings, reference.tenants, work.jobs, reference.devices, reference.sites
    query = (
        sa.select(
            f,
            t.c.path.label("tenant"),
            d.c.uuid.label("device"),
            s.c.name.label("site"),
            j.c.cluster,
            j.c.native_id,
        )
        .join(s, s.c.id == f.c.site_id)
        .outerjoin(t, t.c.id == f.c.tenant_id)
        .outerjoin(j, j.c.id == f.c.job_id)
        .outerjoin(d, d.c.id == f.c.device_id)
        .where(f.c.withdrawn_at.is_(None))
        .order_by(f.c.id.desc())
        .limit(limit)
    )
    if from_at is not None:
        query = query.where(f.c.end_at > from_at)
    if to_at is not None:
        query = query.where(f.c.start_at < to_at)
    if kind is not None:
        query = query.where(f.c.kind == kind)
    if before_id is not None:
        query = query.where(f.c.id < before_id)
    return list(conn.execute(query))


def fleet_power(conn: sa.Connection, from_at: datetime, to_at: datetime, step_s: int, *, by_model: bool) -> list[Any]:
    """Return energy and covered time per step and site (and model) from minute rollups, in time order."""
    parameters = {"from_at": from_at, "to_at": to_at, "step_s": step_s, "by_model": by_model}
    return list(conn.execute(sa.text(_POWER), parameters))
