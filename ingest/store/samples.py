"""Reads rows of sample streams wherever they are: hot tables, late rows, sealed segments. The one way to them.

A session looks at catalog and tables in one snapshot and takes each hour from one place. Hot rows are fetched with the
conditions as SQL; segments are scanned lazily, and row groups whose devices and times do not matter are not read. A segment
that is missing or damaged is an error that names it, never an answer without its rows.
"""
# ruff: noqa: S608 - built of this package's own names, ids and instants

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import groupby
from typing import Any, Final

import polars as pl
import psycopg
from psycopg import pq

from collector.wire import Stream
from ingest.store import catalog, segments_format
from ingest.store.arrow import Fetch, command_session, driver_fetch
from ingest.store.engine import Database, Role
from ingest.store.merge import KEYS, PARTS_FEEDS, merge_parts, order
from ingest.store.sample_tables import LATE, TARGETS
from ingest.store.segments import SegmentError, SegmentExpiredError, Segments

_KEYS: Final = ("at", "device_id", "epoch_id")
COLUMNS: Final = tuple(name for name in TARGETS[Stream.DEVICE].schema if name not in _KEYS)
"""What :func:`samples` can be asked for."""
# As many epochs as nodes ever booted, and few kinds of them: told by kind they take a third of the time of a row each.
_EPOCHS: Final = (
    "SELECT array_agg(id) AS epoch_id, feed, origin, cadence_us FROM epochs GROUP BY feed, origin, cadence_us"
)
_EPOCH_TYPES: Final = {"epoch_id": pl.Int32, "feed": pl.Int16, "origin": pl.Int16, "cadence_us": pl.Int64}
_OF_SITE: Final = "SELECT epochs.id FROM epochs JOIN nodes ON nodes.id = node_id WHERE site_id = {site_id}"


@dataclass(frozen=True, slots=True)
class Part:
    """What one site's rows of an interval are made of; ``site_id`` null = all sites, none of which has a sealed hour there."""

    site_id: int | None
    sealed: Sequence[catalog.SealedHour]


@dataclass(frozen=True, slots=True)
class Speaker:
    """One feed, as one origin: rows of its epochs only."""

    feed: int
    epochs: frozenset[int]


@dataclass(frozen=True, slots=True, order=True)
class FileRead:
    """A file of a sealed hour that was looked at: what names it in the catalog, and its bytes."""

    stream: str
    hour_at: datetime
    generation: int
    sha256: str


@dataclass
class SampleSession:
    """One snapshot of catalog and tables. For one thread, while the session is open."""

    fetch: Fetch
    segments: Segments | None
    feeds_sealed: set[int] = field(default_factory=set)
    """Feeds of the segments looked at so far."""
    epochs_fresh: set[int] = field(default_factory=set)
    """Epochs of the rows outside of segments fetched so far."""
    files_read: set[FileRead] = field(default_factory=set)
    """Files of segments looked at so far, also those that had no row that was asked for."""
    rows_outside: int = 0
    """Rows outside of segments fetched so far."""
    _sealed: dict[tuple[Stream, datetime, datetime, int | None], list[catalog.SealedHour]] = field(default_factory=dict)
    _late: dict[tuple[Stream, datetime, datetime], bool] = field(default_factory=dict)
    """Of intervals that were asked about: a large site is read some devices at a time, and all that is one snapshot."""

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
        """Return rows of [from_at, to_at): key, at, epoch_id and ``columns``; in no order, parts of a row made one.

        ``keys`` are ids of devices (meters, ports, engines); None = all, as with ``site_id``, ``instants`` and ``speaker``.
        """
        names = [*order(stream), *columns]
        hot: list[pl.DataFrame] = []
        cold: list[pl.LazyFrame] = []
        schema = {name: TARGETS[stream].schema[name] for name in names}
        for part in self._parts(stream, from_at, to_at, site_id):
            where = self._where(stream, part, keys, instants, speaker)
            query = self._hot_query(stream, names, part, from_at, to_at, where)
            hot.append(_typed(pl.DataFrame(schema=schema) if query is None else self.fetch(query), schema))
            scanned = self._scan(stream, part, from_at, to_at, keys, instants, speaker)
            if scanned is not None:
                cold.append(scanned.select(names))
        fresh = pl.concat(hot)
        everything = pl.concat([fresh.lazy(), *cold]) if cold else fresh.lazy()
        self.epochs_fresh.update(fresh["epoch_id"].unique())
        self.rows_outside += fresh.height
        in_parts = self._epochs_in_parts
        # In a segment they were made whole when it was sealed: only rows outside of them may be parts.
        if not self.epochs_fresh.isdisjoint(in_parts):
            return merge_parts(stream, everything, in_parts)
        return everything

    def generations(self, from_at: datetime, to_at: datetime, site_id: int) -> dict[datetime, int]:
        """Return the generation of each sealed hour of a site that overlaps the interval."""
        hours = self._sealed_hours(Stream.DEVICE, from_at, to_at, site_id)
        return {hour.hour_at: hour.generation for hour in hours}

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
        """Return key and instant of the latest (or earliest) row of each key that has one of the ``usable`` columns.

        ``speaker``: of its rows only; segments that have none are not opened.
        """
        key = KEYS[stream]
        aggregate = "max" if latest else "min"
        found = [_typed(pl.DataFrame(schema={key: pl.Int32}), {key: pl.Int32, "at": pl.Datetime("us", "UTC")})]
        for part in self._parts(stream, from_at, to_at, site_id):
            where = self._where(stream, part, keys, None, speaker)
            inner = self._hot_query(stream, [key, "at", *usable], part, from_at, to_at, where)
            if inner is not None:
                has_some = " OR ".join(f"{name} IS NOT NULL" for name in usable)
                query = f"SELECT {key}, {aggregate}(at) AS at FROM ({inner}) AS around WHERE {has_some} GROUP BY {key}"
                found.append(_typed(self.fetch(query), dict(found[0].schema)))
            scanned = self._scan(stream, part, from_at, to_at, keys, None, speaker)
            if scanned is not None:
                some = scanned.filter(pl.any_horizontal(pl.col(name).is_not_null() for name in usable))
                found.append(some.group_by(key).agg(_end("at", latest=latest)).collect())
        return pl.concat(found).group_by(key).agg(_end("at", latest=latest))

    @cached_property
    def _epochs_in_parts(self) -> frozenset[int]:
        return catalog.epochs_in_parts(self.fetch, PARTS_FEEDS)

    @cached_property
    def _sites(self) -> list[int]:
        return self.fetch("SELECT id FROM sites ORDER BY id")["id"].to_list()

    def _sealed_hours(
        self, stream: Stream, from_at: datetime, to_at: datetime, site_id: int | None
    ) -> list[catalog.SealedHour]:
        asked = (stream, from_at, to_at, site_id)
        if asked not in self._sealed:
            self._sealed[asked] = catalog.sealed_hours(self.fetch, *asked)
        return self._sealed[asked]

    def _has_late(self, stream: Stream, from_at: datetime, to_at: datetime) -> bool:
        asked = (stream, from_at, to_at)
        if asked not in self._late:
            query = f"SELECT EXISTS (SELECT FROM {LATE[stream].table} WHERE {_within(from_at, to_at)}) AS has"
            self._late[asked] = bool(self.fetch(query)["has"].item())
        return self._late[asked]

    def _parts(self, stream: Stream, from_at: datetime, to_at: datetime, site_id: int | None) -> Iterator[Part]:
        sealed = self._sealed_hours(stream, from_at, to_at, site_id)
        gone = [hour.hour_at for hour in sealed if hour.is_expired]
        if gone:
            raise SegmentExpiredError(
                f"samples of {len(gone)} hours from {min(gone):%Y-%m-%d %H:%M} UTC on are past retention and were deleted: "
                "their usage hours and ledger remain, and cannot be computed again"
            )
        if site_id is not None:
            yield Part(site_id, sealed)
        elif not sealed:
            yield Part(None, ())
        else:
            by_site = {site: list(hours) for site, hours in groupby(sealed, key=lambda hour: hour.site_id)}
            for site in self._sites:
                yield Part(site, by_site.get(site, ()))

    def _where(
        self,
        stream: Stream,
        part: Part,
        keys: Collection[int] | None,
        instants: Collection[datetime] | None,
        speaker: Speaker | None,
    ) -> str:
        conditions = []
        if part.site_id is not None and self._sites != [part.site_id]:
            # By epoch: it belongs to a node and so to a site, for good, while devices move.
            conditions.append(f"epoch_id IN ({_OF_SITE.format(site_id=int(part.site_id))})")
        if keys is not None:
            numbers = ",".join(str(int(key)) for key in sorted(keys))
            conditions.append(f"{KEYS[stream]} = ANY ('{{{numbers}}}'::integer[])")
        if instants is not None:
            listed = ",".join(f"'{at.isoformat()}'" for at in sorted(set(instants))) or "NULL"
            conditions.append(f"at IN ({listed})")
        if speaker is not None:
            epochs = ",".join(str(int(epoch)) for epoch in sorted(speaker.epochs))
            conditions.append(f"epoch_id = ANY ('{{{epochs}}}'::integer[])")
        return "".join(f" AND {condition}" for condition in conditions)

    def _hot_query(
        self, stream: Stream, names: Sequence[str], part: Part, from_at: datetime, to_at: datetime, where: str
    ) -> str | None:
        """Return the query for the rows outside of segments: hot ones of hours not sealed, and all late ones; null = there are none."""
        spans = catalog.open_spans(part.sealed, from_at, to_at)
        if not spans and not self._has_late(stream, from_at, to_at):
            return None
        selected = ", ".join(dict.fromkeys(names))
        parts = [f"SELECT {selected} FROM {LATE[stream].table} WHERE {_within(from_at, to_at)}{where}"]
        if spans:
            # What is asked for and not what is left out: an index on time finds the first and walks all of the second. The
            # whole span as well, by which days are left out when the query is planned.
            asked = " OR ".join(f"({_within(*span)})" for span in spans)
            whole = _within(spans[0][0], spans[-1][1])
            parts.append(f"SELECT {selected} FROM {TARGETS[stream].table} WHERE {whole} AND ({asked}){where}")
        return " UNION ALL ".join(parts)

    def _scan(
        self,
        stream: Stream,
        part: Part,
        from_at: datetime,
        to_at: datetime,
        keys: Collection[int] | None,
        instants: Collection[datetime] | None,
        speaker: Speaker | None,
    ) -> pl.LazyFrame | None:
        """Return the sealed rows; the condition on keys as a range too, which row groups have statistics for."""
        files = [
            hour for hour in part.sealed if hour.file is not None and (speaker is None or speaker.feed in hour.feeds)
        ]
        if not files or (keys is not None and not keys):
            return None
        if self.segments is None:
            raise SegmentError(f"{len(files)} hours from {files[0].hour_at} on are sealed; name the segments' folder")
        self.feeds_sealed.update(*(hour.feeds for hour in files))
        self.files_read.update(
            FileRead(stream.value, hour.hour_at, hour.made_in, hour.file.sha256.hex())
            for hour in files
            if hour.file is not None
        )
        paths = [self.segments.checked(hour.file) for hour in files if hour.file is not None]
        condition = pl.lit(value=True)
        if min(hour.hour_at for hour in files) < from_at or max(hour.hour_at for hour in files) + catalog.HOUR > to_at:
            condition &= (pl.col("at") >= from_at) & (pl.col("at") < to_at)
        if keys is not None:
            key = pl.col(KEYS[stream])
            condition &= key.is_between(min(keys), max(keys)) & key.is_in(sorted(keys))
        if instants is not None:
            condition &= pl.col("at").is_in(pl.Series(sorted(set(instants)), dtype=pl.Datetime("us", "UTC")).implode())
        if speaker is not None:
            condition &= pl.col("epoch_id").is_in(sorted(speaker.epochs))
        return segments_format.scan(paths, TARGETS[stream].schema).filter(condition)


@contextmanager
def sample_session(
    database: Database,
    segments: Segments | None = None,
    role: Role = "worker",
    snapshot: str | None = None,
    application: str = "wattledger",
) -> Iterator[SampleSession]:
    """Open a session: everything read through it, segments included, is of one moment.

    ``snapshot``: that of another session, which exported it and is still in that transaction; it may end once this is open.
    ``application``: its name, by which a successor of a worker that stands still finds it.
    Without ``segments`` a sealed hour with rows is refused with SegmentError.
    """
    with command_session(database, role, application) as session:
        session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        if snapshot is not None:
            session.run(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
        # One backend sends faster than rows are taken; two more would only take processors from those who write.
        session.run("SET LOCAL max_parallel_workers_per_gather = 0")
        yield SampleSession(session.fetch, segments)


@contextmanager
def _session_of(connection: psycopg.Connection[Any], segments: Segments | None) -> Iterator[SampleSession]:
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield SampleSession(driver_fetch(connection), segments)


def samples(
    database: Database,
    from_at: datetime,
    to_at: datetime,
    columns: Sequence[str],
    *,
    devices: Collection[int] | None = None,
    site_id: int | None = None,
    segments: Segments | None = None,
    connection: psycopg.Connection[Any] | None = None,
) -> pl.LazyFrame:
    """Return samples of [from_at, to_at): at, device_id, epoch_id, feed, origin, cadence_us and ``columns``.

    Lazily, sorted by device and time; hot rows are fetched at once, segments when collected, which is to happen within
    the grace period of replaced segments (an hour). Of several feeds that report one device in one hour the most direct is
    authoritative and the others are left out. ``devices`` and ``site_id`` narrow it; None = all. ``connection``: an open one
    is asked instead of a new session, which saves 36 ms of processor time; for intervals that are sealed, since many hot rows
    take six times as long through it. Raises SegmentError, and ValueError for a column there is not, an instant without a
    time zone or a connection inside a transaction.
    """
    unknown = sorted(set(columns) - set(COLUMNS))
    if unknown:
        raise ValueError(f"device samples have no column {', '.join(unknown)}")
    if from_at.tzinfo is None or to_at.tzinfo is None:
        raise ValueError("an interval needs UTC-aware instants")
    if connection is not None and connection.info.transaction_status is not pq.TransactionStatus.IDLE:
        raise ValueError("a connection inside a transaction has its snapshot already; give one that is idle")
    opened = sample_session(database, segments) if connection is None else _session_of(connection, segments)
    with opened as session:
        rows = session.rows(Stream.DEVICE, columns, from_at, to_at, keys=devices, site_id=site_id)
        epochs = _typed(_each_epoch(session.fetch(_EPOCHS)), _EPOCH_TYPES)
    rows = rows.join(epochs.lazy(), on="epoch_id", how="inner").sort("device_id", "at")
    fresh = epochs.filter(pl.col("epoch_id").is_in(sorted(session.epochs_fresh)))
    if len(session.feeds_sealed.union(fresh["feed"])) > 1:
        best = pl.col("feed").min().over("device_id", pl.col("at").dt.truncate("1h"))
        rows = rows.filter(pl.col("feed") == best)
    return rows.select(*_KEYS, "feed", "origin", "cadence_us", *columns)


def _within(from_at: datetime, to_at: datetime) -> str:
    return f"at >= '{from_at.isoformat()}' AND at < '{to_at.isoformat()}'"


def _end(name: str, *, latest: bool) -> pl.Expr:
    return pl.col(name).max() if latest else pl.col(name).min()


def _each_epoch(kinds: pl.DataFrame) -> pl.DataFrame:
    return kinds if kinds.is_empty() else kinds.explode("epoch_id")


def _typed(rows: pl.DataFrame, schema: dict[str, Any]) -> pl.DataFrame:
    if rows.is_empty():
        return pl.DataFrame(schema=schema)
    return rows.select(pl.col(name).cast(kind) for name, kind in schema.items())
