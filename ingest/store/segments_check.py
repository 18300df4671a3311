"""Looks at sealed files before somebody needs them: there, whole, and with the rows the catalog says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psycopg

from ingest.store.catalog import ListedFile, listed_files
from ingest.store.segments import SegmentError, Segments
from ingest.store.segments_format import SegmentFormatError, check_pages, read_meta

# What was found bad is looked at again, so that a restored file ends its finding.
_CHOSEN: Final = """
SELECT DISTINCT hour_at FROM hour_segments WHERE retired_at IS NULL AND (published_at > now() - interval '10 minutes'
    OR path IN (SELECT evidence ->> 'path' FROM findings WHERE kind = 'segment_damaged' AND withdrawn_at IS NULL))
UNION (SELECT hour_at FROM hour_segments WHERE retired_at IS NULL GROUP BY hour_at ORDER BY random() LIMIT %s)
"""
_FOUND_BAD: Final = """
SELECT evidence ->> 'path' FROM findings WHERE kind = 'segment_damaged' AND withdrawn_at IS NULL
"""
# Those whose day is hot: of others there is nothing to make them from.
_DAMAGED_HOURS: Final = """
SELECT site_id, hour_at, array_agg(stream ORDER BY stream) FROM hour_segments AS files
WHERE retired_at IS NULL AND path IN (SELECT evidence ->> 'path' FROM findings WHERE kind = 'segment_damaged' AND withdrawn_at IS NULL)
AND EXISTS (SELECT FROM stored_days() AS days WHERE days.parent = files.stream AND days.day = (files.hour_at AT TIME ZONE 'UTC')::date)
GROUP BY site_id, hour_at ORDER BY hour_at, site_id
"""


@dataclass(frozen=True, slots=True)
class Checked:
    """A file and what is wrong with it; ``fault`` null = nothing."""

    listed: ListedFile
    fault: str | None


def check_file(segments: Segments, listed: ListedFile, *, thoroughly: bool) -> Checked:
    """Look at a file: size and digest; ``thoroughly`` also every page with its own checksum, and the rows.

    Of a bucket it is fetched: no copy that is kept here tells how it is there. Raises SegmentUnreachableError.
    """
    try:
        with segments.fresh(listed.file) as path:
            meta = read_meta(path)
            if meta.rows != listed.file.rows or (thoroughly and check_pages(path) != meta.rows):
                return Checked(listed, f"holds other than {listed.file.rows} rows")
    except (SegmentError, SegmentFormatError) as error:
        return Checked(listed, str(error))
    except OSError as error:  # a bad sector, a right that was taken away
        segments.mark()  # unless it is the place as a whole
        return Checked(listed, f"segment {listed.file.path} cannot be read: {error}")
    return Checked(listed, None)


def found_bad(connection: psycopg.Connection[Any]) -> frozenset[str]:
    """Return the paths that stand as damaged: found so, and not found whole or replaced since."""
    return frozenset(path for (path,) in connection.execute(_FOUND_BAD))


def damaged_hours(connection: psycopg.Connection[Any]) -> list[tuple[int, datetime, list[str]]]:
    """Return (site, hour, streams) of the files that stand as damaged while their day is hot, oldest first."""
    return [(site_id, hour_at, list(streams)) for site_id, hour_at, streams in connection.execute(_DAMAGED_HOURS)]


def check_some(connection: psycopg.Connection[Any], segments: Segments, by_chance: int) -> Sequence[Checked]:
    """Check the files of the hours just sealed, those found bad before, and some others, afresh; return them all."""
    chosen: list[datetime] = [hour_at for (hour_at,) in connection.execute(_CHOSEN, [by_chance])]
    segments.forget()
    found = []
    for hour_at in sorted(chosen):
        files = listed_files(connection, None, hour_at, hour_at.replace(minute=59))
        found += [check_file(segments, listed, thoroughly=False) for listed in files]
    return found
