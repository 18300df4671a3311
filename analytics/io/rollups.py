"""Energy by tenant and step for dashboards, of the minutes of its hours; and writes those by tenant. Never the source of a bill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import polars as pl
import psycopg

from collector.wire import Origin

# One row a tenant, not one a minute: whatever a row carries beside its figure (an instant above all) took longer to tell and
# to read than the figure took to find. Steps are counted from the first, in binary floats that hold every second exactly.
_SERIES: Final = """
WITH named AS MATERIALIZED (
    SELECT id, path FROM tenants
    WHERE (%(subtree)s::text IS NULL OR path = %(subtree)s OR starts_with(path, %(subtree)s || '/'))
    AND (%(after)s::text IS NULL OR path > %(after)s)
), steps AS (
    SELECT tenant_id, floor((date_part('epoch', minute_at) - %(from_s)s::float8) / %(step_s)s::float8)::integer AS step,
           {energy} AS energy_mj
    FROM tenant_minutes WHERE minute_at >= %(from_at)s AND minute_at < %(to_at)s {group}
), series AS (
    SELECT tenant_id, array_agg(step) AS steps, array_agg(energy_mj) AS energies_mj FROM steps GROUP BY 1
)
SELECT path, steps, energies_mj FROM series LEFT JOIN named ON named.id = tenant_id
WHERE path IS NOT NULL OR (tenant_id IS NULL AND %(subtree)s::text IS NULL)
ORDER BY path NULLS LAST LIMIT %(most)s
"""
# Minutes are told as they lie there, a row a site, and added up by the reader: to group them took two thirds of the time. Longer
# steps are grouped: what is told stays as long as the answer is.
_MINUTES: Final = _SERIES.format(energy="energy_mj", group="").encode()
_STEPS: Final = _SERIES.format(energy="sum(energy_mj)::bigint", group="GROUP BY 1, 2").encode()
_MINUTE_S: Final = 60
# By lines and not by devices' hours: there are as many as tenants have jobs and models, however large the fleet.
_SOURCES: Final = ("measured", "estimated", "forecast", "assumed")
_PROVENANCE: Final = """
SELECT path, bit_or(1 << array_position(%(sources)s::text[], source)), bit_or(1 << origin),
       (sum(coverage * quantity) FILTER (WHERE quantity_unit = 'accelerator-us')
        / nullif(sum(quantity) FILTER (WHERE quantity_unit = 'accelerator-us'), 0))::float8
FROM current_ledger_lines AS lines LEFT JOIN tenants ON tenants.id = tenant_id
WHERE hour_at > %(from_at)s::timestamptz - interval '1 hour' AND hour_at < %(to_at)s AND pool <> 'api' GROUP BY path
"""
_REPLACE: Final = """
WITH gone AS (
    DELETE FROM tenant_minutes WHERE site_id = %(site_id)s
    AND minute_at >= %(hour_at)s AND minute_at < %(hour_at)s::timestamptz + interval '1 hour'
)
INSERT INTO tenant_minutes (site_id, minute_at, tenant_id, energy_mj)
SELECT %(site_id)s, %(hour_at)s::timestamptz + minute * interval '1 minute', tenant_id, energy_mj
FROM unnest(%(minutes)s::smallint[], %(tenants)s::integer[], %(energies_mj)s::bigint[]) AS rows (minute, tenant_id, energy_mj)
"""
_MINUTE: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class TenantEnergy:
    """Energy of one tenant, in millijoules, step by step; null where no meter spans any of it.

    A null tenant is energy nobody held, or whose holder has no tenant.
    """

    tenant: str | None
    energy_mj: Sequence[int | None]


@dataclass(frozen=True, slots=True)
class Provenance:
    """What the books say of a tenant's hours; coverage 0 to 1, null where nothing was held."""

    sources: Sequence[str]
    origins: Sequence[str]
    coverage_ratio: float | None


def energy_by_tenant(
    connection: psycopg.Connection[Any],
    from_at: datetime,
    to_at: datetime,
    step_s: int = 60,
    *,
    subtree: str | None = None,
    after: str | None = None,
    most: int | None = None,
) -> list[TenantEnergy]:
    """Return a series a tenant with energy in [from_at, to_at), steps counted from ``from_at``; by path, nobody's last.

    ``step_s``: seconds, whole minutes that fit into the interval, which begins on one; else ValueError. ``subtree``: only
    this path and what is below it; ``after``: only later paths; ``most``: tenants. Under row-level security only what the
    connection may see.
    """
    step = timedelta(seconds=step_s)
    if step_s <= 0 or step % _MINUTE or from_at.second or from_at.microsecond or (to_at - from_at) % step:
        raise ValueError(f"[{from_at}, {to_at}) is no whole number of steps of {step_s} s, each of whole minutes")
    count = (to_at - from_at) // step
    given = {"from_at": from_at, "to_at": to_at, "from_s": from_at.timestamp(), "step_s": step_s}
    with connection.cursor(binary=True) as cursor:
        query = _MINUTES if step_s == _MINUTE_S else _STEPS
        rows = cursor.execute(query, {**given, "subtree": subtree, "after": after, "most": most}).fetchall()
    return [TenantEnergy(path, _spread(count, steps, energies)) for path, steps, energies in rows]


def _spread(count: int, steps: Sequence[int], energies_mj: Sequence[int]) -> list[int | None]:
    known: list[int | None] = [None] * count
    for step, energy_mj in zip(steps, energies_mj, strict=True):
        known[step] = energy_mj + (known[step] or 0)  # of another site
    return known


def provenance_by_tenant(
    connection: psycopg.Connection[Any], from_at: datetime, to_at: datetime
) -> dict[str | None, Provenance]:
    """Return by tenant path, None for nobody's, what the books say of the hours that [from_at, to_at) touches."""
    given = {"from_at": from_at, "to_at": to_at, "sources": list(_SOURCES)}
    with connection.cursor(binary=True) as cursor:
        rows = cursor.execute(_PROVENANCE, given).fetchall()
    return {
        path: Provenance(
            [name for number, name in enumerate(_SOURCES, start=1) if sources >> number & 1],
            [origin.name.lower() for origin in Origin if origins >> origin & 1],
            coverage,
        )
        for path, sources, origins, coverage in rows
    }


def replace_tenant_minutes(
    connection: psycopg.Connection[Any], site_id: int, hour_at: datetime, minutes: pl.DataFrame
) -> None:
    """Write an hour's ``minutes`` (a frame of TenantMinutes) in place of those there are, in the caller's transaction."""
    given: dict[str, Any] = {"site_id": site_id, "hour_at": hour_at.astimezone(UTC)}
    given["minutes"] = minutes["minute_at"].dt.minute().to_list()
    given["tenants"] = minutes["tenant_id"].to_list()
    given["energies_mj"] = minutes["energy_mj"].to_list()
    connection.execute(_REPLACE, given)
