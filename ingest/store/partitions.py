"""Daily partitions: made ahead, indexed when their day is over, dropped by age.

All DDL runs in functions of the owner (migration 0009), so writer and worker own no table. Give each call a transaction
of its own and commit at once: it holds short locks on the parent table. Bills' own tables are never dropped here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

import psycopg
import sqlalchemy as sa

from ingest.store.tables import samples, work

PARTITIONED: Final = tuple(table.name for table in (*samples.PARTITIONED, *work.PARTITIONED))
DROPPABLE: Final = tuple(table.name for table in samples.PARTITIONED)
_NAME: Final = re.compile(r"(?P<table>\w+)_p(?P<day>\d{8})")
_ONE_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True, order=True)
class Partition:
    """One UTC day of one table."""

    table: str
    day: date

    @property
    def name(self) -> str:
        return f"{self.table}_p{self.day:%Y%m%d}"


def utc_day(at: datetime) -> date:
    """Return the UTC day an instant's row is kept in; a naive instant is an error."""
    if at.tzinfo is None:
        raise ValueError(f"{at.isoformat()} has no time zone; instants are UTC-aware")
    return at.astimezone(UTC).date()


def ensure(conn: sa.Connection, from_day: date, to_day: date, *, tables: Collection[str] = PARTITIONED) -> int:
    """Make the partitions of [from_day, to_day) that are missing; return how many were made.

    Safe when several run at once. Raises DBAPIError for days before 2000 or more than 400 days ahead.
    """
    statement = sa.select(sa.func.ensure_partitions(from_day, to_day, sa.cast(list(tables), sa.ARRAY(sa.Text))))
    return int(conn.execute(statement).scalar_one())


def ensure_days(conn: sa.Connection, table: str, days: Iterable[date]) -> int:
    """Make the partitions of just these days, however far apart: history arrives in islands."""
    return sum(ensure(conn, first, last + _ONE_DAY, tables=(table,)) for first, last in _runs(sorted(set(days))))


def is_missing_partition(error: BaseException) -> bool:
    """Say whether a write failed only because its day has no partition yet: make it with ensure_days, then retry."""
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    # PostgreSQL reports it as a check violation of no named constraint.
    return isinstance(cause, psycopg.errors.CheckViolation) and cause.diag.constraint_name is None


def partitions(conn: sa.Connection) -> tuple[Partition, ...]:
    """Return the partitions there are, by table and day."""
    names = conn.execute(
        sa.text(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            "WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace"
        )
    ).scalars()
    matches = (_NAME.fullmatch(name) for name in names)
    return tuple(sorted(Partition(match["table"], _parse_day(match["day"])) for match in matches if match is not None))


def close_partition(conn: sa.Connection, table: str, day: date) -> bool:
    """Index one past day by (key, at) for readers; return False if that was done before or the table needs none.

    While a day is open only BRIN is kept: the btree would halve ingest. Raises DBAPIError for today or later.
    """
    return bool(conn.execute(sa.select(sa.func.close_partition(table, day))).scalar_one())


def drop_before(conn: sa.Connection, day: date, *, tables: Collection[str] = DROPPABLE) -> tuple[Partition, ...]:
    """Drop the sample partitions of days before ``day`` and return them.

    The caller has made sure that they are sealed or past every retention; nothing brings them back.
    """
    kept_for_ever = sorted(set(tables) - set(DROPPABLE))
    if kept_for_ever:
        raise ValueError(f"{', '.join(kept_for_ever)}: bills are made of these, they are not dropped by age")
    old = [partition for partition in partitions(conn) if partition.table in tables and partition.day < day]
    for partition in old:
        conn.execute(sa.select(sa.func.drop_partition(partition.table, partition.day)))
    return tuple(old)


def _parse_day(text: str) -> date:
    return date(int(text[:4]), int(text[4:6]), int(text[6:]))


def _runs(days: list[date]) -> Iterator[tuple[date, date]]:
    """Yield the first and last day of each run of consecutive days."""
    start = 0
    for position, day in enumerate(days):
        if position + 1 == len(days) or days[position + 1] - day != _ONE_DAY:
            yield days[start], day
            start = position + 1
