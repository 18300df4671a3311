"""Lets a day leave the hot tables, once all of it is in segments that are there and whole.

Every hour of every site of that day must be sealed, and each of their files read and compared with its digest within the hour
before: what the hot tables hold is the only thing a damaged file can be made anew from. It repairs nothing itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from time import monotonic
from typing import Any, Final

import psycopg
import sqlalchemy as sa

from ingest.store import partitions
from ingest.store.catalog import listed_files
from ingest.store.seal import no_step
from ingest.store.segments import Segments
from ingest.store.segments_check import Checked, check_file, found_bad

log = logging.getLogger(__name__)
_UNSEALED_OF_DAY: Final = """
SELECT count(*) FROM sites, generate_series(0, 23) AS hour WHERE NOT EXISTS (
    SELECT FROM hour_catalog AS known WHERE known.site_id = sites.id AND known.state = 'sealed'
    AND known.hour_at = CAST(:day AS date)::timestamp AT TIME ZONE 'UTC' + hour * interval '1 hour')
"""
_WHOLE_FOR_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Whole:
    """Files of a day that were read and found whole, and when by the monotonic clock."""

    paths: frozenset[str]
    at_s: float


@dataclass(slots=True)
class Dropped:
    """The partitions that were dropped, and the files because of which others were not."""

    partitions: list[partitions.Partition] = field(default_factory=list)
    damaged: list[Checked] = field(default_factory=list)


def drop_hot_days(
    engine: sa.Engine,
    segments: Segments,
    before: date,
    *,
    step: Callable[[str], None] = no_step,
    go_on: Callable[[], bool] = lambda: True,
    known: dict[date, Whole] | None = None,
) -> Dropped:
    """Drop days of the hot tables before a day, those that are sealed and whose files are whole.

    A day with a file that was found bad and not made anew since stays, without all its files being read again. Looked at
    once more when the day is locked: a site that was made meanwhile has rows nobody sealed, a file that was merged meanwhile
    nobody has read. ``known``: days whose files were whole within the hour, to which others are added: one that somebody is
    reading, a backup for example, is not read whole at each attempt. Raises SegmentUnreachableError where the place is away.
    """
    looked_at = {} if known is None else known
    with engine.connect() as conn:
        days = sorted({partition.day for partition in hot_days(conn) if partition.day < before})
    done = Dropped()
    for day in days:
        if not go_on():
            break
        try:
            whole = _whole_files(engine, segments, day, done, looked_at.get(day))
            if whole is None:
                looked_at.pop(day, None)
                continue
            looked_at[day] = whole
            done.partitions += _drop(engine, day, whole.paths, step)
            del looked_at[day]
        except sa.exc.OperationalError as error:
            if not isinstance(error.orig, psycopg.errors.LockNotAvailable):
                raise
            log.info("%s is being read; it is dropped later", day)
    return done


def hot_days(conn: sa.Connection) -> list[partitions.Partition]:
    """Return the days of the streams' hot tables that there are."""
    return [partition for partition in partitions.partitions(conn) if partition.table in partitions.DROPPABLE]


def hot_before(now: datetime, retention: timedelta) -> date:
    """Return the first day that stays in the hot tables; an hour of margin for clocks of ingest that go after ours."""
    return (now - retention - timedelta(hours=1)).astimezone(UTC).date()


def _drop(
    engine: sa.Engine, day: date, whole: frozenset[str], step: Callable[[str], None]
) -> list[partitions.Partition]:
    with engine.begin() as conn:
        gone = [partition for partition in hot_days(conn) if partition.day == day]
        for partition in gone:
            conn.execute(sa.select(sa.func.drop_partition(partition.table, partition.day)))
        step("look again")
        if _unsealed(conn, day) or _files(conn, day).keys() != whole:
            conn.rollback()
            return []
        step("commit drop")
    step("dropped")
    return gone


def _whole_files(engine: sa.Engine, segments: Segments, day: date, done: Dropped, known: Whole | None) -> Whole | None:
    """Return the paths of a sealed day's files, each read and whole; None = it is not sealed, or not all of them are."""
    with engine.connect() as conn:
        if _unsealed(conn, day):
            return None
        files = _files(conn, day)
        if found_bad(_driver(conn)) & files.keys():
            return None
    if known is not None and known.paths == files.keys() and monotonic() - known.at_s < _WHOLE_FOR_S:
        return known
    segments.forget()
    checked = [check_file(segments, listed, thoroughly=False) for listed in files.values()]
    bad = [each for each in checked if each.fault]
    done.damaged += bad
    if bad:
        log.error("%s stays hot: %d of its %d sealed files are not whole, %s", day, len(bad), len(files), bad[0].fault)
    return None if bad else Whole(frozenset(files), monotonic())


def _files(conn: sa.Connection, day: date) -> dict[str, Any]:
    at = datetime.combine(day, time(tzinfo=UTC))
    return {listed.file.path: listed for listed in listed_files(_driver(conn), None, at, at + timedelta(days=1))}


def _driver(conn: sa.Connection) -> psycopg.Connection[Any]:
    driver: psycopg.Connection[Any] = conn.connection.driver_connection  # type: ignore[assignment]
    return driver


def _unsealed(conn: sa.Connection, day: date) -> int:
    return int(conn.execute(sa.text(_UNSEALED_OF_DAY), {"day": day}).scalar_one())
