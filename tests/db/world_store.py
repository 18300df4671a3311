"""Puts what is seen of a simulated world into a store: identities, holdings and rates at once, readings as they come, late ones too."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import polars as pl
import psycopg

from ingest.store.engine import Database
from tests.fakes.site import LONG_AGO
from tests.sim.observed import Observed

HOUR: Final = timedelta(hours=1)
ACCOUNTS: Final = ("a", "b", "c")
_COLUMNS: Final = (
    "at, device_id, epoch_id, reading, span_us, samples, samples_missed, energy_mj, power_average_mw, gpu_util_percent"
)


@dataclass(frozen=True, slots=True)
class StoredWorld:
    """``readings``: of the world, under the ids of the store; which of them have come yet, the caller knows."""

    database: Database
    site_id: int
    readings: pl.DataFrame
    tenants: tuple[int, ...]

    def admin(self) -> psycopg.Connection[Any]:
        return self.database.connect("admin", autocommit=True)

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self.admin() as connection:
            return connection.execute(query.encode(), parameters).fetchall()

    def come(self, readings: pl.DataFrame) -> None:
        """Insert readings where they belong, hot or late, and announce them, as ingest does."""
        sealed = {
            at
            for (at,) in self.rows(
                "SELECT hour_at FROM hour_catalog WHERE site_id = %s AND state = 'sealed'", self.site_id
            )
        }
        hours = readings["at"].dt.truncate("1h")
        with self.admin() as connection, connection.transaction():
            for table, mine in (
                ("late_samples", hours.is_in(list(sealed))),
                ("device_samples", ~hours.is_in(list(sealed))),
            ):
                with (
                    connection.cursor() as cursor,
                    cursor.copy(f"COPY {table} ({_COLUMNS}) FROM STDIN".encode()) as copy,
                ):
                    for row in readings.filter(mine).iter_rows(named=True):
                        numbers = (row["energy_mj"], row["power_mw"], row["gpu_util_percent"])
                        copy.write_row((row["at"], row["device_id"], row["epoch_id"], 0, 10_000_000, 10, 0, *numbers))
            for (at,) in readings.select(hours.unique()).iter_rows():
                self.changed("device_samples", at, at + HOUR, connection)

    def changed(self, kind: str, from_at: datetime, to_at: datetime, connection: psycopg.Connection[Any]) -> None:
        connection.execute(
            "INSERT INTO changes (site_id, from_at, to_at, kind) VALUES (%s, %s, %s, %s)",
            (self.site_id, from_at, to_at, kind),
        )


def store(database: Database, seen: Observed) -> StoredWorld:
    """Insert everything but readings."""
    with database.connect("admin", autocommit=True) as connection:

        def one(query: str, *parameters: Any) -> int:
            row: Any = connection.execute(query.encode(), parameters).fetchone()
            return int(row[0])

        first, last = seen.readings["at"].min(), seen.readings["at"].max()
        assert isinstance(first, datetime)
        assert isinstance(last, datetime)
        connection.execute("SELECT ensure_partitions(%s, %s, NULL)", (first.date(), last.date() + timedelta(days=1)))
        site = one("INSERT INTO sites (name, grid_zone) VALUES ('sim', 'SIM') RETURNING id")
        nodes = {
            node: one("INSERT INTO nodes (site_id, name) VALUES (%s, %s) RETURNING id", site, f"n{node}")
            for node in sorted({*seen.placements["node_id"], *(row["node_id"] for row in seen.epochs)})
        }
        add = "INSERT INTO devices (uuid, vendor, model, kind, parent_device_id, slice_ratio, accelerators) VALUES (%s, 'sim', %s, %s, %s, %s, 1) RETURNING id"
        devices: dict[int, int] = {}
        for row in sorted(seen.devices, key=lambda row: row.get("parent_device_id") is not None):
            board = row.get("parent_device_id")
            given = (
                row["uuid"],
                row["model"],
                row["kind"],
                None if board is None else devices[board],
                row["slice_ppm"] / 1_000_000,
            )
            devices[row["device_id"]] = one(add, *given)
        for row in seen.placements.iter_rows(named=True):
            board = row["device_id"]
            for device in (
                board,
                *(each["device_id"] for each in seen.devices if each.get("parent_device_id") == board),
            ):
                connection.execute(
                    "INSERT INTO placements (device_id, node_id, valid_from, valid_to) VALUES (%s, %s, %s, %s)",
                    (devices[device], nodes[row["node_id"]], row["valid_from"], row["valid_to"]),
                )
        epochs = {
            row["epoch_id"]: one(
                "INSERT INTO epochs (node_id, boot_id, driver_epoch, feed, origin, cadence_us, agent_version) "
                "VALUES (%s, %s, %s, %s, %s, %s, 'sim') RETURNING id",
                nodes[row["node_id"]], row["boot_id"], row["driver_epoch"], row["feed"], row["origin"], row["cadence_us"],
            )
            for row in seen.epochs
        }  # fmt: skip
        tenants = tuple(
            one("INSERT INTO tenants (path) VALUES (%s) RETURNING id", f"acme/{name}") for name in (*ACCOUNTS, "new")
        )
        for position, name in enumerate(ACCOUNTS[:2], start=1):
            bind(connection, position, tenants[position - 1], name)
        starts = dict(seen.holds.group_by("job_id").agg(pl.col("start_at").min()).iter_rows())
        jobs = {
            job: one(
                "INSERT INTO jobs (site_id, cluster, native_id, started_at, account, origin, source) VALUES (%s, 'sim', %s, %s, %s, 4, 'agent') RETURNING id",
                site, seen.native_ids[job], start_at, ACCOUNTS[job % 3],
            )
            for job, start_at in sorted(starts.items())
        }  # fmt: skip
        for row in seen.holds.iter_rows(named=True):
            share = None if row["share_ppm"] is None else row["share_ppm"] / 1_000_000
            connection.execute(
                "INSERT INTO allocations (job_id, site_id, device_id, share_ratio, start_at, end_at, evidence) VALUES (%s, %s, %s, %s, %s, %s, %s)",
                (
                    jobs[row["job_id"]],
                    site,
                    devices[row["device_id"]],
                    share,
                    row["start_at"],
                    row["end_at"],
                    row["evidence"],
                ),
            )
        connection.execute(
            "INSERT INTO prices (provider, model, meter, amount, unit, currency, source, valid_from) "
            "VALUES ('owned', 'SIM-700', 'accelerator_hour', 2, 'hour', 'USD', 'test', %s)",
            (LONG_AGO,),
        )
        rate(connection, site, "tariffs", "metering_point, amount_per_kwh, currency", "'facility', 0.20, 'USD'")
        rate(connection, site, "facility_factors", "factor, category", "1.3, 2")
        connection.execute(
            "INSERT INTO intensity (grid_zone, basis, gco2e_per_kwh, life_cycle, source, valid_from) VALUES ('SIM', 'location', 400, false, 'test', %s)",
            (LONG_AGO,),
        )
    ids = [
        pl.col("device_id").replace_strict(devices, return_dtype=pl.Int32),
        pl.col("epoch_id").replace_strict(epochs, return_dtype=pl.Int32),
    ]
    return StoredWorld(database, site, seen.readings.with_columns(ids), tenants)


def bind(connection: psycopg.Connection[Any], position: int, tenant: int, account: str) -> None:
    connection.execute(
        "INSERT INTO bindings (position, tenant_id, account, valid_from) VALUES (%s, %s, %s, %s)",
        (position, tenant, account, LONG_AGO),
    )


def rate(connection: psycopg.Connection[Any], site: int, table: str, columns: str, values: str) -> None:
    """Make a rate of the site what holds, from ever, in place of the one before."""
    connection.execute(f"UPDATE {table} SET superseded_at = now() WHERE superseded_at IS NULL".encode())
    connection.execute(
        f"INSERT INTO {table} (site_id, source, valid_from, {columns}) VALUES (%s, 'test', %s, {values})".encode(),
        (site, LONG_AGO),
    )
