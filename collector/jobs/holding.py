"""The state of one device in the eyes of the job ledger, and what follows from it. Pure.

Managers' grants (hooks, pod-resources, job-mapping) say who may use a device, processes say who does. A grant decides while
there is one, so a device that is allocated but idle stays with its job; processes decide where there is none. A manager's word is
as good as its newest statement: what a slower source said before the last hook ran is not held against the hook.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from collector.jobs.evidence import RANK, Evidence, Grant, Job, JobKey, Use

ENDS_KEPT: Final = 8
"""Of a device: nobody speaks of the job before the eighth last, but its own processes, and then its end is kept for them."""
GRACE_US: Final = 12_000_000
"""A job whose processes are missing from the list keeps an otherwise unclaimed device this long: two looks and a bit."""
GONE_US: Final = 300_000_000
"""A device that is missing from the driver's table this long, while others are there, is gone: lost, moved, or cut up anew. A board that
needs a reset after a reboot is back sooner, or not before somebody sees to it."""
_PPM: Final = 1_000_000
DECIDING: Final = (Evidence.HOOK, Evidence.POD_RESOURCES, Evidence.JOB_MAPPING)
"""Who gives devices away, the one that decides first; processes decide where none of them speaks."""


@dataclass(slots=True)
class Seen:
    """A use and when it was seen last."""

    use: Use
    at_us: int


@dataclass(slots=True)
class Open:
    """A holding that was told as begun."""

    job: Job
    since_us: int
    share_ratio: float | None
    evidence: Evidence
    seen_us: int
    """The last instant at which any evidence supported it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A holding that the evidence asks for."""

    job: Job
    share_ratio: float | None
    evidence: Evidence
    since_us: int | None


@dataclass(slots=True)
class Device:
    """All that is known of one device."""

    hooks: dict[JobKey, Grant] = field(default_factory=dict)
    said: dict[Evidence, tuple[int, tuple[Grant, ...]]] = field(default_factory=dict)
    """By source: its last statement and when it was made."""
    uses: dict[JobKey, Seen] = field(default_factory=dict)
    open: dict[JobKey, Open] = field(default_factory=dict)
    released: dict[JobKey, int] = field(default_factory=dict)
    """Jobs whose end a hook told: a slower source that still names them is late, not right."""
    presumed: set[JobKey] = field(default_factory=set)
    """Those of them whose end nobody told: another job was given the device. They may well be running."""
    leftover: set[JobKey] = field(default_factory=set)
    """Those of them that still ran processes, and this was told."""
    hook_at_us: int = 0
    used_at_us: int = 0
    """When its processes were looked at last."""
    frontier_us: int = 0
    """No holding begins before it: the last end that was told, or the end of a contradiction."""
    ended: dict[JobKey, int] = field(default_factory=dict)
    """The last end of each job that held it lately."""
    doubt_at_us: int | None = None
    conflict: str | None = None
    missing_since_us: int | None = None
    """Since when it is not in the driver's table, as far as this process knows; None while it is."""

    def clock_set_back(self, at_us: int) -> None:
        """Take all that was noted under a clock that has been set back since for as old as ``at_us``.

        What was told of an open holding stays: it ends no earlier than it was told to begin.
        """
        self.hook_at_us = min(self.hook_at_us, at_us)
        self.used_at_us = min(self.used_at_us, at_us)
        self.frontier_us = min(self.frontier_us, at_us)
        if self.doubt_at_us is not None:
            self.doubt_at_us = min(self.doubt_at_us, at_us)
        if self.missing_since_us is not None:
            self.missing_since_us = min(self.missing_since_us, at_us)
        self.said = {source: (min(said_us, at_us), grants) for source, (said_us, grants) in self.said.items()}
        self.released = {key: min(end_us, at_us) for key, end_us in self.released.items()}
        self.ended = {key: min(end_us, at_us) for key, end_us in self.ended.items()}
        for seen in self.uses.values():
            seen.at_us = min(seen.at_us, at_us)
        for held in self.open.values():
            held.seen_us = min(held.seen_us, at_us)

    def wanted(self) -> dict[JobKey, Wanted]:
        """Return who holds the device by the evidence there is; nobody while root's evidence contradicts itself."""
        if self.conflict is not None:
            return {}
        for source in DECIDING:
            grants = self.grants_of(source)
            if grants:
                return _shared(grants)
        return _used(self.uses.values())

    def grants_of(self, source: Evidence) -> tuple[Grant, ...]:
        """Return what a source's statement is worth now."""
        if source is Evidence.HOOK:
            return tuple(self.hooks.values())
        at_us, grants = self.said.get(source, (0, ()))
        if at_us < self.hook_at_us:
            return ()
        return tuple(grant for grant in grants if grant.job.key not in self.released)

    def contradiction(self) -> tuple[int, str] | None:
        """Return since when, and in words how, evidence names jobs that the deciding source does not; None where all agree."""
        decided: tuple[Evidence, set[JobKey]] | None = None
        for source in DECIDING:
            keys = {grant.job.key for grant in self.grants_of(source)}
            if decided is None:
                decided = (source, keys) if keys else None
            elif others := keys - decided[1]:
                return self.said[source][0], f"{decided[0]} says {_names(decided[1])}, {source} says {_names(others)}"
        if decided is None or self.used_at_us <= self.hook_at_us:
            return None
        strangers = {
            key: seen.use.evidence
            for key, seen in self.uses.items()
            if key not in decided[1]
            and not self.is_over(key)
            and seen.at_us == self.used_at_us
            and seen.use.job.scheduled
            and seen.use.evidence is not Evidence.ENVIRON
        }
        if not strangers:
            return None
        witness = strongest(strangers.values())
        return self.used_at_us, f"{decided[0]} says {_names(decided[1])}, {witness} says {_names(strangers)} uses it"

    def is_over(self, key: JobKey) -> bool:
        """Say whether an epilog told the end of a job: what is left of it is no sign that the device is another's."""
        return key in self.released and key not in self.presumed

    def left_over(self) -> tuple[list[JobKey], str]:
        """Return the ended jobs that the last look saw on a device that is another's by a grant, and who holds it."""
        holders = next((grants for source in DECIDING if (grants := self.grants_of(source))), ())
        if not holders:
            return [], ""
        found = [key for key, seen in self.uses.items() if seen.at_us == self.used_at_us and self.is_over(key)]
        return found, _names({grant.job.key for grant in holders})

    def forget_released(self, before_us: int) -> None:
        """Keep the newest ends told since that instant, and those of jobs of which something still runs."""
        newest = sorted(self.released.items(), key=lambda entry: entry[1])[-ENDS_KEPT:]
        kept = {key for key, at_us in newest if at_us >= before_us} | self.uses.keys()
        self.released = {key: at_us for key, at_us in self.released.items() if key in kept}
        self.presumed &= self.released.keys()
        self.leftover &= self.released.keys()

    def take_uses(self, at_us: int, uses: Iterable[Use]) -> None:
        """Note who used the device at ``at_us``; who is missing is kept for a while, unless somebody else is there."""
        self.used_at_us = max(self.used_at_us, at_us)
        fresh = {use.job.key: use for use in uses}
        for key, use in fresh.items():
            known = self.uses.get(key)
            since_us = use.since_us if known is None else min(use.since_us, known.use.since_us)
            self.uses[key] = Seen(Use(use.job, use.evidence, since_us), at_us)
            if key in self.open:
                self.open[key].seen_us = max(self.open[key].seen_us, at_us)
        for key, seen in list(self.uses.items()):
            if key not in fresh and (fresh or at_us - seen.at_us > GRACE_US):
                del self.uses[key]


def _shared(grants: tuple[Grant, ...]) -> dict[JobKey, Wanted]:
    """Return the holdings of jobs that were granted one device."""
    if len(grants) == 1:
        grant = grants[0]
        return {grant.job.key: Wanted(grant.job, grant.share_ratio, grant.evidence, grant.since_us)}
    whole = sum(grant.weight or 1 for grant in grants)
    return {
        grant.job.key: Wanted(
            grant.job,
            _ppm(grant.weight or 1, whole) if grant.share_ratio is None else grant.share_ratio,
            grant.evidence,
            grant.since_us,
        )
        for grant in grants
    }


def _used(seen: Iterable[Seen]) -> dict[JobKey, Wanted]:
    """Return the holdings of jobs that use a device nobody granted: equal parts. What only hints is heard if nothing proves."""
    uses = [entry.use for entry in seen]
    proven = [use for use in uses if use.evidence is not Evidence.ENVIRON]
    parts = proven or uses
    share_ratio = None if len(parts) == 1 else _ppm(1, max(1, len(parts)))
    return {use.job.key: Wanted(use.job, share_ratio, use.evidence, use.since_us) for use in parts}


def _ppm(part: int, whole: int) -> float:
    """Return a share cut to the six places the store keeps, so that shares never add up to more than one."""
    return part * _PPM // whole / _PPM


def _names(keys: Iterable[JobKey]) -> str:
    names = sorted(f"job {key.native_id}" for key in keys)
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def strongest(evidence: Iterable[Evidence]) -> Evidence:
    """Return the most trusted of several."""
    return min(evidence, key=RANK.__getitem__)
