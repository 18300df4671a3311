"""What every import does to the store: claim the file, stage rows by COPY, mark changed hours, and all of it or nothing.

One import is one transaction, so a killed import leaves nothing and a dry run is the same work rolled back (but for empty
partitions). Rows go to a temporary table first: COPY does not pass row-level security, and repeats are found there by the
database, in bounded memory. Run as the owner role, on an engine with room for two connections.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from ingest.store import audit, identities
from ingest.store.partitions import ensure_days, relations
from ingest.store.tables import metadata

MAX_DAYS: Final = 4_000
"""Days that one file may speak of: eleven years."""
_DAYS_AT_ONCE: Final = 100
_DAYS_OF_A_NEW_SITE: Final = 1_000
EPOCH_SQL: Final = "timestamptz '1970-01-01 00:00:00+00'"


class TooManyDaysError(ValueError):
    """The rows of one file lie on more days than anything real: its times are wrong."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to write one file's rows. ``imported_at``: somebody had it before; write nothing."""

    id: int
    site_id: int
    imported_at: datetime | None


@contextmanager
def one_import(conn: sa.Connection, *, dry_run: bool) -> Iterator[None]:
    """Keep everything of the block or, on an error or in a dry run, nothing. The connection must be idle."""
    with conn.begin() as transaction:
        yield
        if dry_run:
            transaction.rollback()


def claim(conn: sa.Connection, site: str, kind: str, sha256: bytes, scope: str, file_name: str) -> Claim:
    """Claim a file for a site; a second import of it at the same time waits here and then finds it done."""
    site_id = identities.site_ids(conn, [site])[site]
    table = metadata.tables["imports"]
    key = {"kind": kind, "sha256": sha256, "site_id": site_id, "scope": scope}
    statement = insert(table).values(**key, file_name=file_name).on_conflict_do_nothing().returning(table.c.id)
    made = conn.execute(statement).scalar_one_or_none()
    if made is not None:
        return Claim(made, site_id, None)
    known = conn.execute(
        sa.select(table.c.id, table.c.imported_at).where(*(table.c[name] == value for name, value in key.items()))
    ).one()
    return Claim(known.id, site_id, known.imported_at)


def finish(conn: sa.Connection, claimed: Claim, report: Mapping[str, Any]) -> None:
    """Record what came of a claimed file, in the transaction of its rows."""
    table = metadata.tables["imports"]
    row = conn.execute(
        sa.update(table)
        .where(table.c.id == claimed.id)
        .values(
            rows_read=report["rows_read"],
            rows_written=report["rows_written"],
            rows_rejected=report["rejections"]["total"],
            report=json.loads(json.dumps(report)),
        )
        .returning(table.c.kind, table.c.file_name, table.c.sha256)
    ).one()
    audit.note(
        conn,
        audit.actor(conn),
        f"import.{row.kind}",
        f"import/{claimed.id}",
        file=row.file_name,
        sha256=bytes(row.sha256).hex(),
        rows_written=report["rows_written"],
        rows_rejected=report["rejections"]["total"],
    )


KNOWN_AT: Final = "current_setting('wattledger.known_at')::timestamptz"
"""SQL for the instant :func:`known_from_here` noted."""


def known_from_here(conn: sa.Connection) -> None:
    """Note the server's clock as the instant from which what this transaction writes is known. Call it under the lock.

    An import runs for minutes, and its ``now()`` is its beginning: a row would be superseded before it was recorded, and
    closes made meanwhile would have known what they could not see.
    """
    conn.exec_driver_sql("SELECT set_config('wattledger.known_at', clock_timestamp()::text, true)")


class Stage:
    """A temporary table of one import and the COPY into it. Column types are PostgreSQL's, given by the importer."""

    def __init__(self, conn: sa.Connection, name: str, columns: Mapping[str, str]) -> None:
        self._conn = conn
        self.name = name
        self._columns = columns
        declared = ", ".join(f"{column} {kind}" for column, kind in columns.items())
        conn.exec_driver_sql(f"CREATE TEMPORARY TABLE {name} ({declared}) ON COMMIT DROP")

    def copy(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Add rows, their values in the order the columns were declared in."""
        driver: psycopg.Connection[Any] | None = self._conn.connection.driver_connection
        assert driver is not None  # noqa: S101 - a checked-out connection has one
        # The names are literals of the importers, never from a file.
        statement = f"COPY {self.name} ({', '.join(self._columns)}) FROM STDIN"
        with driver.cursor() as cursor, cursor.copy(statement.encode()) as copy:
            for row in rows:
                copy.write_row(row)

    def ready(self) -> None:
        """Let the planner see what was staged."""
        self._conn.exec_driver_sql(f"ANALYZE {self.name}")


def at_sql(column: str) -> str:
    """Return SQL for the instant of a column of microseconds, exact: interval multiplication keeps 2**53."""
    return f"({EPOCH_SQL} + {column} * interval '1 microsecond')"


def make_days(conn: sa.Connection, table: str, days: Collection[date], *, referred_site_id: int | None = None) -> None:
    """Make the daily partitions of these days in transactions of their own; history comes in islands. Raises TooManyDaysError.

    A second connection, because the lock of whoever makes a partition lasts to the end of its transaction: live writers
    would wait for the whole import to begin a new day. A partition made for an import that is then undone stays, empty.
    ``referred_site_id``: the site, where the table has a foreign key to sites.
    """
    check_days(days)
    with conn.engine.connect() as own:
        with own.begin():
            apart = referred_site_id is None or _is_committed(own, referred_site_id)
        if apart:
            # Some at a time: each takes a dozen locks until its transaction ends, of some ten thousand that a server has.
            ordered = sorted(days)
            for start in range(0, len(ordered), _DAYS_AT_ONCE):
                with own.begin():
                    ensure_days(own, table, ordered[start : start + _DAYS_AT_ONCE])
            return
    if len(days) > _DAYS_OF_A_NEW_SITE:
        raise TooManyDaysError(
            f"the rows lie on {len(days)} different days of a site that is not known yet, and at most {_DAYS_OF_A_NEW_SITE} are "
            "taken at its first import; take a part of them first"
        )
    # A site this import made: its uncommitted row keeps anybody else from adding a table that refers to sites.
    ensure_days(conn, table, days)


def check_days(days: Collection[date]) -> Collection[date]:
    """Return the days of one file; raises TooManyDaysError."""
    if len(days) > MAX_DAYS:
        raise TooManyDaysError(
            f"the rows lie on {len(days)} different days, at most {MAX_DAYS} are taken; check the times"
        )
    return days


def refresh_statistics(conn: sa.Connection, *tables: str, partitioned: str, days: Sequence[date] = ()) -> None:
    """Tell the planner what the import added, before autovacuum gets to it.

    Without this the first read of a day of 108,916 node readings was planned as nested loops: 9.0 s instead of 0.06 s.
    ``days``: of the ``partitioned`` table, those that rows were added to.
    """
    for name in (*tables, *relations(conn, partitioned, days)):
        conn.exec_driver_sql(f"ANALYZE {name}")


def _is_committed(other: sa.Connection, site_id: int) -> bool:
    sites = metadata.tables["sites"]
    return other.execute(sa.select(sites.c.id).where(sites.c.id == site_id)).one_or_none() is not None


def mark_changed(conn: sa.Connection, site_id: int | None, kind: str, ranges_sql: str) -> int:
    """Note the hours that are made of something else now. ``ranges_sql`` selects one tstzrange per row.

    Touching ranges become one row; an open end means until now, since no later hour is closed.
    """
    statement = sa.text(
        "INSERT INTO changes (site_id, from_at, to_at, kind) "  # noqa: S608 - our own SQL
        "SELECT :site_id, coalesce(lower(part), '1970-01-01Z'), "
        "coalesce(upper(part), greatest(now() + interval '1 hour', lower(part))), :kind "
        f"FROM (SELECT unnest(range_agg(span)) AS part FROM ({ranges_sql}) AS spans(span)) AS parts"
    )
    return conn.execute(statement, {"site_id": site_id, "kind": kind}).rowcount


def mark_prices(conn: sa.Connection, priced_sql: str) -> int:
    """Note the hours of every site that are priced by something else now: those with something of these providers and models.

    ``priced_sql`` selects a tstzrange, provider and model per row, whatever else. Scopes are in the words that runs say of their lines
    (``ledger_runs.uses``): a model by its name, and ``provider/*`` for what no price was found for until now.
    """
    statement = f"""
INSERT INTO changes (site_id, from_at, to_at, kind, scope)
SELECT NULL, coalesce(lower(part), '1970-01-01Z'), coalesce(upper(part), greatest(now() + interval '1 hour', lower(part))), 'prices', scope
FROM (
    SELECT range_agg(span) AS spans, jsonb_build_object(
        'provider', lower(provider),
        'models', jsonb_agg(DISTINCT lower(provider || '/' || model)) || jsonb_build_array(lower(split_part(provider, '/', 1)) || '/*')
    ) AS scope
    FROM ({priced_sql}) AS priced(span, provider, model) GROUP BY lower(provider), lower(split_part(provider, '/', 1))
) AS scoped, unnest(spans) AS part
"""  # noqa: S608 - our own SQL
    return conn.exec_driver_sql(statement).rowcount
