"""Knows the ids of what bodies speak of: nodes, epochs, devices and where they are placed, meters, ports, engines.

A cache in front of :mod:`ingest.store.identities` and :mod:`ingest.store.placements`: identities never change, so a
steady sender costs a dictionary look-up. Whatever is new is made in a short transaction of its own, before the one that
copies samples. It refuses a device on two nodes at once, and raises the finding. Where devices are is the database's to
say: which of them moved is asked once a second, and when they were last spoken for is written down once a minute.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from collector.wire import BatchMeta, DeviceRef, Feed
from ingest.errors import BadBodyError
from ingest.store import identities, placements
from ingest.store.days import Days
from ingest.store.identities import EngineKey, EpochKey, NodeKey, OnNode
from ingest.store.tables import books

_MEMO_ENTRIES: Final = 131_072
_MEMO_DEVICES: Final = 1_000_000
"""Devices whose node is remembered, some 100 bytes each; beyond it all bodies are looked up again."""
_MEMO_NAMES: Final = 1_000_000
"""Meters, ports or engines remembered; beyond it all are looked up again."""
MAX_NAMES_AN_HOUR: Final = 4_096
"""New meters, ports and engines of one node; the largest has some hundred."""
_CONFLICT_MEMO_US: Final = 10_000_000
"""A refused device is looked up again after this long: it may have been moved for good meanwhile."""
_KEPT_MEMO_US: Final = 60_000_000
"""The same of a device whose rows are kept beside those of the node that has it."""
_LOOK_EVERY_S: Final = 1.0
_NOTE_AFTER_US: Final = 60_000_000
_NOTE_AT_ONCE_US: Final = 120_000_000
"""A sender that is so far past what was written down of it catches up: by the clock a minute would be hours of its time."""
_NOTE_EVERY_S: Final = 5.0
_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_Key = TypeVar("_Key", EngineKey, OnNode)


@dataclass(frozen=True, slots=True)
class Sighting:
    """A body as far as identity goes; instants are those of its first and last device row."""

    site_id: int
    meta: BatchMeta
    first_at_us: int
    last_at_us: int
    of_site: bool = False
    """Its sender may speak for every node of the site."""
    trusted: bool = False
    """An operator says that its devices were on its node, whatever is known of another."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Ids of one body. ``device_ids`` follows the body's device table; None = refused, placed on another node.

    ``elsewhere``: devices that another node has by a more direct feed, or had first; their rows are kept.
    """

    node_id: int
    epoch_id: int
    device_ids: tuple[int | None, ...]
    elsewhere: frozenset[int] = frozenset()
    second: Mapping[int, int] = field(default_factory=dict)
    """Of those the ones that another scraper has, with the epoch that their rows are of."""


@dataclass(slots=True)
class _Memo:
    devices: tuple[DeviceRef, ...]
    epoch: tuple[str, int, int, int, int]
    identity: Identity
    placed_from_us: int
    placements_version: int
    valid_until_us: int | None
    last_us: int
    """The last instant its node spoke of these devices."""
    noted_us: int = 0
    """What of it the database was told."""


class _NamesAnHour:
    """How many meters, ports and engines of each node were not known to this process before: each is a row for good."""

    def __init__(self) -> None:
        self._hour = 0
        self._made: Counter[int] = Counter()

    def take(self, wanted: Counter[int]) -> None:
        """Count these, by node; raises BadBodyError, counting none, where a node has named too many this hour."""
        hour = int(time.time()) // 3600
        if hour != self._hour:
            self._hour, self._made = hour, Counter()
        for node_id, count in wanted.items():
            if self._made[node_id] + count > MAX_NAMES_AN_HOUR:
                raise BadBodyError(
                    "too_many_new",
                    f"more than {MAX_NAMES_AN_HOUR} new meters, ports and engines of one node in an hour",
                )
        self._made.update(wanted)


class Registry:
    """Shared by the writer's threads; one at a time asks the database."""

    def __init__(
        self, engine: sa.Engine, *, look_every_s: float = _LOOK_EVERY_S, max_devices: int = _MEMO_DEVICES
    ) -> None:
        self._engine = engine
        self._max_devices = max_devices
        self._look_every_s = look_every_s
        self._lock = threading.Lock()
        self._memos: dict[tuple[int, str, str], _Memo] = {}
        self._meters: dict[OnNode, int] = {}
        self._ports: dict[OnNode, int] = {}
        self._engines: dict[EngineKey, int] = {}
        self._names = _NamesAnHour()
        self._days = Days(engine)
        self._placed: dict[int, int] = {}
        self._placements_version = 0
        self._newest_placement: int | None = None
        self._looked_s = -math.inf
        self._noted_s = -math.inf
        self._to_note: dict[tuple[int, str, str], _Memo] = {}

    def resolve(self, sightings: Sequence[Sighting], now_us: int) -> list[Identity | BadBodyError]:
        """Return each body's ids, or why it cannot have any. Raises SQLAlchemy's errors when the database fails."""
        with self._lock:
            if len(self._placed) > self._max_devices:
                # Together: a body is believed for as long as it is known where each of its devices is.
                self._memos.clear()
                self._to_note.clear()
                self._placed.clear()
            self._look()
            found: dict[int, Identity | BadBodyError] = {}
            missing: list[tuple[int, Sighting]] = []
            for position, sighting in enumerate(sightings):
                identity = self._recall(sighting, now_us)
                if identity is None:
                    missing.append((position, sighting))
                else:
                    found[position] = identity
            if missing:
                with self._engine.begin() as conn:
                    made = self._register(conn, missing)
                found |= made
                for position, sighting in missing:  # only now: what a rolled-back transaction made has no id
                    self._remember(sighting, made[position], now_us)
            self._note()
            return [found[position] for position in range(len(sightings))]

    def meter_ids(self, keys: Iterable[OnNode], *, bills: bool = True) -> Mapping[OnNode, int]:
        """Return the ids of meters; ``bills`` holds for those made now."""
        return self._named(self._meters, keys, partial(identities.meter_ids, bills=bills))

    def port_ids(self, keys: Iterable[OnNode]) -> Mapping[OnNode, int]:
        return self._named(self._ports, keys, identities.port_ids)

    def engine_ids(self, keys: Iterable[EngineKey]) -> Mapping[EngineKey, int]:
        return self._named(self._engines, keys, identities.engine_ids)

    def ensure_days(self, table: str, days: Iterable[int]) -> None:
        """Make the partitions for these days (since the Unix epoch) where they are missing."""
        self._days.ensure(table, days)

    def forget_days(self) -> None:
        """Ask again which partitions exist: one was dropped meanwhile."""
        self._days.forget()

    def _recall(self, sighting: Sighting, now_us: int) -> Identity | None:
        meta = sighting.meta
        if sighting.trusted:
            return None
        memo = self._memos.get((sighting.site_id, meta.node, meta.spool))
        if (
            memo is None
            or memo.placements_version != self._placements_version
            or (memo.devices is not meta.devices and memo.devices != meta.devices)
            or memo.epoch != _epoch(meta)
            or sighting.first_at_us < memo.placed_from_us
            or (memo.valid_until_us is not None and now_us > memo.valid_until_us)
        ):
            return None
        self._spoke(memo, sighting)
        return memo.identity

    def _spoke(self, memo: _Memo, sighting: Sighting) -> None:
        memo.last_us = max(memo.last_us, sighting.last_at_us)
        if memo.last_us - memo.noted_us >= _NOTE_AFTER_US:
            self._to_note[sighting.site_id, sighting.meta.node, sighting.meta.spool] = memo

    def _look(self) -> None:
        """Ask what other replicas moved: who still counts it among his own must ask again."""
        now_s = time.monotonic()
        if now_s - self._looked_s < self._look_every_s:
            return
        with self._engine.begin() as conn:
            since = sys.maxsize if self._newest_placement is None else self._newest_placement
            newest, moved = placements.moved_since(conn, since)
        self._newest_placement, self._looked_s = newest, now_s
        for device_id, node_id in moved:
            if self._placed.get(device_id, node_id) != node_id:
                self._placed[device_id] = node_id
                self._placements_version += 1

    def _note(self) -> None:
        """Write down when nodes last spoke for their devices: once a minute each, a few seconds' worth at a time."""
        if not self._to_note:
            return
        now_s = time.monotonic()
        memos = self._to_note.values()
        if now_s - self._noted_s < _NOTE_EVERY_S and all(m.last_us - m.noted_us < _NOTE_AT_ONCE_US for m in memos):
            return
        with self._engine.begin() as conn:
            placements.heard(conn, [one for memo in memos for one in _heard(memo)])
        for memo in memos:
            memo.noted_us = memo.last_us
        self._to_note, self._noted_s = {}, now_s

    def _register(
        self, conn: sa.Connection, missing: Sequence[tuple[int, Sighting]]
    ) -> dict[int, Identity | BadBodyError]:
        node_ids = identities.node_ids(conn, {NodeKey(s.site_id, s.meta.node) for _, s in missing})
        versions = {
            _epoch_key(node_ids[NodeKey(s.site_id, s.meta.node)], s.meta): s.meta.agent_version for _, s in missing
        }
        epoch_ids = identities.epoch_ids(conn, versions)
        device_ids, orphans = _device_ids(conn, missing)
        found: dict[int, Identity | BadBodyError] = dict(orphans)
        for together in _apart(missing, orphans, device_ids):
            reports = [
                self._report(node_ids[NodeKey(one.site_id, one.meta.node)], one, ids) for _, one, ids in together
            ]
            for (position, sighting, ids), report, conflicts in zip(
                together, reports, placements.place_all(conn, reports), strict=True
            ):
                self._placed_on(conn, sighting, report.node_id, ids, conflicts)
                kept = {conflict.device_id for conflict in conflicts if conflict.kept or sighting.trusted}
                refused = {conflict.device_id for conflict in conflicts} - kept
                found[position] = Identity(
                    report.node_id,
                    epoch_ids[_epoch_key(report.node_id, sighting.meta)],
                    tuple(None if device_id in refused else device_id for device_id in ids),
                    frozenset(kept),
                    _second(conn, sighting, report.node_id, conflicts),
                )
        return found

    def _report(self, node_id: int, sighting: Sighting, ids: Sequence[int]) -> placements.Sightings:
        elsewhere = {device_id for device_id in ids if self._placed.get(device_id, node_id) != node_id}
        last_seen: dict[int, datetime] = {}
        if elsewhere:
            for memo in self._memos.values():
                if memo.epoch[2] > sighting.meta.feed:
                    continue
                for device_id in elsewhere.intersection(_own(memo)):
                    if self._placed[device_id] == memo.identity.node_id:
                        last_seen[device_id] = max(last_seen.get(device_id, _UNIX_EPOCH), _instant(memo.last_us))
        seen = dict.fromkeys(ids, _instant(sighting.first_at_us))
        return placements.Sightings(node_id, seen, last_seen, int(sighting.meta.feed), sighting.of_site)

    def _placed_on(
        self,
        conn: sa.Connection,
        sighting: Sighting,
        node_id: int,
        ids: Sequence[int],
        conflicts: Sequence[placements.Conflict],
    ) -> None:
        """Note where the devices are now, with a finding for each that is elsewhere."""
        for conflict in conflicts:
            _raise_finding(conn, sighting, conflict)
        where = {conflict.device_id: conflict.other_node_id for conflict in conflicts}
        for device_id in ids:
            at_node = where.get(device_id, node_id)
            if self._placed.get(device_id, at_node) != at_node:
                self._placements_version += 1  # it moved: whoever still counts it among his own must ask again
            self._placed[device_id] = at_node

    def _remember(self, sighting: Sighting, identity: Identity | BadBodyError, now_us: int) -> None:
        if isinstance(identity, BadBodyError) or sighting.trusted:
            return
        if len(self._memos) >= _MEMO_ENTRIES:
            self._memos.clear()
            self._to_note.clear()
        meta = sighting.meta
        key = (sighting.site_id, meta.node, meta.spool)
        until_us = None
        if None in identity.device_ids:
            until_us = now_us + _CONFLICT_MEMO_US
        elif identity.elsewhere:
            until_us = now_us + _KEPT_MEMO_US
        before = self._memos.get(key)
        memo = self._memos[key] = _Memo(
            meta.devices,
            _epoch(meta),
            identity,
            sighting.first_at_us,
            self._placements_version,
            until_us,
            sighting.last_at_us,
        )
        if before is not None and before.identity == identity:
            memo.noted_us, memo.last_us = before.noted_us, max(before.last_us, memo.last_us)
        self._spoke(memo, sighting)

    def _named(
        self,
        cache: dict[_Key, int],
        keys: Iterable[_Key],
        make: Callable[[sa.Connection, Iterable[_Key]], Mapping[_Key, int]],
    ) -> Mapping[_Key, int]:
        wanted = set(keys)
        missing = {key for key in wanted if key not in cache}
        if not missing:
            return cache
        with self._lock:
            self._names.take(Counter(key.node_id for key in missing))
            with self._engine.begin() as conn:
                made = make(conn, missing)
            if len(cache) >= _MEMO_NAMES:
                made = {**{key: cache[key] for key in wanted - missing}, **made}
                cache.clear()  # all of it can be looked up again
            cache.update(made)
        return cache


def _own(memo: _Memo) -> Iterator[int]:
    """Yield the devices of a body that its node has."""
    for device_id in memo.identity.device_ids:
        if device_id is not None and device_id not in memo.identity.elsewhere:
            yield device_id


def _second(
    conn: sa.Connection, sighting: Sighting, node_id: int, conflicts: Sequence[placements.Conflict]
) -> dict[int, int]:
    """Return the epoch of each device that another scraper has: it counts where that one tells nothing."""
    devices = [conflict.device_id for conflict in conflicts if conflict.is_second]
    if not devices or sighting.trusted:
        return {}
    key = _epoch_key(node_id, sighting.meta)._replace(feed=int(Feed.SECOND_SCRAPER))
    epoch_id = identities.epoch_ids(conn, {key: sighting.meta.agent_version})[key]
    return dict.fromkeys(devices, epoch_id)


def _heard(memo: _Memo) -> Iterator[placements.Heard]:
    for device_id in _own(memo):
        yield placements.Heard(device_id, memo.epoch[2], memo.identity.node_id, _instant(memo.last_us))


def _device_ids(
    conn: sa.Connection, missing: Sequence[tuple[int, Sighting]]
) -> tuple[dict[str, int], dict[int, BadBodyError]]:
    """Return the ids of all devices, and the bodies that name a board nobody has reported."""
    everything = dict.fromkeys(device for _, sighting in missing for device in sighting.meta.devices)
    try:
        return identities.device_ids(conn, everything), {}
    except identities.UnknownParentError:
        pass
    ids: dict[str, int] = {}
    orphans: dict[int, BadBodyError] = {}
    for position, sighting in missing:
        try:
            ids |= identities.device_ids(conn, sighting.meta.devices)
        except identities.UnknownParentError as error:
            orphans[position] = BadBodyError("unknown_parent", str(error))
    return ids, orphans


def _apart(
    missing: Sequence[tuple[int, Sighting]], orphans: Mapping[int, BadBodyError], device_ids: Mapping[str, int]
) -> Iterator[list[tuple[int, Sighting, tuple[int, ...]]]]:
    """Part bodies, in their order, into runs in which no device comes twice: a run is placed at once, its devices' ids beside it."""
    run: list[tuple[int, Sighting, tuple[int, ...]]] = []
    seen: set[int] = set()
    for position, sighting in missing:
        if position in orphans:
            continue
        ids = tuple(device_ids[device.uuid] for device in sighting.meta.devices)
        if not seen.isdisjoint(ids):
            yield run
            run, seen = [], set()
        run.append((position, sighting, ids))
        seen.update(ids)
    if run:
        yield run


def _raise_finding(conn: sa.Connection, sighting: Sighting, conflict: placements.Conflict) -> None:
    day: date = conflict.at.date()
    statement = insert(books.findings).values(
        dedupe_key=f"device_on_two_nodes/{conflict.device_id}/{conflict.node_id}/{day:%Y-%m-%d}",
        site_id=sighting.site_id,
        kind="device_on_two_nodes",
        device_id=conflict.device_id,
        start_at=conflict.at,
        end_at=conflict.at,
        evidence={
            "refused_node_id": conflict.node_id,
            "placed_on_node_id": conflict.other_node_id,
            "last_seen_there_at": conflict.last_seen_at.isoformat(),
            "spool": sighting.meta.spool,
            "feed": int(sighting.meta.feed),
            "rows": "kept" if conflict.kept else "refused",
        },
        confidence=1.0,
        origin=int(sighting.meta.origin),
    )
    conn.execute(statement.on_conflict_do_nothing(index_elements=["dedupe_key"]))


def _epoch(meta: BatchMeta) -> tuple[str, int, int, int, int]:
    return meta.boot_id, meta.driver_epoch, meta.feed, meta.origin, meta.cadence_us


def _epoch_key(node_id: int, meta: BatchMeta) -> EpochKey:
    return EpochKey(node_id, meta.boot_id, meta.driver_epoch, int(meta.feed), int(meta.origin), meta.cadence_us)


def _instant(at_us: int) -> datetime:
    return _UNIX_EPOCH + timedelta(microseconds=at_us)
