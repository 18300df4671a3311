"""Writes what the job ledger knows as text and reads it back, so that an agent that restarts goes on where it was.

The text is written at each event, so it holds no more than is needed: devices, what runs or ended on them lately, and the newest
rows that were told (``told`` keeps the others). A text of another version, or a damaged one, is as good as none.
"""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass, field
from typing import Any, Final

from collector.jobs.evidence import Evidence, Grant, Job, JobKey, Use
from collector.jobs.holding import Device, Open, Seen
from collector.jobs.ledger import Ledger
from collector.jobs.roster import Roster, Run
from collector.jobs.told import Part, Told

VERSION: Final = 1
MAX_IDLE_RUNS: Final = 256
"""Running jobs without a device are kept to know their users by, should a process claim to be theirs: the newest ones."""


@dataclass(slots=True)
class Memory:
    """What outlives the process."""

    boot_id: str
    at_us: int = 0
    files: dict[str, str] = field(default_factory=dict)
    """Files of hooks that were taken in and are still there: name -> job number."""
    told: list[Told] = field(default_factory=list)
    """The newest rows of allocations."""
    parts: list[Part] = field(default_factory=list)
    """Where the older ones are."""
    unplaced: list[str] = field(default_factory=list)
    """Files of starts whose devices were not all found yet: to be read again."""

    anew_at_us: int | None = None
    """When an agent began that knew nothing: to be told once it has looked around, and again soon after; None where none did."""
    anew_told: bool = False

    def handed_on(self, at_us: int) -> None:
        """Note that all that was told is handed on at ``at_us``, again."""
        for entry in self.told:
            entry.at_us = at_us
        for part in self.parts:
            part.at_us = at_us

    def clock_set_back(self, at_us: int) -> None:
        """Take what was handed on under a clock that has been set back since for as old as ``at_us``."""
        for entry in self.told:
            entry.at_us = min(entry.at_us, at_us)
        for part in self.parts:
            part.at_us = min(part.at_us, at_us)
        if self.anew_at_us is not None:
            self.anew_at_us = min(self.anew_at_us, at_us)


def dump(memory: Memory, ledger: Ledger, roster: Roster) -> str:
    """Return everything as one line of JSON."""
    runs = _runs(ledger, roster)
    jobs: dict[JobKey, Job] = {run.job.key: run.job for run in runs}
    for device in ledger.devices.values():
        jobs |= {held.job.key: held.job for held in device.open.values()}
        jobs |= {grant.job.key: grant.job for grant in device.hooks.values()}
        jobs |= {seen.use.job.key: seen.use.job for seen in device.uses.values()}
    number = {key: position for position, key in enumerate(jobs)}
    return json.dumps(
        {
            "version": VERSION,
            "boot": memory.boot_id,
            "at": memory.at_us,
            "files": memory.files,
            "unplaced": memory.unplaced,
            "anew": [memory.anew_at_us, memory.anew_told],
            "told": [[entry.at_us, entry.row] for entry in memory.told],
            "parts": [astuple(part) for part in memory.parts],
            "slurm": roster.slurm_cluster,
            "jobs": [[list(job.key), *astuple(job)[1:]] for job in jobs.values()],
            "runs": [[number[r.job.key], r.seen_us, r.refs, r.ended_us, r.pod_uid, r.uid] for r in runs],
            "devices": {uuid: _device(device, number) for uuid, device in ledger.devices.items()},
        },
        separators=(",", ":"),
    )


def load(text: str | None, ledger: Ledger, roster: Roster) -> Memory | None:
    """Fill an empty ledger and roster; return the rest, or None, and then both are as they were, where there is nothing to read."""
    if text is None:
        return None
    try:
        raw = json.loads(text)
        if raw["version"] != VERSION:
            return None
        jobs = [Job(JobKey(*entry[0]), *entry[1:]) for entry in raw["jobs"]]
        devices = {uuid: _read_device(entry, jobs) for uuid, entry in raw["devices"].items()}
        runs = [
            Run(jobs[job], seen, [(kind, name) for kind, name in refs], ended, pod_uid, uid)
            for job, seen, refs, ended, pod_uid, uid in raw["runs"]
        ]
        told = [Told(*entry) for entry in raw["told"]]
        parts = [Part(*entry) for entry in raw.get("parts", ())]
        memory = Memory(str(raw["boot"]), int(raw["at"]), dict(raw["files"]), told, parts, list(raw["unplaced"]))
        memory.anew_at_us, memory.anew_told = raw.get("anew", (None, False))
        slurm_cluster = raw["slurm"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None
    roster.slurm_cluster = slurm_cluster
    for run in runs:
        roster.enter_again(run)
    ledger.devices.update(devices)
    return memory


def _runs(ledger: Ledger, roster: Roster) -> list[Run]:
    """Return the runs that an agent after this one must know: those any device knows of, and what else still runs."""
    known = ledger.held() | {key for device in ledger.devices.values() for key in (*device.released, *device.ended)}
    runs = {id(run): run for run in roster.runs.values()}.values()
    idle = sorted(
        (run for run in runs if run.ended_us is None and run.job.key not in known), key=lambda run: run.seen_us
    )
    return [run for run in runs if run.job.key in known] + idle[-MAX_IDLE_RUNS:]


def _device(device: Device, number: dict[JobKey, int]) -> dict[str, Any]:
    return {
        "hooks": [
            [number[key], grant.evidence, grant.since_us, grant.share_ratio, grant.weight]
            for key, grant in device.hooks.items()
        ],
        "uses": [[number[key], seen.use.evidence, seen.use.since_us, seen.at_us] for key, seen in device.uses.items()],
        "open": [
            [number[key], held.since_us, held.share_ratio, held.evidence, held.seen_us]
            for key, held in device.open.items()
        ],
        "released": [[*key, at_us] for key, at_us in device.released.items()],
        "presumed": [list(key) for key in device.presumed],
        "leftover": [list(key) for key in device.leftover],
        "ended": [[*key, at_us] for key, at_us in device.ended.items()],
        "instants": [device.hook_at_us, device.used_at_us, device.frontier_us, device.doubt_at_us],
        "conflict": device.conflict,
    }


def _read_device(raw: dict[str, Any], jobs: list[Job]) -> Device:
    device = Device()
    for job, evidence, since_us, share_ratio, weight in raw["hooks"]:
        device.hooks[jobs[job].key] = Grant(jobs[job], Evidence(evidence), since_us, share_ratio, weight)
    for job, evidence, since_us, at_us in raw["uses"]:
        device.uses[jobs[job].key] = Seen(Use(jobs[job], Evidence(evidence), since_us), at_us)
    for job, since_us, share_ratio, evidence, seen_us in raw["open"]:
        device.open[jobs[job].key] = Open(jobs[job], since_us, share_ratio, Evidence(evidence), seen_us)
    for cluster, native_id, started_at_us, at_us in raw["released"]:
        device.released[JobKey(cluster, native_id, started_at_us)] = at_us
    device.presumed = {JobKey(*key) for key in raw.get("presumed", ())}
    device.leftover = {JobKey(*key) for key in raw.get("leftover", ())}
    for cluster, native_id, started_at_us, at_us in raw["ended"]:
        device.ended[JobKey(cluster, native_id, started_at_us)] = at_us
    device.hook_at_us, device.used_at_us, device.frontier_us, device.doubt_at_us = raw["instants"]
    device.conflict = raw["conflict"]
    return device
