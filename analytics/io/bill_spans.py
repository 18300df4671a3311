"""Keeps the sums that bills are read from: closed days, and closed hours of days that are not over. The books are not touched.

A span is made of hours whose rows are locked, so what it says of their revisions and findings is so until somebody closes one
of them again; then the span is passed over by whoever reads, and made anew here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import psycopg

from analytics.io.bill_sql import BUILD_LINES, BUILD_TIMES, BUILD_WASTE, SIGNATURE

# A day is summed once it is over and closed; until then its closed hours are. The newest first: they are asked for most.
_STALE: Final = """
WITH latest AS (
    SELECT site_id, max(hour_at) AS hour_at FROM ledger_hours WHERE status = 'closed' GROUP BY site_id
), hours AS (
    SELECT site_id, hours.hour_at, date_trunc('day', hours.hour_at, 'UTC') AS day_at, revision, status, latest.hour_at AS latest_at
    FROM ledger_hours AS hours JOIN latest USING (site_id)
), days AS (
    SELECT site_id, day_at, {signature} AS revisions,
           bool_and(status = 'closed') AND max(latest_at) >= day_at + interval '1 day' AS is_over
    FROM hours GROUP BY site_id, day_at
), wanted AS (
    SELECT site_id, day_at AS from_at, day_at + interval '1 day' AS to_at, revisions FROM days WHERE is_over
    UNION ALL
    SELECT site_id, hour_at, hour_at + interval '1 hour', to_char(hour_at AT TIME ZONE 'UTC', 'HH24') || ':' || revision
    FROM hours JOIN days USING (site_id, day_at) WHERE status = 'closed' AND NOT is_over
)
SELECT wanted.site_id, wanted.from_at, wanted.to_at FROM wanted LEFT JOIN bill_spans AS span USING (site_id, from_at, to_at)
WHERE span.revisions IS DISTINCT FROM wanted.revisions ORDER BY wanted.from_at DESC, wanted.site_id
""".replace("{signature}", SIGNATURE)
_LOCK: Final = """
SELECT hour_at, revision, status FROM ledger_hours WHERE site_id = %(site_id)s AND hour_at >= %(from_at)s AND hour_at < %(to_at)s
FOR SHARE SKIP LOCKED
"""
_COUNT: Final = """
SELECT count(*), {signature}, bool_and(status = 'closed') FROM ledger_hours
WHERE site_id = %(site_id)s AND hour_at >= %(from_at)s AND hour_at < %(to_at)s
""".replace("{signature}", SIGNATURE)
# A day's hours are not asked for any more once the day is.
_FORGET: Final = "DELETE FROM bill_spans WHERE site_id = %(site_id)s AND from_at >= %(from_at)s AND to_at <= %(to_at)s"
_SPAN: Final = """
INSERT INTO bill_spans (site_id, from_at, to_at, revisions) VALUES (%(site_id)s, %(from_at)s, %(to_at)s, %(revisions)s) RETURNING id
"""


@dataclass(frozen=True, slots=True)
class Summed:
    """What one pass did: spans made, and those left for the next."""

    made: int
    left: int


def sum_spans(connection: psycopg.Connection[Any], *, for_s: float) -> Summed:
    """Make the sums that are missing or of other revisions, the newest first, for so long; the rest waits for the next pass.

    ``connection`` is in autocommit: each span is a transaction of its own. An hour that is being closed right now is left.
    """
    began_s = time.monotonic()
    stale = connection.execute(_STALE).fetchall()
    made = 0
    for number, (site_id, from_at, to_at) in enumerate(stale):
        if time.monotonic() - began_s > for_s:
            return Summed(made, len(stale) - number)
        made += _sum(connection, {"site_id": site_id, "from_at": from_at, "to_at": to_at})
    return Summed(made, len(stale) - made)


def forget_spans(connection: psycopg.Connection[Any], site_id: int, hour_at: datetime) -> None:
    """Drop the sums an hour is in: something changed that its revision does not tell, its findings."""
    connection.execute(
        "DELETE FROM bill_spans WHERE site_id = %(site_id)s AND from_at IN (%(hour_at)s, %(day_at)s)",
        {"site_id": site_id, "hour_at": hour_at, "day_at": hour_at.astimezone(UTC).replace(hour=0)},
    )


def _sum(connection: psycopg.Connection[Any], span: dict[str, Any]) -> bool:
    with connection.transaction():
        locked = connection.execute(_LOCK, span).fetchall()
        count, revisions, is_closed = connection.execute(_COUNT, span).fetchone() or (0, None, None)
        if not is_closed or count != len(locked):
            return False
        connection.execute(_FORGET, span)
        row = connection.execute(_SPAN, span | {"revisions": revisions}).fetchone()
        if row is None:
            raise psycopg.DataError("INSERT INTO bill_spans returned no row")
        for query in (BUILD_LINES, BUILD_TIMES, BUILD_WASTE):
            connection.execute(query, span | {"span_id": row[0]})
    return True
