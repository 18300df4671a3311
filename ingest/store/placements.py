"""Which node a device is in, dated twice: first sightings, moves, and refusals of a device on two nodes at once.

Nothing is overwritten: a move closes our knowledge of the open placement and writes it again with its end, beside the
new one. What decides lies in the database, so that replicas and restarts decide alike: the placement with the feed that
says so, and when the node last spoke for the device. A less direct feed that names another node than the agent's moves
nothing, and what it placed gives way to the agent. Run it in a short transaction of its own; it serialises with other movers only when something changed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from collector.wire import Feed
from ingest.store.tables import reference, samples
from ingest.store.unnested import unnested

OVERLAP: Final = timedelta(minutes=10)
"""A board cannot be pulled, plugged in elsewhere and booted in less; two nodes within it are a fault or a forgery."""
SILENT_FOR: Final = timedelta(hours=24)
"""For so long nothing as direct must have spoken of a device before a less direct feed moves it: agents have outages."""
_UNSAID: Final = int(Feed.NATIVE)
"""A placement of which nobody wrote down the feed is taken as an agent's until it speaks again."""
_placements: Final = reference.placements
_sightings: Final = reference.device_sightings


@dataclass(frozen=True, slots=True)
class Placement:
    """One stretch of a device in a node, [valid_from, valid_to), as currently known."""

    device_id: int
    node_id: int
    valid_from: datetime
    valid_to: datetime | None = None
    in_service: bool = True
    asset: str | None = None
    feed: int | None = None
    id: int | None = None


@dataclass(frozen=True, slots=True)
class Conflict:
    """A device reported by ``node_id`` while ``other_node_id`` had it: raise a finding, and refuse its rows unless ``kept``.

    They are kept where a less direct feed, or a second scraper, names another node of the site than the one that has it: whose
    rows count is decided where they are read.
    """

    device_id: int
    node_id: int
    other_node_id: int
    at: datetime
    last_seen_at: datetime
    kept: bool = False
    is_second: bool = False
    """Kept as the word of a second scraper: under a feed of its own, that gives way to the rows of the one that has the device."""


@dataclass(frozen=True, slots=True)
class Change:
    """Rows that are no longer our knowledge, and what replaces them."""

    superseded: tuple[Placement, ...] = ()
    added: tuple[Placement, ...] = ()
    restated_from: datetime | None = None
    """From when on the device is elsewhere than where it was said to be before, in hours that may be closed."""


@dataclass(frozen=True, slots=True)
class Sightings:
    """Devices a node reported by a feed, and at which instant first: ``seen`` by device id.

    ``last_seen`` gives, by device id, when the node the device is placed on last reported it, as far as the caller
    knows; what the database knows of it is looked up.
    """

    node_id: int
    seen: Mapping[int, datetime]
    last_seen: Mapping[int, datetime]
    feed: int = int(Feed.NATIVE)
    of_site: bool = False
    """The sender may speak for every node of the site: that it calls a node otherwise than another is no forgery."""


class Heard(NamedTuple):
    """When a node last spoke for a device it has, by one feed."""

    device_id: int
    feed: int
    node_id: int
    last_at: datetime


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What the database knows of devices that are reported from elsewhere than where they are placed."""

    heard: Mapping[int, Sequence[Heard]] = field(default_factory=dict)
    sites: Mapping[int, int] = field(default_factory=dict)

    def last(self, device_id: int, node_id: int, feed: int) -> datetime | None:
        """Return when a node last spoke for a device by this feed or a more direct one."""
        ats = [one.last_at for one in self.heard.get(device_id, ()) if one.node_id == node_id and one.feed <= feed]
        return max(ats, default=None)


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
    changes, conflicts = _settle(conn, seen, reports, overlap)
    if not changes:
        return conflicts
    # Something is new: decide again, alone. Rare enough that one lock for all placements costs nothing.
    conn.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended("wattledger.placements", 0))))
    changes, conflicts = _settle(conn, seen, reports, overlap)
    _write(conn, changes)
    _restate(conn, changes)
    return conflicts


def heard(conn: sa.Connection, spoken: Sequence[Heard]) -> None:
    """Note when nodes last spoke for devices they have; an older instant changes nothing."""
    latest = {(one.device_id, one.feed): one for one in sorted(spoken, key=lambda one: one.last_at)}
    rows = [latest[key] for key in sorted(latest)]  # in one order, or two replicas wait for each other
    if rows:
        given = unnested(_sightings, Heard._fields, rows)
        statement = insert(_sightings).from_select(list(Heard._fields), sa.select(*given.c))
        new = statement.excluded
        conn.execute(
            statement.on_conflict_do_update(
                index_elements=["device_id", "feed"],
                set_={"node_id": new.node_id, "last_at": new.last_at},
                where=new.last_at > _sightings.c.last_at,
            )
        )


def moved_since(conn: sa.Connection, placement_id: int) -> tuple[int, list[tuple[int, int]]]:
    """Return the newest placement's id, and (device, node) of those written after ``placement_id`` that are open."""
    c = _placements.c
    # Ids are given out under the lock that is held until the commit: who sees one has seen all before it.
    newest = int(conn.execute(sa.select(sa.func.coalesce(sa.func.max(c.id), 0))).scalar_one())
    if newest <= placement_id:
        return newest, []
    query = sa.select(c.device_id, c.node_id).where(
        c.id > placement_id, c.id <= newest, c.valid_to.is_(None), c.superseded_at.is_(None)
    )
    return newest, [(device_id, node_id) for device_id, node_id in conn.execute(query)]


def decide(
    known: Sequence[Placement],
    sighting: Placement,
    last_seen_at: datetime | None,
    overlap: timedelta,
    *,
    is_one_site: bool = True,
    of_site: bool = False,
) -> Change | Conflict | None:
    """Decide what one sighting means against a device's known placements, oldest first; None = nothing new. Pure.

    ``last_seen_at`` is when the node it is placed on was last heard of it by a feed as direct as the sighting's.
    ``is_one_site``: whether both nodes are of one site; else no feed is more direct than another. ``of_site``: see :class:`Sightings`.
    """
    at, node_id = sighting.valid_from, sighting.node_id
    covering = next((p for p in known if p.valid_from <= at and (p.valid_to is None or at < p.valid_to)), None)
    if covering is None:
        later = next((p for p in known if p.valid_from > at), None)
        if later is None:
            return Change(added=(sighting,))
        if later.node_id == node_id:
            # History that arrives backwards (an import) begins the placement earlier.
            return Change((later,), (replace(later, valid_from=at, feed=_more_direct(later, sighting), id=None),))
        if _gives_way(later, sighting, is_one_site=is_one_site):
            return Change((later,), (replace(sighting, asset=later.asset),), later.valid_from)
        return Change(added=(replace(sighting, valid_to=later.valid_from),))
    if covering.node_id == node_id:
        if covering.feed == _more_direct(covering, sighting):
            return None
        return Change((covering,), (replace(covering, feed=_more_direct(covering, sighting), id=None),))
    ended = (replace(covering, valid_to=at, id=None),) if covering.valid_from < at else ()
    moved = Change((covering,), (*ended, replace(sighting, asset=covering.asset)))
    if _gives_way(covering, sighting, is_one_site=is_one_site):
        return replace(moved, restated_from=at)
    is_less_direct = is_one_site and _direct(sighting) > _direct(covering)
    # Before it was moved there counts as seen there.
    last = max(covering.valid_from, last_seen_at or covering.valid_from)
    if covering.valid_to is not None or at - last < (SILENT_FOR if is_less_direct else overlap):
        is_second = is_one_site and of_site and _direct(sighting) == Feed.REMOTE_WRITE and not is_less_direct
        kept = is_less_direct or is_second
        return Conflict(sighting.device_id, node_id, covering.node_id, at, last, kept, is_second)
    return moved


def _direct(placement: Placement) -> int:
    return _UNSAID if placement.feed is None else placement.feed


def _more_direct(known: Placement, sighting: Placement) -> int | None:
    return sighting.feed if known.feed is None else min(known.feed, _direct(sighting))


def _gives_way(known: Placement, sighting: Placement, *, is_one_site: bool) -> bool:
    """Whether a placement was provisional: open, and said by a less direct feed than the sighting's."""
    return is_one_site and known.valid_to is None and _direct(sighting) < _direct(known)


def _settle(
    conn: sa.Connection, seen: Sequence[int], reports: Sequence[Sightings], overlap: timedelta
) -> tuple[list[Change], list[tuple[Conflict, ...]]]:
    known = _known(conn, seen)
    evidence = _evidence(conn, known, reports)
    changes: list[Change] = []
    conflicts: list[tuple[Conflict, ...]] = []
    for report in reports:
        refused: list[Conflict] = []
        for device_id, at in report.seen.items():
            before = known.get(device_id, [])
            sighting = Placement(device_id, report.node_id, at, feed=report.feed)
            holder = next((p.node_id for p in before if p.valid_to is None), report.node_id)
            ats = [report.last_seen.get(device_id), evidence.last(device_id, holder, report.feed)]
            last_seen_at = max((at for at in ats if at is not None), default=None)
            is_one_site = evidence.sites.get(holder) == evidence.sites.get(report.node_id)
            verdict = decide(before, sighting, last_seen_at, overlap, is_one_site=is_one_site, of_site=report.of_site)
            if isinstance(verdict, Conflict):
                refused.append(verdict)
            elif verdict is not None:
                changes.append(verdict)
        conflicts.append(tuple(refused))
    return changes, conflicts


def _evidence(conn: sa.Connection, known: Mapping[int, Sequence[Placement]], reports: Sequence[Sightings]) -> _Evidence:
    """Look up what is needed where a device is reported from elsewhere; in the steady state nothing is."""
    nodes: set[int] = set()
    devices: list[int] = []
    for report in reports:
        for device_id in report.seen:
            elsewhere = {p.node_id for p in known.get(device_id, ())} - {report.node_id}
            if elsewhere:
                nodes |= {report.node_id, *elsewhere}
                devices.append(device_id)
    if not devices:
        return _Evidence()
    s, n = _sightings.c, reference.nodes.c
    spoken: dict[int, list[Heard]] = {}
    query = sa.select(s.device_id, s.feed, s.node_id, s.last_at).where(_is_one_of(s.device_id, devices))
    for row in conn.execute(query):
        spoken.setdefault(row.device_id, []).append(Heard(*row))
    sites = conn.execute(sa.select(n.id, n.site_id).where(_is_one_of(n.id, sorted(nodes))))
    return _Evidence(spoken, {row.id: row.site_id for row in sites})


def _is_one_of(column: sa.Column[int], ids: Sequence[int]) -> sa.ColumnElement[bool]:
    return column == sa.any_(sa.cast(ids, sa.ARRAY(sa.Integer)))


def _restate(conn: sa.Connection, changes: Collection[Change]) -> None:
    """Say which hours are to be told anew, of the sites of the nodes that gained a device."""
    restated = [(change.restated_from, change.added[-1].node_id) for change in changes if change.restated_from]
    if not restated:
        return
    n, table = reference.nodes.c, samples.changes
    site_of = {
        row.id: row.site_id
        for row in conn.execute(
            sa.select(n.id, n.site_id).where(_is_one_of(n.id, sorted({node_id for _, node_id in restated})))
        )
    }
    now = conn.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    first: dict[int, datetime] = {}
    for from_at, node_id in restated:
        site_id = site_of[node_id]
        first[site_id] = min(first.get(site_id, from_at), from_at)
    for site_id, from_at in sorted(first.items()):
        row = {"site_id": site_id, "from_at": from_at, "to_at": max(now, from_at), "kind": "placements"}
        conn.execute(sa.insert(table).inline().values(**row))


def _known(conn: sa.Connection, device_ids: Sequence[int]) -> dict[int, list[Placement]]:
    c = _placements.c
    query = (
        sa.select(c.device_id, c.node_id, c.valid_from, c.valid_to, c.in_service, c.asset, c.feed, c.id)
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
