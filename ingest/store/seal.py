"""Moves an hour of a site from the hot tables into segments, and late rows into the hour's next generation.

    open -> sealing -> sealed (generation 1) -> sealed (generation 2) ...

Writers hold the shared advisory lock of each hour they write until they commit. The sealer takes the exclusive one to flip
the state: who wrote before it has committed, who comes after it finds the hour closed and writes late rows. Then one
transaction, of one snapshot, takes the late rows out, writes and publishes the files, and says in the catalog where the
hour is read from now. While the hour's day is hot the late rows join the hot ones, which nobody reads any more: from these
a damaged file is made anew. If it ends anywhere before its commit, everything is as before but for files nobody knows, which are
swept. Two sealers of one hour meet at its catalog row: the second one fails and writes nothing. It drops nothing.
"""
# ruff: noqa: S608 - built of this package's own names, ids and instants

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import quote

import adbc_driver_manager
import polars as pl
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq

from collector.wire import Stream
from ingest.store import catalog
from ingest.store.arrow import ArrowSession, command_session
from ingest.store.engine import Database
from ingest.store.hours import SiteHour
from ingest.store.merge import KEYS, PARTS_FEEDS, LateMerge, order, whole_rows
from ingest.store.sample_tables import LATE, NOT_SEALED, TARGETS
from ingest.store.seal_identities import known_epochs, known_keys
from ingest.store.segment_place import ours, require
from ingest.store.segments import SegmentFile, Segments, digest, sync
from ingest.store.segments_format import SegmentMeta, SegmentWriter, read_meta

log = logging.getLogger(__name__)
_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LOCK_WAIT: Final = "2s"
"""Writers of the hour queue behind a sealer that waits; a transaction of theirs takes milliseconds."""
_FLIP: Final = """
INSERT INTO hour_catalog AS known (site_id, hour_at, state) VALUES (%s, %s, 'sealing')
ON CONFLICT (site_id, hour_at) DO UPDATE SET state = 'sealing', updated_at = now() WHERE known.state = 'open'
"""
_CLAIM: Final = """
UPDATE hour_catalog SET updated_at = now() WHERE site_id = {site} AND hour_at = '{hour}' AND state = '{state}' AND expired_at IS NULL
RETURNING generation
"""
_CURRENT: Final = """
SELECT stream, path, rows, size_bytes, sha256 FROM hour_segments
WHERE site_id = {site} AND hour_at = '{hour}' AND retired_at IS NULL
"""
# A server's own bounds are for clients that forget a transaction. Writing the file of a large hour takes minutes between two
# statements; who takes over from a worker that stopped ends its sessions.
_NO_TIMEOUTS: Final = """
SELECT set_config(name, '0', true) FROM pg_settings
WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')
"""
_LONGEST_NAME_BYTES: Final = 200
"""Of a site in a folder's name; file systems take 255 bytes, and quoting makes six of a letter that is not Latin."""
_SERIALIZATION: Final = ("40001", "40P01", "55P03")


def no_step(name: str) -> None:
    """Go on: what a process is told between two steps, unless a test ends it there."""


class HourBusyError(RuntimeError):
    """Somebody else is writing, sealing or merging this hour right now; it is tried again later."""


class LostRowsError(RuntimeError):
    """A segment cannot be made anew: not all of its rows are hot."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What a seal or a merge has made."""

    generation: int
    rows: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Made:
    """A file of the generation being made."""

    stream: Stream
    file: SegmentFile
    feeds: tuple[int, ...]


def instant_of(hour: SiteHour) -> datetime:
    """Return when an hour begins."""
    return _UNIX_EPOCH + timedelta(hours=hour.hour)


def hour_of(site_id: int, at: datetime) -> SiteHour:
    """Return the hour of a site that an instant lies in."""
    return SiteHour(site_id, (at - _UNIX_EPOCH) // catalog.HOUR)


class Sealer:
    """Seals and merges one hour at a time as the worker role. For one thread."""

    def __init__(
        self,
        database: Database,
        segments: Segments,
        *,
        application: str = "wattledger-sealer",
        step: Callable[[str], None] = no_step,
    ) -> None:
        """``step`` is told the name of each step right before it: tests end the process there."""
        self._database = database
        self._segments = segments
        self._application = application
        self._step = step
        self._mark: str | None = None

    def seal(self, hour: SiteHour) -> Generation:
        """Seal an hour that is open, or go on where somebody stopped.

        Raises HourBusyError, SegmentError, and SegmentUnreachableError where the place of the segments is away.
        """
        self._look_for_place()
        self._flip(hour)
        return self._next_generation(hour, "sealing", frozenset(LATE))

    def merge(self, hour: SiteHour) -> Generation:
        """Write late rows of a sealed hour into its next generation; without any, nothing changes."""
        return self._next_generation(hour, "sealed", frozenset())

    def rebuild(self, hour: SiteHour, streams: Collection[Stream]) -> Generation:
        """Make the files of these streams of a sealed hour anew from the hot tables; raises LostRowsError.

        Rows that came late went there too when they were merged. Of those that came when the day was hot no more, only the
        file knew: then nothing is done.
        """
        return self._next_generation(hour, "sealed", frozenset(streams))

    def _look_for_place(self) -> str:
        if self._mark is None:
            with self._database.connect("worker", application=self._application) as connection:
                self._mark = ours(connection, self._segments)
        else:
            require(self._segments, self._mark)
        return self._mark

    def _flip(self, hour: SiteHour) -> None:
        self._step("flip")
        try:
            with self._database.connect("worker", application=self._application) as connection:
                connection.execute("SELECT set_config('lock_timeout', %s, true)", [_LOCK_WAIT])
                connection.execute("SELECT pg_advisory_xact_lock(%s)", [hour.lock_key])
                connection.execute(_FLIP, [hour.site_id, instant_of(hour)])
                self._step("commit flip")
        except psycopg.errors.LockNotAvailable as error:
            raise HourBusyError(f"{_name(hour)} is being written to") from error

    def _next_generation(self, hour: SiteHour, state: str, from_hot: frozenset[Stream]) -> Generation:
        mark = self._look_for_place()
        try:
            with command_session(self._database, "worker", self._application) as session:
                session.run("BEGIN ISOLATION LEVEL REPEATABLE READ")
                session.fetch(_NO_TIMEOUTS)
                return self._write(session, hour, state, from_hot, mark)
        except adbc_driver_manager.Error as error:
            if error.sqlstate in _SERIALIZATION:
                raise HourBusyError(f"{_name(hour)} is being sealed by somebody else") from error
            raise

    def _write(
        self, session: ArrowSession, hour: SiteHour, state: str, from_hot: frozenset[Stream], mark: str
    ) -> Generation:
        at = instant_of(hour)
        claimed = session.fetch(_CLAIM.format(site=hour.site_id, hour=at.isoformat(), state=state))
        if claimed.is_empty():
            raise HourBusyError(f"{_name(hour)} is not {state} any more")
        before = self._current(session, hour)
        generation = int(claimed["generation"].item()) + 1
        work = _Work(session, self._segments, hour, generation, self._step, before, mark)
        with ExitStack() as unfinished:
            made: list[_Made] = []
            for stream in LATE:
                if state == "sealed" and stream in from_hot and not work.is_hot(stream):
                    _refuse_fewer(hour, stream, before.get(stream), ())
                scratch = work.write(stream, unfinished, from_hot=stream in from_hot)
                if scratch is not None:
                    made.append(work.publish(stream, scratch))
                if state == "sealed" and stream in from_hot:
                    _refuse_fewer(hour, stream, before.get(stream), made)
            if not made and state == "sealed":
                session.run("COMMIT")  # late rows that said nothing new are gone
                return Generation(generation - 1, *_totals(before.values()))
            after = before | {entry.stream: entry.file for entry in made}
            self._step("record")
            for statement in _records(hour, generation, made, after):
                session.run(statement)
            self._step("commit")
            session.run("COMMIT")
        self._step("done")
        return Generation(generation, *_totals(after.values()))

    def _current(self, session: ArrowSession, hour: SiteHour) -> dict[Stream, SegmentFile]:
        rows = session.fetch(_CURRENT.format(site=hour.site_id, hour=instant_of(hour).isoformat()))
        return {
            Stream(stream): SegmentFile(path, count, size_bytes, bytes(sha256))
            for stream, path, count, size_bytes, sha256 in rows.iter_rows()
        }


@dataclass(frozen=True, slots=True)
class _Work:
    """One generation in the making."""

    session: ArrowSession
    segments: Segments
    hour: SiteHour
    generation: int
    step: Callable[[str], None]
    before: dict[Stream, SegmentFile]
    mark: str

    def write(self, stream: Stream, unfinished: ExitStack, *, from_hot: bool) -> Path | None:
        """Write one stream's rows to a synced scratch file; None = nothing new of this stream."""
        in_parts = catalog.epochs_in_parts(self.session.fetch, PARTS_FEEDS)
        self.step(f"read {stream.value}")
        merging = LateMerge(stream, in_parts)
        frames = self._hot(stream) if from_hot else merging.frames(self._sealed(stream), self._late(stream))
        first = next(frames, None)
        if first is None:
            return None
        scratch = self.segments.scratch(f"{stream.value}.{self.hour.site_id}.{self.hour.hour}")
        unfinished.callback(scratch.unlink, missing_ok=True)
        key = KEYS[stream]
        writer = SegmentWriter(scratch, TARGETS[stream].schema, statistics=order(stream))
        keys: set[int] = set()
        epochs: set[int] = set()
        try:
            for frame in whole_rows(stream, _again(first, frames), in_parts):
                keys.update(frame[key].unique())
                epochs.update(frame["epoch_id"].unique())
                writer.write(frame)
            if not from_hot and not merging.new_rows:
                return None
            writer.close(
                SegmentMeta(
                    self._site(),
                    instant_of(self.hour).isoformat(),
                    stream.value,
                    self.generation,
                    known_keys(self.session.fetch, stream, keys),
                    known_epochs(self.session.fetch, epochs),
                )
            )
        finally:
            writer.abandon()
        self.step(f"sync {stream.value}")
        sync(scratch)
        return scratch

    def publish(self, stream: Stream, scratch: Path) -> _Made:
        """Put the file where it stays, and read it back from there."""
        meta = read_meta(scratch)
        sha256 = digest(scratch)
        file = SegmentFile(self._path(stream, sha256), meta.rows, scratch.stat().st_size, sha256)
        self.step(f"publish {stream.value}")
        require(self.segments, self.mark)  # an hour takes minutes, and its disk may have gone meanwhile
        self.segments.publish(scratch, file.path)
        self.step(f"read back {stream.value}")
        with self.segments.fresh(file, keep=True) as found:
            if read_meta(found).rows != file.rows:
                raise AssertionError("a file with the right digest has the right rows")
        return _Made(stream, file, tuple(sorted(set(meta.epochs["feed"]))))

    def _hot(self, stream: Stream) -> Iterator[pl.DataFrame]:
        """Yield the hour's rows of the hot table and the late ones, which are deleted, by key and time."""
        names = ", ".join(TARGETS[stream].schema)
        here = self._where()
        by = ", ".join(order(stream))
        query = (
            f"WITH late AS (DELETE FROM {LATE[stream].table} WHERE {here} RETURNING {names}){self._kept_hot(stream)} "
            f"SELECT * FROM (SELECT {names} FROM {TARGETS[stream].table} WHERE {here} UNION ALL SELECT {names} FROM late) AS all_of_it "
            f"ORDER BY {by}"
        )
        yield from self._framed_batches(stream, query)

    def _late(self, stream: Stream) -> Iterator[pl.DataFrame]:
        """Yield the late rows by key and time; they are deleted. An outage leaves millions: the database sorts them."""
        names = ", ".join(TARGETS[stream].schema)
        query = (
            f"WITH late AS (DELETE FROM {LATE[stream].table} WHERE {self._where()} RETURNING {names}){self._kept_hot(stream)} "
            f"SELECT * FROM late ORDER BY {', '.join(order(stream))}"
        )
        yield from self._framed_batches(stream, query)

    def _framed_batches(self, stream: Stream, query: str) -> Iterator[pl.DataFrame]:
        for batch in self.session.stream(query):
            if batch.num_rows:
                yield _framed(pa.Table.from_batches([batch]), stream)

    def _kept_hot(self, stream: Stream) -> str:
        """Return the part of a query that puts late rows to the hot ones; empty if the day is not hot any more."""
        if not self.is_hot(stream):
            return ""
        table = TARGETS[stream].table
        names = ", ".join(TARGETS[stream].schema)
        return f", kept AS (INSERT INTO {table} ({names}) SELECT {names} FROM late)"

    def is_hot(self, stream: Stream) -> bool:
        """Say whether the hot table still has the hour's day."""
        table, day = TARGETS[stream].table, instant_of(self.hour).date().isoformat()
        found = self.session.fetch(f"SELECT day FROM stored_days() WHERE parent = '{table}' AND day = '{day}'")
        return found.height > 0

    def _sealed(self, stream: Stream) -> Iterator[pl.DataFrame]:
        known = self.before.get(stream)
        if known is None:
            return
        file = pq.ParquetFile(self.segments.checked(known))
        for number in range(file.num_row_groups):
            yield _framed(file.read_row_group(number), stream)

    def _where(self) -> str:
        at = instant_of(self.hour)
        within = f"at >= '{at.isoformat()}' AND at < '{(at + catalog.HOUR).isoformat()}'"
        site = int(self.hour.site_id)
        return f"{within} AND epoch_id IN (SELECT epochs.id FROM epochs JOIN nodes ON nodes.id = node_id WHERE site_id = {site})"

    def _site(self) -> str:
        return str(self.session.fetch(f"SELECT name FROM sites WHERE id = {int(self.hour.site_id)}")["name"].item())

    def _path(self, stream: Stream, sha256: bytes) -> str:
        # The digest keeps two workers that make one generation at the same time from each other's file.
        name = f"{stream.value}.g{self.generation:04d}.{sha256.hex()[:8]}.parquet"
        return f"{folder_of(self._site(), instant_of(self.hour))}/{name}"


def folder_of(site: str, hour_at: datetime) -> str:
    """Return the folder of an hour's files below the root, in hive layout; of a long name its beginning and its digest."""
    name, at = quote(site, safe=""), hour_at.astimezone(UTC)
    if len(name) > _LONGEST_NAME_BYTES:
        name = f"{name[:_LONGEST_NAME_BYTES]}~{hashlib.sha256(site.encode()).hexdigest()[:16]}"
    return f"site={name}/date={at:%Y-%m-%d}/hour={at:%H}"


def _records(hour: SiteHour, generation: int, made: Sequence[_Made], after: dict[Stream, SegmentFile]) -> Iterator[str]:
    at = instant_of(hour).isoformat()
    for entry in made:
        file = entry.file
        yield (
            f"UPDATE hour_segments SET retired_at = now() WHERE site_id = {hour.site_id} AND hour_at = '{at}' "
            f"AND stream = '{entry.stream.value}' AND retired_at IS NULL"
        )
        yield (
            "INSERT INTO hour_segments (site_id, hour_at, stream, generation, path, rows, size_bytes, sha256, feeds) VALUES "
            f"({hour.site_id}, '{at}', '{entry.stream.value}', {generation}, '{file.path}', {file.rows}, "
            f"{file.size_bytes}, '\\x{file.sha256.hex()}', '{{{','.join(map(str, entry.feeds))}}}')"
        )
    rows, _ = _totals(after.values())
    folder = f"'{made[0].file.path.rpartition('/')[0]}'" if made else "segment"
    whole = b"".join(after[stream].sha256 for stream in sorted(after))
    yield (
        f"UPDATE hour_catalog SET state = 'sealed', generation = {generation}, rows = {rows}, segment = {folder}, "
        f"sha256 = sha256('\\x{whole.hex()}'), updated_at = now() WHERE site_id = {hour.site_id} AND hour_at = '{at}'"
    )


def _refuse_fewer(hour: SiteHour, stream: Stream, before: SegmentFile | None, made: Sequence[_Made]) -> None:
    found = next((entry.file.rows for entry in made if entry.stream is stream), 0)
    if before is not None and found < before.rows:
        raise LostRowsError(
            f"{_name(hour)}: the hot tables hold {found} of the {before.rows} rows of {before.path}; nothing was changed, "
            "restore the file from a backup"
        )


def _totals(files: Iterable[SegmentFile]) -> tuple[int, int]:
    known = list(files)
    return sum(file.rows for file in known), sum(file.size_bytes for file in known)


def _framed(table: pa.Table, stream: Stream) -> pl.DataFrame:
    """Return rows as this stream's frame, whichever columns the file left out, without what is not sealed."""
    frame = pl.DataFrame(table)
    kept = set(frame.columns).difference(NOT_SEALED.get(stream, ()))
    return frame.select(
        pl.col(name).cast(kind) if name in kept else pl.lit(None, kind).alias(name)
        for name, kind in TARGETS[stream].schema.items()
    )


def _again(first: pl.DataFrame, rest: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    yield first
    yield from rest


def _name(hour: SiteHour) -> str:
    return f"hour {instant_of(hour):%Y-%m-%d %H:%M} UTC of site {hour.site_id}"
