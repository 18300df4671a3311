"""Who held which device when: evidence in, begins and ends of holdings out. Pure: it is told the time and opens nothing.

Laws (tests/property/test_jobs_ledger.py): holdings of one device never overlap unless the device is shared; what began ends at
most once; no holding begins before the last end of its device; a device that a manager gave away is its job's from the hook's
instant to the other hook's, whatever processes come and go. Without a hook a holding ends where it was seen last, and the next
one begins no earlier: what lies between is nobody's, rather than the wrong job's. Evidence of root's that contradicts itself twice
in a row makes the device nobody's, from when it was first seen, and is a finding.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from collector.jobs.evidence import Change, Evidence, Finding, Grant, Job, JobKey, Use
from collector.jobs.holding import ENDS_KEPT, GONE_US, Device, Open, Wanted, strongest

DOUBT_US: Final = 2_000_000
"""A contradiction counts when it is seen again at least this much later: managers write their notes one after the other."""
RELEASED_KEPT_US: Final = 3_600_000_000


class Ledger:
    """The holdings of all devices of a node. Not for several threads at once."""

    def __init__(self) -> None:
        """Begin without any holding."""
        self.devices: dict[str, Device] = {}
        self._changes: list[Change] = []
        self._findings: list[Finding] = []

    def take(self) -> tuple[list[Change], list[Finding]]:
        """Return what changed since the last call, in the order in which it is to be told."""
        changes, self._changes = self._changes, []
        findings, self._findings = self._findings, []
        return changes, findings

    def granted(self, at_us: int, device_uuids: Iterable[str], grant: Grant) -> None:
        """Take in that a hook gave devices to a job at ``at_us``."""
        for uuid in device_uuids:
            device = self._device(uuid)
            key = grant.job.key
            if key in device.hooks:
                continue
            device.released.pop(key, None)
            device.presumed.discard(key)
            for other in [other for other, held in device.hooks.items() if held.exclusive and grant.exclusive]:
                # Slurm does not give a whole device away twice: the epilog of the first was never told.
                lost = device.hooks.pop(other)
                self._forget_uses(device, other, at_us)
                self._find(at_us, "job_end_missing", uuid, f"job {other.native_id} held it when {key.native_id} began")
                device.released[lost.job.key] = at_us
                device.presumed.add(lost.job.key)
            device.hooks[key] = grant
            if key in device.open:
                device.open[key].job = grant.job
            self._hook_spoke(uuid, device, at_us)

    def begun(self, at_us: int, key: JobKey) -> None:
        """Take in that a hook told the start of a run at ``at_us``: earlier runs of the same job are over, on all devices."""
        for uuid, device in self.devices.items():
            known = {*device.hooks, *device.open, *device.uses}
            earlier = [other for other in known if other != key and other[:2] == key[:2]]
            for other in sorted(earlier):
                if other in device.hooks or other in device.open:
                    detail = f"an earlier run of job {key.native_id} held it when it began again"
                    self._find(at_us, "job_end_missing", uuid, detail)
                device.hooks.pop(other, None)
                device.released[other] = at_us
                self._forget_uses(device, other, at_us)
            if earlier:
                self._hook_spoke(uuid, device, at_us)

    def released(self, at_us: int, key: JobKey) -> None:
        """Take in that a hook told the end of a job at ``at_us``."""
        for uuid, device in self.devices.items():
            if key not in device.hooks and key not in device.open and key not in device.uses:
                continue
            device.hooks.pop(key, None)
            device.released[key] = at_us
            device.presumed.discard(key)
            self._forget_uses(device, key, at_us)
            self._hook_spoke(uuid, device, at_us)
            device.forget_released(at_us - RELEASED_KEPT_US)

    def stated(self, at_us: int, source: Evidence, grants: Mapping[str, Iterable[Grant]]) -> None:
        """Take in all that a source says at ``at_us``: a device that is missing was given to nobody."""
        for uuid in grants:
            self._device(uuid)
        for uuid, device in self.devices.items():
            stated = tuple(grants.get(uuid, ()))
            device.said[source] = (at_us, stated)
            for grant in stated:
                held = device.open.get(grant.job.key)
                if held is not None:
                    held.job = grant.job  # what is known of it by now travels with its end
                    held.seen_us = max(held.seen_us, at_us)
            self._judge(uuid, device, at_us)
            self._settle(uuid, device, at_us)

    def used(self, at_us: Mapping[str, int], uses: Mapping[str, Iterable[Use]]) -> None:
        """Take in which jobs' processes were on the devices, each device as of its own instant.

        A device that ``at_us`` does not name was not looked at.
        """
        for uuid, seen_at_us in at_us.items():
            device = self._device(uuid)
            if seen_at_us <= device.hook_at_us:
                continue  # the driver was asked before a hook spoke: that is over
            device.take_uses(seen_at_us, uses.get(uuid, ()))
            self._judge(uuid, device, seen_at_us)
            self._settle(uuid, device, seen_at_us)
            left, holders = device.left_over()
            for key in left:
                if key not in device.leftover:
                    device.leftover.add(key)
                    detail = f"job {key.native_id} has ended and still runs processes there; {holders} holds it"
                    self._find(seen_at_us, "job_leftover", uuid, detail)
            device.forget_released(seen_at_us - RELEASED_KEPT_US)

    def present(self, at_us: int, device_uuids: Collection[str]) -> None:
        """Take in which devices the driver has. On one that is gone for good no process is seen any more, nor missed."""
        for uuid, device in self.devices.items():
            if uuid in device_uuids:
                device.missing_since_us = None
            elif device.missing_since_us is None:
                device.missing_since_us = at_us
            elif device.uses and at_us - device.missing_since_us >= GONE_US:
                device.uses.clear()
                self._judge(uuid, device, at_us)
                self._settle(uuid, device, at_us)

    def clock_set_back(self, at_us: int) -> None:
        """Take in that the wall clock was set back: nothing that is known is younger than ``at_us`` of the clock that counts now.

        Without it evidence would be taken for older than what a fast clock dated, for as long as that clock was ahead.
        """
        for device in self.devices.values():
            device.clock_set_back(at_us)

    def rebooted(self, last_us: int) -> None:
        """End all holdings at the last instant before the machine went down that anything is known of."""
        for uuid, device in self.devices.items():
            for held in list(device.open.values()):
                self._end(uuid, device, held, max(held.since_us, last_us))
        self.devices.clear()

    def holds(self, key: JobKey) -> bool:
        """Say whether a job has any device by a hook's word."""
        return any(key in device.hooks for device in self.devices.values())

    def held(self) -> set[JobKey]:
        """Return the runs that hold, were given or use any device."""
        return {key for device in self.devices.values() for key in (*device.open, *device.hooks, *device.uses)}

    def _device(self, uuid: str) -> Device:
        return self.devices.setdefault(uuid, Device())

    def _hook_spoke(self, uuid: str, device: Device, at_us: int) -> None:
        """A hook is a new beginning: doubts about what was before are over."""
        device.hook_at_us = max(device.hook_at_us, at_us)
        device.doubt_at_us = None
        if device.conflict is not None:
            self._agreed(uuid, device, at_us)
        self._settle(uuid, device, at_us)

    @staticmethod
    def _forget_uses(device: Device, key: JobKey, at_us: int) -> None:
        """Drop what was seen of a job before its end; what is seen of it later counts again."""
        seen = device.uses.get(key)
        if seen is not None and seen.at_us <= at_us:
            del device.uses[key]

    def _judge(self, uuid: str, device: Device, at_us: int) -> None:
        """Note, confirm or withdraw a contradiction."""
        found = device.contradiction()
        if found is None:
            device.doubt_at_us = None
            if device.conflict is not None:
                self._agreed(uuid, device, at_us)
            return
        seen_us, detail = found
        if device.doubt_at_us is None:
            device.doubt_at_us = seen_us
        elif device.conflict is None and seen_us - device.doubt_at_us >= DOUBT_US:
            device.conflict = detail
            self._find(device.doubt_at_us, "attribution_conflict", uuid, detail)
            for held in list(device.open.values()):
                self._end(uuid, device, held, device.doubt_at_us)

    def _agreed(self, uuid: str, device: Device, at_us: int) -> None:
        self._find(at_us, "attribution_conflict_ended", uuid, device.conflict or "")
        device.conflict = None
        device.frontier_us = max(device.frontier_us, at_us)

    def _settle(self, uuid: str, device: Device, at_us: int) -> None:
        """Tell the difference between what was told and what the evidence asks for now."""
        wanted = device.wanted()
        for key, held in list(device.open.items()):
            want = wanted.get(key)
            if want is None:
                # What a hook took back ended then; all else is only missed now, and was there when it was seen last.
                released_us = device.released.get(key, -1)
                by_hook = released_us >= held.since_us
                self._end(uuid, device, held, released_us if by_hook else min(held.seen_us, at_us))
            elif want.share_ratio != held.share_ratio:
                self._end(uuid, device, held, at_us)
        for key, want in wanted.items():
            if key not in device.open:
                self._begin(uuid, device, want, at_us)

    def _begin(self, uuid: str, device: Device, want: Wanted, at_us: int) -> None:
        since_us = at_us if want.since_us is None else min(want.since_us, at_us)
        since_us = max(since_us, device.frontier_us)
        if want.job.key in device.ended:
            # The server takes a begin before an end of the same job and instant: what goes on does so a microsecond later.
            since_us = max(since_us, device.ended[want.job.key] + 1)
        device.open[want.job.key] = Open(want.job, since_us, want.share_ratio, want.evidence, max(since_us, at_us))
        self._changes.append(Change(since_us, uuid, want.job, True, want.share_ratio, want.evidence))

    def _end(self, uuid: str, device: Device, held: Open, at_us: int) -> None:
        end_us = max(at_us, held.since_us)
        key = held.job.key
        del device.open[key]
        # Not the end as told: one that began under a clock that was set back ends when it began, hours ahead, and occupies nothing.
        device.frontier_us = max(device.frontier_us, at_us)
        device.ended.pop(key, None)
        device.ended[key] = end_us
        if len(device.ended) > ENDS_KEPT:
            del device.ended[next(iter(device.ended))]
        self._changes.append(Change(end_us, uuid, held.job, False, held.share_ratio, held.evidence))

    def _find(self, at_us: int, kind: str, uuid: str, detail: str) -> None:
        self._findings.append(Finding(at_us, kind, uuid, detail))


def uses_by_device(uses: Iterable[tuple[str, Job, Evidence, int]]) -> dict[str, list[Use]]:
    """Gather (device, job, evidence, start) of single processes into one use a job and device: earliest start, best evidence."""
    found: dict[str, dict[JobKey, Use]] = {}
    for uuid, job, evidence, since_us in uses:
        known = found.setdefault(uuid, {}).get(job.key)
        if known is None:
            found[uuid][job.key] = Use(job, evidence, since_us)
        else:
            best = strongest((known.evidence, evidence))
            found[uuid][job.key] = Use(job, best, min(since_us, known.since_us))
    return {uuid: list(of_jobs.values()) for uuid, of_jobs in found.items()}
