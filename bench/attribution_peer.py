"""The same books in DuckDB, by SQL that is published (``bench/duckdb/``), with the same cores and 2 GB, to the same PostgreSQL.

What is asked of PostgreSQL, computed and written is inside the time, as of the worker. It ends where the worker ends: usage hours, lines and
findings in tables like the books', an hour a transaction, each with the SHA-256 of its content and its lines chained. What a query
language has no word for is done with the product's own functions on Arrow data: the hash, the chain and COPY's format.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import duckdb
import polars as pl

from analytics.policy import Policy
from bench.attribution_files import SealedFleet
from bench.attribution_fleet import Fleet
from bench.attribution_peer_given import given
from bench.attribution_peer_saved import prepare, save_hours
from bench.family import family_cpu_s
from bench.stand import Stand
from collector.wire import Stream

SQL: Final = Path(__file__).parent / "duckdb"
ONCE: Final = ("words", "holdings")
OF_A_LOT: Final = ("readings", "shared", "usage", "overhead", "findings")
OF_ALL: Final = ("books",)
CORES: Final = 2
MEMORY: Final = "2GB"
BOARDS_AT_ONCE: Final = 504
"""Whole nodes of eight; of a day, by each core: 0.4 GB of intervals and what is made of them. Of more at once each took no less."""


@dataclass(frozen=True, slots=True)
class PeerRun:
    """One run of the peer, from its first question to PostgreSQL to its last commit there."""

    seconds: float
    cpu_s: float
    """Of this process: DuckDB, and what is sent to PostgreSQL."""
    postgres_cpu_s: float
    parts_s: dict[str, float]
    """Seconds until the readings were attributed, the books made, and all of it written."""
    usage: pl.DataFrame
    lines: pl.DataFrame
    findings: pl.DataFrame
    quality: pl.DataFrame
    hashes: pl.DataFrame
    """hour_at, content_sha256, head_sha256."""


class Peer:
    """DuckDB over the files of a fleet; each run starts from nothing."""

    def __init__(self, on: Stand, fleet: Fleet, files: SealedFleet) -> None:
        self._on, self._fleet = on, fleet
        self._postmaster = int((on.server.placement.data / "postmaster.pid").read_text().split()[0])
        gaps = Policy().gaps
        self._words: dict[str, object] = {
            "$files": _listed(files, Stream.DEVICE),
            "$node_files": _listed(files, Stream.NODE),
            "$share_files": _listed(files, Stream.DEVICE_SHARE),
            "$gap_us": gaps.max_gap_us,
            "$node_gap_us": gaps.node_max_gap_us,
            "$reach_us": gaps.reach_us,
            "$refresh_us": gaps.refresh_us,
        }

    def run(self) -> PeerRun:
        """Make the books of all hours; raises duckdb.Error where the fleet has what the SQL does not know."""
        prepare(self._on.database)
        with _base() as base:
            server_s = family_cpu_s(self._postmaster)
            began_s, cpu_s = time.perf_counter(), time.process_time()
            for name, frame in given(self._on.database, self._hours()).items():
                base.from_arrow(frame.to_arrow()).create(name)
            self._execute(base, ONCE, {})
            self._lots(base)
            attributed_s = time.perf_counter()
            self._execute(base, OF_ALL, {})
            booked_s = time.perf_counter()
            hashes = save_hours(self._on.database, base, self._hours(), CORES)
            ended_s, spent_s = time.perf_counter(), time.process_time() - cpu_s
            parts_s = {
                "readings": attributed_s - began_s,
                "books": booked_s - attributed_s,
                "saved": ended_s - booked_s,
            }
            server_s = family_cpu_s(self._postmaster) - server_s
            usage, lines, findings, quality = (
                base.sql(f"FROM {name}").pl() for name in ("usage_hours", "ledger_lines", "findings", "quality")
            )
        return PeerRun(ended_s - began_s, spent_s, server_s, parts_s, usage, lines, findings, quality, hashes)

    def _hours(self) -> list[datetime]:
        spec = self._fleet.spec
        return [spec.start_at + timedelta(hours=number) for number in range(spec.hours)]

    def _lots(self, base: duckdb.DuckDBPyConnection) -> None:
        """Attribute lot after lot, as many at once as there are cores, each with one thread: a window over the order of a file has but one."""
        devices = self._fleet.spec.devices
        lots = [(first, min(first + BOARDS_AT_ONCE - 1, devices)) for first in range(1, devices + 1, BOARDS_AT_ONCE)]

        def attribute(lot: tuple[int, int]) -> None:
            with base.cursor() as cursor:
                self._execute(cursor, OF_A_LOT, {"$first": lot[0], "$last": lot[1]})

        base.execute("SET threads = 1")
        with ThreadPoolExecutor(CORES) as workers:
            list(workers.map(attribute, lots))
        base.execute(f"SET threads = {CORES}")

    def _execute(self, connection: duckdb.DuckDBPyConnection, files: tuple[str, ...], lot: dict[str, object]) -> None:
        for file in files:
            sql = (SQL / f"{file}.sql").read_text()
            for word, value in sorted((self._words | lot).items(), key=lambda item: -len(item[0])):
                sql = sql.replace(word, str(value))
            connection.execute(sql)


@contextmanager
def _base() -> Iterator[duckdb.DuckDBPyConnection]:
    with tempfile.TemporaryDirectory(prefix="wl-bench-duckdb-") as folder, duckdb.connect() as base:
        base.execute(f"SET threads = {CORES}; SET memory_limit = '{MEMORY}'; SET temp_directory = '{folder}'")
        base.execute("SET enable_progress_bar = false")
        base.execute("SET GLOBAL TimeZone = 'UTC'")
        yield base


def _listed(files: SealedFleet, stream: Stream) -> str:
    """Return the files in the order of time, as DuckDB's list."""
    return repr([str(path) for _, path in sorted(files.paths(stream).items())])
