"""Finds hours that are over and still wait for a reading: of devices and meters that speak so seldom that lateness alone would close before them.

An hour's last interval ends with the first reading after it. A feed of one row in ten minutes is allowed half an hour of silence, so an hour
closed after a quarter would be told anew as soon as that row comes. It closes nothing.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

import psycopg

from analytics.policy import Policy

# Whoever is allowed no longer silence than every hour waits anyway needs no looking at: in most fleets that is everybody.
_SLOW: Final = """
SELECT array_agg(id) FROM epochs WHERE greatest(%(max_gap_us)s, %(cadences)s * cadence_us) > %(lateness_us)s
"""
_AWAITED: Final = """
WITH seen AS (
    SELECT 'device' AS kind, device_id AS id, date_trunc('hour', at, 'UTC') AS hour_at, epoch_id, max(at) AS last_at
    FROM device_samples WHERE at >= %(from_at)s AND at < %(now)s AND epoch_id = ANY (%(slow)s) GROUP BY 1, 2, 3, 4
    UNION ALL
    SELECT 'meter', meter_id, date_trunc('hour', at, 'UTC'), epoch_id, max(at)
    FROM node_samples WHERE at >= %(from_at)s AND at < %(now)s AND epoch_id = ANY (%(slow)s) GROUP BY 1, 2, 3, 4
), patient AS (
    SELECT nodes.site_id, hour_at, hour_at + interval '1 hour' AS end_at, max(last_at) OVER (PARTITION BY kind, seen.id) AS last_at,
           least(greatest(%(max_gap_us)s, %(cadences)s * cadence_us), %(longest_us)s) * interval '1 microsecond' AS patience
    FROM seen JOIN epochs ON epochs.id = epoch_id JOIN nodes ON nodes.id = epochs.node_id
)
SELECT site_id, min(hour_at) FROM patient LEFT JOIN ledger_hours AS hours USING (site_id, hour_at)
WHERE end_at <= %(now)s - %(lateness)s AND last_at < end_at AND end_at + patience > %(now)s AND hours.status IS DISTINCT FROM 'closed'
GROUP BY 1
"""


def awaited_hours(connection: psycopg.Connection[Any], now: datetime, policy: Policy) -> dict[int, datetime]:
    """Return by site the first hour that waits for a reading though its lateness is over; sites where none does are absent.

    A device waits for its next reading for as long as its feed may be silent (``policy.gaps``), counted from the hour's end, at most
    ``policy.longest_wait_us``. Hours that are closed wait for nothing.
    """
    gaps = policy.gaps
    given: dict[str, Any] = {
        "max_gap_us": gaps.max_gap_us,
        "cadences": gaps.max_gap_cadences,
        "lateness_us": policy.lateness_us,
        "longest_us": policy.longest_wait_us,
        "lateness": timedelta(microseconds=policy.lateness_us),
        "now": now,
        "from_at": now.replace(minute=0, second=0, microsecond=0)
        - timedelta(microseconds=policy.longest_wait_us, hours=1),
    }
    row = connection.execute(_SLOW, given).fetchone()
    if row is None or row[0] is None:
        return {}
    return dict(connection.execute(_AWAITED, given | {"slow": row[0]}).fetchall())
