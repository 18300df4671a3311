"""ingest.layouts: rows/s of COPY into hypertables, against COPY of the same bytes into daily partitions of the same server.

TimescaleDB of Debian (tests/servers), fsync on, one connection, 10,000 rows a transaction, BRIN only as on an open day. The
median of eleven rounds each, taken in turns.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from unittest import mock

import numpy as np
import polars as pl

from bench.report import Result
from collector.wire import Stream
from ingest.store import migrate
from ingest.store.copy import copy_statement, encode
from ingest.store.embedded import EmbeddedServer
from ingest.store.embedded import server as server_module
from ingest.store.embedded.binaries import BINDIR_VARIABLE
from ingest.store.embedded.settings import server_settings
from ingest.store.engine import Database
from ingest.store.layout import Layout
from ingest.store.sample_tables import TARGETS
from tests import servers

ROWS: Final = 10_000
TRANSACTIONS: Final = 20
ROUNDS: Final = 11
TARGET: Final = 0.9


def run() -> list[Result]:
    bodies = [_body(number) for number in range(TRANSACTIONS)]
    rates: dict[Layout, list[float]] = {layout: [] for layout in Layout}
    with _both() as databases:
        for number in range(ROUNDS):
            for layout in list(Layout) if number % 2 else list(Layout)[::-1]:
                rates[layout].append(_rate(databases[layout], bodies))
    value, baseline = statistics.median(rates[Layout.HYPERTABLES]), statistics.median(rates[Layout.NATIVE])
    detail = {str(layout): [round(rate) for rate in found] for layout, found in rates.items()}
    target = f">= {TARGET} of daily partitions"
    return [Result("ingest.layouts", value, "rows/s", target, value >= TARGET * baseline, baseline, detail)]


@contextmanager
def _both() -> Iterator[Mapping[Layout, Database]]:
    """Run a TimescaleDB with a migrated database of each layout, today's and tomorrow's partitions made."""
    kind = servers.Kind.TIMESCALE
    home = Path(tempfile.mkdtemp(prefix="wl-bench-"))
    home.chmod(0o711)
    server = EmbeddedServer.in_home(home, {BINDIR_VARIABLE: str(servers.programs(kind))})
    try:
        wanted = servers.settings(kind)
        with mock.patch.object(server_module, "server_settings", lambda folder: server_settings(folder) | wanted):
            server.start()
        made = {layout: server.database(f"bench_{layout}") for layout in Layout}
        today = datetime.now(UTC).date()
        for layout, database in made.items():
            with server.database("postgres").connect("admin", autocommit=True) as admin:
                admin.execute(f"CREATE DATABASE {database.name} OWNER wattledger_owner".encode())
            migrate.upgrade(database.url, layout=layout)
            with database.connect("worker", autocommit=True) as worker:
                worker.execute("SELECT ensure_partitions(%s, %s)", (today, today + timedelta(days=2)))
        yield made
    finally:
        server.destroy()
        shutil.rmtree(home)


def _body(number: int) -> list[bytes]:
    """Return the COPY stream of one transaction: 10,000 devices, one row each."""
    target = TARGETS[Stream.DEVICE]
    random = np.random.default_rng(number)
    at_us = time.time_ns() // 1_000 + np.arange(ROWS)
    columns = {
        name: pl.Series(at_us).cast(kind)
        if name == "at"
        else pl.Series(random.integers(1, 1_000, ROWS)).cast(kind, strict=True)
        for name, kind in target.schema.items()
    }
    return [bytes(piece) for piece in encode(pl.DataFrame(columns))]


def _rate(database: Database, bodies: list[list[bytes]]) -> float:
    target = TARGETS[Stream.DEVICE]
    statement = copy_statement(target.table, list(target.schema))
    with database.connect("writer", autocommit=True) as connection:
        began = time.perf_counter()
        for body in bodies:
            with connection.transaction(), connection.cursor() as cursor, cursor.copy(statement) as copy:
                for piece in body:
                    copy.write(piece)
        return len(bodies) * ROWS / (time.perf_counter() - began)
