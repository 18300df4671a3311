"""Reads the samples that a past run of the books read: the files it named, whatever took their place since, and nothing outside of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from collector.wire import Stream
from ingest.store.arrow import command_session
from ingest.store.catalog import HOUR, SealedHour
from ingest.store.engine import Database
from ingest.store.samples import FileRead, Part, SampleSession
from ingest.store.segments import SegmentExpiredError, SegmentFile, Segments

_FILES = """
SELECT stream, hour_at, generation, path, rows, size_bytes, sha256, array_to_string(feeds, ',') AS feeds FROM hour_segments
WHERE site_id = {site_id} AND hour_at >= '{first}' AND hour_at <= '{last}'
"""


@dataclass
class PinnedSession(SampleSession):
    """A session in which these files of one site are all there is."""

    named: Mapping[Stream, Sequence[SealedHour]] = field(default_factory=dict)

    def generations(self, from_at: datetime, to_at: datetime, site_id: int) -> dict[datetime, int]:
        """Return the generation of each named file of devices' samples that overlaps the interval."""
        del site_id
        return {hour.hour_at: hour.generation for hour in self._within(Stream.DEVICE, from_at, to_at)}

    def _parts(self, stream: Stream, from_at: datetime, to_at: datetime, site_id: int | None) -> Iterator[Part]:
        yield Part(site_id, self._within(stream, from_at, to_at))

    def _within(self, stream: Stream, from_at: datetime, to_at: datetime) -> list[SealedHour]:
        hours = self.named.get(stream, ())
        return [hour for hour in hours if hour.hour_at < to_at and hour.hour_at + HOUR > from_at]

    def _hot_query(
        self, stream: Stream, names: Sequence[str], part: Part, from_at: datetime, to_at: datetime, where: str
    ) -> None:
        del stream, names, part, from_at, to_at, where


@contextmanager
def pinned_session(
    database: Database, segments: Segments | None, site_id: int, files: Collection[FileRead]
) -> Iterator[PinnedSession]:
    """Open a session on a site's files; raises SegmentExpiredError where one of them is known no more, or is another by now."""
    with command_session(database, "worker") as session:
        named: dict[Stream, list[SealedHour]] = {}
        left = {(file.stream, file.hour_at, file.generation): file for file in files}
        if left:
            hours = [file.hour_at for file in files]
            query = _FILES.format(site_id=int(site_id), first=min(hours).isoformat(), last=max(hours).isoformat())
            for stream, hour_at, generation, path, rows, size_bytes, sha256, feeds in session.fetch(query).iter_rows():
                wanted = left.get((stream, hour_at.astimezone(UTC), generation))
                if wanted is None or wanted.sha256 != bytes(sha256).hex():
                    continue
                del left[stream, wanted.hour_at, generation]
                file = SegmentFile(path, rows, size_bytes, bytes(sha256))
                known = frozenset(int(feed) for feed in feeds.split(",")) if feeds else frozenset[int]()
                hour = SealedHour(site_id, wanted.hour_at, generation, file, known, made_in=generation)
                named.setdefault(Stream(stream), []).append(hour)
        if left:
            first = min(left.values())
            raise SegmentExpiredError(
                f"{len(left)} files that were read are gone or were made anew, the first of them {first.stream} of {first.hour_at:%Y-%m-%d %H:%M} "
                f"UTC, generation {first.generation}"
            )
        yield PinnedSession(session.fetch, segments, named=named)
