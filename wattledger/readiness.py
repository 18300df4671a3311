"""What `/readyz` tells beside what ingest needs: a worker that is silent, sealed files that are out of reach.

Each is looked at by whoever asks, at most every ten seconds. It judges no data and keeps nobody from sending.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shutil import disk_usage
from typing import Final

import psycopg

from analytics.io.health import lease_facts
from ingest.admission import DiskGuard
from ingest.readiness import Watch
from ingest.store.engine import Database

SILENT_AFTER_S: Final = 60.0
"""Twice the lease's life: another worker should have taken it by then."""
_LOOK_AGAIN_S: Final = 10.0
_MIB: Final = 1024 * 1024
NO_GUARD: Final = (
    "nothing tells how full the database's disk is, so data is taken until it is full; say WATTLEDGER_INGEST_DATABASE_MAX_MIB, or "
    "WATTLEDGER_INGEST_DISK_PATHS where this process sees that disk"
)


@dataclass(slots=True)
class Cached:
    """Asks a watch once in a while."""

    watch: Watch
    clock: Callable[[], float] = time.monotonic
    _until_s: float = -1.0
    _found: Mapping[str, str] = field(default_factory=dict)

    def __call__(self) -> Mapping[str, str]:
        now_s = self.clock()
        if now_s >= self._until_s:
            self._until_s = now_s + _LOOK_AGAIN_S
            self._found = self.watch()
        return self._found


def worker_watch(database: Database) -> Watch:
    """Return a watch on the worker's lease. A database that does not answer is ingest's to tell."""

    def look() -> Mapping[str, str]:
        try:
            with database.connect("writer", autocommit=True, application="wattledger-readiness") as connection:
                lease = lease_facts(connection)
        except psycopg.OperationalError:
            return {}
        if lease is None:
            return {"worker": "no worker has ever worked on this database; no hour is closed"}
        if lease.holder is None and lease.silent_s > SILENT_AFTER_S:
            return {"worker": f"none has worked for {lease.silent_s:,.0f} s; no hour is closed"}
        if lease.silent_s > SILENT_AFTER_S:
            return {"worker": f"{lease.holder} has been silent for {lease.silent_s:,.0f} s; no hour is closed"}
        return {}

    return look


def disk_guard_watch(guard: DiskGuard) -> Watch:
    """Return a watch that says where a full disk will come unannounced."""
    return lambda: {} if guard.is_watching else {"disk guard": NO_GUARD}


def segments_watch(
    where: str | Path, min_free_bytes: int = 0, free_bytes: Callable[[Path], int] = lambda path: disk_usage(path).free
) -> Watch:
    """Return a watch on a folder of sealed files; a bucket is its provider's to watch, and the worker tells when it fails.

    A full one keeps nobody from sending: hours stay in the database, whose own disk is guarded.
    """

    def look() -> Mapping[str, str]:
        if "://" in str(where):
            return {}
        folder = Path(where)
        # It is made with the first sealed hour; what it is to be made in has to be there.
        there = folder if folder.exists() else folder.parent
        if not there.is_dir() or not os.access(there, os.R_OK | os.X_OK):
            return {"segment store": f"{there} is not there, or cannot be read"}
        free = free_bytes(there)
        if free < min_free_bytes:
            return {
                "segment store": f"{free // _MIB} MiB are free for {there}, {min_free_bytes // _MIB} MiB are needed; hours stay in the database "
                "until there is room"
            }
        return {}

    return look
