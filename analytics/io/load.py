"""Loads what a close of some hours of one site reads: samples, holdings, dated references, API calls; all in one snapshot.

The snapshot is kept with the run: what was recorded before it and committed after it was not seen, and is not seen either when
the run is computed again. Its oldest transaction is ``seen_xid``: a change from there on makes the hour due again. Who held what is
read as it was told (``holds.py``) and resolved in the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import dataframely as dy
import polars as pl
import psycopg

from analytics.frames import ApiCalls, DeviceReadings, Devices, Epochs, Jobs, NodeReadings
from analytics.inputs import HourInputs, UsageInputs, Window
from analytics.io.anchors import load_anchors
from analytics.io.holds import load_holds
from analytics.io.manifest import Manifest, RowsDigest, manifest
from analytics.io.meters import SiteLoad, load_node_readings, load_site
from analytics.io.open_rows import Look
from analytics.io.placeholders import ensure
from analytics.io.readings import Silences, load_readings
from analytics.io.references import Known, load_references
from analytics.io.rows import fetch_frame
from analytics.io.shares import Looks, shared_boards
from analytics.policy import Policy
from analytics.shards import ALL_DEVICES, shards
from ingest.store.engine import Database
from ingest.store.pinned import pinned_session
from ingest.store.samples import SampleSession, sample_session
from ingest.store.segments import Segments

_EPOCHS: Final = """
SELECT epochs.id AS epoch_id, node_id, boot_id, driver_epoch, feed, origin, cadence_us, first_seen_at
FROM epochs JOIN nodes ON nodes.id = epochs.node_id WHERE nodes.site_id = %(site_id)s
"""
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


@dataclass
class Begun:
    """Hours of which all but their readings is loaded; those are read of some devices at a time, in the same snapshot."""

    inputs: HourInputs
    """Without readings, and without looks at shared boards."""
    as_of: Known
    seen_xid: str
    session: SampleSession
    site_id: int
    metered: dy.DataFrame[Devices]
    """Devices that have readings of their own."""
    policy: Policy
    looks: Looks
    is_hashed: bool = True
    """Whether what is read is put on record; of the open window, which is read every few seconds and never repeated, it is not."""
    is_shown: bool = False
    """Whether readings have what is for dashboards alone."""
    digests: RowsDigest = field(default_factory=RowsDigest)
    silences: list[Silences] = field(default_factory=list)
    _not_digested: list[pl.DataFrame] = field(default_factory=list)
    _seen: dict[str, RowsDigest] = field(
        default_factory=lambda: {"device_shares": RowsDigest(), "instance_activity": RowsDigest()}
    )

    def shards(self, devices_at_once: int, *, digested: bool = False) -> Iterator[UsageInputs]:
        """Yield the inputs of some devices after the other with their readings; all of it is to be gone through, once.

        Books do not depend on ``devices_at_once``; memory does. ``digested``: ``digests`` is to have all readings, from wherever.
        """
        for part in shards(self.inputs.usage, devices_at_once):
            yield self._read(part, digested=digested)  # under no name: while the next are read, these are gone

    def _read(self, part: UsageInputs, *, digested: bool) -> UsageInputs:
        devices = self.metered.filter(pl.col("device_id").is_in(part.devices["device_id"].implode()))
        shares, activity = self.looks.of(part.devices["device_id"])
        readings, silences = self._readings(devices)
        self.silences.append(silences)
        part = replace(part, readings=readings, device_shares=shares, instance_activity=activity)
        if not self.is_hashed:
            return part
        self._seen["device_shares"].add(shares)
        self._seen["instance_activity"].add(activity)
        if digested or self.session.rows_outside:
            self.digests.add(readings)
        else:
            self._not_digested.append(devices)
        return part

    def end(self) -> Loaded:
        """Return what the shards were made of, once all of them were gone through: ``inputs`` without readings."""
        window = self.inputs.usage.window
        if (
            self.is_hashed and self.session.rows_outside
        ):  # only a later shard had some: rare, so that hours that are sealed as a whole hash no reading
            for devices in self._not_digested:
                self.digests.add(self._readings(devices)[0])
        digest = self.digests.sha256() if self.is_hashed and self.session.rows_outside else None
        read = manifest(self.inputs, self.session.files_read, self.session.rows_outside, digest, self._seen)
        generations = self.session.generations(window.from_at, window.to_at, self.site_id)
        return Loaded(self.inputs, self.as_of, self.seen_xid, read, Silences.of_all(self.silences), generations)

    def _readings(self, devices: pl.DataFrame) -> tuple[dy.DataFrame[DeviceReadings], Silences]:
        usage = self.inputs.usage
        cast = Devices.cast(devices)
        return load_readings(
            self.session,
            self.site_id,
            cast,
            usage.epochs,
            usage.placements,
            usage.window,
            self.policy,
            is_shown=self.is_shown,
        )


@contextmanager
def begin_batch(  # noqa: PLR0913 - what a close reads, from where, and as known when
    database: Database,
    connection: psycopg.Connection[Any],
    site_id: int,
    window: Window,
    policy: Policy,
    currency: str,
    *,
    as_of: Known | None = None,
    segments: Segments | None = None,
    look: Look | None = None,
    is_shown: bool = False,
) -> Iterator[Begun]:
    """Give what :func:`load_batch` returns, its readings still to be read, for a block.

    ``look``: at an open hour, whose rows of before are taken from there, for books and for minutes. ``is_shown``: readings are to have
    what is for dashboards alone.
    """
    ours = connection.info.parameter_status("application_name") or "wattledger"
    reach = timedelta(microseconds=policy.gaps.reach_us)
    if as_of is None:
        ensure(connection, site_id)
    with ExitStack() as until_read:
        with connection.transaction():
            seen = begin_snapshot(connection)
            if look is not None:
                look.begin(connection)
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
            # Readings take long, and a transaction of this session must not stand open for long without a statement.
            opened: AbstractContextManager[SampleSession] = (
                sample_session(database, segments, snapshot=seen.exported, application=ours)
                if then.files is None
                else pinned_session(database, segments, site_id, then.files)
            )
            session = until_read.enter_context(opened)
            held = load_holds(connection, scope, session.fetch if then.files is None else None)
            site = load_site(connection, scope, held.placements["node_id"].unique().sort().to_list())
            anchors = load_anchors(connection, scope, held.devices)
            epochs = fetch_frame(connection, _EPOCHS, scope, Epochs)
            calls = fetch_frame(connection, API_CALLS, scope, ApiCalls)
            references = load_references(
                connection,
                site_id=site_id,
                from_at=window.from_at,
                to_at=window.to_at,
                as_of=then,
                currency=currency,
                jobs=fetch_frame(connection, JOBS, {"job_ids": held.holds["job_id"].unique().to_list()}, Jobs),
            )
        if look is not None:
            session = look.session(session)
        node_readings = load_node_readings(session, site_id, site, epochs, window, policy)
        boards = shared_boards(held.holds, held.devices, held.placements)
        looks = Looks(session, site_id, window, boards, held.devices, held.holds["job_id"].unique().to_list())
        devices = Devices.validate(pl.concat([held.devices, site.devices]))
        more = _beyond(site, node_readings) | {"capacity_holds": held.capacity_holds, "assets": held.assets}
        more |= {"earlier_placements": held.earlier_placements}
        none_yet = DeviceReadings.create_empty()
        usage = UsageInputs(window, devices, epochs, none_yet, held.placements, held.holds, anchors=anchors, **more)
        inputs = HourInputs(usage, references, calls)
        known_as = as_of or Known(seen.at, seen.snapshot)
        is_hashed = look is None
        yield Begun(
            inputs,
            known_as,
            seen.oldest_xid,
            session,
            site_id,
            held.metered,
            policy,
            looks,
            is_hashed,
            is_shown or not is_hashed,
        )


def _beyond(site: SiteLoad, node_readings: dy.DataFrame[NodeReadings]) -> dict[str, Any]:
    return {
        "node_meters": site.meters,
        "node_readings": node_readings,
        "overhead_models": site.models,
        "shared_it": site.shared,
        "meter_periods": site.periods,
    }


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
    opened = begin_batch(database, connection, site_id, window, policy, currency, as_of=as_of, segments=segments)
    with opened as begun:
        (everything,) = begun.shards(ALL_DEVICES)
        loaded = begun.end()
    return replace(loaded, inputs=replace(loaded.inputs, usage=everything))


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
