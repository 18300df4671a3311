"""A row in every table, made from what the schema itself says of its columns: types, keys, closed sets, ranges."""

from __future__ import annotations

import re
import uuid
from datetime import date, timedelta
from typing import Any, Final

import psycopg
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.dialects import postgresql

from ingest.store.engine import Database
from ingest.store.tables import metadata
from ingest.store.tables.columns import NAMED
from tests.db.ledger_fixture import HOUR_AT

_GIVEN: Final[dict[str, object]] = {
    "outcomes.response_id": "r-1",
    "meters.site_id": None,
    "capacity_holds.device_id": None,
    "assets.node_id": None,
    "idle_policies.tenant_id": None,
    "meter_words.bills": True,
    "meter_words.covers": None,
    "meter_words.wrap_mj": None,
}
"""By table.column, where one value of its type is not as good as any other."""


def fill(db: Database) -> set[str]:
    """Insert one row into each table that has none; return the tables that have rows now."""
    with db.connect("admin") as connection:
        connection.execute("SELECT ensure_partitions(%s, %s)", (HOUR_AT.date(), HOUR_AT.date() + timedelta(days=1)))
        for table in metadata.sorted_tables:
            if not _has_rows(connection, table.name):
                _insert(connection, table)
        return {table.name for table in metadata.sorted_tables if _has_rows(connection, table.name)}


def _has_rows(connection: psycopg.Connection[Any], table: str) -> bool:
    found = connection.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(sql.Identifier(table))).fetchone()
    return bool(found and found[0])


def _insert(connection: psycopg.Connection[Any], table: sa.Table) -> None:
    values = {column.name: _value(connection, table, column) for column in table.columns if not _makes_itself(column)}
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
        sql.Identifier(table.name),
        sql.SQL(", ").join(map(sql.Identifier, values)),
        sql.SQL(", ").join(sql.Placeholder() * len(values)),
    )
    connection.execute(statement, list(values.values()))


def _makes_itself(column: sa.Column[Any]) -> bool:
    return column.identity is not None or column.server_default is not None or column.computed is not None


def _value(connection: psycopg.Connection[Any], table: sa.Table, column: sa.Column[Any]) -> object:
    name = f"{table.name}.{column.name}"
    if name in _GIVEN:
        return _GIVEN[name]
    for target in (*(key.column for key in column.foreign_keys), *_named(column)):
        query = sql.SQL("SELECT min({}) FROM {}").format(sql.Identifier(target.name), sql.Identifier(target.table.name))
        if target.table is not table:
            row = connection.execute(query).fetchone()
            return None if row is None else row[0]
    return _of_a_closed_set(table, column) or _of_a_type(column)


def _named(column: sa.Column[Any]) -> list[sa.Column[Any]]:
    """Return what a column names that has no foreign key."""
    return [metadata.tables[column.info[NAMED]].c.id] if NAMED in column.info else []


def _of_a_closed_set(table: sa.Table, column: sa.Column[Any]) -> str | None:
    for constraint in table.constraints:
        if isinstance(constraint, sa.CheckConstraint):
            found = re.search(rf"\b{column.name} IN \('?(\w+)'?", str(constraint.sqltext))
            if found:
                return found.group(1)
    return None


def _of_a_type(column: sa.Column[Any]) -> object:
    kind = column.type
    if column.nullable:
        return None
    if isinstance(kind, sa.Boolean):
        return False
    if isinstance(kind, sa.DateTime):
        return HOUR_AT + timedelta(hours=bool(re.search(r"(^|_)(to|end|ended|until)(_|$)", column.name)))
    if isinstance(kind, sa.Date):
        return date(2026, 11, 1)
    if isinstance(kind, sa.Integer | sa.Numeric):
        return 1
    if isinstance(kind, sa.LargeBinary):
        return b"\x00" * 32
    if isinstance(kind, sa.Uuid | postgresql.UUID):
        return uuid.UUID(int=1)
    if isinstance(kind, postgresql.ranges.AbstractMultiRange):
        return "{}"
    if isinstance(kind, postgresql.JSONB):
        return "{}"
    if isinstance(kind, sa.ARRAY | postgresql.ARRAY):
        return []
    return "1"
