"""Knows the segments' folder by a marker in its root, so that an empty mount point is not taken for it.

The marker is written at first use and recorded in the database. A folder without it is away: nothing is published into it,
and what is missing from it is not damaged. It is marked anew by itself only where the catalog's files lie, as after a
restore or a move; all else is for a person to say (``wattledger segments claim``). It looks into no file.
"""

from __future__ import annotations

import logging
import uuid
from typing import Any, Final

import psycopg

from ingest.store.segments import MARKER, Segments, SegmentUnreachableError

log = logging.getLogger(__name__)
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('wattledger.segment_place', 0))"
_RECORDED: Final = "SELECT mark FROM segment_place"
_RECORD: Final = """
INSERT INTO segment_place (id, mark) VALUES (1, %s) ON CONFLICT (id) DO UPDATE SET mark = excluded.mark, marked_at = now()
"""
# The first and the last: a mount point that was written to while its disk was away has some of one end.
_KNOWN: Final = """
(SELECT path FROM hour_segments WHERE retired_at IS NULL ORDER BY hour_at, path LIMIT 10) UNION
(SELECT path FROM hour_segments WHERE retired_at IS NULL ORDER BY hour_at DESC, path LIMIT 10)
"""


def ours(connection: psycopg.Connection[Any], segments: Segments) -> str:
    """Return the mark of the segments' place, made at first use; raises SegmentUnreachableError where it is another. Commits."""
    with connection.transaction():
        connection.execute(_LOCK)
        recorded, found = _recorded(connection), segments.mark()
        if found is not None and found == recorded:
            return found
        if found is not None and recorded is not None:
            raise SegmentUnreachableError(
                f"{segments.shown_as} holds the segments of another database: its {MARKER!r} says {found}, not {recorded}; "
                "name the right folder, or say with `wattledger segments claim` that it is"
            )
        missing, known = _missing(connection, segments)
        if 2 * missing > known:
            raise SegmentUnreachableError(
                f"{segments.shown_as} has no file {MARKER!r}, and {missing} of {known} files looked for are not there: its disk is "
                "not mounted, or it is another folder. Nothing is sealed or dropped until it is back; if its files are lost, say so "
                "with `wattledger segments claim`, and those whose rows are hot are made anew"
            )
        return _claim(connection, segments, found or recorded or uuid.uuid4().hex)


def claim(connection: psycopg.Connection[Any], segments: Segments) -> str:
    """Make this the segments' place whatever is in it; return its mark. Commits."""
    with connection.transaction():
        connection.execute(_LOCK)
        return _claim(connection, segments, _recorded(connection) or segments.mark() or uuid.uuid4().hex)


def require(segments: Segments, mark: str) -> None:
    """Raise SegmentUnreachableError unless the place still is the one of this mark: a disk may go at any time."""
    if segments.mark() != mark:
        raise SegmentUnreachableError(f"{segments.shown_as} has no file {MARKER!r} any more; is its disk mounted?")


def _claim(connection: psycopg.Connection[Any], segments: Segments, mark: str) -> str:
    if segments.mark() != mark:
        segments.set_mark(mark)
        log.info("%s is marked as the place of the segments", segments.shown_as)
    connection.execute(_RECORD, [mark])
    return mark


def _recorded(connection: psycopg.Connection[Any]) -> str | None:
    row = connection.execute(_RECORDED).fetchone()
    return None if row is None else str(row[0])


def _missing(connection: psycopg.Connection[Any], segments: Segments) -> tuple[int, int]:
    """Return how many of some of the catalog's files are not there, and of how many."""
    known = {path for (path,) in connection.execute(_KNOWN)}
    there = {path for folder in {path.rpartition("/")[0] for path in known} for path, _ in segments.listed(folder)}
    return len(known - there), len(known)
