"""A database with the product's own line around it: import, sealing, worker, bill, backup. What is compared with it lives in ``independent``."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import psycopg
import sqlalchemy as sa
from psycopg import sql

from analytics.io import bindings_store
from analytics.io.hours import due_hours
from analytics.io.recompute import Ground, recompute, runs_in_force
from analytics.io.statements import Bill, GroupBy, bill
from analytics.jobs import HourCloser, Round, WorkerSettings
from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import Database
from ingest.store.seal import Sealer
from ingest.store.seal_hours import due
from ingest.store.segments import Segments
from wattledger.backup import back_up
from wattledger.restore import open_source, restore

NOW: Final = datetime(2026, 11, 1, tzinfo=UTC)
"""When the imports take place: long after all of the data, so that every hour is over."""


@dataclass(slots=True)
class Stand:
    """One deployment. ``segments``: where its hours are sealed before they are closed; without, hours are closed of late rows.

    ``seconds``: how long each named step took.
    """

    database: Database
    engine: sa.Engine
    segments: Segments | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def importing(self, step: str) -> Iterator[sa.Connection]:
        """Give an idle connection of the role that imports, and take the time."""
        started = time.monotonic()
        with self.engine.connect() as connection:
            yield connection
        self.seconds[step] = time.monotonic() - started

    def close(self, now: datetime = NOW) -> Round:
        """Let the worker seal and close all that is due."""
        if self.segments is not None:
            self._seal(self.segments, now)
        started = time.monotonic()
        done = HourCloser(self.database, WorkerSettings(code_version="real"), self.segments).run(now)
        self.seconds["close"] = time.monotonic() - started
        return done

    def _seal(self, segments: Segments, now: datetime) -> None:
        started = time.monotonic()
        sealer, engine = Sealer(self.database, segments), self.database.create_engine("worker")
        try:
            for hour in due(
                engine, now, seal_after=timedelta(hours=3), merge_after=timedelta(hours=1), most=10_000
            ).seal:
                sealer.seal(hour)
        finally:
            engine.dispose()
        self.seconds["seal"] = time.monotonic() - started

    def billed_mj(self, from_at: datetime, to_at: datetime) -> dict[str, int]:
        """Return the energy (mJ) on the bill by job's own id; of a job that ran twice the sum."""
        found: dict[str, int] = {}
        for row in self.bill(from_at, to_at, GroupBy.JOB).rows:
            native_id = row.details.get("native_id")
            if native_id is not None and row.figures.energy_mj is not None:
                found[native_id] = found.get(native_id, 0) + row.figures.energy_mj
        return found

    def recomputed(self, every: int = 1) -> list[tuple[bool | None, Ground]]:
        """Compute every so-manieth hour of the books once more; return whether it came out to the byte, and of what it was made."""
        started = time.monotonic()
        with self.database.connect("worker", autocommit=True) as connection:
            runs = runs_in_force(connection, datetime.now(UTC), datetime(2000, 1, 1, tzinfo=UTC), NOW, None)
            found = [recompute(self.database, connection, self.segments, *run) for run in runs[::every]]
        self.seconds["recompute"] = time.monotonic() - started
        return [(each.is_same, each.ground) for each in found]

    @contextmanager
    def restored(self, server: EmbeddedServer, folder: Path) -> Iterator[Stand]:
        """Back this deployment up and restore it as another one, whose segments lie elsewhere."""
        if self.segments is None:
            raise ValueError("a deployment without sealed hours is no full path")
        started = time.monotonic()
        back_up(self.database, self.segments, folder, folder / "target", env=os.environ, say=lambda _: None)
        with _made(server, f"{self.database.name}_restored") as copy:
            place = Segments.at(folder / "restored")
            checks = restore(open_source(folder / "target"), copy, place, folder, env=os.environ, say=lambda _: None)
            if any(check.verdict == "broken" for check in checks):
                raise AssertionError(checks)
            engine = copy.create_engine("owner", pool_size=2)
            try:
                yield Stand(copy, engine, place, {"backup and restore": time.monotonic() - started})
            finally:
                engine.dispose()

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
def deployed(server: EmbeddedServer, template: Database, name: str, segments: Path | None = None) -> Iterator[Stand]:
    """Copy the migrated template to a database of this name, and drop it in the end. ``segments``: a folder for sealed hours."""
    with _made(server, name, template) as database:
        engine = database.create_engine("owner", pool_size=2)
        try:
            yield Stand(database, engine, None if segments is None else Segments.at(segments))
        finally:
            engine.dispose()


@contextmanager
def _made(server: EmbeddedServer, name: str, template: Database | None = None) -> Iterator[Database]:
    made = sql.Identifier(name)
    of = sql.SQL("") if template is None else sql.SQL("TEMPLATE {}").format(sql.Identifier(template.name))
    with server.database("postgres").connect("admin", autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} {} OWNER wattledger_owner").format(made, of))
        try:
            yield server.database(name)
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(made))
