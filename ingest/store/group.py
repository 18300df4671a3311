"""Writes a group of bodies in one transaction: samples by COPY, the batch ids that make it idempotent, and what changed.

A group is all or nothing. :meth:`GroupWriter.write` then tries a failed group body by body, so that one bad body costs
nobody else anything. Order inside the transaction: hour locks, spool rows in order, rows; :mod:`ingest.store.hours` says
why. It owns one connection and is used by one thread; :mod:`ingest.store.writer` queues in front of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import polars as pl
import psycopg
import sqlalchemy as sa

from collector.wire import JOBS_BEGUN_ANEW, Stream
from ingest.accept import BODY, Accepted, Refusal
from ingest.errors import BadBodyError, IngestError, TooManyError, UnavailableError
from ingest.store import allocations, spools
from ingest.store.copy import SIGNATURE, TRAILER, check_widths, copy_statement, encode, encode_rows
from ingest.store.copy_block import BlockEncoder
from ingest.store.dead_letters import CONTESTED, DEVICES, DeadLetter, LetterBox, bury_within
from ingest.store.engine import Database
from ingest.store.hours import DAY_US, HOUR_US, SiteHour, array, hold_open
from ingest.store.outages import OUTAGES
from ingest.store.partitions import is_missing_partition
from ingest.store.prepare import HourBounds, Prepared, Submission, prepare
from ingest.store.registry import Registry
from ingest.store.sample_tables import LATE, TARGETS, Target
from ingest.whole import Whole

_LOG = logging.getLogger(__name__)
_ATTEMPTS: Final = 3
_LONGEST_STATEMENT: Final = "60s"
"""A group takes a fraction of a second; by then its senders have hung up, and come again."""
_REPAIRED: Final = frozenset(("not_a_number", "negative_counter", "out_of_range"))
"""Reasons for which a value became null and its row was kept."""
_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a body that is committed. A duplicate wrote nothing."""

    accepted_rows: int
    refusals: tuple[Refusal, ...] = ()
    duplicate: bool = False


Result = Outcome | IngestError
_Rows = pl.DataFrame | Whole


class GroupWriter:
    """One connection as the writer role. Not for several threads."""

    def __init__(
        self, database: Database, registry: Registry, *, hot_retention: timedelta, letters: LetterBox | None = None
    ) -> None:
        self._database = database
        self._registry = registry
        self._letters = letters
        self._hot_retention_us = hot_retention // timedelta(microseconds=1)
        self._conn: psycopg.Connection[Any] | None = None
        self._encoders: dict[str, BlockEncoder] = {}

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    def write(self, submissions: Sequence[Submission]) -> list[Result]:
        """Commit what can be committed; return one result per body, in order, each final.

        UnavailableError as a result means that nothing of that body is known to be kept: it may be sent again.
        """
        try:
            return self._write_group(submissions)
        except UnavailableError as error:
            return [error] * len(submissions)
        except (IngestError, psycopg.Error, sa.exc.DBAPIError) as error:
            if len(submissions) == 1:
                return [error if isinstance(error, IngestError) else _refused_by_database(error)]
        return [result for submission in submissions for result in self.write([submission])]

    def ping(self) -> None:
        """Connect and ask the server anything; raises UnavailableError."""
        try:
            answer = self._connection().execute("SHOW transaction_read_only").fetchone()
        except OUTAGES as error:
            self.close()
            raise _unavailable(error) from error
        if answer == ("on",):  # after a fail-over the address may soon be another server's
            self.close()
            raise _unavailable(psycopg.errors.ReadOnlySqlTransaction("the server is read-only"))

    def _write_group(self, submissions: Sequence[Submission]) -> list[Result]:
        for attempt in range(_ATTEMPTS):
            try:
                now_us = time.time_ns() // 1_000
                return self._commit(prepare(self._registry, submissions, now_us), now_us)
            except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure) as error:
                if attempt == _ATTEMPTS - 1:
                    raise _unavailable(error) from error
            except OUTAGES as error:
                if isinstance(error, psycopg.Error):  # of our own connection; an engine looks after its own
                    self.close()
                raise _unavailable(error) from error
            except psycopg.errors.CheckViolation as error:
                if attempt == _ATTEMPTS - 1 or not is_missing_partition(error):
                    raise
                self._registry.forget_days()
        raise AssertionError("the last attempt returns or raises")

    def _commit(self, prepared: Prepared, now_us: int) -> list[Result]:
        # Whole days: the partition of a day is dropped only when all of it is past retention.
        late_before_us = (now_us - self._hot_retention_us) // DAY_US * DAY_US
        self._ensure_partitions(prepared.hours, late_before_us)
        conn = self._connection()
        with conn.transaction():
            sealed = hold_open(conn, prepared.hours)
            claim = spools.claim(
                conn,
                [
                    (batch, identity.node_id)
                    for submission, identity in zip(prepared.submissions, prepared.identities, strict=True)
                    if (batch := submission.batch) is not None
                ],
            )
            fresh = _first_of_each(prepared.submissions, claim.new)
            if fresh:
                for stream, parts in prepared.accepted.items():
                    rows, late = _destined(prepared, stream, parts, fresh, sealed, late_before_us)
                    if stream is Stream.ALLOCATION:
                        _apply_allocations(conn, prepared, rows, now_us)
                    else:
                        self._copy_late(conn, stream, late)
                        self._copy(conn, TARGETS[stream], rows)
                _begin_anew(conn, prepared, fresh, now_us)
                _record_changes(conn, _sample_changes(prepared.hours))
                _count_refusals(conn, prepared, fresh, now_us)
                self._keep_refused(conn, prepared, fresh)
        return _outcomes(prepared, fresh, claim)

    def _keep_refused(self, conn: psycopg.Connection[Any], prepared: Prepared, fresh: frozenset[int]) -> None:
        """Keep bodies of agents that name a device another agent has: their senders delete them when they hear of the rest."""
        contested = {refusal.body for refusal in prepared.refusals if refusal.reason == CONTESTED} & fresh
        for body in sorted(contested):
            submission, identity = prepared.submissions[body], prepared.identities[body]
            if submission.sent is None:
                continue
            if self._letters is not None:
                self._take_room(prepared, submission, identity.node_id)
            ids = zip(submission.body.meta.devices, identity.device_ids, strict=True)
            named = " ".join(device.uuid for device, device_id in ids if device_id is None)
            detail = f"reported while another node had it; the other rows are taken: {named}"[:1_000]
            letter = DeadLetter(
                submission.site_id, identity.node_id, CONTESTED, detail, submission.sent, {DEVICES: named}
            )
            bury_within(conn, letter)

    def _take_room(self, prepared: Prepared, submission: Submission, node_id: int) -> None:
        if self._letters is None or submission.sent is None:
            return
        try:
            self._letters.take(submission.site_id, node_id, len(submission.sent))
        except TooManyError as error:
            if len(prepared.submissions) == 1:
                raise
            raise BadBodyError(error.reason, error.detail) from error  # one by one, so that it stops nobody else

    def _copy(self, conn: psycopg.Connection[Any], target: Target, parts: Sequence[_Rows]) -> None:
        parts = [rows for rows in parts if isinstance(rows, Whole) or not rows.is_empty()]
        if not parts:
            return
        with conn.cursor() as cursor, cursor.copy(copy_statement(target.table, list(target.schema))) as copy:
            for piece in self._pieces(target, parts):
                copy.write(piece)

    def _copy_late(self, conn: psycopg.Connection[Any], stream: Stream, parts: Sequence[_Rows]) -> None:
        if parts:
            self._copy(conn, LATE[stream], parts)

    def _pieces(self, target: Target, parts: Sequence[_Rows]) -> Iterator[bytes | memoryview[int]]:
        frames = [target.rows(rows) for rows in parts if not isinstance(rows, Whole)]
        if len(frames) == len(parts) == 1:
            yield from encode(frames[0])
            return
        encoder = self._encoders.setdefault(target.table, BlockEncoder(target.schema))
        yield SIGNATURE
        for rows in parts:
            if isinstance(rows, Whole):
                yield from encoder.encode(rows)
        for frame in frames:
            yield from encode_rows(frame)
        yield TRAILER

    def _ensure_partitions(self, hours: HourBounds, late_before_us: int) -> None:
        for stream, target in TARGETS.items():
            if not target.partitioned:
                continue
            days = {hour.hour * HOUR_US // DAY_US for hour, streams in hours.items() if stream in streams}
            # Rows older than hot retention are late rows and need no partition of their day.
            self._registry.ensure_days(target.table, {day for day in days if day * DAY_US >= late_before_us})

    def _connection(self) -> psycopg.Connection[Any]:
        if self._conn is None or self._conn.closed:
            self.close()
            conn: psycopg.Connection[Any] = self._database.connect(
                "writer", autocommit=True, application="wattledger-writer"
            )
            self._conn = conn
            conn.execute("SELECT set_config('statement_timeout', %s, false)", [_LONGEST_STATEMENT])
            for target in (*TARGETS.values(), *LATE.values()):
                check_widths(conn, target.table, target.schema)
        return self._conn


def _first_of_each(submissions: Sequence[Submission], new: frozenset[spools.BatchId]) -> frozenset[int]:
    """Return the bodies to write: of a new batch the first body, if it was sent twice in one group."""
    seen: set[spools.BatchId] = set()
    fresh = set()
    for position, submission in enumerate(submissions):
        batch = submission.batch
        if batch is None:
            fresh.add(position)
        elif batch in new and batch not in seen:
            seen.add(batch)
            fresh.add(position)
    return frozenset(fresh)


def _only(rows: pl.DataFrame, bodies: frozenset[int]) -> pl.DataFrame:
    return rows.filter(pl.col(BODY).is_in(sorted(bodies)))


def _destined(
    prepared: Prepared,
    stream: Stream,
    parts: Sequence[Accepted | Whole],
    fresh: frozenset[int],
    sealed: frozenset[SiteHour],
    late_before_us: int,
) -> tuple[list[_Rows], list[_Rows]]:
    """Return what goes to the stream's own table and what to that of its late rows: hour sealed, or day past hot retention.

    A block stays one where all of it goes to one table.
    """
    is_new = len(fresh) == len(prepared.submissions)
    if stream in LATE and (sealed or any(hour.hour * HOUR_US < late_before_us for hour in prepared.hours)):
        split = [_split_late(_only(part.rows, fresh), prepared, sealed, late_before_us) for part in parts]
        return [rows for rows, _ in split], [late for _, late in split]
    if is_new:
        return [part if isinstance(part, Whole) else part.rows for part in parts], []
    return [_only(part.rows, fresh) for part in parts], []


def _split_late(
    rows: pl.DataFrame, prepared: Prepared, sealed: frozenset[SiteHour], late_before_us: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    late = pl.col("at_us") < late_before_us
    if sealed:
        sites = pl.Series("site", [submission.site_id for submission in prepared.submissions], dtype=pl.Int64)
        rows = rows.with_columns(sites.gather(rows[BODY]), (pl.col("at_us") // HOUR_US).alias("hour"))
        for hour in sealed:
            late |= (pl.col("site") == hour.site_id) & (pl.col("hour") == hour.hour)
    return rows.filter(~late), rows.filter(late)


def _apply_allocations(conn: psycopg.Connection[Any], prepared: Prepared, parts: Sequence[_Rows], now_us: int) -> None:
    until = datetime.fromtimestamp(now_us / 1e6, UTC)
    for rows in parts:
        if isinstance(rows, Whole):
            raise TypeError("allocation events are applied row by row; prepare keeps no block of them")
        changed = allocations.apply(conn, prepared.allocation_events(rows))
        _record_changes(conn, [(site, at, max(at, until), "allocations") for site, at in changed.items()])


def _begin_anew(conn: psycopg.Connection[Any], prepared: Prepared, fresh: frozenset[int], now_us: int) -> None:
    """End what nodes left open whose agents began without knowing anything; after the begins and ends of the same bodies."""
    begun = [
        (prepared.identities[body].node_id, _instant(at_us))
        for part in prepared.accepted.get(Stream.NODE_EVENT, ())
        for body, at_us, kind in part.rows.select(BODY, "at_us", "kind").iter_rows()
        if kind == JOBS_BEGUN_ANEW and body in fresh
    ]
    if begun:
        until = _instant(now_us)
        changed = allocations.begin_anew(conn, begun)
        _record_changes(conn, [(site, at, max(at, until), "allocations") for site, at in changed.items()])


def _sample_changes(hours: HourBounds) -> list[tuple[int, datetime, datetime, str]]:
    return [
        (hour.site_id, _instant(first), _instant(last + 1), stream.value)
        for hour, streams in sorted(hours.items())
        for stream, (first, last) in streams.items()
    ]


def _record_changes(conn: psycopg.Connection[Any], changes: Iterable[tuple[int, datetime, datetime, str]]) -> None:
    columns = list(zip(*changes, strict=True))
    if columns:
        sites, starts, ends, kinds = columns
        conn.execute(
            "INSERT INTO changes (site_id, from_at, to_at, kind) "
            "SELECT * FROM unnest(%s::integer[], %s::timestamptz[], %s::timestamptz[], %s::text[])",
            [array(sites), _instants(starts), _instants(ends), list(kinds)],
        )


def _instants(instants: Iterable[datetime]) -> str:
    return "{" + ",".join([f'"{instant.isoformat()}"' for instant in instants]) + "}"


def _count_refusals(conn: psycopg.Connection[Any], prepared: Prepared, fresh: frozenset[int], now_us: int) -> None:
    counts: dict[tuple[int, str, str], int] = {}
    for refusal in prepared.refusals:
        if refusal.body in fresh:
            key = (prepared.identities[refusal.body].node_id, refusal.stream.value, refusal.reason)
            counts[key] = counts.get(key, 0) + refusal.rows
    if counts:
        # In key order, so that two writers that count the same reasons wait for each other instead of deadlocking.
        nodes, streams, reasons, rows = zip(*((*key, counts[key]) for key in sorted(counts)), strict=True)
        conn.execute(
            "INSERT INTO rejections (day_at, node_id, stream, reason, rows) "
            "SELECT %s, * FROM unnest(%s::integer[], %s::text[], %s::text[], %s::bigint[]) "
            "ON CONFLICT (day_at, node_id, stream, reason) DO UPDATE SET rows = rejections.rows + excluded.rows",
            [_instant(now_us // DAY_US * DAY_US), list(nodes), list(streams), list(reasons), list(rows)],
        )


def _outcomes(prepared: Prepared, fresh: frozenset[int], claim: spools.Claim) -> list[Result]:
    refusals: dict[int, list[Refusal]] = {}
    for refusal in prepared.refusals:
        refusals.setdefault(refusal.body, []).append(refusal)
    return [
        _outcome(submission, refusals.get(index, ()), claim, is_new=index in fresh)
        for index, submission in enumerate(prepared.submissions)
    ]


def _outcome(submission: Submission, refusals: Sequence[Refusal], claim: spools.Claim, *, is_new: bool) -> Result:
    if claim.foreign and submission.batch in claim.foreign:
        return BadBodyError(
            "foreign_spool",
            f"spool {submission.body.meta.spool} belongs to another node than {submission.body.meta.node!r}; "
            "a cloned disk must start with an empty spool folder",
        )
    if not is_new:
        return Outcome(0, duplicate=True)
    refused = sum(refusal.rows for refusal in refusals if refusal.reason not in _REPAIRED)
    return Outcome(submission.body.rows - refused, tuple(refusals))


def _instant(at_us: int) -> datetime:
    return _UNIX_EPOCH + timedelta(microseconds=at_us)


def _unavailable(error: Exception) -> UnavailableError:
    _LOG.warning("the database does not take a group: %s", str(error).strip())
    return UnavailableError("database_unavailable", "the database does not answer; send the batch again", 2)


def _refused_by_database(error: Exception) -> BadBodyError:
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    diagnosis = getattr(getattr(cause, "diag", None), "message_primary", None) or type(cause).__name__
    return BadBodyError("refused_by_database", f"the database refuses these rows: {diagnosis}")
