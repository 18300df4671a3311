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
    *("at", "device_id", "epoch_id", "reading", "span_us", "samples", "samples_missed"),
    *("energy_mj", "power_average_mw", "gpu_util_percent"),
)
_ACTIVITY: Final = (*_COLUMNS[:7], "sm_active_ratio")
_METERS: Final = ("at", "meter_id", "epoch_id", "span_us", "energy_mj")
_LOOKS: Final = (
    *("at", "device_id", "epoch_id", "span_us", "cluster", "native_job_id", "job_started_at_us", "processes"),
    *("sm_util_percent", "share_ratio", "evidence", "method"),
)
_USUAL: Final = {
    "reading": pl.lit(0),
    "span_us": pl.lit(10_000_000),
    "samples": pl.lit(10),
    "samples_missed": pl.lit(0),
}
STATES: Final = ("completed", "failed", "preempted")


@dataclass(frozen=True, slots=True)
class StoredWorld:
    """``readings``: of the world, under the ids of the store; which of them have come yet, the caller knows."""

    database: Database
    site_id: int
    readings: pl.DataFrame
    tenants: tuple[int, ...]
    meters: pl.DataFrame
    """Of the nodes' meters, as ``readings`` but by meter_id."""
    looks: pl.DataFrame
    """At processes of shared boards, as their stream has them."""
    activity: pl.DataFrame
    """Of MIG instances: rows of device samples with nothing else in them."""

    def admin(self) -> psycopg.Connection[Any]:
        return self.database.connect("admin", autocommit=True)

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self.admin() as connection:
            return connection.execute(query.encode(), parameters).fetchall()

    def come(self, readings: pl.DataFrame, looks: pl.DataFrame | None = None) -> None:
        """Insert readings (and looks) where they belong, hot or late, and announce them, as ingest does."""
        self._insert(
            "device_samples", "late_samples", _COLUMNS, readings.with_columns(power_average_mw="power_mw", **_USUAL)
        )
        if looks is not None:
            self._insert("device_shares", "late_device_shares", _LOOKS, looks)

    def meters_come(self) -> None:
        """Insert all that the nodes' meters and the instances of boards say."""
        self._insert("node_samples", "late_node_samples", _METERS, self.meters.with_columns(span_us=pl.lit(10_000_000)))
        self._insert("device_samples", "late_samples", _ACTIVITY, self.activity.with_columns(**_USUAL))

    def _insert(self, hot: str, late: str, columns: tuple[str, ...], rows: pl.DataFrame) -> None:
        sealed = {
            at
            for (at,) in self.rows(
                "SELECT hour_at FROM hour_catalog WHERE site_id = %s AND state = 'sealed'", self.site_id
            )
        }
        hours = rows["at"].dt.truncate("1h")
        with self.admin() as connection, connection.transaction():
            for table, mine in ((late, hours.is_in(list(sealed))), (hot, ~hours.is_in(list(sealed)))):
                with (
                    connection.cursor() as cursor,
                    cursor.copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN".encode()) as copy,
                ):
                    for row in rows.filter(mine).select(columns).iter_rows():
                        copy.write_row(row)
            for (at,) in rows.select(hours.unique()).iter_rows():
                self.changed(hot, at, at + HOUR, connection)

    def changed(self, kind: str, from_at: datetime, to_at: datetime, connection: psycopg.Connection[Any]) -> None:
        connection.execute(
            "INSERT INTO changes (site_id, from_at, to_at, kind) VALUES (%s, %s, %s, %s)",
            (self.site_id, from_at, to_at, kind),
        )


def store(database: Database, seen: Observed, wrap_mj: int | None = None) -> StoredWorld:
    """Insert everything but readings. ``wrap_mj``: at which the nodes' meters begin anew, as is known of them."""
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
        boards = [row for row in seen.devices if row["kind"] != "node"]
        for row in sorted(boards, key=lambda row: row.get("parent_device_id") is not None):
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
        # Not near the hour's edges, so that who knows of no anchors reads the same counter there.
        apart = seen.anchors.filter(pl.col("at").dt.offset_by("2m").dt.minute() >= 4)
        anchors = {(board, at): mj for board, at, mj in apart.select("device_id", "at", "energy_mj").iter_rows()}
        starts = dict(seen.holds.group_by("job_id").agg(pl.col("start_at").min()).iter_rows())
        jobs = {
            job: one(
                "INSERT INTO jobs (site_id, cluster, native_id, started_at, account, state, origin, source) "
                "VALUES (%s, 'sim', %s, %s, %s, %s, 4, 'agent') RETURNING id",
                site, seen.native_ids[job], start_at, ACCOUNTS[job % 3], STATES[job % 3],
            )
            for job, start_at in sorted(starts.items())
        }  # fmt: skip
        for row in seen.holds.iter_rows(named=True):
            share = None if row["share_ppm"] is None else row["share_ppm"] / 1_000_000
            told = [anchors.get((row["device_id"], row[at])) for at in ("start_at", "end_at")]
            connection.execute(
                "INSERT INTO allocations (job_id, site_id, device_id, node_id, accelerators, share_ratio, start_at, end_at, evidence, "
                "start_energy_mj, end_energy_mj) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
                (
                    jobs[row["job_id"]],
                    site,
                    None if row["device_id"] is None else devices[row["device_id"]],
                    None if row["node_id"] is None else nodes[row["node_id"]],
                    row["accelerators"],
                    share,
                    row["start_at"],
                    row["end_at"],
                    row["evidence"],
                    *told,
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
        meters = {
            row["device_id"]: one("INSERT INTO meters (node_id, name, wrap_mj) VALUES (%s, 'redfish', %s) RETURNING id", nodes[row["node_id"]], wrap_mj)
            for row in seen.devices
            if row["kind"] == "node"
        }  # fmt: skip
    epoch = pl.col("epoch_id").replace_strict(epochs, return_dtype=pl.Int32)
    device = pl.col("device_id").replace_strict(devices, return_dtype=pl.Int32)
    is_meter = pl.col("device_id").is_in(list(meters))
    readings = seen.readings.filter(~is_meter).with_columns(device, epoch)
    of_meters = seen.readings.filter(is_meter).with_columns(
        pl.col("device_id").replace_strict(meters, return_dtype=pl.Int32).alias("meter_id"), epoch
    )
    # Looks are an agent's: of the epoch its last reading of that board was of.
    native = seen.readings.filter(
        pl.col("epoch_id").is_in([row["epoch_id"] for row in seen.epochs if row["feed"] == 1])
    )
    runs = pl.DataFrame(
        [(job, seen.native_ids[job], int(at.timestamp()) * 1_000_000) for job, at in sorted(starts.items())],
        schema={"job_id": pl.Int64, "native_job_id": pl.String, "job_started_at_us": pl.Int64},
        orient="row",
    )
    looks = (
        seen.shares.sort("at").join_asof(native.select("device_id", "at", "epoch_id").sort("at"), on="at", by="device_id", check_sortedness=False)
        .filter(pl.col("epoch_id").is_not_null()).join(runs, on="job_id", how="left").with_columns(
            device, epoch, pl.lit("sim").alias("cluster"), pl.lit(1).alias("processes"), pl.lit("cgroup").alias("evidence"),
            (pl.col("sm_util_ppm") / 10_000).alias("sm_util_percent"), (pl.col("share_ppm") / 1_000_000).alias("share_ratio"),
        )
    )  # fmt: skip
    activity = (
        seen.activity.sort("at").join_asof(native.select("device_id", "at", "epoch_id").sort("at"), on="at", by="device_id", check_sortedness=False)
        .filter(pl.col("epoch_id").is_not_null())
        .select(pl.col("instance_id").alias("device_id"), "at", "epoch_id", (pl.col("sm_active_ppm") / 1_000_000).alias("sm_active_ratio"))
        .with_columns(device, epoch)
    )  # fmt: skip
    return StoredWorld(database, site, readings, tenants, of_meters, looks, activity)


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
