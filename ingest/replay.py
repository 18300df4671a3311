"""Sends a dead letter once more through the path that bodies come by, and says what became of it.

The batch id makes it safe: what is in already is not written again, so a replay that was cut off may be repeated; rows that
were refused alone have an id of their own, made of it. A clock
that was off is for the caller to judge: it says whether the times are taken as sent or moved by the skew measured at the
door. A letter with rows in the future is refused as a whole, since its batch id could be used up only once.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

import polars as pl

from collector.wire import DEVICE_STREAMS, MAX_CLOCK_SKEW_US, BatchMeta, Stream
from ingest.errors import BadBodyError, IngestError
from ingest.receivers.native import Body, Reader, decode
from ingest.receivers.shift import shifted
from ingest.store.dead_letter_list import Letter
from ingest.store.dead_letters import CONTESTED, DEVICES
from ingest.store.engine import Database
from ingest.store.group import GroupWriter, Outcome
from ingest.store.prepare import Submission
from ingest.store.registry import Registry
from ingest.store.spools import BatchId

_CONTESTED_SPOOLS: Final = uuid.UUID("6a3f1c52-90d4-5e0b-8f6e-2b7c41d8a9e3")
"""Names, by the spool a body came from, the one under which its refused rows are numbered; never changed."""
_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(StrEnum):
    """Which times a replayed body gets: those it was sent with, or those less the skew measured at the door."""

    AS_SENT = "as-sent"
    CORRECTED = "corrected"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a body holds, as far as it can be read: rows per stream, and the first and last time among them, as sent."""

    meta: BatchMeta
    rows: dict[Stream, int]
    first_at: datetime | None
    last_at: datetime | None


class Replayer:
    """Writes letters through a connection of its own as the writer role."""

    def __init__(self, database: Database, hot_retention: timedelta) -> None:
        self._engine = database.create_engine("writer", pool_size=1, application="wattledger-replay")
        self._writer = GroupWriter(database, Registry(self._engine), hot_retention=hot_retention)

    def close(self) -> None:
        self._writer.close()
        self._engine.dispose()

    def replay(self, letter: Letter, clock: Clock) -> Outcome:
        """Commit the letter's body; raises IngestError with the reason when it cannot be taken now."""
        if letter.site_id is None:
            raise BadBodyError("no_site", "the letter does not say whose site it came from")
        body = Reader().read(letter.body)
        if clock is Clock.CORRECTED:
            body = shifted(body, -(letter.head.skew_us or 0))
        _refuse_future(body)
        contested = letter.head.reason == CONTESTED
        submission = _of_contested(letter, body) if contested else Submission(letter.site_id, body)
        (result,) = self._writer.write([submission])
        if isinstance(result, IngestError):
            raise result
        if contested:  # the devices that were not asked for are in already
            rest = tuple(refusal for refusal in result.refusals if refusal.reason != CONTESTED)
            return replace(result, refusals=rest)
        return result


def _of_contested(letter: Letter, body: Body) -> Submission:
    """Return the rows of the devices that were refused; who replays the letter says that they were on its node."""
    streams = tuple(stream for stream in body.streams if stream.schema.stream in DEVICE_STREAMS)
    rows = sum(stream.rows for stream in streams)
    only = frozenset(letter.headers.get(DEVICES, "").split())
    if letter.site_id is None or not only:
        raise BadBodyError("malformed", "the letter does not say which devices' rows wait")
    # Its own number went with the rows that were taken. A spool of its own makes it known again: an operator may be killed
    # before the letter is marked, and two may replay it.
    spool = uuid.uuid5(_CONTESTED_SPOOLS, body.meta.spool)
    under = BatchId(str(spool), body.meta.sequence)
    return Submission(letter.site_id, replace(body, streams=streams, rows=rows), only=only, under=under)


@contextmanager
def replayer(database: Database, hot_retention: timedelta) -> Iterator[Replayer]:
    """Open a Replayer for a block."""
    made = Replayer(database, hot_retention)
    try:
        yield made
    finally:
        made.close()


def contents(body: bytes) -> Contents:
    """Return what a body holds; raises BadBodyError where it cannot be read."""
    read = Reader().read(body)
    rows: dict[Stream, int] = {}
    for stream in read.streams:
        rows[stream.schema.stream] = rows.get(stream.schema.stream, 0) + stream.rows
    times = _times(read)
    first, last = (None, None) if times.is_empty() else (_instant(times.min()), _instant(times.max()))
    return Contents(read.meta, rows, first, last)


def _refuse_future(body: Body) -> None:
    times = _times(body)
    latest_us = time.time_ns() // 1_000 + MAX_CLOCK_SKEW_US
    early = int((times > latest_us).sum())
    if early:
        raise BadBodyError(
            "from_the_future",
            f"{early} of {len(times)} rows lie in the future, up to {_instant(times.max()):%Y-%m-%d %H:%M:%S} UTC; "
            f"replay with --clock {Clock.CORRECTED}, or once that time has come",
        )


def _times(body: Body) -> pl.Series:
    parts = [decode([stream])["at_us"] for stream in body.streams if stream.rows]
    return pl.concat(parts) if parts else pl.Series("at_us", [], dtype=pl.Int64)


def _instant(at_us: object) -> datetime | None:
    """Return an instant, None for a time that no calendar has."""
    try:
        return _UNIX_EPOCH + timedelta(microseconds=int(str(at_us)))
    except OverflowError:
        return None
