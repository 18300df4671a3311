"""Seeds a small fleet by hand, so that a test can say what the books must show."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg

from analytics.io.manifest import Manifest
from analytics.io.references import Known
from analytics.io.runs import Run
from analytics.policy import Policy
from ingest.store.engine import Database

HOUR_AT = datetime(2026, 11, 1, 8, tzinfo=UTC)
HOUR = timedelta(hours=1)
RUN_BY_HAND = Run("test", Known(HOUR_AT + 30 * HOUR), "3", Manifest(("", ""), (), None, {}, "USD"), Policy(), "test")
"""What a test says of a computation that never was."""


@dataclass(frozen=True, slots=True)
class SmallFleet:
    """One site, one node, one device of 100 W, a tenant, a rate of 2 USD per hour, 0.20 USD and 400 g per kWh."""

    database: Database
    site_id: int
    node_id: int
    device_id: int
    epoch_id: int
    tenant_id: int

    def admin(self) -> psycopg.Connection[Any]:
        return self.database.connect("admin", autocommit=True)

    def samples(
        self, from_at: datetime, to_at: datetime, *, power_w: int = 100, start_mj: int = 0, step_s: int = 10
    ) -> None:
        """Insert rows every ``step_s`` over [from, to], counter rising evenly, and the change that announces them."""
        count = int((to_at - from_at).total_seconds()) // step_s + 1
        with self.admin() as connection:
            connection.execute(
                "SELECT ensure_partitions(%s, %s, NULL)", (from_at.date(), to_at.date() + timedelta(days=1))
            )
            connection.execute(
                """
                INSERT INTO device_samples (at, device_id, epoch_id, reading, span_us, samples, samples_missed, energy_mj,
                                            power_average_mw, gpu_util_percent, clocks_event_reasons)
                SELECT %(from)s + n * make_interval(secs => %(step)s), %(device)s, %(epoch)s, 0, %(step)s * 1000000, 10, 0,
                       %(start)s + n::bigint * %(step)s * %(power)s * 1000, %(power)s * 1000, 50, 0
                FROM generate_series(0, %(count)s - 1) AS n
                """,
                {
                    "from": from_at,
                    "step": step_s,
                    "device": self.device_id,
                    "epoch": self.epoch_id,
                    "start": start_mj,
                    "power": power_w,
                    "count": count,
                },
            )
            self.changed("device_samples", from_at, to_at + timedelta(microseconds=1), connection)

    def changed(self, kind: str, from_at: datetime, to_at: datetime, connection: psycopg.Connection[Any]) -> None:
        connection.execute(
            "INSERT INTO changes (site_id, from_at, to_at, kind) VALUES (%s, %s, %s, %s)",
            (self.site_id, from_at, to_at, kind),
        )

    def tariff_was(self, amount: str) -> None:
        """Correct the tariff of ever, and announce it for the first two hours."""
        self.rows("UPDATE tariffs SET superseded_at = now() WHERE superseded_at IS NULL RETURNING 1")
        self.rows(
            "INSERT INTO tariffs (site_id, metering_point, amount_per_kwh, currency, source, valid_from) "
            "VALUES (%s, 'it', %s, 'USD', 'test', '2026-10-01Z') RETURNING 1",
            self.site_id,
            Decimal(amount),
        )
        with self.admin() as connection:
            self.changed("tariffs", HOUR_AT, HOUR_AT + 2 * HOUR, connection)

    def job(self, native_id: str, start_at: datetime, end_at: datetime | None, *, account: str = "nlp") -> int:
        """Insert a job that holds the device as a whole."""
        with self.admin() as connection, connection.transaction():
            row = connection.execute(
                "INSERT INTO jobs (site_id, cluster, native_id, started_at, ended_at, account, origin, source) "
                "VALUES (%s, 'c1', %s, %s, %s, %s, 1, 'agent') RETURNING id",
                (self.site_id, native_id, start_at, end_at, account),
            ).fetchone()
            assert row is not None
            connection.execute(
                "INSERT INTO allocations (job_id, site_id, device_id, start_at, end_at, evidence) "
                "VALUES (%s, %s, %s, %s, %s, 'cgroup')",
                (row[0], self.site_id, self.device_id, start_at, end_at),
            )
            self.changed("allocations", start_at, end_at or start_at + HOUR, connection)
        return int(row[0])

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self.admin() as connection:
            return connection.execute(query.encode(), parameters).fetchall()


def small_fleet(database: Database) -> SmallFleet:
    """Insert the fleet; nothing has been measured yet."""
    early = datetime(2026, 10, 1, tzinfo=UTC)

    def one(connection: psycopg.Connection[Any], query: str, *parameters: Any) -> int:
        row = connection.execute(query.encode(), parameters).fetchone()
        assert row is not None
        return int(row[0])

    with database.connect("admin") as connection:
        site = one(connection, "INSERT INTO sites (name, grid_zone) VALUES ('s1', 'TEST') RETURNING id")
        node = one(connection, "INSERT INTO nodes (site_id, name) VALUES (%s, 'n1') RETURNING id", site)
        device = one(
            connection,
            "INSERT INTO devices (uuid, vendor, model, kind) VALUES ('GPU-1', 'nvidia', 'H100', 'gpu') RETURNING id",
        )
        connection.execute(
            "INSERT INTO placements (device_id, node_id, valid_from) VALUES (%s, %s, %s)", (device, node, HOUR_AT)
        )
        epoch = one(
            connection,
            "INSERT INTO epochs (node_id, boot_id, driver_epoch, feed, origin, cadence_us, agent_version) "
            "VALUES (%s, 'b1', 0, 1, 1, 10000000, 'test') RETURNING id",
            node,
        )
        tenant = one(connection, "INSERT INTO tenants (path) VALUES ('acme/research/nlp') RETURNING id")
        connection.execute(
            "INSERT INTO bindings (position, tenant_id, account, valid_from) VALUES (1, %s, 'nlp', %s)", (tenant, early)
        )
        connection.execute(
            "INSERT INTO prices (provider, model, meter, amount, unit, currency, source, valid_from) "
            "VALUES ('owned', 'H100', 'accelerator_hour', 2, 'hour', 'USD', 'test', %s)",
            (early,),
        )
        connection.execute(
            "INSERT INTO tariffs (site_id, metering_point, amount_per_kwh, currency, source, valid_from) "
            "VALUES (%s, 'it', 0.20, 'USD', 'test', %s)",
            (site, early),
        )
        connection.execute(
            "INSERT INTO intensity (grid_zone, basis, gco2e_per_kwh, life_cycle, source, valid_from) "
            "VALUES ('TEST', 'location', 400, false, 'test', %s)",
            (early,),
        )
    return SmallFleet(database, site, node, device, epoch, tenant)
