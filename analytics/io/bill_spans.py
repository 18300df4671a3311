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

from analytics.io.bill_sql import BUILD_LINES, BUILD_TIMES, BUILD_WASTE, SIGNATURE, SIGNATURE_OF_HOUR

# A day is summed once it is over and closed; until then its closed hours are. The newest first: they are asked for most.
_STALE: Final = """
WITH {asked} latest AS MATERIALIZED (
    SELECT id AS site_id, (SELECT max(hour_at) FROM ledger_hours WHERE site_id = sites.id AND status = 'closed') AS hour_at FROM sites
), hours AS (
    SELECT site_id, hours.hour_at, date_trunc('day', hours.hour_at, 'UTC') AS day_at, revision, status, latest.hour_at AS latest_at
    FROM {hours} JOIN latest USING (site_id)
), days AS (
    SELECT site_id, day_at, {signature} AS revisions,
           bool_and(status = 'closed') AND max(latest_at) >= day_at + interval '1 day' AS is_over
    FROM hours GROUP BY site_id, day_at
), wanted AS (
    SELECT site_id, day_at AS from_at, day_at + interval '1 day' AS to_at, revisions FROM days WHERE is_over
    UNION ALL
    SELECT site_id, hour_at, hour_at + interval '1 hour', {of_hour}
    FROM hours JOIN days USING (site_id, day_at) WHERE status = 'closed' AND NOT is_over
)
SELECT wanted.site_id, wanted.from_at, wanted.to_at FROM wanted LEFT JOIN bill_spans AS span USING (site_id, from_at, to_at)
WHERE span.revisions IS DISTINCT FROM wanted.revisions ORDER BY wanted.from_at DESC, wanted.site_id
""".replace("{signature}", SIGNATURE).replace("{of_hour}", SIGNATURE_OF_HOUR)
_OF_ALL: Final = _STALE.replace("{asked}", "").replace("{hours}", "ledger_hours AS hours")
# Where a run wrote since, and the day before, which is over by a later hour; and what was left.
_OF_SOME: Final = _STALE.replace(
    "{asked}",
    """asked AS MATERIALIZED (
    SELECT site_id, date_trunc('day', hour_at, 'UTC') - back AS day_at
    FROM ledger_runs CROSS JOIN (VALUES (interval '0'), (interval '1 day')) AS days (back) WHERE id > %(after_run)s
    UNION SELECT * FROM unnest(%(sites)s::integer[], %(days)s::timestamptz[])
), """,
).replace(
    "{hours}",
    "asked JOIN LATERAL (SELECT * FROM ledger_hours WHERE site_id = asked.site_id AND hour_at >= asked.day_at "
    "AND hour_at < asked.day_at + interval '1 day' OFFSET 0) AS hours USING (site_id)",
)
_NEWEST_RUN: Final = "SELECT coalesce(max(id), 0) FROM ledger_runs"
_LOOK_AT_ALL_S: Final = 600.0
"""Every so often all hours are looked at: what no run tells of (a month that was opened again, findings that changed) waits no longer."""
_IN_FLIGHT: Final = 500
"""Runs that may be committed after others of a higher number; the hours of so many are looked at again."""
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


_Span = tuple[int, datetime, datetime]
"""Site, from, to."""


class SpanSums:
    """Makes sums pass after pass: looks at the hours that runs wrote since the last, and now and then at all of them.

    What it does not know of yet costs a reader time and nothing else: sums of other revisions are passed over.
    """

    def __init__(self) -> None:
        self._looked_at_all_s: float | None = None
        self._after_run = 0
        self._left: set[tuple[int, datetime]] = set()

    def step(self, connection: psycopg.Connection[Any], *, for_s: float) -> Summed:
        """Make the sums that are missing or of other revisions, the newest first, for so long; the rest waits for the next pass.

        ``connection`` is in autocommit: each span is a transaction of its own. An hour that is being closed right now is left.
        """
        began_s = time.monotonic()
        looked_at_all_s, self._looked_at_all_s = self._looked_at_all_s, None  # at all once more, if this pass fails
        looks_at_all = looked_at_all_s is None or began_s - looked_at_all_s > _LOOK_AT_ALL_S
        stale = self._stale(connection, looks_at_all=looks_at_all)
        made = 0
        left: list[_Span] = []
        for number, (site_id, from_at, to_at) in enumerate(stale):
            if time.monotonic() - began_s > for_s:
                left += stale[number:]
                break
            if _sum(connection, {"site_id": site_id, "from_at": from_at, "to_at": to_at}):
                made += 1
            else:
                left.append((site_id, from_at, to_at))
        self._left = {(site_id, _day_of(from_at)) for site_id, from_at, _ in left}
        self._looked_at_all_s = began_s if looks_at_all else looked_at_all_s
        return Summed(made, len(left))

    def _stale(self, connection: psycopg.Connection[Any], *, looks_at_all: bool) -> list[_Span]:
        (newest,) = connection.execute(_NEWEST_RUN).fetchone() or (0,)
        given = {
            "after_run": self._after_run - _IN_FLIGHT,
            "sites": [site_id for site_id, _ in self._left],
            "days": [day_at for _, day_at in self._left],
        }
        found = connection.execute(_OF_ALL) if looks_at_all else connection.execute(_OF_SOME, given)
        self._after_run = newest
        return [(site_id, from_at, to_at) for site_id, from_at, to_at in found]


def sum_spans(connection: psycopg.Connection[Any], *, for_s: float) -> Summed:
    """Make one pass over all hours, as :meth:`SpanSums.step` does at first."""
    return SpanSums().step(connection, for_s=for_s)


def forget_spans(connection: psycopg.Connection[Any], site_id: int, hour_at: datetime) -> None:
    """Drop the sums an hour is in: something changed that its revision does not tell, its findings."""
    connection.execute(
        "DELETE FROM bill_spans WHERE site_id = %(site_id)s AND from_at IN (%(hour_at)s, %(day_at)s)",
        {"site_id": site_id, "hour_at": hour_at, "day_at": _day_of(hour_at)},
    )


def _day_of(hour_at: datetime) -> datetime:
    return hour_at.astimezone(UTC).replace(hour=0)


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
