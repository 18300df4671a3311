"""Lets the segments of old hours go, and says by which clock something is old.

Retention counts from what came last: the end of the hour, the publication of its files, the first close of its books. So
history that is imported today is as new as today. An hour that is being written to, has late rows, waits to be closed again
or was never used by the books stays. It deletes no file; those are deleted with the replaced ones.
"""
# ruff: noqa: S608 - built of this package's own names

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg

from ingest.store.hours import SiteHour
from ingest.store.sample_tables import LATE
from ingest.store.seal import hour_of

LARGEST_DIFFERENCE: Final = timedelta(minutes=1)
"""Between the clocks of the worker and the database. NTP keeps servers within a second."""
LONGEST_SILENCE: Final = timedelta(days=7)
"""That long after the newest sealed sample a clock is believed. One that runs ahead seals nothing newer, whatever it says."""
_NEWEST: Final = "SELECT clock_timestamp(), (SELECT max(hour_at) + interval '1 hour' FROM hour_segments)"
_BOOKED: Final = "('device_samples', 'node_samples')"
_NOTHING_LATE: Final = " ".join(
    f"AND NOT EXISTS (SELECT FROM {target.table} AS late WHERE late.at >= known.hour_at AND late.at < known.hour_at + interval '1 hour')"
    for target in LATE.values()
)
# Oldest first. Of hours without files nothing is lost, and they stay as they are. Hours that never came into the books have
# nothing that the books are made of: fabric, engines, agents.
_OLD: Final = f"""
SELECT known.site_id, known.hour_at FROM hour_catalog AS known LEFT JOIN ledger_hours AS books USING (site_id, hour_at)
WHERE known.state = 'sealed' AND known.expired_at IS NULL AND known.hour_at <= %(before)s::timestamptz - interval '1 hour'
AND EXISTS (SELECT FROM hour_segments AS files WHERE files.site_id = known.site_id AND files.hour_at = known.hour_at
            AND files.retired_at IS NULL)
AND NOT EXISTS (SELECT FROM hour_segments AS files WHERE files.site_id = known.site_id AND files.hour_at = known.hour_at
                AND (files.published_at >= %(before)s OR books.run_id IS NULL AND files.stream IN {_BOOKED}))
AND (books.run_id IS NULL OR books.status = 'closed' AND EXISTS (
    SELECT FROM ledger_runs AS runs WHERE runs.site_id = known.site_id AND runs.hour_at = known.hour_at
    AND runs.revision > 0 AND runs.finished_at < %(before)s))
AND NOT EXISTS (SELECT FROM changes WHERE (changes.site_id = known.site_id OR changes.site_id IS NULL)
                AND changes.from_at < known.hour_at + interval '2 hours' AND changes.to_at > known.hour_at - interval '1 hour')
{_NOTHING_LATE}
"""
# An import holds the hours it writes for as long as it lasts: those are not had. A statement of its own, so that the next one
# sees what was committed until they were.
_LOCK: Final = f"""
WITH old AS MATERIALIZED ({_OLD} ORDER BY known.hour_at LIMIT %(most)s)
SELECT site_id, hour_at FROM old WHERE pg_try_advisory_xact_lock(site_id::bigint << 32 | (extract(epoch FROM hour_at) / 3600)::bigint)
"""
_EXPIRE: Final = f"""
WITH old AS (
    {_OLD} AND (known.site_id, known.hour_at) IN (SELECT * FROM unnest(%(sites)s::integer[], %(hours)s::timestamptz[]))
    FOR UPDATE OF known SKIP LOCKED
), marked AS (
    UPDATE hour_catalog AS known SET expired_at = now(), updated_at = now() FROM old
    WHERE known.site_id = old.site_id AND known.hour_at = old.hour_at RETURNING known.site_id, known.hour_at
), retired AS (
    UPDATE hour_segments AS files SET retired_at = now() FROM marked
    WHERE files.site_id = marked.site_id AND files.hour_at = marked.hour_at AND files.retired_at IS NULL
)
SELECT site_id, hour_at FROM marked ORDER BY hour_at, site_id
"""
_ANY_EXPIRED: Final = "SELECT EXISTS (SELECT FROM hour_catalog WHERE expired_at IS NOT NULL)"
# By steps along the index on time: an outage leaves tens of millions of late rows, of a few hours.
_LATE_OF_EXPIRED: Final = """
WITH RECURSIVE steps (hour_at) AS (
    SELECT date_trunc('hour', (SELECT at FROM {table} ORDER BY at LIMIT 1), 'UTC')
    UNION ALL
    SELECT date_trunc('hour', (SELECT at FROM {table} WHERE at >= steps.hour_at + interval '1 hour' ORDER BY at LIMIT 1), 'UTC')
    FROM steps WHERE steps.hour_at IS NOT NULL
) SELECT known.site_id, known.hour_at FROM steps JOIN hour_catalog AS known USING (hour_at) WHERE known.expired_at IS NOT NULL
"""
_DISCARD: Final = """
DELETE FROM {table} WHERE at >= %(hour_at)s AND at < %(hour_at)s::timestamptz + interval '1 hour'
AND epoch_id IN (SELECT epochs.id FROM epochs JOIN nodes ON nodes.id = epochs.node_id WHERE nodes.site_id = %(site_id)s)
"""


@dataclass(frozen=True, slots=True)
class Clocks:
    """What time it is for the database, and when the newest sealed sample was; null = nothing is sealed."""

    server_at: datetime
    newest_at: datetime | None

    def agree(self, now: datetime) -> bool:
        """Say whether a worker's clock says what the database's says."""
        return abs(now - self.server_at) <= LARGEST_DIFFERENCE

    def latest(self, silence: timedelta = LONGEST_SILENCE) -> datetime:
        """Return the instant that age may be counted back from: no later than ``silence`` after the newest sample."""
        return self.server_at if self.newest_at is None else min(self.server_at, self.newest_at + silence)


def clocks(connection: psycopg.Connection[Any]) -> Clocks:
    """Ask the database what time it is, and for the newest sealed sample."""
    row = connection.execute(_NEWEST).fetchone()
    if row is None:
        raise psycopg.DataError("a query of clocks returned no row")
    server_at, newest_at = row
    return Clocks(server_at.astimezone(UTC), None if newest_at is None else newest_at.astimezone(UTC))


def expirable(connection: psycopg.Connection[Any], before: datetime) -> bool:
    """Say whether any hour's segments are old enough to go, had all that ended before then its time."""
    row = connection.execute(f"SELECT EXISTS ({_OLD})".encode(), {"before": before}).fetchone()
    return row == (True,)


def expire(connection: psycopg.Connection[Any], before: datetime, most: int = 240) -> list[SiteHour]:
    """Let the segments of hours go that ended, were published and were first closed before ``before``, at most so many.

    Returns the hours. Their files are deleted with the replaced ones, after the same grace. Minutes, usage hours and ledger
    stay. Commits.
    """
    with connection.transaction():
        old = connection.execute(_LOCK.encode(), {"before": before, "most": most}).fetchall()
        sites, hours = [site_id for site_id, _ in old], [hour_at for _, hour_at in old]
        given = {"before": before, "sites": sites, "hours": hours}
        found = connection.execute(_EXPIRE.encode(), given).fetchall() if old else []
    return [hour_of(*row) for row in found]


def discard_too_late(connection: psycopg.Connection[Any]) -> list[tuple[int, datetime, str, int]]:
    """Delete late rows of hours whose segments are gone; return (site, hour, stream, rows). The caller commits and tells."""
    if connection.execute(_ANY_EXPIRED).fetchone() != (True,):
        return []
    found: list[tuple[int, datetime, str, int]] = []
    for stream, target in LATE.items():
        for site_id, hour_at in connection.execute(_LATE_OF_EXPIRED.format(table=target.table).encode()).fetchall():
            deleted = connection.execute(
                _DISCARD.format(table=target.table).encode(), {"site_id": site_id, "hour_at": hour_at}
            ).rowcount
            if deleted:
                found.append((site_id, hour_at, stream.value, deleted))
    return found
