"""Rounds of a worker over a simulated fleet, each with its time, processor time and memory; and a check of what it booked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import duckdb

from bench.attribution_files import SealedFleet
from bench.family import Watched, family_cpu_s
from bench.stand import Stand
from collector.wire import Stream

# Law 1 asked of the sealed readings alone: last minus first counter per epoch, the hour's edges by the interpolated counter.
_METERED: Final = """
WITH reading AS (
    SELECT device_id, epoch_id, epoch_us("at") AS at_us, energy_mj, lead(epoch_us("at")) OVER w AS next_us, lead(energy_mj) OVER w AS next_mj
    FROM read_parquet(?) WHERE energy_mj IS NOT NULL WINDOW w AS (PARTITION BY device_id, epoch_id ORDER BY "at")
), step AS (
    SELECT device_id, next_mj - energy_mj AS grown, at_us, next_us, greatest(at_us, ?) AS lo, least(next_us, ?) AS hi FROM reading
    WHERE next_mj >= energy_mj AND next_us > ? AND at_us < ?
)
SELECT sum(grown::HUGEINT * (hi - at_us) // (next_us - at_us) - grown::HUGEINT * (lo - at_us) // (next_us - at_us))::BIGINT FROM step
"""


@dataclass(frozen=True, slots=True)
class Round:
    """One round of the worker."""

    seconds: float
    cpu_s: float
    """Of the worker and its children."""
    postgres_cpu_s: float
    peak_bytes: int
    """Resident in the worker and its children at one moment."""
    counted: dict[str, Any]


class Worker:
    """A worker that runs beside this process."""

    def __init__(self, process: subprocess.Popen[str], on: Stand) -> None:
        self._process = process
        self._postmaster = _postmaster(on)

    def round(self, now: datetime) -> Round:
        """Have it do one round as of an instant; raises RuntimeError if an hour failed."""
        server_s = family_cpu_s(self._postmaster)
        with Watched(self._process.pid) as watched:
            told = self._ask(now.isoformat())
        if told["failed"] or told["lost_races"]:
            raise RuntimeError(f"the worker did not close: {told}")
        spent_s = family_cpu_s(self._postmaster) - server_s
        return Round(told.pop("seconds"), watched.cpu_s, spent_s, watched.peak_bytes, told)

    def _ask(self, line: str) -> dict[str, Any]:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the worker has no pipes")
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the worker ended with {self._process.wait(10)}")
        told: dict[str, Any] = json.loads(answer)
        return told


@contextmanager
def worker(on: Stand, segments: Path) -> Iterator[Worker]:
    """Run a worker; it has started and looked at nothing yet."""
    command = [sys.executable, "-m", "bench.attribution_worker", str(on.socket_dir), str(segments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout is None or not process.stdout.readline():
            raise RuntimeError("the worker did not start")
        yield Worker(process, on)
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.wait(30)


def check(on: Stand, files: SealedFleet, from_at: datetime, to_at: datetime) -> int:
    """Return the millijoules of the closed hours of an interval; raises RuntimeError unless the sealed readings say the same."""
    paths = [str(path) for path in files.paths(Stream.DEVICE).values()]
    from_us, to_us = (int(at.timestamp()) * 1_000_000 for at in (from_at, to_at))
    with duckdb.connect() as peer:
        peer.execute("SET threads = 2; SET memory_limit = '3GB'; SET preserve_insertion_order = false")
        found = peer.execute(_METERED, [paths, from_us, to_us, from_us, to_us]).fetchone()
    metered = int(found[0]) if found else 0
    with on.database.connect("admin") as connection:
        (booked,) = connection.execute(
            "SELECT coalesce(sum(energy_mj), 0)::bigint FROM current_usage_hours JOIN devices ON devices.id = device_id "
            "WHERE kind = 'gpu' AND hour_at >= %s AND hour_at < %s",
            (from_at, to_at),
        ).fetchone() or (0,)
        (lines,) = connection.execute(
            "SELECT coalesce(sum(energy_mj), 0)::bigint FROM current_ledger_lines WHERE charge_category = 'gpu_owned' "
            "AND hour_at >= %s AND hour_at < %s",
            (from_at, to_at),
        ).fetchone() or (0,)
    if not metered == int(str(booked)) == int(str(lines)):
        raise RuntimeError(f"the meters say {metered} mJ, the usage hours {booked}, the lines {lines}")
    return metered


def _postmaster(on: Stand) -> int:
    with on.database.connect("admin") as connection:
        (backend,) = connection.execute("SELECT pg_backend_pid()").fetchone() or (0,)
        stat = Path(f"/proc/{backend}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])
