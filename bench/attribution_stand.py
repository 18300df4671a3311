"""A database that knows a simulated fleet and the files its hours are sealed in; no hour is due until it is announced."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

import polars as pl
import psycopg

from bench.attribution_files import SITE, SealedFleet
from bench.attribution_fleet import BOARDS_PER_NODE, Fleet
from ingest.store.engine import Database

SITE_ID: Final = 1
MODEL: Final = "NVIDIA H100 80GB HBM3"
_IDENTITIES: Final = """
INSERT INTO sites (id, name, grid_zone) OVERRIDING SYSTEM VALUE VALUES (1, '{site}', 'SIM');
INSERT INTO nodes (id, site_id, name) OVERRIDING SYSTEM VALUE SELECT n, 1, 'node-' || n FROM generate_series(1, {nodes}) AS n;
INSERT INTO devices (id, uuid, vendor, model, kind) OVERRIDING SYSTEM VALUE
    SELECT n, 'GPU-' || md5('board ' || n), 'nvidia', '{model}', 'gpu' FROM generate_series(1, {devices}) AS n;
INSERT INTO placements (device_id, node_id, valid_from)
    SELECT n, (n - 1) / {per_node} + 1, '{early}' FROM generate_series(1, {devices}) AS n;
INSERT INTO meters (id, node_id, name, bills) OVERRIDING SYSTEM VALUE
    SELECT n, n, 'redfish', true FROM generate_series(1, {nodes}) AS n;
INSERT INTO tenants (id, path) OVERRIDING SYSTEM VALUE SELECT n, 'bench/t' || n FROM generate_series(1, {tenants}) AS n;
INSERT INTO bindings (position, tenant_id, account, valid_from)
    SELECT n, n, 't' || n, '{early}' FROM generate_series(1, {tenants}) AS n;
INSERT INTO prices (provider, model, meter, amount, unit, currency, source, valid_from)
    VALUES ('owned', '{model}', 'accelerator_hour', 2.31, 'hour', 'USD', 'simulated', '{early}');
INSERT INTO tariffs (site_id, metering_point, amount_per_kwh, currency, source, valid_from, valid_to)
    SELECT 1, 'facility', CASE WHEN extract(hour FROM at AT TIME ZONE 'UTC') = 6 THEN 0.1312 ELSE 0.0877 END, 'USD', 'simulated',
           at, at + CASE WHEN extract(hour FROM at AT TIME ZONE 'UTC') = 6 THEN interval '16 hours' ELSE interval '8 hours' END
    FROM generate_series('{early}'::timestamptz, '{late}', interval '1 hour') AS at
    WHERE extract(hour FROM at AT TIME ZONE 'UTC') IN (6, 22);
INSERT INTO intensity (grid_zone, basis, gco2e_per_kwh, life_cycle, source, valid_from, valid_to)
    SELECT 'SIM', 'location', 180 + 37.25 * extract(hour FROM at AT TIME ZONE 'UTC'), false, 'simulated', at, at + interval '1 hour'
    FROM generate_series('{early}'::timestamptz, '{late}', interval '1 hour') AS at;
INSERT INTO facility_factors (site_id, factor, category, source, valid_from) VALUES (1, 1.23, 2, 'simulated', '{early}');
"""


def furnish(database: Database, fleet: Fleet) -> None:
    """Write down who is there, who holds what, and what it costs; nobody has read anything yet."""
    spec = fleet.spec
    early = spec.start_at - timedelta(days=2)
    words = {
        "site": SITE,
        "model": MODEL,
        "devices": spec.devices,
        "nodes": spec.nodes,
        "per_node": BOARDS_PER_NODE,
        "tenants": spec.tenants,
        "early": early.isoformat(),
        "late": (spec.end_at + timedelta(days=1)).isoformat(),
    }
    with database.connect("admin", autocommit=True) as connection:
        connection.execute(_IDENTITIES.format(**words).encode())
        _copy(connection, "epochs", _epochs(fleet, early))
        _copy(connection, "devices", _instances(fleet))
        _copy(connection, "placements", _placed_instances(fleet, early))
        _copy(connection, "jobs", _jobs(fleet))
        _copy(connection, "allocations", _allocations(fleet))
        for table in ("sites", "nodes", "devices", "epochs", "meters", "tenants", "jobs"):  # ids were given, not drawn
            connection.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}".encode())  # noqa: S608
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")


def seal(database: Database, files: SealedFleet) -> None:
    """Tell the catalog of the sealed hours."""
    with database.connect("admin", autocommit=True) as connection:
        _catalog(connection, files)
        connection.execute("ANALYZE hour_catalog, hour_segments")


def announce(database: Database, from_at: datetime, to_at: datetime) -> None:
    """Make hours due, as ingest does when rows of theirs arrive."""
    with database.connect("admin", autocommit=True) as connection:
        connection.execute(
            "INSERT INTO changes (site_id, from_at, to_at, kind) VALUES (%s, %s, %s, 'device_samples')",
            (SITE_ID, from_at, to_at),
        )


def _epochs(fleet: Fleet, early: datetime) -> pl.DataFrame:
    seen = pl.when(pl.col("driver_epoch") == 0).then(pl.lit(int(early.timestamp()) * 1_000_000)).otherwise("from_us")
    return fleet.epochs.select(
        pl.col("epoch_id").alias("id"),
        "node_id",
        ("boot-" + pl.col("node_id").cast(pl.String)).alias("boot_id"),
        pl.col("driver_epoch").cast(pl.Int64),
        pl.lit(1, pl.Int16).alias("feed"),
        pl.lit(4, pl.Int16).alias("origin"),
        pl.lit(10_000_000, pl.Int64).alias("cadence_us"),
        pl.lit("bench").alias("agent_version"),
        _instant(seen).alias("first_seen_at"),
    )


def _instances(fleet: Fleet) -> pl.DataFrame:
    return fleet.instances.select(
        pl.col("device_id").alias("id"),
        ("MIG-" + pl.col("device_id").cast(pl.String)).alias("uuid"),
        pl.lit("nvidia").alias("vendor"),
        pl.lit(MODEL).alias("model"),
        pl.lit("mig").alias("kind"),
        "parent_device_id",
        "mig_profile",
        _ratio("slice_ppm").alias("slice_ratio"),
    )


def _placed_instances(fleet: Fleet, early: datetime) -> pl.DataFrame:
    return fleet.instances.select(
        "device_id", "node_id", pl.lit(early).cast(pl.Datetime("us", "UTC")).alias("valid_from")
    )


def _jobs(fleet: Fleet) -> pl.DataFrame:
    return fleet.jobs.select(
        pl.col("job_id").alias("id"),
        pl.lit(SITE_ID, pl.Int32).alias("site_id"),
        pl.lit("c1").alias("cluster"),
        pl.col("job_id").cast(pl.String).alias("native_id"),
        _instant(pl.col("start_us")).alias("started_at"),
        _instant(pl.col("end_us")).alias("ended_at"),
        "account",
        pl.lit(4, pl.Int16).alias("origin"),
        pl.lit("bench").alias("source"),
    )


def _allocations(fleet: Fleet) -> pl.DataFrame:
    evidence = pl.when(pl.col("node_id").is_null()).then(pl.lit("cgroup")).otherwise(pl.lit("slurmctld"))
    return fleet.holds.select(
        "job_id",
        pl.lit(SITE_ID, pl.Int32).alias("site_id"),
        "device_id",
        "node_id",
        "accelerators",
        _ratio("share_ppm").alias("share_ratio"),
        _instant(pl.col("start_us")).alias("start_at"),
        _instant(pl.col("end_us")).alias("end_at"),
        evidence.alias("evidence"),
    )


def _ratio(ppm: str) -> pl.Expr:
    """Return parts per million (below one million) as the text of a ratio."""
    return "0." + pl.col(ppm).cast(pl.String).str.zfill(6)


def _instant(us: pl.Expr) -> pl.Expr:
    return us.cast(pl.Datetime("us", "UTC"))


def _catalog(connection: psycopg.Connection[Any], files: SealedFleet) -> None:
    hours = sorted({file.hour for file in files.files})
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO hour_catalog (site_id, hour_at, state, generation, rows) VALUES (%s, %s, 'sealed', 1, %s)",
            [(SITE_ID, hour, sum(file.rows for file in files.files if file.hour == hour)) for hour in hours],
        )
        cursor.executemany(
            "INSERT INTO hour_segments (site_id, hour_at, stream, generation, path, rows, size_bytes, sha256, feeds) "
            "VALUES (%s, %s, %s, 1, %s, %s, %s, %s, '{1}')",
            [(SITE_ID, f.hour, f.stream, f.path, f.rows, f.size_bytes, bytes.fromhex(f.sha256)) for f in files.files],
        )


def _copy(connection: psycopg.Connection[Any], table: str, rows: pl.DataFrame) -> None:
    """Write rows as text, which has a form for numeric too."""
    target = psycopg.sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv)").format(
        psycopg.sql.Identifier(table), psycopg.sql.SQL(", ").join(map(psycopg.sql.Identifier, rows.columns))
    )
    with connection.cursor() as cursor, cursor.copy(target) as copy:
        copy.write(rows.write_csv(include_header=False))
