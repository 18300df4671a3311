"""How the store keeps its days: daily partitions of PostgreSQL, or hypertables of TimescaleDB with chunks of one day (ADR 0016).

Chosen once, when an empty database is migrated, and recorded in `store_layout`; nothing here changes it later. Migrations
say RANGE partitions in either case: :func:`tables_made_as` makes hypertables of them while they run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from ingest.store.tables.store_layout import store_layout

EXTENSION: Final = "timescaledb"
CHUNK_SCHEMA: Final = "wattledger_days"
"""Chunks lie in a schema of the owner role: in TimescaleDB's own it may not index a single day when that day is over."""
COLUMNSTORE_AFTER: Final = "2 days"
"""Hot retention's default: a day older than this is only read, if it has not been sealed and dropped by then."""
_COLUMNSTORE_KEYS: Final = {
    "device_samples": "device_id",
    "node_samples": "meter_id",
    "fabric_samples": "port_id",
    "engine_samples": "engine_id",
    "device_health": "device_id",
    "device_shares": "device_id",
    "agent_health": "epoch_id",
}
"""Sample tables and what their readers ask by. None bears a tenant: TimescaleDB does not combine row policies and columnstore."""


class Layout(StrEnum):
    """How the days of samples, API calls and spans are kept."""

    NATIVE = "native"
    HYPERTABLES = "hypertables"


@dataclass(frozen=True, slots=True)
class Choice:
    """A layout and, in a sentence, why it is this one."""

    layout: Layout
    reason: str


@dataclass(frozen=True, slots=True)
class Extension:
    """TimescaleDB as a database has it. ``version`` None: the server could install it, this database has not got it."""

    schema: str | None
    version: str | None
    available: str | None


def found(conn: sa.Connection) -> Layout | None:
    """Return the layout the sample tables have, None where there are none yet."""
    kind = conn.execute(
        sa.text("SELECT relkind FROM pg_class WHERE oid = to_regclass('public.device_samples')")
    ).scalar_one_or_none()
    if kind is None:
        return None
    return Layout.NATIVE if kind == "p" else Layout.HYPERTABLES


def recorded(conn: sa.Connection) -> Choice:
    """Return the layout and its reason from the record that the migrations leave."""
    layout, reason = conn.execute(sa.select(store_layout.c.layout, store_layout.c.reason)).one()
    return Choice(Layout(layout), reason)


def extension(conn: sa.Connection) -> Extension:
    """Return where TimescaleDB stands in this database and on its server."""
    row = conn.execute(
        sa.text(
            "SELECT e.extnamespace::regnamespace::text, e.extversion, a.default_version FROM (SELECT) AS here "
            "LEFT JOIN pg_extension e ON e.extname = :name LEFT JOIN pg_available_extensions a ON a.name = :name"
        ),
        {"name": EXTENSION},
    ).one()
    return Extension(*row)


def choose(conn: sa.Connection, asked: Layout | None) -> Choice | str:
    """Return the layout for this database, or why what was ``asked`` for cannot be; None asks for what fits.

    A database with sample tables keeps the layout it has. An empty one gets hypertables where the extension is installed;
    an extension that is merely available is installed only when hypertables are asked for by name.
    """
    kept = found(conn)
    if kept is not None:
        if asked in {None, kept}:
            return Choice(kept, "as the database was made")
        return (
            f"the database was made with the layout {kept} and {asked} is asked for; a layout is not changed in place: dump "
            f"the data, migrate an empty database with --layout {asked}, restore the data into it (docs/databases.md)"
        )
    timescale = extension(conn)
    if asked is Layout.NATIVE:
        return Choice(Layout.NATIVE, "asked for")
    if timescale.version is not None:
        return Choice(Layout.HYPERTABLES, f"{EXTENSION} {timescale.version} is installed in this database")
    if asked is Layout.HYPERTABLES:
        if timescale.available is None:
            return f"hypertables were asked for, but the server has no {EXTENSION}; install it there, or use --layout native"
        return Choice(Layout.HYPERTABLES, f"asked for; {EXTENSION} {timescale.available} was installed for it")
    if timescale.available is not None:
        reason = f"{EXTENSION} {timescale.available} is on the server but not installed in this database"
        return Choice(Layout.NATIVE, reason)
    return Choice(Layout.NATIVE, f"the server has no {EXTENSION}")


def prepare(conn: sa.Connection, layout: Layout) -> None:
    """Make what the tables of a layout need before they exist; does nothing where it is there."""
    if layout is Layout.HYPERTABLES:
        conn.exec_driver_sql(f"CREATE EXTENSION IF NOT EXISTS {EXTENSION}")
        conn.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {CHUNK_SCHEMA}")


@contextmanager
def tables_made_as(layout: Layout) -> Iterator[None]:
    """Make each table that a migration declares as partitioned by a time range in this layout, as long as the block lasts."""
    if layout is Layout.NATIVE:
        yield
        return
    sa.event.listen(sa.Table, "before_create", _unpartitioned)
    sa.event.listen(sa.Table, "after_create", _made_hypertable)
    try:
        yield
    finally:
        sa.event.remove(sa.Table, "before_create", _unpartitioned)
        sa.event.remove(sa.Table, "after_create", _made_hypertable)


def keep_in_columns(conn: sa.Connection) -> tuple[str, ...]:
    """Have TimescaleDB keep closed days of samples in its columnstore where its licence allows; return the tables.

    Needs a hypertable layout and the owner's rights. The Apache edition has no columnstore and answers with no tables.
    """
    if conn.execute(sa.text("SELECT current_setting('timescaledb.license', true)")).scalar_one() != "timescale":
        return ()
    schema = extension(conn).schema
    for table, key in _COLUMNSTORE_KEYS.items():
        has = sa.text(
            "SELECT compression_enabled FROM timescaledb_information.hypertables "
            "WHERE hypertable_schema = 'public' AND hypertable_name = :table"
        )
        if not conn.execute(has, {"table": table}).scalar_one():
            conn.exec_driver_sql(
                f"ALTER TABLE {table} SET (timescaledb.compress, timescaledb.compress_segmentby = '{key}', "
                "timescaledb.compress_orderby = 'at')"
            )
        conn.exec_driver_sql(
            f"SELECT {schema}.add_compression_policy('{table}', INTERVAL '{COLUMNSTORE_AFTER}', if_not_exists => true)"
        )
    return tuple(_COLUMNSTORE_KEYS)


def _unpartitioned(table: sa.Table, _: sa.Connection, **__: Any) -> None:
    by = table.dialect_options["postgresql"]["partition_by"]
    if by:
        table.info["time"] = by.removeprefix("RANGE (").removesuffix(")")
        table.dialect_options["postgresql"]["partition_by"] = None


def _made_hypertable(table: sa.Table, conn: sa.Connection, **_: Any) -> None:
    if "time" not in table.info:
        return
    # The indexes are the migration's own. This form of the function, unlike the newer one, can name the chunks' schema.
    conn.execute(
        sa.text(
            f'SELECT FROM "{extension(conn).schema}".create_hypertable(:table, CAST(:time AS name), '
            "chunk_time_interval => INTERVAL '1 day', create_default_indexes => false, "
            "associated_schema_name => CAST(:schema AS name), associated_table_prefix => CAST(:prefix AS name))"
        ),
        {
            "table": f"public.{table.name}",
            "time": table.info["time"],
            "schema": CHUNK_SCHEMA,
            "prefix": table.name,
        },
    )
