"""Keeps the store in order: partitions made a week ahead, days that are over indexed for readers, old names replaced.

It drops nothing but days of API calls and spans that never had a row: one of each is made every day, whether anybody calls or not.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Final

import psycopg
import sqlalchemy as sa

from ingest.store import partitions
from ingest.store.partitions import Partition, utc_day

log = logging.getLogger(__name__)
DAYS_AHEAD: Final = 7
"""A worker that stood still for a weekend leaves ingest its days."""
CLOSE_AFTER: Final = timedelta(hours=2)
"""Building the index holds up writers of that day; by then all but stragglers have been heard."""
EMPTY_AFTER: Final = timedelta(days=40)
"""Longer ago than spans may have begun, as ingest is set up by default; what comes all the same makes its day anew."""
DROPS_A_PASS: Final = 20
"""Each keeps writers of its table waiting for a moment."""
NAMES_A_PASS: Final = 10_000
_OLD_NAMES: Final = sa.text("SELECT pseudonym_round(:most)")


@dataclass(frozen=True, slots=True)
class Kept:
    """What one pass did: partitions made, days indexed, those that were busy and are tried again, empty days dropped."""

    made: int = 0
    closed: int = 0
    busy: int = 0
    dropped: int = 0


@dataclass(slots=True)
class Housekeeper:
    """``engine`` connects as the worker role, which makes and closes partitions through functions of the owner."""

    engine: sa.Engine
    _seen_closed: set[Partition] = field(default_factory=set)
    _seen_used: set[Partition] = field(default_factory=set)

    def run(self, now: datetime) -> Kept:
        """Do one pass; each partition in a transaction of its own, since it holds locks others wait for."""
        today = utc_day(now)
        with self.engine.begin() as conn:
            made = partitions.ensure(conn, today, today + timedelta(days=DAYS_AHEAD + 1))
        with self.engine.begin() as conn:
            replaced = conn.execute(_OLD_NAMES, {"most": NAMES_A_PASS}).scalar_one()
        if replaced:
            log.info("the owners of %d jobs are pseudonyms from now on: they ended long enough ago", replaced)
        with self.engine.begin() as conn:
            known = partitions.partitions(conn)
        over = utc_day(now - CLOSE_AFTER)
        closed = busy = 0
        for partition in known:
            if partition.table not in partitions.DROPPABLE or partition.day >= over or partition in self._seen_closed:
                continue
            done = self._close(partition)
            if done is None:
                busy += 1
                continue
            self._seen_closed.add(partition)
            closed += done
        return Kept(made, closed, busy, self._drop_empty(known, utc_day(now - EMPTY_AFTER)))

    def _drop_empty(self, known: Sequence[Partition], before: date) -> int:
        """Drop some days that never had a row; return how many."""
        dropped = 0
        for partition in known:
            if partition.table in partitions.DROPPABLE or partition.day >= before or partition in self._seen_used:
                continue
            try:
                with self.engine.begin() as conn:
                    gone = partitions.drop_empty_day(conn, partition.table, partition.day)
            except sa.exc.OperationalError as error:
                if not isinstance(error.orig, psycopg.errors.LockNotAvailable):
                    raise
                log.info("%s is in use; if it is empty, it is dropped later", partition.table)
                break
            if not gone:
                self._seen_used.add(partition)
                continue
            dropped += 1
            if dropped == DROPS_A_PASS:
                break
        return dropped

    def _close(self, partition: Partition) -> bool | None:
        """Index one day; None if somebody else holds it."""
        try:
            with self.engine.begin() as conn:
                return partitions.close_partition(conn, partition.table, partition.day)
        except sa.exc.OperationalError as error:
            if not isinstance(error.orig, psycopg.errors.LockNotAvailable):
                raise
            log.info("%s is being written to; it is indexed later", partition.name)
            return None
