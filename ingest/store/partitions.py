"""Daily partitions: made ahead, indexed when their day is over, dropped by age.

In a database of hypertables a day's partition is its chunk: it is made ahead as well, and where it was not, TimescaleDB
makes it when the first row comes, so none is ever missing. All DDL runs in functions of the owner, so writer and worker
own no table. Give each call a transaction of its own and commit at once: it holds short locks on the parent table. Of bills'
own tables only days without any row are ever dropped here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

import psycopg
import sqlalchemy as sa

from ingest.store.layout import Layout, recorded
from ingest.store.tables import samples, work

PARTITIONED: Final = tuple(table.name for table in (*samples.PARTITIONED, *work.PARTITIONED))
DROPPABLE: Final = tuple(table.name for table in samples.PARTITIONED)
_ONE_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True, order=True)
class Partition:
    """One UTC day of one table; a chunk has another name than this one in the catalog."""

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
    rows = conn.execute(sa.text("SELECT parent, day FROM stored_days()"))
    return tuple(sorted(Partition(parent, day) for parent, day in rows))


def missing(conn: sa.Connection, table: str, days: Collection[date]) -> tuple[date, ...]:
    """Return those of the days a table cannot take rows of at once, in order; of a hypertable none."""
    if recorded(conn).layout is Layout.HYPERTABLES:
        return ()
    there = {partition.day for partition in partitions(conn) if partition.table == table}
    return tuple(sorted(set(days) - there))


def relations(conn: sa.Connection, table: str, days: Collection[date]) -> tuple[str, ...]:
    """Return the quoted names of the relations that hold these days of a table, as SQL takes them."""
    rows = conn.execute(
        sa.text(
            "SELECT format('%I.%I', namespace, relation) FROM stored_days() WHERE parent = :table AND day = ANY (:days) ORDER BY day"
        ),
        {"table": table, "days": list(days)},
    )
    return tuple(rows.scalars())


def close_partition(conn: sa.Connection, table: str, day: date) -> bool:
    """Index one past day by (key, at) for readers; return False if that was done before or the table needs none.

    While a day is open only BRIN is kept: the btree would halve ingest. Raises DBAPIError for today or later.
    """
    return bool(conn.execute(sa.select(sa.func.close_partition(table, day))).scalar_one())


def drop_empty_day(conn: sa.Connection, table: str, day: date) -> bool:
    """Drop a past day of API calls or spans that never had a row; return False where it is used, or is a chunk.

    Raises DBAPIError for other tables, for the last week, and where others hold the table for a second.
    """
    return bool(conn.execute(sa.select(sa.func.drop_empty_day(table, day))).scalar_one())


def _runs(days: list[date]) -> Iterator[tuple[date, date]]:
    """Yield the first and last day of each run of consecutive days."""
    start = 0
    for position, day in enumerate(days):
        if position + 1 == len(days) or days[position + 1] - day != _ONE_DAY:
            yield days[start], day
            start = position + 1
