"""Loads what a close of some hours of one site reads: samples, holdings, dated references, API calls; all in one snapshot.

The snapshot is kept with the run: what was recorded before it and committed after it was not seen, and is not seen either when
the run is computed again. Its oldest transaction is ``seen_xid``: a change from there on makes the hour due again. Who held what is
read as it was told (``holds.py``) and resolved in the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from analytics.io.apart import Apart, ReadApart, Reader
from analytics.io.holds import load_holds
from analytics.io.manifest import Manifest, manifest
from analytics.io.meters import SiteLoad, load_node_readings, load_site
from analytics.io.open_rows import Look
from analytics.io.placeholders import ensure
from analytics.io.readings import Silences
from analytics.io.references import Known, load_references
from analytics.io.rows import fetch_frame
from analytics.io.shares import Looks, shared_boards
from analytics.policy import Policy
from analytics.shards import ALL_DEVICES, shards
from ingest.store.engine import Database
from ingest.store.pinned import pinned_session
from ingest.store.samples import FileRead, SampleSession, sample_session
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
       audio_input_tokens, audio_output_tokens, cache_write_1h_tokens, service_tier, is_batch, tool_calls::text, images,
       media_ms, characters, pages, deployment,
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


@dataclass(kw_only=True)
class Begun(Reader):
    """Hours of which all but their readings is loaded; those are read of some devices at a time, in the same snapshot."""

    inputs: HourInputs
    """Without readings, and without looks at shared boards."""
    as_of: Known
    seen_xid: str
    is_shareable: bool = True
    """Whether another process can read some of it: not where a past run's files are read, and nothing else."""
    _rows_apart: int = 0
    _files_apart: set[FileRead] = field(default_factory=set)

    def shards(self, devices_at_once: int, *, digested: bool = False) -> Iterator[UsageInputs]:
        """Yield the inputs of some devices after the other with their readings; all of it is to be gone through, once.

        Books do not depend on ``devices_at_once``; memory does. ``digested``: ``digests`` is to have all readings, from wherever.
        """
        for part in shards(self.inputs.usage, devices_at_once):
            yield self.read(part, digested=digested)  # under no name: while the next are read, these are gone

    def apart(self, parts: Sequence[UsageInputs]) -> Apart:
        """Return what another process needs to read these devices. Looks at their boards are not read ahead here any more."""
        devices = pl.concat([part.devices for part in parts])
        listed = devices["device_id"]
        exported = self.session.fetch("SELECT pg_export_snapshot() AS snapshot").item()
        return Apart(
            self.site_id,
            str(exported),
            self.metered.filter(pl.col("device_id").is_in(listed.implode())),
            self.looks.leave(listed),
            devices,
            tuple(self.looks.job_ids),
            self.inputs.usage.window,
            self.policy,
            self.is_hashed,
            self.is_shown,
            self.session.rows_outside > 0,
        )

    def take(self, read: ReadApart) -> None:
        """Take note of what another process read for this one."""
        self.silences.extend(read.silences)
        self._files_apart |= read.files
        self._rows_apart += read.rows_outside
        self._not_digested.extend(read.not_digested)
        self.digests.take(read.digests)
        for name, digest in read.seen.items():
            self._seen[name].take(digest)

    def end(self) -> Loaded:
        """Return what the shards were made of, once all of them were gone through: ``inputs`` without readings."""
        usage = self.inputs.usage
        if (
            self.is_hashed and self._rows_outside
        ):  # only a later shard had some: rare, so that hours that are sealed as a whole hash no reading
            for devices in self._not_digested:
                self.digests.add(self._readings(devices, usage)[0])
        digest = self.digests.sha256() if self.is_hashed and self._rows_outside else None
        files = self.session.files_read | self._files_apart
        read = manifest(self.inputs, files, self._rows_outside, digest, self._seen)
        generations = self.session.generations(usage.window.from_at, usage.window.to_at, self.site_id)
        return Loaded(self.inputs, self.as_of, self.seen_xid, read, Silences.of_all(self.silences), generations)

    @property
    def _rows_outside(self) -> int:
        return self.session.rows_outside + self._rows_apart


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
            inputs=inputs,
            as_of=known_as,
            seen_xid=seen.oldest_xid,
            session=session,
            site_id=site_id,
            metered=held.metered,
            policy=policy,
            looks=looks,
            is_hashed=is_hashed,
            is_shown=is_shown or not is_hashed,
            is_shareable=then.files is None,
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
