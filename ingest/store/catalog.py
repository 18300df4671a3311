"""The catalog of hours: which are sealed, in which generation, and which files hold them.

An hour is ``open`` (its rows are in the hot tables and the late ones), ``sealing`` (so too, and nothing more comes to the hot
ones) or ``sealed`` (its rows are in the files that are not retired, and late ones). A sealed hour past retention is expired:
its rows are nowhere. A reader that sees the catalog and the
tables in one snapshot finds each row in exactly one of these places. Statements only; the protocol is ``ingest.store.seal``.
"""
# ruff: noqa: S608 - built of this package's own names, ids and instants

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg

from collector.wire import Stream
from ingest.store.arrow import Fetch
from ingest.store.segments import SegmentFile

HOUR: Final = timedelta(hours=1)
_SEALED: Final = """
SELECT catalog.site_id, catalog.hour_at, catalog.generation, files.path, files.rows, files.size_bytes, files.sha256,
       array_to_string(files.feeds, ',') AS feeds, catalog.expired_at IS NOT NULL AS is_expired, files.generation AS made_in
FROM hour_catalog AS catalog LEFT JOIN hour_segments AS files
    ON files.site_id = catalog.site_id AND files.hour_at = catalog.hour_at
    AND files.stream = '{stream}' AND files.retired_at IS NULL
WHERE catalog.state = 'sealed' AND catalog.hour_at > '{from_at}'::timestamptz - interval '1 hour'
AND catalog.hour_at < '{to_at}' {of_site} ORDER BY catalog.site_id, catalog.hour_at
"""


@dataclass(frozen=True, slots=True)
class SealedHour:
    """One sealed hour of one site and the file of one stream; null = that stream has no rows there."""

    site_id: int
    hour_at: datetime
    generation: int
    file: SegmentFile | None
    feeds: frozenset[int]
    is_expired: bool = False
    """Past retention: its rows are gone, and an answer without them would be wrong."""
    made_in: int = 0
    """The generation the file was made in: later ones of the hour may have left this stream as it was."""


def sealed_hours(
    fetch: Fetch, stream: Stream, from_at: datetime, to_at: datetime, site_id: int | None
) -> list[SealedHour]:
    """Return the sealed hours that overlap an interval, by site and time."""
    of_site = "" if site_id is None else f"AND catalog.site_id = {int(site_id)}"
    query = _SEALED.format(stream=stream.value, from_at=from_at.isoformat(), to_at=to_at.isoformat(), of_site=of_site)
    return [_sealed_hour(row) for row in fetch(query).iter_rows()]


def _sealed_hour(row: tuple[Any, ...]) -> SealedHour:
    site_id, hour_at, generation, path, rows, size_bytes, sha256, feeds, is_expired, made_in = row
    file = None if path is None else SegmentFile(path, rows, size_bytes, bytes(sha256))
    known = frozenset(int(feed) for feed in feeds.split(",")) if feeds else frozenset[int]()
    return SealedHour(site_id, hour_at.astimezone(UTC), generation, file, known, is_expired, made_in or 0)


def open_spans(hours: Sequence[SealedHour], from_at: datetime, to_at: datetime) -> list[tuple[datetime, datetime]]:
    """Return the parts of [from_at, to_at) that sealed hours of one site leave, in order."""
    spans: list[tuple[datetime, datetime]] = []
    at = from_at
    for hour_at in sorted({hour.hour_at for hour in hours}):
        if hour_at > at:
            spans.append((at, min(hour_at, to_at)))
        at = max(at, hour_at + HOUR)
    if at < to_at:
        spans.append((at, to_at))
    return spans


@dataclass(frozen=True, slots=True)
class CatalogRow:
    """One hour with all its files, for people."""

    site: str
    hour_at: datetime
    state: str
    generation: int
    rows: int | None
    size_bytes: int
    streams: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file of the catalog with where it belongs."""

    site_id: int
    site: str
    hour_at: datetime
    stream: str
    generation: int
    file: SegmentFile


_HOURS: Final = """
SELECT sites.name, catalog.hour_at, CASE WHEN expired_at IS NULL THEN catalog.state ELSE 'expired' END, catalog.generation, catalog.rows,
       coalesce(sum(files.size_bytes), 0)::bigint, coalesce(array_agg(files.stream ORDER BY files.stream)
       FILTER (WHERE files.stream IS NOT NULL), '{}')
FROM hour_catalog AS catalog JOIN sites ON sites.id = catalog.site_id
LEFT JOIN hour_segments AS files ON files.site_id = catalog.site_id AND files.hour_at = catalog.hour_at
    AND files.retired_at IS NULL
WHERE (%(site)s::text IS NULL OR sites.name = %(site)s) AND catalog.hour_at >= %(from_at)s AND catalog.hour_at < %(to_at)s
GROUP BY sites.name, catalog.site_id, catalog.hour_at ORDER BY catalog.hour_at, sites.name
"""
_FILES: Final = """
SELECT files.site_id, sites.name, files.hour_at, files.stream, files.generation,
       files.path, files.rows, files.size_bytes, files.sha256
FROM hour_segments AS files JOIN sites ON sites.id = files.site_id
WHERE (files.retired_at IS NULL OR files.pinned AND %(pinned)s) AND (%(site)s::text IS NULL OR sites.name = %(site)s)
AND files.hour_at >= %(from_at)s AND files.hour_at < %(to_at)s ORDER BY files.hour_at, sites.name, files.stream
"""


def listed_hours(
    connection: psycopg.Connection[Any], site: str | None, from_at: datetime, to_at: datetime
) -> list[CatalogRow]:
    """Return the catalog's hours of an interval with the sizes of their files."""
    rows = connection.execute(_HOURS, {"site": site, "from_at": from_at, "to_at": to_at})
    return [
        CatalogRow(name, hour_at, state, generation, count, size_bytes, tuple(streams))
        for name, hour_at, state, generation, count, size_bytes, streams in rows
    ]


def listed_files(
    connection: psycopg.Connection[Any], site: str | None, from_at: datetime, to_at: datetime, *, pinned: bool = False
) -> list[ListedFile]:
    """Return the files that are read now, of an interval's hours; ``pinned``: also those that past runs of the books rest on."""
    rows = connection.execute(_FILES, {"site": site, "from_at": from_at, "to_at": to_at, "pinned": pinned})
    return [
        ListedFile(site_id, name, hour_at, stream, generation, SegmentFile(path, count, size_bytes, bytes(sha256)))
        for site_id, name, hour_at, stream, generation, path, count, size_bytes, sha256 in rows
    ]


def epochs_in_parts(fetch: Fetch, feeds: Iterable[int]) -> frozenset[int]:
    """Return the epochs of feeds that deliver rows in parts."""
    found = fetch(f"SELECT id FROM epochs WHERE feed IN ({', '.join(str(int(feed)) for feed in feeds)})")
    return frozenset(found["id"].to_list())
