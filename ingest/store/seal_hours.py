"""Which hours are to be sealed or merged, and what is left to sweep up.

Every hour of every site is sealed, those without rows too: a day of the hot tables is dropped only when each site's 24 hours
of it are sealed, and then nobody has to look into it. It seals nothing itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg
import sqlalchemy as sa

from ingest.store.hours import SiteHour
from ingest.store.sample_tables import LATE
from ingest.store.seal import folder_of, hour_of, instant_of, no_step
from ingest.store.seal_days import hot_days
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
AND (sites.id, hours.hour_at) NOT IN (SELECT * FROM unnest(%(apart_sites)s::integer[], %(apart_hours)s::timestamptz[]))
AND NOT (hours.hour_at > %(patience)s AND EXISTS (
    SELECT FROM unnest(%(waiting_sites)s::integer[], %(waiting_from)s::timestamptz[]) AS waiting (site_id, from_at)
    WHERE waiting.site_id = sites.id AND hours.hour_at + interval '1 hour' > waiting.from_at))
ORDER BY hours.hour_at < %(current)s, hours.hour_at, sites.id LIMIT %(most)s
"""
# From when on rows of a site are still to come: none of its agents has sent anything since, or one has said within minutes
# that it has yet to send what is as old. A site that was silent for days is not waited for.
_STILL_TO_COME: Final = """
SELECT site_id, min(from_at) FROM (
    SELECT nodes.site_id, max(spools.last_seen_at) AS from_at FROM spools JOIN nodes ON nodes.id = spools.node_id
    GROUP BY nodes.site_id HAVING max(spools.last_seen_at) > %(now)s - 7 * %(longest)s
    UNION ALL
    SELECT nodes.site_id, min(agents.at - agents.oldest_unsent_us * interval '1 microsecond')
    FROM agent_health AS agents JOIN epochs ON epochs.id = agents.epoch_id JOIN nodes ON nodes.id = epochs.node_id
    WHERE agents.at > %(now)s - interval '10 minutes' AND agents.oldest_unsent_us > 0 GROUP BY nodes.site_id
) AS known GROUP BY site_id
"""
# A late row waits for as long as the earliest of its hour and site. Hours are found by steps along the index on time, and of
# each only the first row of a site is read: an outage leaves tens of millions of late rows, for hours.
_LATE: Final = """
SELECT site_id, hour_at, min(received_at), coalesce(bool_or(state = 'sealed'), false) FROM ({late}) AS late
LEFT JOIN hour_catalog USING (site_id, hour_at) WHERE hour_at < %(before)s AND expired_at IS NULL
AND (site_id, hour_at) NOT IN (SELECT * FROM unnest(%(apart_sites)s::integer[], %(apart_hours)s::timestamptz[]))
GROUP BY site_id, hour_at HAVING NOT coalesce(bool_or(state = 'sealed'), false) OR min(received_at) < %(waited)s
ORDER BY hour_at < %(current)s, hour_at, site_id LIMIT %(most)s
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
_RETIRED: Final = """
SELECT site_id, hour_at, stream, generation, path FROM hour_segments AS files WHERE retired_at < now() - %s
AND (NOT pinned OR EXISTS (SELECT FROM hour_catalog AS known WHERE known.site_id = files.site_id
                           AND known.hour_at = files.hour_at AND known.expired_at IS NOT NULL))
ORDER BY retired_at LIMIT 1000
"""
_CURRENT: Final = timedelta(days=7)
LONGEST_WAIT: Final = timedelta(hours=24)
"""After its end an hour is sealed whoever may yet send rows of it: then they come late. Half of what hot rows stay."""
_KEPT: Final = "hashtextextended('wattledger.retired_segments', 0)"
_FORGET: Final = """
DELETE FROM hour_segments WHERE site_id = %s AND hour_at = %s AND stream = %s AND generation = %s AND retired_at IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Due:
    """Hours to be sealed, and sealed ones to be merged with their late rows; oldest of the last week first, then older ones."""

    seal: tuple[SiteHour, ...] = ()
    merge: tuple[SiteHour, ...] = ()


def due(
    engine: sa.Engine,
    now: datetime,
    *,
    seal_after: timedelta,
    merge_after: timedelta,
    apart: Collection[SiteHour] = (),
    most: int = 240,
    longest_wait: timedelta = LONGEST_WAIT,
) -> Due:
    """Return hours that ended ``seal_after`` ago and are not sealed, and those whose late rows waited for ``merge_after``.

    Hours of the open window are left alone, those set ``apart`` because they failed, and for ``longest_wait`` after their end
    those of a site that has been silent since, or whose agents say that rows of then are still to be sent: sealed without
    them each hour of an outage would be written twice. At most so many of each kind, the
    last week's before older ones, which an import may bring by the ten thousand: the rest is due next time.
    """
    with engine.connect() as conn:
        days = sorted({partition.day for partition in hot_days(conn)})
    before = now - seal_after - timedelta(hours=1)
    raw = engine.raw_connection()
    try:
        connection: psycopg.Connection[Any] = raw.driver_connection  # type: ignore[assignment]
        given: dict[str, Any] = {"before": before, "most": most, "waited": now - merge_after, "days": days}
        given |= {"apart_sites": [hour.site_id for hour in apart], "apart_hours": [instant_of(hour) for hour in apart]}
        given |= {"current": now - _CURRENT, "patience": now - longest_wait - timedelta(hours=1)}
        waiting = connection.execute(_STILL_TO_COME, {"now": now, "longest": longest_wait}).fetchall()
        given |= {"waiting_sites": [site for site, _ in waiting], "waiting_from": [from_at for _, from_at in waiting]}
        unsealed = [hour_of(*row) for row in connection.execute(_UNSEALED, given)]
        union = " UNION ALL ".join(_LATE_OF.format(table=target.table) for target in LATE.values())
        late = connection.execute(_LATE.replace("{late}", union).encode(), given).fetchall()
    finally:
        raw.close()
    seal = dict.fromkeys(unsealed)
    seal |= dict.fromkeys(hour_of(site_id, at) for site_id, at, _, is_sealed in late if not is_sealed)
    merge = [hour_of(site_id, at) for site_id, at, _, is_sealed in late if is_sealed]
    return Due(tuple(seal), tuple(merge))


def delete_retired(
    connection: psycopg.Connection[Any], segments: Segments, grace: timedelta, *, step: Callable[[str], None] = no_step
) -> int:
    """Delete files that a later generation replaced so long ago that no reader can hold them; return how many.

    Those a run of the books rests on stay until their hour is past retention.
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
            try:
                segments.delete(path)
            except OSError:
                log.exception("%s cannot be deleted; it is tried again", path)
                continue
            step("forget file")
            connection.execute(_FORGET, [site_id, hour_at, stream, generation])
            connection.commit()
    finally:
        if not connection.broken:
            connection.execute(f"SELECT pg_advisory_unlock({_KEPT})")
    return len(rows)


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
