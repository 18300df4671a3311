"""Closed books made by hand: tenants, devices, jobs, and hours with the lines a test wants.

Writes as the server's admin, so that what roles may do stays the code's business and not the fixture's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from collector.wire import Origin
from ingest.store.tables import books, reference, work

HOUR_US: Final = 3_600_000_000
KWH_MJ: Final = 3_600_000_000
MODEL: Final = "H100"
FIRST_HOUR: Final = datetime(2026, 11, 11, 0, tzinfo=UTC)


def hour(number: int) -> datetime:
    return FIRST_HOUR + timedelta(hours=number)


@dataclass
class Books:
    """A site ``lab`` with one node of two devices; add jobs and hours."""

    conn: sa.Connection
    site_id: int = 0
    device_ids: list[int] = field(default_factory=list)
    tenant_ids: dict[str, int] = field(default_factory=dict)

    @classmethod
    def open(cls, conn: sa.Connection) -> Books:
        made = cls(conn)
        made.site_id = made._add(reference.sites, name="lab")
        node_id = made._add(reference.nodes, site_id=made.site_id, name="gpu1")
        for number in range(2):
            device_id = made._add(reference.devices, uuid=f"GPU-{number}", vendor="nvidia", model=MODEL, kind="gpu")
            made._add(reference.placements, device_id=device_id, node_id=node_id, valid_from=hour(-1000))
            made.device_ids.append(device_id)
        return made

    def tenant(self, path: str) -> int:
        if path not in self.tenant_ids:
            statement = insert(reference.tenants).values(path=path)
            self.conn.execute(statement.on_conflict_do_nothing(index_elements=["path"]))
            found = self.conn.execute(sa.select(reference.tenants.c.id).where(reference.tenants.c.path == path))
            self.tenant_ids[path] = found.scalar_one()
        return self.tenant_ids[path]

    def job(self, tenant: str | None, native_id: str, *, start: int = 0, end: int | None = None, **values: Any) -> int:
        """Add a job; without ``end`` it runs."""
        defaults: dict[str, Any] = {
            "site_id": self.site_id,
            "cluster": "lab",
            "native_id": native_id,
            "started_at": hour(start),
            "ended_at": None if end is None else hour(end),
            "state": "running" if end is None else "completed",
            "account": "research",
            "user_name": "ada",
            "accelerators": 1,
            "tenant_id": None if tenant is None else self.tenant(tenant),
            "origin": int(Origin.LIVE),
            "source": "slurmctld",
        }
        return self._add(work.jobs, **{**defaults, **values})

    def close(self, number: int, *revisions: list[dict[str, Any]], status: str = "closed") -> None:
        """Close an hour with one list of :meth:`usage` per revision; the last one counts."""
        for revision, rows in enumerate(revisions, start=1):
            run_id = self._add(
                books.ledger_runs,
                site_id=self.site_id,
                hour_at=hour(number),
                revision=revision,
                code_version="test",
                as_of_at=hour(number + 1),
                seen_xid="1",
                inputs_sha256=b"",
                content_sha256=b"",
                reason="test",
            )
            for row in rows:
                self._write(hour(number), revision, row, status)
            state = {"revision": revision, "run_id": run_id, "status": status}
            statement = insert(books.ledger_hours).values(
                site_id=self.site_id, hour_at=hour(number), seen_xid="1", content_sha256=b"", **state
            )
            self.conn.execute(statement.on_conflict_do_update(index_elements=["site_id", "hour_at"], set_=state))

    def _write(self, hour_at: datetime, revision: int, row: dict[str, Any], status: str) -> None:
        at = {"site_id": self.site_id, "hour_at": hour_at, "revision": revision}
        for usage in row["usage"]:
            self.conn.execute(sa.insert(books.usage_hours).values(**at, **usage))
        for line in row["lines"]:
            key = hashlib.sha256(repr(sorted(line.items(), key=str)).encode()).hexdigest()
            self.conn.execute(sa.insert(books.ledger_lines).values(**at, **line, line_key=key, status=status))

    def _add(self, table: sa.Table, **values: Any) -> int:
        return int(self.conn.execute(sa.insert(table).values(**values).returning(table.c.id)).scalar_one())


def usage(
    *,
    job_id: int | None = None,
    tenant_id: int | None = None,
    devices: dict[int, int],
    cost: str | None = "0",
    electricity: str = "0",
    holder: str | None = None,
    held_us: int = HOUR_US,
    covered_us: int | None = None,
    idle_us: int = 0,
    throttled_us: int = 0,
    carbon_g: str = "0",
    origin: Origin = Origin.LIVE,
    currency: str = "USD",
) -> dict[str, Any]:
    """Return usage rows and lines of one holder; ``devices`` maps device id to its millijoules."""
    holder = holder or f"job:{job_id}"
    pool = "job" if job_id is not None else holder.partition(":")[0]
    covered_us = held_us if covered_us is None else covered_us
    whole = {"tenant_id": tenant_id, "job_id": job_id, "source": "measured", "origin": int(origin)}
    usage_rows = [
        {
            **whole,
            "device_id": device_id,
            "holder": holder,
            "state": "used" if job_id else "available",
            "energy_mj": energy_mj,
            "estimated_mj": 0,
            "held_us": held_us,
            "covered_us": covered_us,
            "idle_us": idle_us,
            "throttled_us": throttled_us,
            "accelerators": 1,
            "carbon_gco2e": Decimal(carbon_g) / len(devices),
            "coverage": covered_us / held_us,
        }
        for device_id, energy_mj in devices.items()
    ]
    line = {**whole, "pool": pool, "device_model": MODEL, "currency": currency, "coverage": covered_us / held_us}
    energy_mj = sum(devices.values())
    owned = {"charge_category": "gpu_owned", "quantity": held_us * len(devices), "quantity_unit": "accelerator-us"}
    power = {"charge_category": "electricity", "quantity": energy_mj, "quantity_unit": "mJ"}
    return {
        "usage": usage_rows,
        "lines": [
            {**line, **owned, **_costs(cost), "energy_mj": energy_mj, "carbon_gco2e": Decimal(carbon_g)},
            {**line, **power, **_costs(electricity)},
        ],
    }


def tokens(
    *, tenant_id: int | None, count: int, cost: str | None, origin: Origin = Origin.LIVE, unit: str = "token"
) -> dict[str, Any]:
    """Return the line of an hour's API calls."""
    line = {
        "tenant_id": tenant_id,
        "api_key": "key-1",
        "pool": "api",
        "charge_category": "api_tokens",
        "quantity": count,
        "quantity_unit": unit,
        **_costs(cost),
        "currency": "USD",
        "source": "measured",
        "coverage": 1.0,
        "origin": int(origin),
    }
    return {"usage": [], "lines": [line]}


def _costs(amount: str | None) -> dict[str, Decimal | None]:
    cost = None if amount is None else Decimal(amount)
    return {"billed_cost": cost, "effective_cost": cost}
