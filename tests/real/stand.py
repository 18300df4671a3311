"""A database with the product's own line around it: import, worker, bill. What is compared with it lives in ``independent``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import psycopg
import sqlalchemy as sa
from psycopg import sql

from analytics.io import bindings_store
from analytics.io.hours import due_hours
from analytics.io.statements import Bill, GroupBy, bill
from analytics.jobs import HourCloser, Round, WorkerSettings
from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import Database

NOW: Final = datetime(2026, 11, 1, tzinfo=UTC)
"""When the imports take place: long after all of the data, so that every hour is over."""


@dataclass(slots=True)
class Stand:
    """One deployment. ``seconds``: how long each named step took."""

    database: Database
    engine: sa.Engine
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def importing(self, step: str) -> Iterator[sa.Connection]:
        """Give an idle connection of the role that imports, and take the time."""
        started = time.monotonic()
        with self.engine.connect() as connection:
            yield connection
        self.seconds[step] = time.monotonic() - started

    def close(self, now: datetime = NOW) -> Round:
        """Let the worker close all that is due."""
        started = time.monotonic()
        done = HourCloser(self.database, WorkerSettings(code_version="real")).run(now)
        self.seconds["close"] = time.monotonic() - started
        return done

    def bind(self, rules: str) -> None:
        with self.database.connect("owner") as connection:
            bindings_store.apply(connection, rules, NOW)

    def bill(self, from_at: datetime, to_at: datetime, group_by: GroupBy = GroupBy.TENANT) -> Bill:
        engine = self.database.create_engine("worker")
        try:
            with engine.connect() as connection:
                return bill(connection, from_at, to_at, group_by)
        finally:
            engine.dispose()

    def due(self, now: datetime = NOW) -> int:
        """Return how many hours the worker would still close."""
        with self.database.connect("worker", autocommit=True) as connection:
            return len(due_hours(connection, now))

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self._admin() as connection:
            return connection.execute(query.encode(), parameters).fetchall()

    def _admin(self) -> psycopg.Connection[Any]:
        return self.database.connect("admin", autocommit=True)


@contextmanager
def deployed(server: EmbeddedServer, template: Database, name: str) -> Iterator[Stand]:
    """Copy the migrated template to a database of this name, and drop it in the end."""
    made, named = sql.Identifier(name), sql.Identifier(template.name)
    with server.database("postgres").connect("admin", autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER wattledger_owner").format(made, named))
        database = server.database(name)
        engine = database.create_engine("owner", pool_size=2)
        try:
            yield Stand(database, engine)
        finally:
            engine.dispose()
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(made))
