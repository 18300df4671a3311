"""Everything about a group of bodies that needs no lock: rows decoded, ids found, rows accepted, hours named.

It asks the registry, which may make identities in short transactions of its own, and raises IngestError for a body that
cannot be taken: the caller then tries body by body. It writes no samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from collector.wire import MAX_CLOCK_SKEW_US, BatchMeta, Stream
from ingest.accept import BODY, EARLIEST_AT_US, MAX_SPAN_US, Accepted, BodyFacts, accept, with_body
from ingest.errors import BadBodyError
from ingest.receivers.native import Body, alike, decode
from ingest.store.allocations import Event, JobKey
from ingest.store.hours import HOUR_US, SiteHour
from ingest.store.identities import EngineKey, OnNode
from ingest.store.registry import Identity, Registry, Sighting
from ingest.store.spools import BatchId

_NAMED: Final = {
    Stream.NODE: ("meter_id", ("meter",)),
    Stream.FABRIC: ("port_id", ("port",)),
    Stream.ENGINE: ("engine_id", ("engine", "model")),
}
_NEVER_US: Final = 2**62
HourBounds = dict[SiteHour, dict[Stream, tuple[int, int]]]
"""Per hour and stream the first and last instant of the rows in it."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A checked body and the site its sender belongs to."""

    site_id: int
    body: Body

    @property
    def batch(self) -> BatchId:
        return BatchId(self.body.meta.spool, self.body.meta.sequence)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A group ready to be written; ``accepted`` rows carry the ids their tables want."""

    submissions: Sequence[Submission]
    identities: Sequence[Identity]
    accepted: dict[Stream, Accepted]
    hours: HourBounds

    def allocation_events(self, rows: pl.DataFrame) -> Iterator[Event]:
        for row in rows.iter_rows(named=True):
            submission = self.submissions[row[BODY]]
            meta: BatchMeta = submission.body.meta
            yield Event(
                site_id=submission.site_id,
                device_id=row["device_id"],
                job=JobKey(row["cluster"], row["native_job_id"], row["job_started_at_us"]),
                at_us=row["at_us"],
                action=row["action"],
                energy_mj=row["energy_mj"],
                share_ratio=row["share_ratio"],
                accelerators=meta.devices[row["device"]].accelerators,
                evidence=row["evidence"],
                origin=int(meta.origin),
                texts=(
                    row["account"],
                    row["user"],
                    row["partition"],
                    row["qos"],
                    row["namespace"],
                    row["label"],
                    row["job_name"],
                    row["workload_kind"],
                ),
            )


def prepare(registry: Registry, submissions: Sequence[Submission], now_us: int) -> Prepared:
    """Decode and accept a group; raises IngestError if any of its bodies cannot be taken."""
    frames = _decoded(submissions)
    identities: list[Identity] = []
    for identity in registry.resolve(_sightings(submissions, frames.get(Stream.DEVICE), now_us), now_us):
        if isinstance(identity, BadBodyError):
            raise identity
        identities.append(identity)
    facts = [BodyFacts(identity.epoch_id, identity.device_ids) for identity in identities]
    accepted: dict[Stream, Accepted] = {}
    for stream, frame in frames.items():
        taken = accept(stream, frame, facts, now_us)
        if stream in _NAMED:
            taken = Accepted(_with_named_ids(registry, stream, taken.rows, identities), taken.refusals)
        accepted[stream] = taken
    return Prepared(submissions, identities, accepted, _hours(submissions, accepted))


def _decoded(submissions: Sequence[Submission]) -> dict[Stream, pl.DataFrame]:
    """Decode the group's streams, those that are alike in one pass, and mark the rows with their body."""
    entries = [
        (position, entry) for position, submission in enumerate(submissions) for entry in submission.body.streams
    ]
    parts: dict[Stream, tuple[list[pl.DataFrame], list[list[tuple[int, int]]]]] = {}
    for group in alike([entry for _, entry in entries]):
        members = [entries[index] for index in group]
        frames, bodies = parts.setdefault(members[0][1].schema.stream, ([], []))
        frames.append(decode([entry for _, entry in members]))
        bodies.append([(position, entry.rows) for position, entry in members])
    return {stream: with_body(frames, bodies) for stream, (frames, bodies) in parts.items()}


def _sightings(submissions: Sequence[Submission], devices: pl.DataFrame | None, now_us: int) -> list[Sighting]:
    bounds: dict[int, tuple[int, int]] = {}
    if devices is not None and not devices.is_empty():
        at, span = devices["at_us"].to_numpy(), devices["span_us"].to_numpy()
        body = devices[BODY].to_numpy()
        # Rows that will be refused for their times must not say since when a device has been where it is.
        good = (at >= EARLIEST_AT_US) & (at <= now_us + MAX_CLOCK_SKEW_US) & (span >= 0) & (span <= MAX_SPAN_US)
        # Rows of one stream of a body stand together, so runs of equal numbers are few.
        starts = np.concatenate(([0], np.flatnonzero(np.diff(body)) + 1))
        first = np.minimum.reduceat(np.where(good, at - span, _NEVER_US), starts)
        last = np.maximum.reduceat(np.where(good, at, 0), starts)
        for position, low, high in zip(body[starts].tolist(), first.tolist(), last.tolist(), strict=True):
            known = bounds.get(position, (_NEVER_US, 0))
            bounds[position] = (min(known[0], low), max(known[1], high))
    sightings = []
    for position, submission in enumerate(submissions):
        meta = submission.body.meta
        first_at_us, last_at_us = bounds.get(position, (_NEVER_US, 0))
        if first_at_us == _NEVER_US:
            first_at_us = last_at_us = min(max(meta.created_at_us, EARLIEST_AT_US), now_us)
        sightings.append(Sighting(submission.site_id, meta, first_at_us, last_at_us))
    return sightings


def _with_named_ids(
    registry: Registry, stream: Stream, rows: pl.DataFrame, identities: Sequence[Identity]
) -> pl.DataFrame:
    """Add the ids of meters, ports or engines, which rows name by text."""
    id_column, names = _NAMED[stream]
    pairs = rows.select(BODY, *names).unique(maintain_order=True)
    keys: list[tuple[Any, ...]] = [(identities[body].node_id, *texts) for body, *texts in pairs.iter_rows()]
    if stream is Stream.ENGINE:
        engines = [EngineKey(*key) for key in keys]
        engine_ids = registry.engine_ids(engines)
        ids = [engine_ids[key] for key in engines]
    else:
        places = [OnNode(*key) for key in keys]
        place_ids = registry.meter_ids(places) if stream is Stream.NODE else registry.port_ids(places)
        ids = [place_ids[key] for key in places]
    pairs = pairs.with_columns(pl.Series(id_column, ids, dtype=pl.Int32))
    return rows.join(pairs, on=[BODY, *names], how="left", maintain_order="left")


def _hours(submissions: Sequence[Submission], accepted: dict[Stream, Accepted]) -> HourBounds:
    touched: HourBounds = {}
    sites = pl.Series("site", [submission.site_id for submission in submissions], dtype=pl.Int64)
    one_site = sites.n_unique() == 1
    for stream, taken in accepted.items():
        if taken.rows.is_empty() or stream is Stream.ALLOCATION:
            continue
        at_us = taken.rows["at_us"].to_numpy()
        first, last = int(at_us.min()), int(at_us.max())
        found = [(sites[0], first // HOUR_US, first, last)]
        if not one_site or first // HOUR_US != last // HOUR_US:
            at = pl.col("at_us")
            keyed = taken.rows.select(sites.gather(taken.rows[BODY]), (at // HOUR_US).alias("hour"), at)
            bounds = (at.min().alias("first"), at.max().alias("last"))
            found = list(keyed.group_by("site", "hour").agg(bounds).iter_rows())
        for site, hour, first, last in found:
            touched.setdefault(SiteHour(site, hour), {})[stream] = (first, last)
    return touched
