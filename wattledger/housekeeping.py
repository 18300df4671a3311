"""Keeps the store in order: partitions made a week ahead, days that are over indexed for readers, old names replaced. Drops nothing."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import datetime, timedelta
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
NAMES_A_PASS: Final = 10_000
_OLD_NAMES: Final = sa.text("SELECT pseudonym_round(:most)")


@dataclass(frozen=True, slots=True)
class Kept:
    """What one pass did: partitions made, days indexed, and those that were busy and are tried again."""

    made: int = 0
    closed: int = 0
    busy: int = 0


@dataclass(slots=True)
class Housekeeper:
    """``engine`` connects as the worker role, which makes and closes partitions through functions of the owner."""

    engine: sa.Engine
    _seen_closed: set[Partition] = field(default_factory=set)

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
        return Kept(made, closed, busy)

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
