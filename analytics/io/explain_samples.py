"""Follows the usage hours of an explained line to the samples their run read: as it knew them, and of the devices of the line alone.

Files a run was made of are read as they were; one that read rows before they were sealed is followed to where these rows are now. Where
that cannot be, it says why, and the stored usage hours are what is left.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

import polars as pl
import psycopg
from psycopg.rows import dict_row

from analytics.errors import AnalyticsError
from analytics.explain import NOT_FOLLOWED, Followed, follow
from analytics.frames import Devices
from analytics.inputs import UsageInputs, Window
from analytics.io.explain_reads import HourRead
from analytics.io.load import begin_batch
from analytics.io.references import Known
from analytics.policy import policy_of
from analytics.shards import ALL_DEVICES, of_devices
from analytics.version import METHOD_VERSION
from ingest.store.engine import Database
from ingest.store.samples import FileRead
from ingest.store.segments import SegmentError, Segments, SegmentUnreachableError

MAX_DEVICES: Final = 1_024
"""Of a line that is followed: readings of so many fit into 200 MB."""
_COUNTS: Final = """
SELECT runs.id, runs.kind, runs.revision, coalesce(runs.usage_revision, runs.revision) AS usage_revision, runs.as_of_at, runs.snapshot
FROM ledger_hours AS hours JOIN ledger_runs AS runs ON runs.id = hours.run_id
WHERE hours.site_id = %(site_id)s AND hours.hour_at = %(hour_at)s
"""
_MADE: Final = """
SELECT as_of_at, snapshot, inputs, policy, method_version, code_version FROM ledger_runs
WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s AND revision = %(usage_revision)s AND kind <> 'rate' AND id <= %(id)s
ORDER BY id DESC LIMIT 1
"""


def known_of(connection: psycopg.Connection[Any], site_id: int, hour_at: datetime) -> Known | None:
    """Return as what the run that counts knew everything; None where the hour has no run."""
    row = _run(connection, site_id, hour_at)
    return None if row is None else Known(row["as_of_at"], row["snapshot"])


def followed(
    database: Database, connection: psycopg.Connection[Any], segments: Segments | None, read: HourRead
) -> tuple[list[Followed] | None, str]:
    """Return the usage hours of ``read`` followed to their readings, or None and why they cannot be.

    ``connection``: a worker's, in no transaction.
    """
    metered = read.usage.filter(~pl.col("method").fill_null("").is_in(list(NOT_FOLLOWED)))
    if metered.is_empty():
        return None, "it is of nothing that has a counter of its own"
    if any(line["status"] == "provisional" for line in read.lines):
        return None, "the hour is still open: its figures are replaced every few seconds"
    if metered["device_id"].n_unique() > MAX_DEVICES:
        return None, f"it is of more than {MAX_DEVICES:,} devices"
    with connection.transaction():
        run = _run(connection, read.site_id, read.hour_at)
        made = (
            None if run is None else _one(connection, _MADE, {"site_id": read.site_id, "hour_at": read.hour_at, **run})
        )
    if made is None or made["inputs"] is None or made["policy"] is None:
        return None, "its run kept no record of what it read: an older version closed it"
    if made["method_version"] != METHOD_VERSION:
        return None, f"it was computed by formulas {made['method_version']} of wattledger {made['code_version']}"
    try:
        policy = policy_of(made["policy"])
        inputs = made["inputs"]
        files = None
        if inputs["outside"] is None:
            files = tuple(
                FileRead(stream, datetime.fromisoformat(at), number, sha)
                for stream, at, number, sha in inputs["segments"]
            )
        end_at = read.hour_at + timedelta(hours=1)
        window = Window(read.hour_at, end_at, end_at)
        begun = begin_batch(
            database,
            connection,
            read.site_id,
            window,
            policy,
            inputs["currency"],
            as_of=Known(made["as_of_at"], made["snapshot"], files),
            segments=segments,
        )
        with begun as batch:
            near = _near(batch.inputs.usage, set(metered["device_id"].to_list()))
            ours = batch.metered.filter(pl.col("device_id").is_in(metered["device_id"].implode()))
            part = replace(batch, inputs=replace(batch.inputs, usage=near), metered=Devices.validate(ours, cast=False))
            (usage,) = part.shards(ALL_DEVICES)
        if usage.readings.is_empty():
            return None, "its samples are gone"
        return follow(usage, policy, read.usage, read.devices), ""
    except (SegmentError, SegmentUnreachableError, AnalyticsError) as error:
        return None, str(error)


def _near(inputs: UsageInputs, devices: set[int]) -> UsageInputs:
    """Return the inputs of these devices and of all that stood on their nodes, with the parts of their boards."""
    mine = pl.col("device_id").is_in(sorted(devices))
    nodes = inputs.placements.filter(mine)["node_id"].unique()
    beside = set(inputs.placements.filter(pl.col("node_id").is_in(nodes.implode()))["device_id"].to_list()) | devices
    parts = inputs.devices.filter(pl.col("parent_device_id").is_in(sorted(beside)))["device_id"].to_list()
    return of_devices(inputs, beside | set(parts))


def _run(connection: psycopg.Connection[Any], site_id: int, hour_at: datetime) -> dict[str, Any] | None:
    return _one(connection, _COUNTS, {"site_id": site_id, "hour_at": hour_at})


def _one(connection: psycopg.Connection[Any], query: str, given: dict[str, Any]) -> dict[str, Any] | None:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query.encode(), given).fetchone()
