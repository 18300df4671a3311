"""Writes what the job ledger knows as text and reads it back, so that an agent that restarts goes on where it was.

The text goes into the spool's facts before the rows it led to are handed on, with the rows of the last quarter of an hour in it: those
may not have reached the spool when the agent died, and are told again, word for word. Told twice they change nothing, since the
server takes an event of the same job, device and instant once. A text of another version, or a damaged one, is as good as none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, Final

from collector.jobs.evidence import Evidence, Grant, Job, JobKey, Use
from collector.jobs.holding import Device, Open, Seen
from collector.jobs.ledger import Ledger
from collector.jobs.roster import Roster, Run
from collector.probe import Row

VERSION: Final = 1
TOLD_KEPT_US: Final = 900_000_000
"""Far longer than a batch waits in memory before it is in the spool."""
MAX_TOLD: Final = 20_000
"""A thousand jobs of eight devices that began and ended while no agent ran."""


@dataclass(slots=True)
class Told:
    """A row of an allocation and when it was handed on."""

    at_us: int
    row: Row


@dataclass(slots=True)
class Memory:
    """What outlives the process."""

    boot_id: str
    at_us: int = 0
    files: dict[str, str] = field(default_factory=dict)
    """Files of hooks that were taken in and are still there: name -> job number."""
    told: list[Told] = field(default_factory=list)
    unplaced: list[str] = field(default_factory=list)
    """Files of starts whose devices were not all found yet: to be read again."""


def forget_old(told: Sequence[Told], now_us: int) -> list[Told]:
    """Return what may still be on its way."""
    return [entry for entry in told if now_us - entry.at_us < TOLD_KEPT_US][-MAX_TOLD:]


def dump(memory: Memory, ledger: Ledger, roster: Roster) -> str:
    """Return everything as one line of JSON."""
    runs = list({id(run): run for run in roster.runs.values()}.values())
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
            "told": [[entry.at_us, entry.row] for entry in memory.told],
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
        memory = Memory(str(raw["boot"]), int(raw["at"]), dict(raw["files"]), told, list(raw["unplaced"]))
        slurm_cluster = raw["slurm"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None
    roster.slurm_cluster = slurm_cluster
    for run in runs:
        roster.enter_again(run)
    ledger.devices.update(devices)
    return memory


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
