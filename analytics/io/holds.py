"""Loads what was told of who held what, and where devices stood: dated rows as they are, nothing summed up over a window.

What a row means beside others (an end nobody told, a count on a node, contradicting evidence) is decided in the model, where a day
and its hours are known to agree. It reads as far around a window as a silence of a meter reaches, and of holdings that began before
and whose end nobody told what may have ended them since, however long ago.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import dataframely as dy
import polars as pl
import psycopg

from analytics.frames import Assets, CapacityHolds, Devices, Holds, Placements
from analytics.io.references import known
from analytics.io.rows import fetch_frame, fetch_many
from analytics.model.claims import START_UNKNOWN
from analytics.policy import EVIDENCE, OTHER_EVIDENCE
from ingest.store.arrow import Fetch
from ingest.store.pools import uuid_sql

# As it was known then: until a device that was known by name alone is described its model is unknown, and it is a part of none.
DEVICE: Final = """
(SELECT id, uuid, kind, accelerators,
        CASE WHEN described_at > %(as_of)s THEN 'unknown' ELSE model END AS model,
        CASE WHEN described_at > %(as_of)s THEN NULL ELSE parent_device_id END AS parent_device_id,
        CASE WHEN described_at > %(as_of)s THEN 1 ELSE slice_ratio END AS slice_ratio FROM devices)
"""
JOB_KEY: Final = "concat_ws('|', jobs.cluster, jobs.native_id, extract(epoch FROM jobs.started_at)::text)"
_THERE: Final = """
FROM placements AS placed JOIN nodes ON nodes.id = placed.node_id
WHERE nodes.site_id = %(site_id)s AND {known}
AND placed.valid_from < %(reach_to)s AND (placed.valid_to IS NULL OR placed.valid_to > %(reach_from)s)
AND (placed.valid_to IS NULL OR placed.valid_to > placed.valid_from)
""".replace("{known}", known("placed."))
_PLACEMENTS: Final = (
    "SELECT placed.device_id, placed.node_id, placed.in_service, placed.asset, placed.valid_from, placed.valid_to"
    + _THERE
)
# A pool is there while somebody holds some of it. Its rows take the origin of their job: 1 is the mildest. Other devices of whose
# node no epoch is known were imported (2).
_DEVICES: Final = (
    """
SELECT device.id AS device_id, device.uuid, last.node_id, device.model, device.kind, device.accelerators, device.parent_device_id,
       greatest(1, (device.slice_ratio * 1000000)::integer) AS slice_ppm, NULL::integer AS idle_power_mw, 2::smallint AS origin
FROM {device} AS device JOIN (SELECT DISTINCT ON (placed.device_id) placed.device_id, placed.node_id {there}
                              ORDER BY placed.device_id, placed.valid_from DESC) AS last ON last.device_id = device.id
UNION ALL
SELECT DISTINCT device.id, device.uuid, NULL::integer, device.model, device.kind, device.accelerators, NULL::integer, 1000000,
       NULL::integer, 1::smallint
FROM allocations AS held JOIN sites ON sites.id = held.site_id JOIN devices AS device ON device.uuid = {uuid}
WHERE held.site_id = %(site_id)s AND held.pool IS NOT NULL AND {known}
AND held.start_at < %(to_at)s AND (held.end_at IS NULL OR held.end_at > %(from_at)s)
""".replace("{device}", DEVICE)
    .replace("{there}", _THERE)
    .replace("{uuid}", uuid_sql("sites.name", "held.pool", "held.model"))
    .replace("{known}", known("held."))
)
_HOLD: Final = (
    """
SELECT held.id AS allocation_id, held.job_id, {job_key} AS job_key, coalesce(held.device_id, pool.id) AS device_id, held.node_id,
       held.accelerators, (held.share_ratio * 1000000)::integer AS share_ppm, held.evidence, held.start_at, held.end_at,
       ended.ended_at AS job_ended_at, held.recorded_at
FROM allocations AS held JOIN jobs ON jobs.id = held.job_id JOIN sites ON sites.id = held.site_id
LEFT JOIN devices AS pool ON held.pool IS NOT NULL AND pool.uuid = {uuid}
LEFT JOIN LATERAL (
    -- As known then, of the few holdings without an end: looked up for each, by the key.
    SELECT ended.ended_at FROM job_ends AS ended WHERE held.end_at IS NULL AND ended.job_id = held.job_id AND {known}
    ORDER BY ended.recorded_xid DESC LIMIT 1) AS ended ON true
""".replace("{job_key}", JOB_KEY)
    .replace("{uuid}", uuid_sql("sites.name", "held.pool", "held.model"))
    .replace("{known}", known("ended."))
)
_RANK: Final = (
    f"CASE replace({{of}}evidence, '{START_UNKNOWN}', '') "
    + " ".join(f"WHEN '{instrument}' THEN {rank}" for instrument, rank in EVIDENCE.items())
    + f" ELSE {OTHER_EVIDENCE} END"
)
# Nearly all rows without an end were superseded when the end was told. A run sees what was not at its instant, or by a transaction
# that had begun and was not committed: none takes a day. The exact condition stands beside this one, which an index answers.
_OPEN: Final = """
{of}end_at IS NULL AND ({of}superseded_at IS NULL OR {of}superseded_at > %(as_of)s::timestamptz - interval '1 day')
"""
_OPEN_LONG: Final = """
FROM allocations AS open WHERE open.site_id = %(site_id)s AND {open} AND {known}
AND open.device_id IS NOT NULL AND open.start_at < %(reach_from)s
""".replace("{open}", _OPEN.replace("{of}", "open.")).replace("{known}", known("open."))
# The first that took over whole, for each: it may have ended before the reach. Found in the order of an index, nearly always at once.
_TAKEN: Final = (
    """
SELECT later.id FROM (SELECT open.* {open_long}) AS open CROSS JOIN LATERAL (
    SELECT later.id FROM allocations AS later
    WHERE later.device_id = open.device_id AND later.site_id = open.site_id AND later.job_id <> open.job_id AND {known}
    AND later.start_at > open.start_at AND later.start_at < %(reach_from)s AND (later.end_at IS NULL OR later.end_at > later.start_at)
    AND coalesce(later.share_ratio, 1) = 1 AND {later_rank} >= {rank}
    ORDER BY later.start_at, later.id LIMIT 1) AS later
""".replace("{open_long}", _OPEN_LONG)
    .replace("{known}", known("later."))
    .replace("{later_rank}", _RANK.replace("{of}", "later."))
    .replace("{rank}", _RANK.replace("{of}", "open."))
)
_HOLDS: Final = (
    """
{hold} WHERE held.site_id = %(site_id)s AND {known}
AND held.start_at < %(reach_to)s AND (held.end_at IS NULL OR held.end_at > %(reach_from)s)
UNION ALL
{hold} WHERE held.id IN ({taken}) AND held.end_at <= %(reach_from)s
""".replace("{hold}", _HOLD)
    .replace("{known}", known("held."))
    .replace("{taken}", _TAKEN)
)
# Where a device stood from the beginning of its first such holding on, until it is within reach.
_EARLIER: Final = """
SELECT placed.device_id, placed.node_id, placed.in_service, placed.asset, placed.valid_from, placed.valid_to
FROM (SELECT open.device_id, min(open.start_at) AS since {open_long} GROUP BY open.device_id) AS open
JOIN placements AS placed ON placed.device_id = open.device_id JOIN nodes ON nodes.id = placed.node_id
WHERE nodes.site_id = %(site_id)s AND {known}
AND placed.valid_to <= %(reach_from)s AND placed.valid_to > open.since AND placed.valid_to > placed.valid_from
""".replace("{open_long}", _OPEN_LONG).replace("{known}", known("placed."))


_CAPACITY: Final = """
SELECT id AS hold_id, node_id, device_id, kind, tenant_id, valid_from, valid_to FROM capacity_holds
WHERE site_id = %(site_id)s AND {known} AND valid_from < %(to_at)s AND (valid_to IS NULL OR valid_to > %(from_at)s)
""".replace("{known}", known())
# An asset is this device's, or this node's, while its row holds. Of a device that stood in the site, or last did.
_ASSETS: Final = """
SELECT assets.asset, assets.device_id, assets.node_id, greatest(assets.capitalized_at, assets.valid_from) AS capitalized_at,
       least(assets.disposed_at, assets.valid_to) AS disposed_at
FROM assets WHERE {known} AND (node_id IN (SELECT id FROM nodes WHERE site_id = %(site_id)s)
                               OR device_id IN (SELECT placed.device_id {there}))
AND greatest(capitalized_at, valid_from) < coalesce(least(disposed_at, valid_to), 'infinity')
""".replace("{known}", known("assets.")).replace("{there}", _THERE)


@dataclass(frozen=True, slots=True)
class Held:
    """Of a window and as far around it as the reach."""

    devices: dy.DataFrame[Devices]
    """Boards, MIG instances and nodes that stood in the site, and pools of which something was held in the window."""
    placements: dy.DataFrame[Placements]
    """By instances too."""
    earlier_placements: dy.DataFrame[Placements]
    """Those from before the reach, of devices with a holding from then whose end nobody told."""
    holds: dy.DataFrame[Holds]
    capacity_holds: dy.DataFrame[CapacityHolds]
    """Of the window."""
    assets: dy.DataFrame[Assets]

    @property
    def metered(self) -> dy.DataFrame[Devices]:
        """Devices of which there may be readings that books are made of: no pool, and no part of a board."""
        return Devices.validate(
            self.devices.filter((pl.col("kind") != "pool") & pl.col("parent_device_id").is_null()), cast=False
        )


def load_holds(connection: psycopg.Connection[Any], scope: Mapping[str, Any], fetch: Fetch | None = None) -> Held:
    """Return what the model resolves holdings from; ``scope`` as of :func:`analytics.io.load.load_batch`, in its transaction.

    ``fetch``: of a session in the same snapshot, for holds, of which a busy site has some hundred thousand as far as the reach.
    """
    return Held(
        fetch_frame(connection, _DEVICES, scope, Devices),
        fetch_frame(connection, _PLACEMENTS, scope, Placements),
        fetch_frame(connection, _EARLIER, scope, Placements),
        fetch_frame(connection, _HOLDS, scope, Holds)
        if fetch is None
        else fetch_many(connection, fetch, _HOLDS, scope, Holds),
        fetch_frame(connection, _CAPACITY, scope, CapacityHolds),
        fetch_frame(connection, _ASSETS, scope, Assets),
    )
