"""What a gate decision needs of the store: the tenant of a job, the rates in force, the mean power of a device model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import polars as pl
import sqlalchemy as sa

from analytics.io.tenant_moves import CURRENT
from analytics.model.estimate import Rates
from analytics.model.tenancy import FIELDS, explain, follow
from ingest.store.tables import reference

_LAST_DAY = """
SELECT sum(u.energy_mj) AS energy_mj, sum(u.held_us * u.accelerators) AS held_us
FROM current_usage_hours AS u JOIN devices AS d ON d.id = u.device_id
WHERE d.model = :model AND u.job_id IS NOT NULL AND u.energy_mj IS NOT NULL AND u.hour_at >= (
    SELECT max(hour_at) - interval '23 hours' FROM ledger_hours) AND u.site_id = :site_id
"""


class SiteError(ValueError):
    """The site of a job is not known; the message names the choices."""


def site_id(conn: sa.Connection, name: str | None) -> int:
    """Return the id of a site; without a name, of the only one."""
    sites = reference.sites
    found = {row.name: row.id for row in conn.execute(sa.select(sites.c.name, sites.c.id))}
    if name is None and len(found) == 1:
        return int(next(iter(found.values())))
    if name is None or name not in found:
        wanted = "name a site" if name is None else f"no site {name!r}"
        raise SiteError(f"{wanted}; known: {', '.join(sorted(found)) or 'none'}")
    return int(found[name])


def tenant_of(conn: sa.Connection, subject: Mapping[str, str | None], now: datetime) -> str | None:
    """Return the path the bindings in force give a job of these attributes; None = unmapped."""
    bindings, tenants = reference.bindings, reference.tenants
    columns = [
        bindings.c.id.label("binding_id"),
        bindings.c.position,
        bindings.c.tenant_id,
        bindings.c.valid_from,
        bindings.c.valid_to,
    ]
    query = sa.select(*columns, *(bindings.c[field] for field in FIELDS)).where(bindings.c.superseded_at.is_(None))
    rows = [dict(row) for row in conn.execute(query).mappings()]
    if not rows:
        return None
    schema: dict[str, Any] = {"binding_id": pl.Int32, "position": pl.Int32, "tenant_id": pl.Int32}
    schema |= {"valid_from": pl.Datetime("us", "UTC"), "valid_to": pl.Datetime("us", "UTC")}
    schema |= dict.fromkeys(FIELDS, pl.String)
    tenant_id = explain(subject, pl.DataFrame(rows, schema=schema), now).tenant_id
    if tenant_id is None:
        return None
    tenant_id = follow(tenant_id, [dict(row) for row in conn.execute(sa.text(CURRENT)).mappings()], now)[-1]
    return str(conn.execute(sa.select(tenants.c.path).where(tenants.c.id == tenant_id)).scalar_one())


def rates(conn: sa.Connection, site: int, model: str, now: datetime) -> Rates:
    """Return the rates in force at a site for a device model; what nobody told us is None."""
    price = _in_force(
        conn,
        reference.prices,
        now,
        reference.prices.c.provider == "owned",
        reference.prices.c.model == model,
        reference.prices.c.meter == "accelerator_hour",
    )
    tariff = _in_force(conn, reference.tariffs, now, reference.tariffs.c.site_id == site)
    factor = _in_force(conn, reference.facility_factors, now, reference.facility_factors.c.site_id == site)
    zone = sa.select(reference.sites.c.grid_zone).where(reference.sites.c.id == site).scalar_subquery()
    intensity = _in_force(
        conn,
        reference.intensity,
        now,
        reference.intensity.c.grid_zone == zone,
        reference.intensity.c.basis == "location",
        first=(reference.intensity.c.life_cycle,),  # as in the books: direct emissions where they are known
    )
    power = conn.execute(sa.text(_LAST_DAY), {"model": model, "site_id": site}).one()
    # mJ / µs = kW
    mean_power_w = Decimal(power.energy_mj) * 1000 / Decimal(power.held_us) if power.held_us else None
    return Rates(
        currency=None if price is None else price.currency,
        price_per_accelerator_hour=None if price is None else price.amount,
        mean_power_w=mean_power_w,
        facility_factor=None if factor is None else factor.factor,
        tariff_per_kwh=None if tariff is None else tariff.amount_per_kwh,
        tariff_point=None if tariff is None else tariff.metering_point,
        gco2e_per_kwh=None if intensity is None else intensity.gco2e_per_kwh,
    )


def _in_force(
    conn: sa.Connection,
    table: sa.Table,
    now: datetime,
    *where: sa.ColumnElement[bool],
    first: Sequence[sa.ColumnElement[bool]] = (),
) -> Any | None:
    """Return the fact in force at ``now``; of several the one that is ``first``, or else began last."""
    return conn.execute(
        sa.select(table)
        .where(
            table.c.superseded_at.is_(None),
            table.c.valid_from <= now,
            sa.or_(table.c.valid_to.is_(None), table.c.valid_to > now),
            *where,
        )
        .order_by(*first, table.c.valid_from.desc(), table.c.id.desc())
        .limit(1)
    ).one_or_none()
