"""Which node a device is in, dated twice: first sightings, moves, and refusals of a device on two nodes at once.

Nothing is overwritten: a move closes our knowledge of the open placement and writes it again with its end, beside the
new one. Run it in a short transaction of its own; it serialises with other movers only when something changed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa

from ingest.store.tables import reference
from ingest.store.unnested import unnested

OVERLAP: Final = timedelta(minutes=10)
"""A board cannot be pulled, plugged in elsewhere and booted in less; two nodes within it are a fault or a forgery."""
_placements: Final = reference.placements


@dataclass(frozen=True, slots=True)
class Placement:
    """One stretch of a device in a node, [valid_from, valid_to), as currently known."""

    device_id: int
    node_id: int
    valid_from: datetime
    valid_to: datetime | None = None
    in_service: bool = True
    asset: str | None = None
    id: int | None = None


@dataclass(frozen=True, slots=True)
class Conflict:
    """A device reported by ``node_id`` while ``other_node_id`` had it: refuse its rows and raise a finding."""

    device_id: int
    node_id: int
    other_node_id: int
    at: datetime
    last_seen_at: datetime


@dataclass(frozen=True, slots=True)
class Change:
    """Rows that are no longer our knowledge, and what replaces them."""

    superseded: tuple[Placement, ...] = ()
    added: tuple[Placement, ...] = ()


@dataclass(frozen=True, slots=True)
class Sightings:
    """Devices a node reported, and at which instant first: ``seen`` by device id.

    ``last_seen`` gives, by device id, when the node the device is placed on last reported it, as far as the caller
    knows; a device missing there was not seen lately.
    """

    node_id: int
    seen: Mapping[int, datetime]
    last_seen: Mapping[int, datetime]


def place(
    conn: sa.Connection,
    node_id: int,
    seen: Mapping[int, datetime],
    last_seen: Mapping[int, datetime],
    *,
    overlap: timedelta = OVERLAP,
) -> tuple[Conflict, ...]:
    """Record what one node reported; return the refusals. See :class:`Sightings` for the arguments."""
    return place_all(conn, [Sightings(node_id, seen, last_seen)], overlap=overlap)[0]


def place_all(
    conn: sa.Connection, reports: Sequence[Sightings], *, overlap: timedelta = OVERLAP
) -> list[tuple[Conflict, ...]]:
    """Record what several nodes reported; return the refusals of each. A device may be in one of the reports only."""
    seen = [device_id for report in reports for device_id in report.seen]
    if len(seen) != len(set(seen)):
        raise ValueError("a device is in two reports; place one after the other")
    if not seen:
        return [()] * len(reports)
    changes, conflicts = _settle(_known(conn, seen), reports, overlap)
    if not changes:
        return conflicts
    # Something is new: decide again, alone. Rare enough that one lock for all placements costs nothing.
    conn.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended("wattledger.placements", 0))))
    changes, conflicts = _settle(_known(conn, seen), reports, overlap)
    _write(conn, changes)
    return conflicts


def decide(
    known: Sequence[Placement],
    node_id: int,
    device_id: int,
    at: datetime,
    last_seen_at: datetime | None,
    overlap: timedelta,
) -> Change | Conflict | None:
    """Decide what one sighting means against a device's known placements, oldest first; None = nothing new. Pure."""
    covering = next((p for p in known if p.valid_from <= at and (p.valid_to is None or at < p.valid_to)), None)
    sighting = Placement(device_id, node_id, at)
    if covering is None:
        later = next((p for p in known if p.valid_from > at), None)
        if later is None:
            return Change(added=(sighting,))
        if later.node_id == node_id:
            # History that arrives backwards (an import) begins the placement earlier.
            return Change((later,), (replace(later, valid_from=at, id=None),))
        return Change(added=(replace(sighting, valid_to=later.valid_from),))
    if covering.node_id == node_id:
        return None
    # Before it was moved there counts as seen there: after a restart nobody remembers more.
    last = max(covering.valid_from, last_seen_at or covering.valid_from)
    if covering.valid_to is not None or at - last < overlap:
        return Conflict(device_id, node_id, covering.node_id, at, last)
    ended = replace(covering, valid_to=at, id=None)
    return Change((covering,), (ended, replace(sighting, asset=covering.asset)))


def _settle(
    known: Mapping[int, list[Placement]], reports: Sequence[Sightings], overlap: timedelta
) -> tuple[list[Change], list[tuple[Conflict, ...]]]:
    changes: list[Change] = []
    conflicts: list[tuple[Conflict, ...]] = []
    for report in reports:
        refused: list[Conflict] = []
        for device_id, at in report.seen.items():
            before = known.get(device_id, [])
            verdict = decide(before, report.node_id, device_id, at, report.last_seen.get(device_id), overlap)
            if isinstance(verdict, Conflict):
                refused.append(verdict)
            elif verdict is not None:
                changes.append(verdict)
        conflicts.append(tuple(refused))
    return changes, conflicts


def _known(conn: sa.Connection, device_ids: Sequence[int]) -> dict[int, list[Placement]]:
    c = _placements.c
    query = (
        sa.select(c.device_id, c.node_id, c.valid_from, c.valid_to, c.in_service, c.asset, c.id)
        .where(c.device_id == sa.any_(sa.cast(device_ids, sa.ARRAY(sa.Integer))), c.superseded_at.is_(None))
        .order_by(c.device_id, c.valid_from)
    )
    known: dict[int, list[Placement]] = {}
    for row in conn.execute(query):
        known.setdefault(row.device_id, []).append(Placement(*row))
    return known


def _write(conn: sa.Connection, changes: Collection[Change]) -> None:
    """Write under the lock. What is written is known from after the wait on, or a row would be replaced before it was known."""
    superseded = [placement.id for change in changes for placement in change.superseded]
    devices = [placement.device_id for change in changes for placement in change.added]
    is_one = _placements.c.device_id == sa.any_(sa.cast(devices, sa.ARRAY(sa.Integer)))
    latest = sa.select(sa.func.max(_placements.c.recorded_at)).where(is_one)
    known_at = conn.execute(
        sa.select(sa.func.greatest(sa.func.clock_timestamp(), latest.scalar_subquery() + timedelta(microseconds=1)))
    ).scalar_one()
    if superseded:
        statement = sa.update(_placements).where(_placements.c.id.in_(superseded))
        conn.execute(statement.values(superseded_at=known_at))
    added = [
        {column: value for column, value in asdict(placement).items() if column != "id"} | {"recorded_at": known_at}
        for change in changes
        for placement in change.added
    ]
    if added:
        columns = list(added[0])
        given = unnested(_placements, columns, [list(row.values()) for row in added])
        conn.execute(sa.insert(_placements).from_select(columns, sa.select(*given.c), include_defaults=False))
