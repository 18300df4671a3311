"""Everything about a group of bodies that needs no lock: rows decoded, ids found, rows accepted, hours named.

It asks the registry, which may make identities in short transactions of its own, and raises IngestError for a body that
cannot be taken: the caller then tries body by body. It writes no samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import polars as pl

from collector.wire import MAX_CLOCK_SKEW_US, BatchMeta, Stream
from ingest.accept import BODY, EARLIEST_AT_US, MAX_SPAN_US, Accepted, BodyFacts, Refusal, accept, with_body
from ingest.errors import BadBodyError
from ingest.receivers.arrow_check import CheckedStream
from ingest.receivers.block import Block, stackable
from ingest.receivers.native import Body, alike, decode
from ingest.store.allocations import Event, JobKey
from ingest.store.hours import HOUR_US, SiteHour
from ingest.store.identities import EngineKey, OnNode
from ingest.store.registry import Identity, Registry, Sighting
from ingest.store.spools import BatchId
from ingest.whole import Whole, accept_whole

_NAMED: Final = {
    Stream.NODE: ("meter_id", ("meter",)),
    Stream.FABRIC: ("port_id", ("port",)),
    Stream.ENGINE: ("engine_id", ("engine", "model")),
}
_ROW_BY_ROW: Final = frozenset((*_NAMED, Stream.ALLOCATION))
"""Streams whose rows are looked at one by one in any case."""
_NEVER_US: Final = 2**62
HourBounds = dict[SiteHour, dict[Stream, tuple[int, int]]]
"""Per hour and stream the first and last instant of the rows in it."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A checked body and the site its sender belongs to."""

    site_id: int
    body: Body
    numbered: bool = True
    """False for pieces of series: nothing numbers them, and what comes twice is found where it is read."""
    of_site: bool = False
    """Its sender may speak for every node of the site; said of series alone."""
    sent: bytes | None = None
    """The body as sent: of an agent's body whose device is refused it is kept as a dead letter. None = it is kept elsewhere."""
    only: frozenset[str] | None = None
    """Devices, by UUID, whose rows alone are to be taken, as an operator says they are true. None = all, as decided here."""
    under: BatchId | None = None
    """The number it is known by instead of its own, which is used up: what of it was refused then comes now."""

    @property
    def batch(self) -> BatchId | None:
        """What makes it known again when it is sent twice; None = nothing does."""
        if self.under is not None or not self.numbered:
            return self.under
        return BatchId(self.body.meta.spool, self.body.meta.sequence)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A group ready to be written; ``accepted`` rows carry the ids their tables want."""

    submissions: Sequence[Submission]
    identities: Sequence[Identity]
    accepted: dict[Stream, list[Accepted | Whole]]
    hours: HourBounds

    @property
    def refusals(self) -> Iterator[Refusal]:
        return (refusal for parts in self.accepted.values() for part in parts for refusal in part.refusals)

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
    parts = _parts(submissions)
    identities: list[Identity] = []
    for identity in registry.resolve(_sightings(submissions, parts, now_us), now_us):
        if isinstance(identity, BadBodyError):
            raise identity
        only = submissions[len(identities)].only
        identities.append(identity if only is None else _narrowed(identity, submissions[len(identities)], only))
    facts = [BodyFacts(identity.epoch_id, identity.device_ids, identity.second) for identity in identities]
    accepted: dict[Stream, list[Accepted | Whole]] = {}
    rest: dict[Stream, list[_Part]] = {}
    for part in parts:
        whole = None
        if part.block is not None:
            whole = accept_whole(part.stream, part.block, part.bodies, facts, now_us)
        if whole is None:
            rest.setdefault(part.stream, []).append(part)
        else:
            accepted.setdefault(part.stream, []).append(whole)
    for stream, unlike in rest.items():
        frame = with_body([part.frame for part in unlike], [part.rows_of_bodies for part in unlike])
        taken = accept(stream, frame, facts, now_us)
        if stream in _NAMED:
            taken = Accepted(_with_named_ids(registry, stream, taken.rows, identities, submissions), taken.refusals)
        accepted.setdefault(stream, []).append(taken)
    return Prepared(submissions, identities, accepted, _hours(submissions, accepted))


def _narrowed(identity: Identity, submission: Submission, only: frozenset[str]) -> Identity:
    devices = zip(submission.body.meta.devices, identity.device_ids, strict=True)
    return replace(identity, device_ids=tuple(id_ if device.uuid in only else None for device, id_ in devices))


@dataclass(frozen=True)
class _Part:
    """Streams of a group that are alike, with the body each came with."""

    stream: Stream
    members: Sequence[tuple[int, CheckedStream]]

    @property
    def bodies(self) -> list[int]:
        return [body for body, _ in self.members]

    @property
    def rows_of_bodies(self) -> list[tuple[int, int]]:
        return [(body, entry.rows) for body, entry in self.members]

    @cached_property
    def block(self) -> Block | None:
        """The streams as they lie, None where they have to be decoded."""
        entries = [entry for _, entry in self.members]
        if self.stream in _ROW_BY_ROW or not stackable(entries[0]):
            return None
        block = Block.of(entries) if all(entry.layouts == entries[0].layouts for entry in entries) else None
        return block if block is not None and block.is_dense else None

    @cached_property
    def frame(self) -> pl.DataFrame:
        return decode([entry for _, entry in self.members])


def _parts(submissions: Sequence[Submission]) -> list[_Part]:
    entries = [
        (position, entry) for position, submission in enumerate(submissions) for entry in submission.body.streams
    ]
    return [
        _Part(entries[group[0]][1].schema.stream, [entries[index] for index in group])
        for group in alike([entry for _, entry in entries])
    ]


def _sightings(submissions: Sequence[Submission], parts: Sequence[_Part], now_us: int) -> list[Sighting]:
    bounds: dict[int, tuple[int, int]] = {}
    for part in parts:
        if part.stream is not Stream.DEVICE:
            continue
        for position, low, high in _seen(part, now_us):
            known = bounds.get(position, (_NEVER_US, 0))
            bounds[position] = (min(known[0], low), max(known[1], high))
    sightings = []
    for position, submission in enumerate(submissions):
        meta = submission.body.meta
        first_at_us, last_at_us = bounds.get(position, (_NEVER_US, 0))
        if first_at_us == _NEVER_US:
            first_at_us = last_at_us = min(max(meta.created_at_us, EARLIEST_AT_US), now_us)
        trusted = submission.only is not None
        sighting = Sighting(submission.site_id, meta, first_at_us, last_at_us, submission.of_site, trusted)
        sightings.append(sighting)
    return sightings


def _seen(part: _Part, now_us: int) -> Iterable[tuple[int, int, int]]:
    """Return, per body, the first and last instant its device rows speak of."""
    members = [(body, entry.rows) for body, entry in part.members if entry.rows]
    if not members:
        return ()
    if part.block is not None:
        at, span = part.block.column("at_us").reshape(-1), part.block.column("span_us").reshape(-1)
    else:
        at, span = part.frame["at_us"].to_numpy(), part.frame["span_us"].to_numpy()
    # Rows that will be refused for their times must not say since when a device has been where it is.
    good = (at >= EARLIEST_AT_US) & (at <= now_us + MAX_CLOCK_SKEW_US) & (span >= 0) & (span <= MAX_SPAN_US)
    counts = np.array([rows for _, rows in members])
    starts = np.cumsum(counts) - counts
    first = np.minimum.reduceat(np.where(good, at - span, _NEVER_US), starts)
    last = np.maximum.reduceat(np.where(good, at, 0), starts)
    return zip((body for body, _ in members), first.tolist(), last.tolist(), strict=True)


def _with_named_ids(
    registry: Registry,
    stream: Stream,
    rows: pl.DataFrame,
    identities: Sequence[Identity],
    submissions: Sequence[Submission],
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
        if stream is Stream.NODE:
            # A meter known by series alone never bills: nobody has said which of a node's would.
            billing = {place for place, body in zip(places, pairs[BODY], strict=True) if submissions[body].numbered}
            place_ids = {
                **registry.meter_ids(billing),
                **registry.meter_ids(set(places) - billing, bills=False),
            }
        else:
            place_ids = dict(registry.port_ids(places))
        ids = [place_ids[key] for key in places]
    pairs = pairs.with_columns(pl.Series(id_column, ids, dtype=pl.Int32))
    return rows.join(pairs, on=[BODY, *names], how="left", maintain_order="left")


def _hours(submissions: Sequence[Submission], accepted: Mapping[Stream, Sequence[Accepted | Whole]]) -> HourBounds:
    touched: HourBounds = {}
    sites = np.array([submission.site_id for submission in submissions], dtype=np.int64)
    for stream, parts in accepted.items():
        if stream is Stream.ALLOCATION:
            continue
        for part in parts:
            if isinstance(part, Whole):
                at_us = part.block.column("at_us").reshape(-1)
                body = np.repeat(np.array(part.bodies), part.block.layout.rows)
            else:
                at_us, body = part.rows["at_us"].to_numpy(), part.rows[BODY].to_numpy()
            for hour, first, last in _bounds_of_hours(at_us, body, sites):
                streams = touched.setdefault(hour, {})
                known = streams.get(stream, (first, last))
                streams[stream] = (min(known[0], first), max(known[1], last))
    return touched


def _bounds_of_hours(
    at_us: np.ndarray[Any, Any], body: np.ndarray[Any, Any], sites: np.ndarray[Any, Any]
) -> list[tuple[SiteHour, int, int]]:
    """Return the first and last instant of the rows in each hour of each site."""
    if not len(at_us):
        return []
    first, last = int(at_us.min()), int(at_us.max())
    one_site = bool((sites == sites[0]).all())
    if one_site and first // HOUR_US == last // HOUR_US:
        return [(SiteHour(int(sites[0]), first // HOUR_US), first, last)]
    hours = at_us // HOUR_US
    of_row = sites[body]
    order = np.lexsort((hours, of_row))
    hours, of_row, at_us = hours[order], of_row[order], at_us[order]
    starts = np.concatenate(([0], np.flatnonzero((np.diff(hours) != 0) | (np.diff(of_row) != 0)) + 1))
    lows, highs = np.minimum.reduceat(at_us, starts), np.maximum.reduceat(at_us, starts)
    found = zip(of_row[starts].tolist(), hours[starts].tolist(), lows.tolist(), highs.tolist(), strict=True)
    return [(SiteHour(site, hour), low, high) for site, hour, low, high in found]
