"""Takes a schema back to an earlier revision: all of it in one transaction, after saying what would be lost by it.

What a migration's way back drops is not declared anywhere: it is done, looked at and undone again, under the migrators' lock, and what
it dropped or changed is counted where it still stands. It refuses to go below what other processes still use, and decides nothing about whether a loss
is acceptable: the caller agrees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import sqlalchemy as sa
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from alembic.util.exc import CommandError

from ingest.store.migrate import (
    MigrationError,
    connected,
    migrators_lock,
    patiently,
    refuse_foreign,
    revision_of,
)

COUNTED_AT_MOST: Final = 1_000_000
"""Rows that are counted of one table or column; nobody decides otherwise for the next million."""
_COLUMNS: Final = """
SELECT c.relname, a.attname, pg_get_expr(d.adbin, d.adrelid)
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = c.oid AND deptype = 'e')
"""
_CHANGED: Final = """
SELECT relname, n_tup_del, n_tup_upd FROM pg_stat_xact_user_tables
WHERE (n_tup_del > 0 OR n_tup_upd > 0) AND relname <> 'alembic_version' ORDER BY relname
"""
_COMPANY: Final = """
SELECT application_name, count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND starts_with(application_name, 'wattledger')
GROUP BY 1 ORDER BY 1
"""
_TELLS_ITSELF: Final = ("nextval(", "now(", "CURRENT_", "clock_timestamp(", "pg_current_xact_id(", "gen_random_uuid(")
"""Defaults that differ from row to row: a column that has one is lost with whatever it holds."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that is there now and would not be afterwards. ``rows``: how many have it, at most COUNTED_AT_MOST."""

    what: str
    rows: int

    def __str__(self) -> str:
        return f"{self.what}: {'at least ' if self.rows == COUNTED_AT_MOST else ''}{self.rows:,} row{'s' * (self.rows != 1)}"


@dataclass(frozen=True, slots=True)
class Way:
    """From one revision back to another. ``undone``: what is taken back, the newest first."""

    start: str
    end: str
    undone: tuple[str, ...]
    losses: tuple[Loss, ...]
    is_done: bool = False


_Schema = Mapping[str, Mapping[str, str | None]]
"""Default by column by table."""


def retreat(url: str, revision: str, agreed: Callable[[Way], bool]) -> Way:
    """Take the schema back to a revision (or the beginning of its name) if the caller agrees to what that loses.

    ``agreed`` is asked while nothing has changed. Raises MigrationError, nothing having changed: for a revision that is none or
    not behind, while processes of ours are connected, and where a migration's own data forbid its way back.
    """
    with connected(url) as (config, connection):
        refuse_foreign(config, connection)
        with migrators_lock(connection):
            return patiently(lambda: _attempt(config, connection, revision, agreed))


def _attempt(config: Config, connection: sa.Connection, revision: str, agreed: Callable[[Way], bool]) -> Way:
    scripts, end = _between(config, revision_of(connection), revision)
    with connection.begin() as transaction:
        _refuse_company(connection)
        start = scripts[0].revision
        try:
            losses = _rehearsed(connection, scripts)
            way = Way(start, end, tuple(script.revision for script in scripts), losses)
            if not agreed(way):
                transaction.rollback()
                return way
            _undo(connection, scripts, end)
        except sa.exc.IntegrityError as error:
            said = str(error.orig).partition("\n")[0]
            raise MigrationError(
                f"the schema stays at {start}: what is in it cannot be told in that of {end} ({said}); the way back is a restore "
                "of the backup that was made before the upgrade"
            ) from error
    return replace(way, is_done=True)


def _between(config: Config, start: str | None, revision: str) -> tuple[list[Script], str]:
    """Return the scripts to take back, newest first, and the whole name of the revision that is left."""
    if start is None or revision == "base":
        raise MigrationError("that would leave no schema at all; drop the database instead")
    directory = ScriptDirectory.from_config(config)
    try:
        end = directory.get_revision(revision).revision
        scripts = list(directory.iterate_revisions(start, end))
    except CommandError as error:
        raise MigrationError(
            f"there is no way from schema {start} back to {revision!r}: {error}; `wattledger doctor` of the version to go back to "
            "calls its own by name"
        ) from error
    if not scripts:
        raise MigrationError(f"the schema is at {start}; there is nothing to take back to reach {end}")
    return scripts, end


def _refuse_company(connection: sa.Connection) -> None:
    company = [f"{count} of {name}" for name, count in connection.execute(sa.text(_COMPANY))]
    if company:
        raise MigrationError(
            f"processes of Wattledger are connected ({', '.join(company)}) and would meet a schema they do not know; stop ingest, "
            "API, worker and backups first (agents keep what they measure)"
        )


def _rehearsed(connection: sa.Connection, scripts: Sequence[Script]) -> tuple[Loss, ...]:
    """Take the schema back, see what that did, and undo it; the locks taken for it are given back too."""
    before = _schema(connection)
    with connection.begin_nested() as rehearsal:
        _run(connection, scripts)
        after = _schema(connection)
        changed = connection.execute(sa.text(_CHANGED)).all()
        rehearsal.rollback()
    losses = []
    for table, columns in sorted(before.items()):
        if table not in after:
            losses.append(Loss(f"table {table}", _count(connection, table)))
            continue
        losses += [
            Loss(f"column {table}.{column}", _count(connection, table, column, columns[column]))
            for column in sorted(columns.keys() - after[table].keys())
        ]
    for table, deleted, updated in changed:
        losses += [Loss(f"deleted from {table}", deleted), Loss(f"changed in {table}", updated)]
    return tuple(loss for loss in losses if loss.rows)


def _undo(connection: sa.Connection, scripts: Sequence[Script], end: str) -> None:
    _run(connection, scripts)
    connection.execute(sa.text("UPDATE alembic_version SET version_num = :end"), {"end": end})


def _run(connection: sa.Connection, scripts: Sequence[Script]) -> None:
    with Operations.context(MigrationContext.configure(connection)):
        for script in scripts:
            script.module.downgrade()


def _schema(connection: sa.Connection) -> _Schema:
    found: dict[str, dict[str, str | None]] = {}
    for table, column, default in connection.execute(sa.text(_COLUMNS)):
        found.setdefault(table, {})[column] = default
    return found


def _count(connection: sa.Connection, table: str, column: str | None = None, default: str | None = None) -> int:
    """Count the rows of a table, or those in which a column says something else than it would by itself."""
    quoted: Callable[[str], str] = connection.dialect.identifier_preparer.quote
    where = ""
    if column is not None:
        is_constant = default is not None and not any(word in default for word in _TELLS_ITSELF)
        where = f"WHERE {quoted(column)} IS DISTINCT FROM {default if is_constant else 'NULL'}"
    limited = f"SELECT FROM public.{quoted(table)} {where} LIMIT {COUNTED_AT_MOST}"
    counted = connection.exec_driver_sql(f"SELECT count(*) FROM ({limited}) AS counted").scalar_one()  # noqa: S608 (names of the catalog)
    return int(str(counted))
