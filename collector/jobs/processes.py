"""Finds out whom a process runs for: its cgroup, the slurmstepd above it, and, as a hint only, its environment.

A process's environment is its user's to write. It names no holder where root's evidence names another, and of it only
:data:`ALLOWED_KEYS` is ever looked at; with ``environ="never"`` the file is not opened. Nothing is read that is not needed,
every read is bounded, and a pid that was given to another process meanwhile is recognised by its start time.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from collector.jobs.cgroup import Holder, Placement, parse

EnvironMode = Literal["hint", "never"]
Proof = Literal["cgroup", "slurmstepd", "environ", "none"]

ALLOWED_KEYS: Final = ("SLURM_JOB_ID", "SLURM_SHARDS_ON_NODE", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE")
"""All that is ever looked at in a process's environment; each value must be a plain number."""

_MAX_STAT_BYTES: Final = 1_024
_MAX_STATUS_BYTES: Final = 4_096
_MAX_CGROUP_BYTES: Final = 16_384
_MAX_CMDLINE_BYTES: Final = 256
_MAX_ENVIRON_BYTES: Final = 262_144
_MAX_ANCESTORS: Final = 64
_MAX_SCANNED: Final = 65_536
_US_PER_S: Final = 1_000_000
_NS_PER_US: Final = 1_000
_SAME_MOMENT_US: Final = 1_000_000
"""A start time is a count of 10 ms ticks and the wall clock is slewed: later than a reading means later by more than this."""
_TITLE: Final = re.compile(rb"slurmstepd: \[(\d{1,10})(?:\+\d{1,6})?\.[^\]]{1,64}\]")
_NUMBER: Final = re.compile(r"[0-9]{1,10}(?:\.[0-9]{1,6})?")
_INITIAL_PID_NAMESPACE: Final = "pid:[4026531836]"  # the kernel's PROC_PID_INIT_INO


@dataclass(frozen=True, slots=True)
class Standing:
    """Whom one process runs for, and how that is known."""

    pid: int
    started_at_us: int
    uid: int | None
    holder: Holder | None
    proof: Proof
    """What names the holder; ``none`` where nothing does, and then the holder is None."""
    hints: dict[str, str] = field(default_factory=dict)
    """Allow-listed values of the environment, unproven; empty unless they were asked for and may be read."""
    conflict: str | None = None
    """Two kinds of evidence of root's that name different jobs: then there is no holder."""
    remark: str | None = None


@dataclass(slots=True)
class _Known:
    """What does not change in a process's life, so that it is read once."""

    uid: int | None
    stepd_job: str | None
    hints: dict[str, str] | None = None


class ProcessTable:
    """The processes of this node, as far as they can be seen from here. Not for several threads at once."""

    def __init__(
        self,
        *,
        proc_root: Path = Path("/proc"),
        environ: EnvironMode = "hint",
        boot_at_us: Callable[[], int] | None = None,
        ticks_per_s: int | None = None,
    ) -> None:
        """Read below ``proc_root``; ``boot_at_us`` is the wall-clock instant at which the machine's own clock was 0."""
        self.errors: Counter[str] = Counter()
        """Failed reads by kind since the last :meth:`forget_others`."""
        self._root = os.fspath(proc_root)
        self._environ = environ
        self._boot_at_us = boot_at_us or _boot_at_us
        self._ticks_per_s = ticks_per_s or os.sysconf("SC_CLK_TCK")
        self._known: dict[tuple[int, int], _Known] = {}

    def sees_host_pids(self) -> bool:
        """Say whether a pid means the same here as to the driver: only in the host's pid namespace."""
        try:
            return str(Path(self._root, "self/ns/pid").readlink()) == _INITIAL_PID_NAMESPACE
        except OSError:
            return True  # not a live /proc; then it was put there on purpose

    def standing(self, pid: int, seen_at_us: int, *, hints: bool = False) -> Standing | None:
        """Return whom ``pid`` runs for; None where it is gone, or was not yet this process when it was seen.

        With ``hints`` the environment is read even if nothing needs it to find the holder (for an MPS client's share).
        """
        stat = self._stat(pid)
        if stat is None:
            return None
        _, _, ticks = stat
        started_at_us = self._boot_at_us() + ticks * _US_PER_S // self._ticks_per_s
        if started_at_us > seen_at_us + _SAME_MOMENT_US:
            return None
        text = self._read(pid, "cgroup", _MAX_CGROUP_BYTES)
        known = self._known.get((pid, ticks))
        if known is None:
            known = _Known(self._uid(pid), self._stepd_above(pid))
        again = self._stat(pid)
        if text is None or again is None or again[2] != ticks:
            return None  # it ended while it was looked at, and its pid may be another's
        self._known[(pid, ticks)] = known
        placement = parse(text.decode(errors="replace"))
        holder, proof, conflict = _weighed(placement, known.stepd_job)
        unproven = holder is None or holder.kind in ("login", "system")
        if self._environ == "hint" and (hints or (unproven and conflict is None)) and known.hints is None:
            known.hints = self._hints(pid)
        found = known.hints or {}
        if conflict is None and unproven and found.get("SLURM_JOB_ID", "").isdigit():
            holder, proof = Holder("slurm", found["SLURM_JOB_ID"]), "environ"
        return Standing(pid, started_at_us, known.uid, holder, proof, found, conflict, placement.remark)

    def forget_others(self, pids: Collection[int]) -> Counter[str]:
        """Drop what is known of all other processes; return the failed reads since the last time."""
        self._known = {key: known for key, known in self._known.items() if key[0] in pids}
        errors, self.errors = self.errors, Counter()
        return errors

    def stepds(self) -> dict[str, int]:
        """Return for each Slurm job on this node the instant its first slurmstepd that still lives was started.

        Reads one small file of each process of the node: to be asked when a job is new, not every few seconds.
        """
        found: dict[str, int] = {}
        try:
            entries = os.scandir(self._root)
        except OSError:
            self.errors["proc_unreadable"] += 1
            return found
        boot_at_us = self._boot_at_us()
        with entries:
            for seen, entry in enumerate(entries):
                if seen >= _MAX_SCANNED:
                    break
                if not entry.name.isdigit():
                    continue
                pid = int(entry.name)
                stat = self._stat(pid)
                if stat is None or stat[0] != b"slurmstepd":
                    continue
                job = self._stepd_job(pid)
                if job is not None:
                    at_us = boot_at_us + stat[2] * _US_PER_S // self._ticks_per_s
                    found[job] = min(at_us, found.get(job, at_us))
        return found

    def _stepd_above(self, pid: int) -> str | None:
        """Return the job of the nearest slurmstepd among the process's ancestors: nobody can put himself below another's."""
        for _ in range(_MAX_ANCESTORS):
            stat = self._stat(pid)
            if stat is None or pid <= 1:
                return None
            if stat[0] == b"slurmstepd" and (job := self._stepd_job(pid)) is not None:
                return job
            pid = stat[1]
        return None

    def _stepd_job(self, pid: int) -> str | None:
        """Return the job a slurmstepd says it serves, if it is root's: a title is any process's to write."""
        # The uids first: a title lies in the process's own memory, and a user can make whoever reads his wait for ever.
        if self._uids(pid) != {0}:
            return None
        title = self._read(pid, "cmdline", _MAX_CMDLINE_BYTES)
        found = None if title is None else _TITLE.match(title)
        return None if found is None else found[1].decode()

    def _stat(self, pid: int) -> tuple[bytes, int, int] | None:
        """Return name, parent and start (ticks since boot); None where there is no such process."""
        text = self._read(pid, "stat", _MAX_STAT_BYTES)
        if text is None:
            return None
        # The name is its user's to write and may hold anything but NUL: what counts stands after the last parenthesis.
        name, _, rest = text.partition(b"(")[2].rpartition(b")")
        fields = rest.split()
        try:
            return name, int(fields[1]), int(fields[19])
        except (IndexError, ValueError):
            self.errors["stat_malformed"] += 1
            return None

    def _uids(self, pid: int) -> set[int]:
        """Return the real, effective, saved and filesystem uid of a process; nothing where they cannot be read."""
        text = self._read(pid, "status", _MAX_STATUS_BYTES) or b""
        for line in text.split(b"\n"):
            if line.startswith(b"Uid:"):
                return {int(part) for part in line.split()[1:] if part.isdigit()}
        return set()

    def _uid(self, pid: int) -> int | None:
        uids = self._uids(pid)
        return uids.pop() if len(uids) == 1 else None

    def _hints(self, pid: int) -> dict[str, str]:
        text = self._read(pid, "environ", _MAX_ENVIRON_BYTES) or b""
        found: dict[str, str] = {}
        for entry in text.split(b"\0"):
            key, _, value = entry[:128].partition(b"=")
            name = key.decode(errors="replace")
            if name in ALLOWED_KEYS and name not in found:
                number = value.decode(errors="replace")
                if _NUMBER.fullmatch(number):
                    found[name] = number
        return found

    def _read(self, pid: int, name: str, limit: int) -> bytes | None:
        """Return at most ``limit`` bytes of a file of a process; None where it is gone or not to be read, which is counted."""
        try:
            descriptor = os.open(f"{self._root}/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
            return None
        except OSError:
            self.errors[f"{name}_denied"] += 1
            return None
        try:
            data = b""
            while len(data) < limit and (part := os.read(descriptor, limit - len(data))):
                data += part
        except ProcessLookupError:
            return None
        except OSError:
            self.errors[f"{name}_denied"] += 1
            return None
        else:
            return data
        finally:
            os.close(descriptor)


def _weighed(placement: Placement, stepd_job: str | None) -> tuple[Holder | None, Proof, str | None]:
    """Return holder, proof and conflict of what root's two witnesses, the cgroup and the slurmstepd above, say."""
    holder = placement.holder
    if stepd_job is None:
        return holder, "none" if holder is None else "cgroup", None
    if holder is None or holder.kind in ("login", "system", "container"):
        # Without Slurm's cgroup plugin a job stays in slurmd's own cgroup, or that of a container runtime root ran for it.
        return Holder("slurm", stepd_job), "slurmstepd", None
    if holder.is_sluid:
        return Holder("slurm", stepd_job, holder.step, holder.task, holder.node), "cgroup", None
    if (holder.kind, holder.id) == ("slurm", stepd_job):
        return holder, "cgroup", None
    return None, "none", f"cgroup says {holder.kind} {holder.id}, slurmstepd says job {stepd_job}"


def _boot_at_us() -> int:
    return (time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) // _NS_PER_US
