"""What a set of allocation events of one job and device means: intervals, whatever the order in which the events came. Pure.

Agents send a backlog oldest first with live batches in between, so an event may come long after later ones. Nothing here is
folded event by event: the intervals follow from the set. It knows no tables and no clock.

Events of one instant: an end comes before a start (held, given back and taken again), unless nothing was held: then the start
comes first, and the two are an allocation of no length. A start inside an interval says what was known already, and matters
again should an end between the two turn up: so events are kept even where no interval shows them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, NamedTuple

START: Final = 1
END: Final = 2
ANEW: Final = "begun-anew:"
"""Beginning of the evidence of an end that nobody told: an agent began at the instant that follows, in microseconds, without knowing what was
told before, and what it did not find held was over. A start at that very instant says that it did find it: then this is no end."""
START_UNKNOWN: Final = "+start-unknown"
"""Suffix of the evidence of an allocation whose start no event tells: it begins with the job, or with the end before it."""


_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Told(NamedTuple):
    """One event of a job and device. ``share_ratio``: 0 to 1, null = the whole device; ``energy_mj``: the counter then."""

    at: datetime
    action: int
    energy_mj: int | None
    share_ratio: Decimal | None
    accelerators: int
    evidence: str

    @property
    def anew_at_us(self) -> int | None:
        """The instant at which an agent began without knowing anything, of an end for that reason; null = an event that was told."""
        return int(self.evidence.removeprefix(ANEW)) if self.evidence.startswith(ANEW) else None


@dataclass(frozen=True, slots=True)
class Allocation:
    """A row of ``allocations`` as far as events go; ``id`` is None for one not written yet."""

    id: int | None
    start_at: datetime
    end_at: datetime | None
    start_energy_mj: int | None
    end_energy_mj: int | None
    share_ratio: Decimal | None
    evidence: str
    accelerators: int = 1

    @property
    def start_is_known(self) -> bool:
        return not self.evidence.endswith(START_UNKNOWN)

    @property
    def said(self) -> tuple[object, ...]:
        """What the row says: two rows that say the same are one."""
        return (*self.holds, self.end_at, self.start_energy_mj, self.end_energy_mj, self.evidence)

    @property
    def holds(self) -> tuple[object, ...]:
        """What is held from when on, without its end."""
        return (self.start_at, self.share_ratio, self.accelerators)


@dataclass(frozen=True, slots=True)
class Revision:
    """How rows become what the events mean; ``changed_from`` is None where nothing changes."""

    superseded: tuple[Allocation, ...]
    made: tuple[Allocation, ...]
    changed_from: datetime | None


def meaning(told: Iterable[Told], job_started_at: datetime, closed_at: datetime | None = None) -> list[Allocation]:
    """Return the intervals of these events in time order, disjoint, the last one maybe open.

    ``closed_at``: an end before all of them after which nothing was held; null = they are all there are. An end of nothing
    makes an interval from the end before it, or from the job's start, whose evidence says that its start is not known.
    """
    instants = _instants(told)
    found: list[Allocation] = []
    opened: Told | None = None
    last_end_at = closed_at
    for position, (start, end) in enumerate(instants):
        held = opened
        if opened is None and start is not None and end is not None and not _ends_only(instants[position + 1 :]):
            held, opened = start, None
        elif end is not None or opened is None:
            opened = start
        if end is not None and (held is not None or end.anew_at_us is None):
            found.append(_closed(held, end, job_started_at, last_end_at))
            last_end_at = end.at
    if opened is not None:
        found.append(_row(opened, opened.at, opened.energy_mj, None, None, opened.evidence))
    return found


def revise(
    rows: Sequence[Allocation], told: Iterable[Told], job_started_at: datetime, closed_at: datetime | None
) -> Revision:
    """Return what turns the current rows after ``closed_at`` into the meaning of all events after it.

    Rows of a release that kept no events count as the events they were made of. ``changed_from`` is the earliest instant at
    which who holds what, or what is said of it, is another.
    """
    kept = list(told)
    known = {(event.at, event.action) for event in kept}
    kept += [event for row in rows for event in _events_of(row) if (event.at, event.action) not in known]
    wanted = meaning(kept, job_started_at, closed_at)
    said = {row.said for row in rows}
    meant = {row.said for row in wanted}
    gone = tuple(row for row in rows if row.said not in meant)
    made = tuple(row for row in wanted if row.said not in said)
    return Revision(gone, made, _changed_from(gone, made))


def _instants(told: Iterable[Told]) -> list[tuple[Told | None, Told | None]]:
    """Return the start and the end of each instant, in time order; of several alike always the same one."""
    told = list(told)
    found_held = {_us(event.at) for event in told if event.action == START}
    chosen: dict[datetime, dict[int, Told]] = {}
    for event in told:
        if event.anew_at_us in found_held:
            continue
        actions = chosen.setdefault(event.at, {})
        before = actions.get(event.action)
        if before is None or _preference(event) < _preference(before):
            actions[event.action] = event
    return [(chosen[at].get(START), chosen[at].get(END)) for at in sorted(chosen)]


def _us(at: datetime) -> int:
    return (at - _UNIX_EPOCH) // timedelta(microseconds=1)


def _preference(event: Told) -> tuple[object, ...]:
    energy_mj, share = event.energy_mj, event.share_ratio
    return (
        event.anew_at_us is not None,
        energy_mj is None,
        event.evidence,
        share is None,
        share or 0,
        event.accelerators,
        energy_mj or 0,
    )


def _ends_only(following: Sequence[tuple[Told | None, Told | None]]) -> bool:
    """Claim that the next instant is an end that no start comes before: it ends what starts here."""
    return bool(following) and following[0][0] is None


def _closed(opened: Told | None, end: Told, job_started_at: datetime, last_end_at: datetime | None) -> Allocation:
    if opened is not None:
        return _row(opened, opened.at, opened.energy_mj, end.at, end.energy_mj, opened.evidence)
    start_at = min(job_started_at, end.at)
    if last_end_at is not None:
        start_at = max(start_at, last_end_at)
    return _row(end, start_at, None, end.at, end.energy_mj, end.evidence + START_UNKNOWN)


def _row(
    of: Told,
    start_at: datetime,
    start_energy_mj: int | None,
    end_at: datetime | None,
    end_energy_mj: int | None,
    evidence: str,
) -> Allocation:
    return Allocation(None, start_at, end_at, start_energy_mj, end_energy_mj, of.share_ratio, evidence, of.accelerators)


def _events_of(row: Allocation) -> list[Told]:
    evidence = row.evidence.removesuffix(START_UNKNOWN)
    events = []
    if row.start_is_known:
        events.append(Told(row.start_at, START, row.start_energy_mj, row.share_ratio, row.accelerators, evidence))
    if row.end_at is not None:
        events.append(Told(row.end_at, END, row.end_energy_mj, row.share_ratio, row.accelerators, evidence))
    return events


def _changed_from(gone: Sequence[Allocation], made: Sequence[Allocation]) -> datetime | None:
    """Return the first instant that changes: where only an end moved, the earlier of the two ends, else a start."""
    instants = []
    for holds in {row.holds for row in (*gone, *made)}:
        before, after = ([row for row in rows if row.holds == holds] for rows in (gone, made))
        if len(before) == len(after) == 1 and before[0].end_at != after[0].end_at:
            instants.append(min(at for at in (before[0].end_at, after[0].end_at) if at is not None))
        else:
            instants.append((*before, *after)[0].start_at)
    return min(instants, default=None)
