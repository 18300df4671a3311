"""Loads what a close of some hours of one site reads: samples, holdings, dated references, API calls; all in one snapshot.

The snapshot is kept with the run: what was recorded before it and committed after it was not seen, and is not seen either when
the run is computed again. Its oldest transaction is ``seen_xid``: a change from there on makes the hour due again. Nodes are resolved to devices here, and MIG instances to shares of
their boards, and nowhere else: energy is metered and a price is paid for the board.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import dataframely as dy
import polars as pl
import psycopg

from analytics.frames import Allocations, ApiCalls, Devices, Epochs, Jobs, NodeReadings
from analytics.io.anchors import load_anchors
from analytics.io.manifest import Manifest, manifest
from analytics.io.meters import SiteLoad, load_node_readings, load_site
from analytics.io.placeholders import ensure
from analytics.io.readings import Silences, load_readings
from analytics.io.references import Known, known, load_references
from analytics.io.rows import fetch_frame
from analytics.pipeline import HourInputs, UsageInputs, Window
from analytics.policy import Policy
from ingest.store.engine import Database
from ingest.store.pinned import pinned_session
from ingest.store.pools import uuid_sql
from ingest.store.samples import SampleSession, sample_session
from ingest.store.segments import Segments

# As it was known then: until a device that was known by name alone is described its model is unknown, and it is a part of none.
DEVICE: Final = """
(SELECT id, uuid, kind, accelerators,
        CASE WHEN described_at > %(as_of)s THEN 'unknown' ELSE model END AS model,
        CASE WHEN described_at > %(as_of)s THEN NULL ELSE parent_device_id END AS parent_device_id,
        CASE WHEN described_at > %(as_of)s THEN 1 ELSE slice_ratio END AS slice_ratio FROM devices)
"""
_DEVICES: Final = """
SELECT DISTINCT ON (placed.device_id) placed.device_id, device.uuid, placed.node_id, device.model, device.kind, device.accelerators,
       NULL::integer AS parent_device_id, 1000000 AS slice_ppm, NULL::integer AS idle_power_mw,
       min(placed.valid_from) OVER (PARTITION BY placed.device_id) AS placed_from_at,
       CASE WHEN bool_or(placed.valid_to IS NULL) OVER (PARTITION BY placed.device_id) THEN NULL
            ELSE max(placed.valid_to) OVER (PARTITION BY placed.device_id) END AS placed_to_at,
       2::smallint AS origin -- of a device of whose node no epoch is known: somebody imported it
FROM placements AS placed JOIN {device} AS device ON device.id = placed.device_id
JOIN nodes ON nodes.id = placed.node_id
WHERE nodes.site_id = %(site_id)s AND device.parent_device_id IS NULL -- a MIG instance is a part of its board, not beside it
AND placed.valid_from < %(to_at)s AND (placed.valid_to IS NULL OR placed.valid_to > %(from_at)s)
AND {known}
ORDER BY placed.device_id, placed.valid_from DESC
""".replace("{device}", DEVICE).replace("{known}", known("placed."))
# A pool is there while somebody holds some of it. Its rows take the origin of their job: 1 is the mildest.
_POOLS: Final = """
SELECT DISTINCT device.id AS device_id, device.uuid, NULL::integer AS node_id, device.model, device.kind, device.accelerators,
       NULL::integer AS parent_device_id, 1000000 AS slice_ppm, NULL::integer AS idle_power_mw, NULL::timestamptz AS placed_from_at, NULL::timestamptz AS placed_to_at,
       1::smallint AS origin
FROM allocations AS held JOIN sites ON sites.id = held.site_id JOIN devices AS device ON device.uuid = {uuid}
WHERE held.site_id = %(site_id)s AND held.pool IS NOT NULL
AND {known} AND held.start_at < %(to_at)s AND (held.end_at IS NULL OR held.end_at > %(from_at)s)
""".replace("{uuid}", uuid_sql("sites.name", "held.pool", "held.model")).replace("{known}", known("held."))
_EPOCHS: Final = """
SELECT epochs.id AS epoch_id, node_id, boot_id, driver_epoch, feed, origin, cadence_us, first_seen_at
FROM epochs JOIN nodes ON nodes.id = epochs.node_id WHERE nodes.site_id = %(site_id)s
"""
JOB_KEY: Final = "concat_ws('|', jobs.cluster, jobs.native_id, extract(epoch FROM jobs.started_at)::text)"
# A job that holds a count of a node's accelerators holds them all when the count says so, else an equal share of each:
# which ones is not known. Of a board that is cut up schedulers count the instances. A job that holds a MIG instance, or a
# share of one, holds that share of the board: method `slice` (docs/methodology.md). Rounded down, so that instances of one
# board never add up to more than it.
_HELD: Final = """
WITH there AS (
    SELECT DISTINCT placements.node_id, placements.device_id, devices.parent_device_id, devices.accelerators
    FROM placements JOIN {device} AS devices ON devices.id = placements.device_id
    WHERE {placed} AND placements.valid_from < %(to_at)s
    AND (placements.valid_to IS NULL OR placements.valid_to > %(from_at)s)
), counted AS (
    SELECT node_id, sum(accelerators) AS on_node FROM there
    WHERE NOT EXISTS (SELECT FROM there AS part WHERE part.parent_device_id = there.device_id) GROUP BY node_id
), placed AS (
    SELECT node_id, device_id, on_node FROM there JOIN counted USING (node_id) WHERE parent_device_id IS NULL
)
SELECT held.id AS allocation_id, coalesce(device.parent_device_id, device.id) AS device_id, job_id, {job_key} AS job_key,
       CASE WHEN device.parent_device_id IS NULL THEN (share_ratio * 1000000)::integer
            ELSE greatest(1, floor(coalesce(share_ratio, 1) * device.slice_ratio * 1000000))::integer END AS share_ppm,
       CASE WHEN device.parent_device_id IS NOT NULL THEN 'slice' WHEN share_ratio IS NULL THEN 'whole' ELSE 'share' END AS method,
       held.accelerators, start_at, end_at
FROM allocations AS held JOIN jobs ON jobs.id = job_id JOIN {device} AS device ON device.id = held.device_id
WHERE held.site_id = %(site_id)s AND {touches}
UNION ALL
SELECT held.id, placed.device_id, job_id, {job_key},
       CASE WHEN held.accelerators >= placed.on_node THEN NULL
            ELSE (held.accelerators * 1000000 / placed.on_node)::integer END,
       CASE WHEN held.accelerators >= placed.on_node THEN 'whole' ELSE 'count' END, held.accelerators, start_at, end_at
FROM allocations AS held JOIN jobs ON jobs.id = job_id JOIN placed USING (node_id)
WHERE held.site_id = %(site_id)s AND {touches}
UNION ALL
SELECT held.id, device.id, job_id, {job_key}, NULL, 'pool', held.accelerators, start_at, end_at
FROM allocations AS held JOIN jobs ON jobs.id = job_id
JOIN sites ON sites.id = held.site_id JOIN devices AS device ON device.uuid = {uuid}
WHERE held.site_id = %(site_id)s AND held.pool IS NOT NULL AND {touches}
"""
_ALLOCATIONS: Final = (
    _HELD.replace("{uuid}", uuid_sql("sites.name", "held.pool", "held.model"))
    .replace("{device}", DEVICE)
    .replace("{job_key}", JOB_KEY)
    .replace("{placed}", known("placements."))
    .replace(
        "{touches}",
        known("held.") + "AND held.start_at < %(reach_to)s AND (held.end_at IS NULL OR held.end_at > %(reach_from)s)",
    )
)
# A tenant without a binding was named outright, by an import; one with a binding is what an earlier close made of it.
JOBS: Final = """
SELECT id AS job_id, cluster, native_id, account, partition, user_name, namespace, label, origin,
       CASE WHEN binding_id IS NULL THEN tenant_id END AS named_tenant_id
FROM jobs WHERE id = ANY (%(job_ids)s)
"""
API_CALLS: Final = """
SELECT called_at, dedupe_key, api_key, provider, model, input_uncached_tokens, cache_read_tokens, cache_write_tokens,
       output_text_tokens, reasoning_tokens, audio_tokens, image_tokens, usage_known, origin,
       CASE WHEN binding_id IS NULL THEN tenant_id END AS named_tenant_id
FROM api_calls WHERE site_id = %(site_id)s AND called_at >= %(from_at)s AND called_at < %(to_at)s
"""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Inputs of a close with what identifies them."""

    inputs: HourInputs
    as_of: Known
    seen_xid: str
    read: Manifest
    silences: Silences
    generations: Mapping[datetime, int]
    """Of the hours of the window that were read from segments."""


def load_batch(
    database: Database,
    connection: psycopg.Connection[Any],
    site_id: int,
    window: Window,
    policy: Policy,
    currency: str,
    *,
    as_of: Known | None = None,
    segments: Segments | None = None,
) -> Loaded:
    """Return everything the model needs for the window, as known to the run ``as_of`` (now by default).

    ``connection`` is in no transaction. Sealed hours are read from ``segments``; raises SegmentError where one is needed that
    cannot be read.
    """
    reach = timedelta(microseconds=policy.gaps.reach_us)
    if as_of is None:
        ensure(connection, site_id)
    with ExitStack() as until_read:
        with connection.transaction():
            seen = begin_snapshot(connection)
            then = as_of or Known(seen.at)
            scope: dict[str, Any] = {
                "site_id": site_id,
                "from_at": window.from_at,
                "to_at": window.to_at,
                "reach_from": window.from_at - reach,
                "reach_to": window.to_at + reach,
                "as_of": then.at,
                "snapshot": then.snapshot,
            }
            placed = fetch_frame(connection, _DEVICES, scope, Devices)
            pools = fetch_frame(connection, _POOLS, scope, Devices)
            epochs = fetch_frame(connection, _EPOCHS, scope, Epochs)
            held = fetch_frame(connection, _ALLOCATIONS, scope, Allocations)
            calls = fetch_frame(connection, API_CALLS, scope, ApiCalls)
            site = load_site(connection, scope, placed["node_id"].drop_nulls().unique().sort().to_list())
            devices = Devices.validate(pl.concat([placed, pools, site.devices]))
            anchors = load_anchors(connection, scope, devices)
            allocations = Allocations.validate(held.filter(pl.col("device_id").is_in(devices["device_id"].implode())))
            references = load_references(
                connection,
                site_id=site_id,
                from_at=window.from_at,
                to_at=window.to_at,
                as_of=then,
                currency=currency,
                jobs=fetch_frame(connection, JOBS, {"job_ids": allocations["job_id"].unique().to_list()}, Jobs),
            )
            # Readings take long, and a transaction of this session must not stand open for long without a statement.
            opened: AbstractContextManager[SampleSession] = (
                sample_session(database, segments, snapshot=seen.exported)
                if then.files is None
                else pinned_session(database, segments, site_id, then.files)
            )
            session = until_read.enter_context(opened)
        readings, silences = load_readings(session, site_id, placed, epochs, window, policy)
        node_readings = load_node_readings(session, site_id, site, window, policy)
        generations = session.generations(window.from_at, window.to_at, site_id)
    more = _beyond(site, node_readings)
    usage = UsageInputs(window, devices, epochs, readings, allocations, anchors=anchors, **more)
    inputs = HourInputs(usage, references, calls)
    read = manifest(inputs, session.files_read, rows_outside=session.rows_outside)
    return Loaded(inputs, as_of or Known(seen.at, seen.snapshot), seen.oldest_xid, read, silences, generations)


def _beyond(site: SiteLoad, node_readings: dy.DataFrame[NodeReadings]) -> dict[str, Any]:
    return {
        "node_meters": site.meters,
        "node_readings": node_readings,
        "overhead_models": site.models,
        "shared_it": site.shared,
        "meter_periods": site.periods,
    }


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the statements of a transaction see."""

    oldest_xid: str
    """Changes of transactions from this one on may not be seen."""
    at: datetime
    snapshot: str
    """In stamped transactions, as a run keeps it."""
    exported: str
    """By which another session takes it over."""


def begin_snapshot(connection: psycopg.Connection[Any]) -> Snapshot:
    """Have the transaction that just began see one snapshot, and return it."""
    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
    row = connection.execute(
        "SELECT pg_snapshot_xmin(pg_current_snapshot())::text, clock_timestamp(), stamped_snapshot(), pg_export_snapshot()"
    ).fetchone()
    if row is None:
        raise psycopg.DataError("pg_current_snapshot() returned no row")
    oldest_xid, now, snapshot, exported = row
    return Snapshot(str(oldest_xid), now.astimezone(UTC), str(snapshot), str(exported))
