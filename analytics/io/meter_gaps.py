"""Reads what meters above the nodes showed and what the books have below them, and gives the gap by site. Shows nobody's share.

What is known now counts: readings that were corrected, hours that were closed again. A month that a meter was told of late is read
again without any close.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import polars as pl
import psycopg

from analytics.frames import CARRIERS
from analytics.io.meter_words import said
from analytics.io.placeholders import CHASSIS
from analytics.model.reconcile import gap, hours_of
from analytics.units import to_us

_HOUR: Final = timedelta(hours=1)
KNOWN_RATIO: Final = 0.99
"""An hour of which less of the accelerators' time has a meter is not compared: what is missing there is no loss of the site."""
_SITES: Final = """
SELECT id, name FROM sites WHERE %(site)s::text IS NULL OR name = %(site)s ORDER BY name
"""
_METERS: Final = f"""
SELECT meters.id AS meter_id, parent_meter_id, level, meters.name, {said("covers", "%(to_at)s")} AS covers, node_id, gain_ppm FROM meters
WHERE site_id = %(site_id)s OR node_id IN (SELECT id FROM nodes WHERE site_id = %(site_id)s)
"""  # noqa: S608 (constants)
_PERIODS: Final = """
SELECT meter_id, (extract(epoch FROM from_at) * 1000000)::bigint AS from_us, (extract(epoch FROM to_at) * 1000000)::bigint AS to_us,
       energy_mj
FROM meter_readings JOIN meters ON meters.id = meter_id
WHERE site_id = %(site_id)s AND superseded_at IS NULL AND from_at < %(to_at)s AND to_at > %(from_at)s
"""
# Of the whole site lines are a tenth of usage hours; node 0 stands for all of it.
_OF_SITE: Final = """
SELECT 0 AS node_id, (extract(epoch FROM hour_at) * 1000000)::bigint AS hour_us, sum(energy_mj)::bigint AS energy_mj,
       coalesce(sum(energy_mj) FILTER (WHERE charge_category = 'gpu_owned'), 0)::bigint AS devices_mj,
       coalesce(sum(energy_mj) FILTER (WHERE charge_category = 'shared_it'), 0)::bigint AS shared_mj
FROM current_ledger_lines WHERE site_id = %(site_id)s AND hour_at >= %(from_at)s AND hour_at < %(to_at)s
AND charge_category = ANY (%(carriers)s)
GROUP BY hour_at
HAVING coalesce(sum(coverage * quantity) FILTER (WHERE quantity_unit = 'accelerator-us')
                >= %(known)s * sum(quantity) FILTER (WHERE quantity_unit = 'accelerator-us'), false)
"""
_BY_NODE: Final = f"""
WITH used AS (
    SELECT hour_at, device_id, sum(energy_mj) AS energy_mj, sum(held_us) AS held_us, sum(covered_us) AS covered_us
    FROM current_usage_hours WHERE site_id = %(site_id)s AND hour_at >= %(from_at)s AND hour_at < %(to_at)s GROUP BY 1, 2
), chassis AS (
    SELECT devices.id AS device_id, nodes.id AS node_id FROM nodes JOIN sites ON sites.id = nodes.site_id
    JOIN devices ON devices.uuid = {CHASSIS} WHERE nodes.site_id = %(site_id)s
), stood AS (
    SELECT hour_at, used.device_id, energy_mj, held_us, covered_us, kind, coalesce(chassis.node_id, (
        SELECT node_id FROM placements WHERE placements.device_id = used.device_id AND superseded_at IS NULL
        AND valid_from < hour_at + interval '1 hour' AND (valid_to IS NULL OR valid_to > hour_at) ORDER BY valid_from DESC LIMIT 1
    )) AS node_id
    FROM used JOIN devices ON devices.id = used.device_id LEFT JOIN chassis ON chassis.device_id = used.device_id
)
SELECT coalesce(node_id, 0) AS node_id, (extract(epoch FROM hour_at) * 1000000)::bigint AS hour_us,
       CASE WHEN sum(covered_us) >= %(known)s * sum(held_us) THEN sum(energy_mj) END::bigint AS energy_mj,
       coalesce(sum(energy_mj) FILTER (WHERE kind NOT IN ('chassis', 'site')), 0)::bigint AS devices_mj,
       coalesce(sum(energy_mj) FILTER (WHERE kind = 'site'), 0)::bigint AS shared_mj
FROM stood GROUP BY 1, 2
"""  # noqa: S608 (constants)
_LISTED: Final = f"""
SELECT sites.name AS site, coalesce(nodes.name, '') AS node, meters.name, meters.level, {said("covers", "now()")} AS covers,
       {said("bills", "now()")} AS bills, upper.name AS parent, meters.gain_ppm, {said("wrap_mj", "now()")} AS wrap_mj,
       (SELECT max(to_at) FROM meter_readings WHERE meter_id = meters.id AND superseded_at IS NULL) AS read_to_at
FROM meters LEFT JOIN nodes ON nodes.id = meters.node_id JOIN sites ON sites.id = coalesce(meters.site_id, nodes.site_id)
LEFT JOIN meters AS upper ON upper.id = meters.parent_meter_id
WHERE (%(site)s::text IS NULL OR sites.name = %(site)s) AND meters.name <> 'host'
ORDER BY site, node, CASE meters.level WHEN 'utility' THEN 0 WHEN 'pdu' THEN 1 WHEN 'cdu' THEN 2 ELSE 3 END, meters.name
"""  # noqa: S608 (constants)
_KINDS: Final = {
    "meter_id": pl.Int32,
    "parent_meter_id": pl.Int32,
    "level": pl.String,
    "name": pl.String,
    "covers": pl.String,
    "node_id": pl.Int32,
    "gain_ppm": pl.Int32,
    "from_us": pl.Int64,
    "to_us": pl.Int64,
    "hour_us": pl.Int64,
    "energy_mj": pl.Int64,
    "devices_mj": pl.Int64,
    "shared_mj": pl.Int64,
}


@dataclass(frozen=True, slots=True)
class MeterGap:
    """One comparison: ``meter`` None = all of the level. ``gap_ppm`` of ``metered_mj``, as is ``error_ppm``, what both may be off."""

    site: str
    level: str
    meter: str | None
    below: str
    metered_mj: int
    below_mj: int
    gap_mj: int
    gap_ppm: int | None
    error_ppm: int | None
    hours: int
    of_hours: int

    @property
    def is_explained(self) -> bool | None:
        """Whether the gap is within what the meters may be off; None where nothing could be compared."""
        if self.gap_ppm is None or self.error_ppm is None:
            return None
        return abs(self.gap_ppm) <= self.error_ppm


@dataclass(frozen=True, slots=True)
class ListedMeter:
    """``node`` is empty for a meter of the site; ``read_to_at`` is of those alone."""

    site: str
    node: str
    name: str
    level: str
    covers: str
    bills: bool
    parent: str | None
    gain_ppm: int
    wrap_mj: int | None
    read_to_at: datetime | None


def gaps(
    connection: psycopg.Connection[Any], from_at: datetime, to_at: datetime, site: str | None = None
) -> list[MeterGap]:
    """Return the comparisons of [from, to), full hours, by site; a site without meters above its nodes has its nodes' alone."""
    found = []
    for site_id, name in connection.execute(_SITES, {"site": site}).fetchall():
        asked = {
            "site_id": site_id,
            "from_at": from_at,
            "to_at": to_at,
            "known": KNOWN_RATIO,
            "carriers": list(CARRIERS),
        }
        meters = _fetch(connection, _METERS, asked)
        metered = hours_of(_fetch(connection, _PERIODS, asked), to_us(from_at), to_us(to_at))
        hung = meters.filter(pl.col("node_id").is_not_null() & pl.col("parent_meter_id").is_not_null())
        nodes = _fetch(connection, _OF_SITE if hung.is_empty() else _BY_NODE, asked)
        rows = gap(meters, metered, nodes, (to_at - from_at) // _HOUR)
        found += [MeterGap(str(name), **row) for row in rows.iter_rows(named=True)]
    return found


def listed(connection: psycopg.Connection[Any], site: str | None = None) -> list[ListedMeter]:
    """Return the meters by site and node, those of the sites themselves first."""
    return [ListedMeter(*row) for row in connection.execute(_LISTED, {"site": site}).fetchall()]


def _fetch(connection: psycopg.Connection[Any], query: str, asked: Mapping[str, Any]) -> pl.DataFrame:
    with connection.cursor() as cursor:
        cursor.execute(query.encode(), asked)
        names = [column.name for column in cursor.description or ()]
        return pl.DataFrame(cursor.fetchall(), schema={name: _KINDS[name] for name in names}, orient="row")
