"""Reads what a close knows of a site beside its devices: meters of nodes with their readings, overhead models, shared IT.

Node globs of models are matched here, names being the store's. It decides no authority: all meters that bill are read, and the
model says which of a node's counts when.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Any, Final

import dataframely as dy
import polars as pl
import psycopg

from analytics.frames import Devices, MeterPeriods, Meters, NodeReadings, OverheadModels, SharedIt
from analytics.inputs import Window
from analytics.io.placeholders import CHASSIS, SITE
from analytics.io.references import HOLDS, known
from analytics.io.rows import fetch_frame
from analytics.policy import Policy
from collector.wire import Stream
from ingest.accept import MOST_MW
from ingest.store.samples import SampleSession

_LIKE_A_DEVICE: Final = """
known.id AS device_id, known.uuid, known.model, known.kind, known.accelerators, NULL::integer AS parent_device_id,
1000000 AS slice_ppm, NULL::integer AS idle_power_mw, NULL::timestamptz AS placed_from_at, NULL::timestamptz AS placed_to_at,
1::smallint AS origin
"""
_WORD: Final = """LEFT JOIN told AS of_{word} ON of_{word}.meter_id = meters.id AND of_{word}.{column} IS NOT NULL
    AND of_{word}.valid_from <= times.at AND (of_{word}.valid_to IS NULL OR of_{word}.valid_to > times.at)"""
_DEVICES: Final = f"""
SELECT nodes.id AS node_id, {_LIKE_A_DEVICE} FROM nodes JOIN sites ON sites.id = nodes.site_id
JOIN devices AS known ON known.uuid = {CHASSIS} AND known.kind = 'chassis' AND known.created_at <= %(as_of)s
WHERE nodes.site_id = %(site_id)s AND nodes.id = ANY (%(nodes)s)
UNION ALL
SELECT DISTINCT NULL::integer, {_LIKE_A_DEVICE} FROM shared_it AS shared JOIN sites ON sites.id = shared.site_id
JOIN devices AS known ON known.uuid = {SITE} AND known.kind = 'site' AND known.created_at <= %(as_of)s
WHERE shared.site_id = %(site_id)s AND {known("shared.")}
AND shared.valid_from < %(to_at)s AND (shared.valid_to IS NULL OR shared.valid_to > %(from_at)s)
"""  # noqa: S608 (constants of this package)
# Rows of the meter 'host' carry no power. A meter that shared IT names is no meter of the node that speaks for it. A row for each time
# in which the same is said of it, as far around the window as readings reach.
_METERS: Final = f"""
WITH told AS (SELECT * FROM meter_words WHERE {known()}), edges AS (
    SELECT id AS meter_id, '-infinity'::timestamptz AS at FROM meters WHERE node_id = ANY (%(nodes)s) OR id = ANY (%(shared)s)
    UNION SELECT meter_id, valid_from FROM told UNION SELECT meter_id, valid_to FROM told WHERE valid_to IS NOT NULL
), times AS (SELECT meter_id, at, lead(at) OVER (PARTITION BY meter_id ORDER BY at) AS until FROM edges)
SELECT meters.id AS meter_id, parent_meter_id, level, meters.name, coalesce(of_covers.covers, meters.covers) AS covers,
       CASE WHEN meters.id <> ALL (%(shared)s) THEN meters.node_id END AS node_id, coalesce(of_wrap.wrap_mj, meters.wrap_mj) AS wrap_mj,
       gain_ppm, nullif(times.at, '-infinity') AS valid_from, times.until AS valid_to
FROM meters JOIN times ON times.meter_id = meters.id
{" ".join(_WORD.format(word=word, column=column) for word, column in (("bills", "bills"), ("covers", "covers"), ("wrap", "wrap_mj")))}
WHERE meters.name <> 'host' AND (meters.id = ANY (%(shared)s) OR meters.node_id = ANY (%(nodes)s) AND coalesce(of_bills.bills, meters.bills))
AND times.at < %(to_at)s + interval '2 days' AND (times.until IS NULL OR times.until > %(from_at)s - interval '2 days')
ORDER BY meters.id, times.at
"""  # noqa: S608
_MODELS: Final = f"""
SELECT id AS model_id, node_glob, idle_mw, per_accelerator_active_ppm, error_ppm, valid_from, valid_to
FROM overhead_models WHERE site_id = %(site_id)s AND {known()} AND {HOLDS}
"""  # noqa: S608
_SHARED: Final = f"""
SELECT shared.id AS shared_it_id, known.id AS device_id, shared.name, shared.kind, power_mw, meter_id, error_ppm, valid_from, valid_to
FROM shared_it AS shared JOIN sites ON sites.id = shared.site_id
JOIN devices AS known ON known.uuid = {SITE} AND known.kind = 'site' AND known.created_at <= %(as_of)s
WHERE shared.site_id = %(site_id)s AND {known("shared.")} AND {HOLDS}
"""  # noqa: S608
_PERIODS: Final = f"""
SELECT meter_id, from_at, to_at, energy_mj, 'measured' AS source FROM meter_readings
WHERE meter_id = ANY (%(shared)s) AND from_at < %(to_at)s AND to_at > %(from_at)s AND {known()}
"""  # noqa: S608
_NAMES: Final = "SELECT id, name FROM nodes WHERE id = ANY (%(nodes)s)"
_COLUMNS: Final = ("energy_mj", "power_mw")


@dataclass(frozen=True, slots=True)
class SiteLoad:
    """``devices``: what is booked beside the site's own."""

    devices: dy.DataFrame[Devices]
    meters: dy.DataFrame[Meters]
    models: dy.DataFrame[OverheadModels]
    shared: dy.DataFrame[SharedIt]
    periods: dy.DataFrame[MeterPeriods]


def load_site(connection: psycopg.Connection[Any], scope: Mapping[str, Any], nodes: list[int]) -> SiteLoad:
    """Return what is known of these nodes and their site in the window of ``scope``, in the connection's snapshot.

    ``scope``: site_id, from_at, to_at, as_of and snapshot, as of the other loads.
    """
    asked = {**scope, "nodes": nodes, "shared": []}
    devices = fetch_frame(connection, _DEVICES, asked, Devices)
    shared = fetch_frame(connection, _SHARED, asked, SharedIt)
    chassis = devices["node_id"].drop_nulls().to_list()
    asked |= {"nodes": chassis, "shared": shared["meter_id"].drop_nulls().unique().to_list()}
    return SiteLoad(
        devices,
        fetch_frame(connection, _METERS, asked, Meters),
        _models(connection, asked),
        shared,
        fetch_frame(connection, _PERIODS, asked, MeterPeriods),
    )


def load_node_readings(
    session: SampleSession, site_id: int, site: SiteLoad, epochs: pl.DataFrame, window: Window, policy: Policy
) -> dy.DataFrame[NodeReadings]:
    """Return the readings of the nodes' meters of the window and the margin around it, in order of meter and time.

    The margin is as long as an interval that is no gap may be: a meter that is read each quarter of an hour has none nearer to an hour's
    edge, and hours that are closed alone would lack what those closed together have. ``epochs``: of the site.
    """
    meters = site.meters.filter(level="node")
    if meters.is_empty():
        return NodeReadings.create_empty()
    slowest_us = max(int(epochs["cadence_us"].max() or 0), 0)  # type: ignore[arg-type]
    longest_us = min(slowest_us * policy.gaps.max_gap_cadences, policy.gaps.reach_us)
    margin = timedelta(microseconds=max(policy.margin_us, longest_us))
    keys = meters["meter_id"].unique().sort().to_list()
    rows = session.rows(
        Stream.NODE, _COLUMNS, window.from_at - margin, window.to_at + margin, keys=keys, site_id=site_id
    )
    on_node = meters.select("meter_id", "node_id").unique()
    usable = pl.col("energy_mj").is_not_null() | pl.col("power_mw").is_not_null()
    # Stored before more than a node can draw was refused.
    possible = pl.when(pl.col("power_mw").is_between(0, MOST_MW)).then("power_mw").alias("power_mw")
    found = rows.with_columns(possible).filter(usable).join(on_node.lazy(), on="meter_id", how="left").collect()
    kinds = NodeReadings.create_empty().schema
    typed = found.select(pl.col(name).cast(kind) for name, kind in kinds.items())
    return NodeReadings.validate(typed.sort("meter_id", "at", "energy_mj", "power_mw", "epoch_id", nulls_last=True))


def _models(connection: psycopg.Connection[Any], asked: Mapping[str, Any]) -> dy.DataFrame[OverheadModels]:
    """Return the models of each node: of several whose glob matches, the longest glob stands first."""
    kinds = OverheadModels.create_empty().schema
    with connection.cursor() as cursor:
        cursor.execute(_MODELS.encode(), asked)
        told = cursor.fetchall()
        if not told:
            return OverheadModels.create_empty()
        names = [str(column.name) for column in cursor.description or ()]
        cursor.execute(_NAMES, asked)
        nodes = cursor.fetchall()
    models = sorted(
        (dict(zip(names, row, strict=True)) for row in told), key=lambda model: _precedence(model["node_glob"])
    )
    globs = list(dict.fromkeys(model["node_glob"] for model in models))
    rows = [
        {**model, "node_id": node_id, "precedence": globs.index(model["node_glob"])}
        for node_id, name in sorted(nodes)
        for model in models
        if fnmatchcase(name, model["node_glob"])
    ]
    frame = pl.DataFrame([{name: row[name] for name in kinds} for row in rows], schema=kinds)
    return OverheadModels.validate(frame.sort("node_id", "precedence", "valid_from", "model_id"))


def _precedence(glob: str) -> tuple[int, str]:
    return -len(glob), glob
