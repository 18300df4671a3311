"""A database that holds a trace-driven fleet: identities, one job a node and hour, and the rows, ready to be closed and sealed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import polars as pl

from bench.trace_fleet import METRICS, Traces, fleet_rows
from ingest.store.copy import copy_statement, encode
from ingest.store.engine import Database

HOUR: Final = timedelta(hours=1)
START_AT: Final = datetime(2026, 11, 19, 8, tzinfo=UTC)
TENANTS: Final = 40
DEVICES_PER_NODE: Final = 8
SHARED_VARIABLE: Final = "WATTLEDGER_SHARED"
_IDENTITIES: Final = """
INSERT INTO sites (id, name) OVERRIDING SYSTEM VALUE VALUES (1, 'bench');
INSERT INTO nodes (id, site_id, name) OVERRIDING SYSTEM VALUE SELECT n, 1, 'node-' || n FROM generate_series(1, {nodes}) AS n;
INSERT INTO devices (id, uuid, vendor, model, kind) OVERRIDING SYSTEM VALUE
    SELECT n, 'GPU-' || gen_random_uuid(), 'nvidia', 'NVIDIA H100 80GB HBM3', 'gpu' FROM generate_series(1, {devices}) AS n;
INSERT INTO placements (device_id, node_id, valid_from)
    SELECT n, (n - 1) / {per_node} + 1, '{start}'::timestamptz - interval '1 day' FROM generate_series(1, {devices}) AS n;
INSERT INTO epochs (id, node_id, boot_id, driver_epoch, feed, origin, cadence_us, agent_version) OVERRIDING SYSTEM VALUE
    SELECT n, n, gen_random_uuid(), 0, 1, 3, 10000000, 'bench' FROM generate_series(1, {nodes}) AS n;
INSERT INTO tenants (id, path) OVERRIDING SYSTEM VALUE SELECT n, 'bench/t' || n FROM generate_series(1, {tenants}) AS n;
INSERT INTO bindings (position, tenant_id, account, valid_from)
    SELECT n, n, 't' || n, '{start}'::timestamptz - interval '1 day' FROM generate_series(1, {tenants}) AS n;
INSERT INTO jobs (id, site_id, cluster, native_id, started_at, ended_at, account, origin, source) OVERRIDING SYSTEM VALUE
    SELECT n, 1, 'c1', n::text, '{start}', '{end}', 't' || (n - 1) % {tenants} + 1, 3, 'agent' FROM generate_series(1, {nodes}) AS n;
INSERT INTO allocations (job_id, site_id, device_id, start_at, end_at, evidence)
    SELECT (n - 1) / {per_node} + 1, 1, n, '{start}', '{end}', 'cgroup' FROM generate_series(1, {devices}) AS n;
INSERT INTO changes (site_id, from_at, to_at, kind) VALUES (1, '{start}', '{end}', 'device_samples');
"""


@dataclass(frozen=True, slots=True)
class TraceStand:
    """What was loaded. ``rows`` are those of ``device_samples``, one reading at the start and one every ten seconds."""

    database: Database
    devices: int
    hours: int
    rows: pl.DataFrame

    @property
    def end_at(self) -> datetime:
        return START_AT + self.hours * HOUR

    @property
    def samples(self) -> int:
        """Measured values, ids and times not counted."""
        return self.rows.height * len(METRICS)

    def tenant_of(self, device_id: int) -> str:
        return f"bench/t{(device_id - 1) // DEVICES_PER_NODE % TENANTS + 1}"


def shared_folder() -> Path:
    """Return the folder of the shared data sets."""
    named = os.environ.get(SHARED_VARIABLE)
    return Path(named) if named else Path(__file__).resolve().parents[2] / "shared"


def furnish(database: Database, devices: int, hours: int) -> TraceStand:
    """Load a fleet of so many devices (whole nodes) and hours."""
    steps = hours * 360
    first_us = int(START_AT.timestamp()) * 1_000_000 - 10_000_000
    rows = fleet_rows(Traces.read(shared_folder()), devices, steps + 1, first_us)
    names = {
        "nodes": devices // DEVICES_PER_NODE,
        "devices": devices,
        "per_node": DEVICES_PER_NODE,
        "tenants": TENANTS,
        "start": START_AT.isoformat(),
        "end": (START_AT + hours * HOUR).isoformat(),
    }
    with database.connect("admin", autocommit=True) as connection:
        connection.execute(_IDENTITIES.format(**names).encode())
        days = (START_AT.date(), (START_AT + (hours + 24) * HOUR).date())
        connection.execute("SELECT ensure_partitions(%s, %s, NULL)", days)
        # As agents send: all devices of one instant together.
        by_time = rows.sort("at", "device_id")
        with connection.cursor() as cursor, cursor.copy(copy_statement("device_samples", rows.columns)) as copy:
            for part in encode(by_time):
                copy.write(part)
        connection.execute("VACUUM ANALYZE")  # as autovacuum does meanwhile: it also brings BRIN up to date
        connection.execute("CHECKPOINT")
    return TraceStand(database, devices, hours, rows)


def size_of(variable: str, default: int) -> int:
    """Return a size that the environment may change, for a smaller machine or a quick look."""
    return int(os.environ.get(variable, default))
