"""Which hours are to be sealed or merged, which days may leave the hot tables, and what is left to sweep up.

Every hour of every site is sealed, those without rows too: a day of the hot tables is dropped only when each site's 24 hours
of it are sealed, and then nobody has to look into it. It seals nothing itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import psycopg
import sqlalchemy as sa

from ingest.store import partitions
from ingest.store.hours import SiteHour
from ingest.store.sample_tables import LATE
from ingest.store.seal import folder_of, hour_of, no_step
from ingest.store.segments import Segments

log = logging.getLogger(__name__)

# An hour of the open window is still read every few seconds, and rows for it are the rule, not late.
_UNSEALED: Final = """
SELECT sites.id, hours.hour_at FROM sites, unnest(%(days)s::date[]) AS day, LATERAL generate_series(
    day::timestamp AT TIME ZONE 'UTC', day::timestamp AT TIME ZONE 'UTC' + interval '23 hours', interval '1 hour'
) AS hours (hour_at)
WHERE hours.hour_at < %(before)s
AND NOT EXISTS (SELECT FROM hour_catalog AS known WHERE known.site_id = sites.id AND known.hour_at = hours.hour_at
                AND known.state = 'sealed')
AND NOT EXISTS (SELECT FROM ledger_hours AS books WHERE books.site_id = sites.id AND books.hour_at = hours.hour_at
                AND books.status = 'provisional')
ORDER BY hours.hour_at, sites.id LIMIT %(most)s
"""
# A late row waits for as long as the earliest of its hour and site. Hours are found by steps along the index on time, and of
# each only the first row of a site is read: an outage leaves tens of millions of late rows, for hours.
_LATE: Final = """
SELECT site_id, hour_at, min(received_at), coalesce(bool_or(state = 'sealed'), false) FROM ({late}) AS late
LEFT JOIN hour_catalog USING (site_id, hour_at) WHERE hour_at < %(before)s AND expired_at IS NULL
GROUP BY site_id, hour_at HAVING NOT coalesce(bool_or(state = 'sealed'), false) OR min(received_at) < %(waited)s
ORDER BY hour_at, site_id LIMIT %(most)s
"""
_LATE_OF: Final = """
SELECT sites.id AS site_id, hours.hour_at, first.received_at FROM (
    WITH RECURSIVE steps (hour_at) AS (
        SELECT date_trunc('hour', (SELECT at FROM {table} ORDER BY at LIMIT 1), 'UTC')
        UNION ALL
        SELECT date_trunc('hour', (SELECT at FROM {table} WHERE at >= steps.hour_at + interval '1 hour' ORDER BY at LIMIT 1), 'UTC')
        FROM steps WHERE steps.hour_at IS NOT NULL
    ) SELECT hour_at FROM steps WHERE hour_at IS NOT NULL
) AS hours CROSS JOIN sites CROSS JOIN LATERAL (
    SELECT late.received_at FROM {table} AS late
    WHERE late.at >= hours.hour_at AND late.at < hours.hour_at + interval '1 hour'
    AND late.epoch_id = ANY (ARRAY(SELECT epochs.id FROM epochs JOIN nodes ON nodes.id = epochs.node_id WHERE nodes.site_id = sites.id))
    ORDER BY late.at LIMIT 1
) AS first
"""
_UNSEALED_OF_DAY: Final = """
SELECT count(*) FROM sites, generate_series(0, 23) AS hour WHERE NOT EXISTS (
    SELECT FROM hour_catalog AS known WHERE known.site_id = sites.id AND known.state = 'sealed'
    AND known.hour_at = CAST(:day AS date)::timestamp AT TIME ZONE 'UTC' + hour * interval '1 hour')
"""
_RETIRED: Final = """
SELECT site_id, hour_at, stream, generation, path FROM hour_segments WHERE retired_at < now() - %s ORDER BY retired_at LIMIT 1000
"""
# Oldest first, and never an hour whose books are open or due again: those are made of its samples. Hours without files lose
# nothing and stay as they are.
_EXPIRE: Final = """
WITH old AS (
    SELECT known.site_id, known.hour_at FROM hour_catalog AS known JOIN ledger_hours AS books USING (site_id, hour_at)
    WHERE known.state = 'sealed' AND known.expired_at IS NULL AND known.hour_at < %(before)s AND books.status = 'closed'
    AND EXISTS (SELECT FROM hour_segments AS files WHERE files.site_id = known.site_id AND files.hour_at = known.hour_at
                AND files.retired_at IS NULL)
    AND NOT EXISTS (SELECT FROM changes WHERE (changes.site_id = known.site_id OR changes.site_id IS NULL)
                    AND changes.from_at < known.hour_at + interval '2 hours' AND changes.to_at > known.hour_at - interval '1 hour')
    ORDER BY known.hour_at LIMIT %(most)s FOR UPDATE OF known SKIP LOCKED
), marked AS (
    UPDATE hour_catalog AS known SET expired_at = now(), updated_at = now() FROM old
    WHERE known.site_id = old.site_id AND known.hour_at = old.hour_at RETURNING known.site_id, known.hour_at
), retired AS (
    UPDATE hour_segments AS files SET retired_at = now() FROM marked
    WHERE files.site_id = marked.site_id AND files.hour_at = marked.hour_at AND files.retired_at IS NULL
)
SELECT site_id, hour_at FROM marked ORDER BY hour_at, site_id
"""
_DISCARD: Final = """
WITH gone AS (
    DELETE FROM {table} AS late USING epochs, nodes, hour_catalog AS known
    WHERE epochs.id = late.epoch_id AND nodes.id = epochs.node_id AND known.site_id = nodes.site_id
    AND known.hour_at = date_trunc('hour', late.at, 'UTC') AND known.expired_at IS NOT NULL
    RETURNING known.site_id, known.hour_at
)
SELECT site_id, hour_at, count(*) FROM gone GROUP BY 1, 2 ORDER BY 2, 1
"""
_KEPT: Final = "hashtextextended('wattledger.retired_segments', 0)"
_FORGET: Final = """
DELETE FROM hour_segments WHERE site_id = %s AND hour_at = %s AND stream = %s AND generation = %s AND retired_at IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Due:
    """Hours to be sealed, and sealed ones to be merged with their late rows; oldest first."""

    seal: tuple[SiteHour, ...] = ()
    merge: tuple[SiteHour, ...] = ()


def due(engine: sa.Engine, now: datetime, *, seal_after: timedelta, merge_after: timedelta, most: int = 240) -> Due:
    """Return hours that ended ``seal_after`` ago and are not sealed, and those whose late rows waited for ``merge_after``.

    Hours of the open window are left alone. At most so many of each kind: the rest is due next time.
    """
    with engine.connect() as conn:
        days = sorted({partition.day for partition in _hot_days(conn)})
    before = now - seal_after - timedelta(hours=1)
    raw = engine.raw_connection()
    try:
        connection: psycopg.Connection[Any] = raw.driver_connection  # type: ignore[assignment]
        given: dict[str, Any] = {"before": before, "most": most, "waited": now - merge_after, "days": days}
        unsealed = [hour_of(*row) for row in connection.execute(_UNSEALED, given)]
        union = " UNION ALL ".join(_LATE_OF.format(table=target.table) for target in LATE.values())
        late = connection.execute(_LATE.replace("{late}", union).encode(), given).fetchall()
    finally:
        raw.close()
    seal = dict.fromkeys(unsealed)
    seal |= dict.fromkeys(hour_of(site_id, at) for site_id, at, _, is_sealed in late if not is_sealed)
    merge = [hour_of(site_id, at) for site_id, at, _, is_sealed in late if is_sealed]
    return Due(tuple(sorted(seal, key=lambda hour: (hour.hour, hour.site_id))), tuple(merge))


def _hot_days(conn: sa.Connection) -> list[partitions.Partition]:
    return [partition for partition in partitions.partitions(conn) if partition.table in partitions.DROPPABLE]


def drop_hot_days(
    engine: sa.Engine, before: date, *, step: Callable[[str], None] = no_step
) -> tuple[partitions.Partition, ...]:
    """Drop days of the hot tables before a day, those of which every hour of every site is sealed; return what was dropped.

    Looked at again once the day is locked: a site that was made meanwhile has rows nobody sealed.
    """
    with engine.connect() as conn:
        days = sorted({partition.day for partition in _hot_days(conn) if partition.day < before})
    dropped: list[partitions.Partition] = []
    for day in days:
        try:
            with engine.begin() as conn:
                if _unsealed(conn, day):
                    continue
                gone = [partition for partition in _hot_days(conn) if partition.day == day]
                for partition in gone:
                    conn.execute(sa.select(sa.func.drop_partition(partition.table, partition.day)))
                step("look again")
                if _unsealed(conn, day):
                    conn.rollback()
                    continue
                dropped += gone
                step("commit drop")
            step("dropped")
        except sa.exc.OperationalError as error:
            if not isinstance(error.orig, psycopg.errors.LockNotAvailable):
                raise
            log.info("%s is being read; it is dropped later", day)
    return tuple(dropped)


def _unsealed(conn: sa.Connection, day: date) -> int:
    return int(conn.execute(sa.text(_UNSEALED_OF_DAY), {"day": day}).scalar_one())


def delete_retired(
    connection: psycopg.Connection[Any], segments: Segments, grace: timedelta, *, step: Callable[[str], None] = no_step
) -> int:
    """Delete files that a later generation replaced so long ago that no reader can hold them; return how many.

    The file goes first: a row without a file is deleted again, a file without a row would stay for ever. While somebody
    holds them (:func:`hold_retired`) nothing is deleted.
    """
    free = connection.execute(f"SELECT pg_try_advisory_lock({_KEPT})").fetchone()
    if free != (True,):
        log.info("files that were replaced are being backed up; they are deleted later")
        return 0
    try:
        rows = connection.execute(_RETIRED, [grace]).fetchall()
        for site_id, hour_at, stream, generation, path in rows:
            step("delete file")
            segments.delete(path)
            step("forget file")
            connection.execute(_FORGET, [site_id, hour_at, stream, generation])
            connection.commit()
    finally:
        if not connection.broken:
            connection.execute(f"SELECT pg_advisory_unlock({_KEPT})")
    return len(rows)


def expire(connection: psycopg.Connection[Any], before: datetime, most: int = 240) -> list[SiteHour]:
    """Let the segments of closed hours that end by ``before`` go, at most so many; return the hours.

    Their files are deleted with the replaced ones, after the same grace. Minutes, usage hours and ledger stay.
    """
    given = {"before": before - timedelta(hours=1), "most": most}
    found = connection.execute(_EXPIRE, given).fetchall()
    connection.commit()
    return [hour_of(*row) for row in found]


def discard_too_late(connection: psycopg.Connection[Any]) -> list[tuple[int, datetime, str, int]]:
    """Delete late rows of hours whose segments are gone; return (site, hour, stream, rows). The caller commits and tells."""
    found: list[tuple[int, datetime, str, int]] = []
    for stream, target in LATE.items():
        rows = connection.execute(_DISCARD.format(table=target.table).encode())
        found += [(site_id, hour_at, stream.value, count) for site_id, hour_at, count in rows]
    return found


@contextmanager
def hold_retired(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Keep replaced files from being deleted while the block lasts; a deletion under way is waited for. For a backup."""
    connection.execute(f"SELECT pg_advisory_lock_shared({_KEPT})")
    connection.commit()
    try:
        yield
    finally:
        if not connection.broken:
            connection.rollback()
            connection.execute(f"SELECT pg_advisory_unlock_shared({_KEPT})")
            connection.commit()


@dataclass(frozen=True, slots=True)
class Swept:
    """What was left behind by processes that ended in the middle."""

    unfinished: int = 0
    unknown: tuple[str, ...] = ()


def sweep(
    connection: psycopg.Connection[Any], segments: Segments, hours: Sequence[tuple[str, datetime]], grace: timedelta
) -> Swept:
    """Delete unfinished files, and published ones of these (site, hour) that the catalog does not know, past the grace."""
    unknown: list[str] = []
    for site, hour_at in hours:
        folder = folder_of(site, hour_at)
        found = [path for path, age_s in segments.listed(folder) if age_s > grace.total_seconds()]
        if not found:
            continue
        known = connection.execute("SELECT path FROM hour_segments WHERE path = ANY (%s)", [found]).fetchall()
        unknown += sorted(set(found) - {path for (path,) in known})
    for path in unknown:
        segments.delete(path)
    return Swept(segments.clear_scratch(grace.total_seconds()), tuple(unknown))


def hot_before(now: datetime, retention: timedelta) -> date:
    """Return the first day that stays in the hot tables; an hour of margin for clocks of ingest that go after ours."""
    return (now - retention - timedelta(hours=1)).astimezone(UTC).date()
