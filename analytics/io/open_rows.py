"""Keeps the rows of open hours between two looks at them: the next look fetches what was written since, and no row twice.

What was written the table ``changes`` tells, read in the snapshot that the rows are read in: of each transaction that the snapshot of the
look before did not see. No such change is forgotten while the hour has provisional books, and rows are kept for such hours only.
Of hours before it the nearest readings of silent devices are kept, as long as no change tells of those hours and none of them was closed
anew: a change is forgotten only after that. Whatever is not told by a change of samples (holdings, places, rates, words of jobs) is kept by
nobody and read anew each time. A look that does not come to its end keeps nothing. It computes nothing: rows are the same whether they
were kept or not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import polars as pl
import psycopg

from analytics.io.hours import REACH, RESTATE
from collector.wire import Stream
from ingest.store.merge import KEYS
from ingest.store.samples import SampleSession, Speaker

Span = tuple[datetime, datetime]
Make = Callable[[pl.LazyFrame], pl.LazyFrame]
"""Makes something else of rows, of each by itself: a key and an instant it stays."""
_Key = tuple[Stream, tuple[str, ...], int | None, tuple[int, ...], str]
_HERE: Final = "SELECT pg_current_snapshot()::text, pg_postmaster_start_time()::text || ' ' || oid FROM pg_database WHERE datname = current_database()"
_WRITTEN: Final = """
SELECT kind, from_at, to_at FROM changes WHERE (site_id = %(site_id)s OR site_id IS NULL) AND kind = ANY (%(kinds)s)
AND written_xid >= pg_snapshot_xmin(%(before)s::pg_snapshot) AND NOT pg_visible_in_snapshot(written_xid, %(before)s::pg_snapshot)
"""
_HOURS_BEFORE: Final = timedelta(days=3)
"""How far before an open hour what is found is kept: further than the reach of any silence."""
_HEARD: Final = """
SELECT hour_at, seen_xid::text FROM ledger_hours WHERE site_id = %(site_id)s AND hour_at < %(hour_at)s AND hour_at >= %(from_at)s
"""
_PIECE_ROWS: Final = 1 << 18
"""Pieces are put together up to so many rows (13 MiB of readings): so there are few, and what is made on the way to a larger one is small."""


@dataclass
class _Kept:
    """Rows of some keys of a stream over an interval, in pieces, each in order of key and time: who reads them has little left to sort."""

    from_at: datetime
    until_at: datetime
    pieces: list[pl.DataFrame]

    @property
    def size_bytes(self) -> int:
        return sum(int(piece.estimated_size()) for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class _Left:
    """What a look left for the next one."""

    server: str
    snapshot: str
    heard: Mapping[datetime, str]
    """Up to which transaction each hour before knows what happened: the next one that is closed anew says another."""
    kept: dict[_Key, _Kept]
    found: dict[Hashable, pl.DataFrame]
    """What was found in hours before the open one, by what was asked."""


@dataclass
class Look:
    """One look at an open hour, in one snapshot: rows kept by the look before are brought up to date when they are asked for."""

    site_id: int
    hour_at: datetime
    _before: _Left | None
    is_whole: bool = False
    """Whether some rows were read from their beginning on, because none of them were kept."""
    _left: _Left | None = None
    _written: dict[str, list[Span]] = field(default_factory=dict)

    def begin(self, connection: psycopg.Connection[Any]) -> None:
        """Take note of what was written since the look before; in the transaction whose snapshot rows are read in, once."""
        found = connection.execute(_HERE).fetchone()
        if found is None:
            raise psycopg.DataError("pg_current_snapshot() returned no row")
        snapshot, server = found
        before = self._before
        if before is not None and before.server != server:  # it may have been put back to what it was before
            before = self._before = None
        since = {"site_id": self.site_id, "hour_at": self.hour_at, "from_at": self.hour_at - _HOURS_BEFORE}
        self._left = _Left(server, snapshot, dict(connection.execute(_HEARD, since).fetchall()), {}, {})
        if before is None:
            return
        kinds = [stream.value for stream in Stream]
        asked = {"site_id": self.site_id, "kinds": [*kinds, RESTATE], "before": before.snapshot}
        for kind, from_at, to_at in connection.execute(_WRITTEN, asked).fetchall():
            for told in kinds if kind == RESTATE else [kind]:
                self._written.setdefault(told, []).append((from_at, to_at))

    def session(self, opened: SampleSession) -> SampleSession:
        """Return the session with the rows of whole intervals taken from here."""
        return _Session(opened.fetch, opened.segments, look=self)

    def rows(self, key: _Key, asked: Span, fetch: Callable[[datetime, datetime], pl.DataFrame]) -> pl.DataFrame:
        """Return the rows of an interval; ``fetch`` gives those of a part of it."""
        if self._left is None:
            raise RuntimeError("a look begins with begin()")
        from_at, to_at = asked
        if self.hour_at - from_at > REACH:  # of what is written so far off nobody keeps the changes
            return fetch(from_at, to_at)
        known = self._before.kept.pop(key, None) if self._before is not None else None  # its rows are nowhere twice
        order = KEYS[key[0]], "at"
        if known is None or known.from_at != from_at:
            self.is_whole = True
            pieces = [fetch(*span).sort(order) for span in _slices(from_at, to_at)]
            kept = _Kept(from_at, to_at, _put_together(pieces, order))
        else:
            stale = _joined([*self._written.get(key[0].value, ()), (min(known.until_at, to_at), _LAST)], asked)
            self.is_whole |= stale[0][0] <= from_at if stale else False
            pieces = [_without(piece, stale) for piece in known.pieces]
            pieces += [fetch(*span).sort(order) for span in stale]
            kept = _Kept(from_at, to_at, _put_together(pieces, order))
        self._left.kept[key] = kept
        return pl.concat(kept.pieces)

    def found(self, stream: Stream, key: Hashable, asked: Span, find: Callable[[], pl.DataFrame]) -> pl.DataFrame:
        """Return what ``find`` gives for an interval, from before where nothing has changed of it; ``key`` is all that it depends on."""
        if self._left is None:
            raise RuntimeError("a look begins with begin()")
        from_at, to_at = asked
        if not self.hour_at - _HOURS_BEFORE <= from_at < to_at <= self.hour_at:
            return find()
        rows = self._before.found.get(key) if self._before is not None and self._is_as_before(stream, asked) else None
        self._left.found[key] = find() if rows is None else rows
        return self._left.found[key]

    def _is_as_before(self, stream: Stream, asked: Span) -> bool:
        if self._before is None or self._left is None or _joined(self._written.get(stream.value, ()), asked):
            return False
        hour_at = asked[0].replace(minute=0, second=0, microsecond=0)
        while hour_at < asked[1]:
            if self._before.heard.get(hour_at) != self._left.heard.get(hour_at):
                return False
            hour_at += timedelta(hours=1)
        return True

    @property
    def left(self) -> _Left | None:
        """What the next look may begin with."""
        return self._left


@dataclass
class OpenRows:
    """What a process keeps of open hours, at most so many bytes of it. For one thread."""

    most_bytes: int
    _left: dict[tuple[int, datetime], _Left] = field(default_factory=dict)

    def look(self, site_id: int, hour_at: datetime) -> Look:
        """Begin a look at an hour; whatever was kept of it is that look's, and is gone unless it is kept again."""
        return Look(site_id, hour_at, self._left.pop((site_id, hour_at), None))

    def keep(self, look: Look) -> bool:
        """Keep what a look has read, instead of other hours of its site; False, and nothing is kept of it, where that is too much.

        Only of an hour that had provisional books when the look began: changes of others may be forgotten before the next one.
        """
        left = look.left
        for site_id, hour_at in list(self._left):
            if site_id == look.site_id:
                del self._left[site_id, hour_at]
        if left is None:
            return False
        mine = _size_bytes(left)
        if mine > self.most_bytes:
            return False
        while mine + sum(_size_bytes(other) for other in self._left.values()) > self.most_bytes:
            del self._left[next(iter(self._left))]  # the one that was looked at longest ago
        self._left[look.site_id, look.hour_at] = left
        return True

    @property
    def size_bytes(self) -> int:
        """How much is kept."""
        return sum(map(_size_bytes, self._left.values()))

    def drop(self) -> None:
        """Forget all rows: their memory is wanted."""
        self._left.clear()


@dataclass
class _Session(SampleSession):
    """A session whose look knows rows of before, and what was found of silent devices; rows of single feeds it leaves to the tables."""

    look: Look | None = None

    def rows(
        self,
        stream: Stream,
        columns: Sequence[str],
        from_at: datetime,
        to_at: datetime,
        *,
        keys: Collection[int] | None = None,
        site_id: int | None = None,
        instants: Collection[datetime] | None = None,
        speaker: Speaker | None = None,
    ) -> pl.LazyFrame:
        whole = super().rows

        def find() -> pl.LazyFrame:
            return whole(
                stream, columns, from_at, to_at, keys=keys, site_id=site_id, instants=instants, speaker=speaker
            )

        if self.look is None or keys is None or (speaker is not None and instants is None):
            return find()
        asked = (from_at, to_at)
        if instants is not None:
            key = stream, tuple(columns), asked, tuple(sorted(keys)), site_id, tuple(sorted(instants)), speaker
            return self.look.found(stream, key, asked, lambda: find().collect()).lazy()
        return self.kept(stream, columns, asked, keys, site_id, _as_they_are, self.look).lazy()

    def ends(
        self,
        stream: Stream,
        from_at: datetime,
        to_at: datetime,
        *,
        keys: Collection[int],
        usable: Sequence[str],
        latest: bool,
        site_id: int | None = None,
        speaker: Speaker | None = None,
    ) -> pl.DataFrame:
        whole = super().ends

        def find() -> pl.DataFrame:
            return whole(
                stream, from_at, to_at, keys=keys, usable=usable, latest=latest, site_id=site_id, speaker=speaker
            )

        if self.look is None:
            return find()
        key = stream, from_at, to_at, tuple(sorted(keys)), tuple(usable), latest, site_id, speaker
        return self.look.found(stream, key, (from_at, to_at), find)

    def kept(
        self,
        stream: Stream,
        columns: Sequence[str],
        asked: Span,
        keys: Collection[int],
        site_id: int | None,
        make: Make,
        look: Look,
    ) -> pl.DataFrame:
        whole = super().rows

        def fetch(since: datetime, until: datetime) -> pl.DataFrame:
            return make(whole(stream, columns, since, until, keys=keys, site_id=site_id)).collect()

        key = (stream, tuple(columns), site_id, tuple(sorted(keys)), make.__qualname__)
        return look.rows(key, asked, fetch)


def rows_made(
    session: SampleSession,
    stream: Stream,
    columns: Sequence[str],
    asked: Span,
    keys: Collection[int],
    site_id: int,
    make: Make,
) -> pl.DataFrame:
    """Return what is made of the rows of some keys in an interval; a session that keeps rows keeps that instead."""
    if isinstance(session, _Session) and session.look is not None:
        return session.kept(stream, columns, asked, keys, site_id, make, session.look)
    return make(session.rows(stream, columns, *asked, keys=keys, site_id=site_id)).collect()


def _as_they_are(rows: pl.LazyFrame) -> pl.LazyFrame:
    return rows


_NEW: Final = timedelta(minutes=2)
_SLICE: Final = timedelta(minutes=10)
_LAST: Final = datetime.max.replace(tzinfo=UTC)


def _joined(spans: Sequence[Span], within: Span) -> list[Span]:
    """Return the parts of ``within`` that any of the spans covers, apart from each other and in order."""
    first, last = within
    found: list[Span] = []
    for from_at, to_at in sorted((max(start, first), min(end, last)) for start, end in spans):
        if from_at >= to_at:
            continue
        if found and from_at <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], to_at)
        else:
            found.append((from_at, to_at))
    return found


def _without(piece: pl.DataFrame, stale: Sequence[Span]) -> pl.DataFrame:
    at = pl.col("at")
    for from_at, to_at in stale:
        inside = (at >= from_at) & (at < to_at)
        if piece.height and piece.select(inside.any()).item():
            piece = piece.filter(~inside)
    return piece


def _put_together(pieces: Sequence[pl.DataFrame], order: Sequence[str]) -> list[pl.DataFrame]:
    """Return few pieces with the rows of these, the newest rows in the last one by themselves: those are written beside soon."""
    found = [piece for piece in pieces if piece.height]
    if not found:
        return list(pieces[:1])
    newest_at = max(piece["at"].max() for piece in found) - _NEW  # type: ignore[type-var,operator]
    settled: list[pl.DataFrame] = []
    new: list[pl.DataFrame] = []
    for piece in found:
        is_new = pl.col("at") >= newest_at
        if piece.select(is_new.any()).item():
            new.append(piece.filter(is_new))
            old = piece.filter(~is_new)
        else:
            old = piece
        if settled and settled[-1].height + old.height <= _PIECE_ROWS:
            settled[-1] = pl.concat([settled[-1], old]).sort(order)
        elif old.height:
            settled.append(old)
    return [*settled, pl.concat(new).sort(order)]


def _slices(from_at: datetime, to_at: datetime) -> Iterator[Span]:
    """Cut an interval: as they come, rows take several times the memory of what is made of them."""
    while from_at < to_at:
        until = min(from_at + _SLICE, to_at)
        yield from_at, until
        from_at = until


def _size_bytes(left: _Left) -> int:
    return sum(kept.size_bytes for kept in left.kept.values()) + sum(
        int(rows.estimated_size()) for rows in left.found.values()
    )
