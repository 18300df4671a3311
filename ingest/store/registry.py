"""Knows the ids of what bodies speak of: nodes, epochs, devices and where they are placed, meters, ports, engines.

A cache in front of :mod:`ingest.store.identities` and :mod:`ingest.store.placements`: identities never change, so a
steady sender costs a dictionary look-up. Whatever is new is made in a short transaction of its own, before the one that
copies samples. It refuses a device on two nodes at once, and raises the finding.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from collector.wire import BatchMeta, DeviceRef
from ingest.errors import BadBodyError
from ingest.store import identities, partitions, placements
from ingest.store.identities import EngineKey, EpochKey, NodeKey, OnNode
from ingest.store.tables import books

_MEMO_ENTRIES: Final = 131_072
_MEMO_NAMES: Final = 1_000_000
"""Meters, ports or engines remembered; beyond it all are looked up again."""
MAX_NAMES_AN_HOUR: Final = 4_096
"""New meters, ports and engines of one node; the largest has some hundred."""
_CONFLICT_MEMO_US: Final = 10_000_000
"""A refused device is looked up again after this long: it may have been moved for good meanwhile."""
_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_Key = TypeVar("_Key", EngineKey, OnNode)


@dataclass(frozen=True, slots=True)
class Sighting:
    """A body as far as identity goes; instants are those of its first and last device row."""

    site_id: int
    meta: BatchMeta
    first_at_us: int
    last_at_us: int


@dataclass(frozen=True, slots=True)
class Identity:
    """Ids of one body. ``device_ids`` follows the body's device table; None = refused, placed on another node."""

    node_id: int
    epoch_id: int
    device_ids: tuple[int | None, ...]


@dataclass(slots=True)
class _Memo:
    devices: tuple[DeviceRef, ...]
    epoch: tuple[str, int, int, int, int]
    identity: Identity
    placed_from_us: int
    placements_version: int
    valid_until_us: int | None


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

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._memos: dict[tuple[int, str, str], _Memo] = {}
        self._meters: dict[OnNode, int] = {}
        self._ports: dict[OnNode, int] = {}
        self._engines: dict[EngineKey, int] = {}
        self._names = _NamesAnHour()
        self._days: set[tuple[str, int]] = set()
        self._placed: dict[int, int] = {}
        self._last_seen_us: dict[int, int] = {}
        self._placements_version = 0

    def resolve(self, sightings: Sequence[Sighting], now_us: int) -> list[Identity | BadBodyError]:
        """Return each body's ids, or why it cannot have any. Raises SQLAlchemy's errors when the database fails."""
        with self._lock:
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
        missing = {day for day in days if (table, day) not in self._days}
        if not missing:
            return
        with self._lock, self._engine.begin() as conn:
            partitions.ensure_days(conn, table, [_UNIX_EPOCH.date() + timedelta(days=day) for day in missing])
        self._days |= {(table, day) for day in missing}

    def forget_days(self) -> None:
        """Ask again which partitions exist: one was dropped meanwhile."""
        self._days.clear()

    def _recall(self, sighting: Sighting, now_us: int) -> Identity | None:
        meta = sighting.meta
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
        self._saw(memo.identity.device_ids, sighting.last_at_us)
        return memo.identity

    def _saw(self, device_ids: Iterable[int | None], at_us: int) -> None:
        """Note when devices last reported from where they are placed: the node's other devices prove nothing of them."""
        for device_id in device_ids:
            if device_id is not None:
                self._last_seen_us[device_id] = max(self._last_seen_us.get(device_id, 0), at_us)

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
                refused = self._placed_on(conn, sighting, report.node_id, ids, conflicts)
                found[position] = Identity(
                    report.node_id,
                    epoch_ids[_epoch_key(report.node_id, sighting.meta)],
                    tuple(None if device_id in refused else device_id for device_id in ids),
                )
        return found

    def _report(self, node_id: int, sighting: Sighting, ids: Sequence[int]) -> placements.Sightings:
        last_seen = {
            device_id: _instant(self._last_seen_us[device_id])
            for device_id in ids
            if device_id in self._last_seen_us and self._placed.get(device_id) != node_id
        }
        return placements.Sightings(node_id, dict.fromkeys(ids, _instant(sighting.first_at_us)), last_seen)

    def _placed_on(
        self,
        conn: sa.Connection,
        sighting: Sighting,
        node_id: int,
        ids: Sequence[int],
        conflicts: Sequence[placements.Conflict],
    ) -> frozenset[int]:
        """Note where the devices are now; return those that are elsewhere, with a finding each."""
        refused = frozenset(conflict.device_id for conflict in conflicts)
        for conflict in conflicts:
            _raise_finding(conn, sighting, conflict)
        self._saw([device_id for device_id in ids if device_id not in refused], sighting.last_at_us)
        for device_id in ids:
            if device_id not in refused and self._placed.get(device_id, node_id) != node_id:
                self._placements_version += 1  # it moved: whoever still counts it among his own must ask again
            if device_id not in refused:
                self._placed[device_id] = node_id
        return refused

    def _remember(self, sighting: Sighting, identity: Identity | BadBodyError, now_us: int) -> None:
        if isinstance(identity, BadBodyError):
            return
        if len(self._memos) >= _MEMO_ENTRIES:
            self._memos.clear()
        meta = sighting.meta
        key = (sighting.site_id, meta.node, meta.spool)
        until_us = now_us + _CONFLICT_MEMO_US if None in identity.device_ids else None
        self._memos[key] = _Memo(
            meta.devices, _epoch(meta), identity, sighting.first_at_us, self._placements_version, until_us
        )

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
