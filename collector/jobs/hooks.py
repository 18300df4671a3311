"""Reads what the prolog and epilog of Slurm left in a folder: one small file a start or an end, with the instant in it.

deploy/slurm/ writes them. Events outlive the agent: a job that began and ended while no agent ran is told when one does. The
file of a start stays until its end has been taken in, so that an agent whose own memory is lost learns again who holds what.
Only root's files in a folder that only root may write are believed. It maps no GPU number to a device and keeps no history.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from collector.jobs.folder_lock import FolderLock

HELD: Final = "hooks_held_by_another_agent"
"""The error of a folder that another agent holds: nothing of it can be told here."""
MAX_EVENTS: Final = 512
"""Of one reading: with eight devices each they still fit the memory that the recorder has for rows."""
MAX_FILE_BYTES: Final = 16_384
_STALE_TEMP_NS: Final = 3_600_000_000_000
_MAX_DATE_DRIFT_NS: Final = 5_000_000_000
_MAX_DEVICES: Final = 1_024
_NS_PER_US: Final = 1_000
_US_PER_S: Final = 1_000_000
_LONGEST_JOB_US: Final = 400 * 86_400 * _US_PER_S
_NAME: Final = re.compile(r"([0-9]{19})\.[0-9]{1,10}\.(start|end)\.([0-9]{1,10})")
_SLUID: Final = re.compile(r"s[0-9A-HJKMNP-TV-Z]{13}")
_DEVICE: Final = re.compile(r"[A-Za-z0-9-]{1,80}")
_RANGE: Final = re.compile(r"([0-9]{1,4})-([0-9]{1,4})")


@dataclass(frozen=True, slots=True)
class HookEvent:
    """A job begins or has ended on this node, as slurmd's own scripts saw it."""

    name: str
    """Of the file; sorts by instant."""
    action: Literal["start", "end"]
    at_us: int
    job_id: str
    """Slurm's number of the job, which is what cgroups and slurmstepds carry."""
    native_id: str
    """The id people see: ``123_4`` for an array's task, else the number."""
    started_at_us: int
    """Slurm's start of the job where the prolog was told it (from Slurm 23.02 or so), else ``at_us`` in whole seconds."""
    gpus: tuple[str, ...]
    """Device numbers as in the files of gres.conf, or UUIDs."""
    cluster: str | None = None
    sluid: str | None = None
    uid: int | None = None
    user: str | None = None
    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    job_name: str | None = None
    node: str | None = None
    """The name slurmd goes by: several may share a host."""
    boot_id: str | None = None
    """The kernel's id of the boot it happened in."""
    shards: int | None = None
    """Slurm shards the job has on this node, where the hook was told; its devices are then shared."""
    start_told: bool = False
    """Whether ``started_at_us`` is Slurm's own."""


class HookError(ValueError):
    """A file is not one of the hooks'."""


def parse_event(name: str, text: str, written_at_ns: int) -> HookEvent:
    """Return the event a file tells of; raise HookError, with the reason, where it tells none.

    The instant is the script's own ``date``, unless that is more than 5 s from the kernel's time of the write.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise HookError("the name is not a hook's")
    values: dict[str, str] = {}
    for line in text.split("\n"):
        key, separator, value = line.partition("=")
        if separator and value:
            values.setdefault(key, value)
    if values.get("wattledger-hook") != "1":
        raise HookError(f"version {values.get('wattledger-hook', 'none')!r:.20} is not supported")
    if values.get("job") != found[3] or values.get("event") != found[2]:
        raise HookError("name and content disagree")
    at_ns = int(found[1])
    if abs(at_ns - written_at_ns) > _MAX_DATE_DRIFT_NS:
        at_ns = written_at_ns
    at_us = at_ns // _NS_PER_US
    array = (values.get("array_job", ""), values.get("array_task", ""))
    is_array = all(_is_number(part) for part in array)
    sluid = values.get("sluid")
    started_at_us = _started_at_us(values.get("started", ""), at_us)
    return HookEvent(
        name=name,
        action="start" if found[2] == "start" else "end",
        at_us=at_us,
        job_id=found[3],
        native_id="_".join(array) if is_array else found[3],
        started_at_us=started_at_us if started_at_us is not None else at_us // _US_PER_S * _US_PER_S,
        start_told=started_at_us is not None,
        gpus=_gpus(values.get("gpus", "")),
        cluster=_text(values, "cluster"),
        sluid=sluid if sluid is not None and _SLUID.fullmatch(sluid) else None,
        uid=_number(values, "uid"),
        user=_text(values, "user"),
        account=_text(values, "account"),
        partition=_text(values, "partition"),
        qos=_text(values, "qos"),
        job_name=_text(values, "name"),
        node=_text(values, "node"),
        boot_id=_text(values, "boot"),
        shards=_number(values, "shards"),
    )


class HookFolder:
    """The folder the hooks write to; not for several threads at once."""

    def __init__(self, path: Path, *, trusted_uids: Collection[int] | None = None) -> None:
        """Believe files of ``trusted_uids`` only, by default root's and those of this process's own user."""
        self.path = path
        self.errors: Counter[str] = Counter()
        """Since the last :meth:`read`."""
        self._trusted = frozenset(trusted_uids if trusted_uids is not None else {0, os.geteuid()})
        self._broken: set[str] = set()
        self._lock = FolderLock(path, self._trusted)
        self.present: frozenset[str] = frozenset()
        """Names that were there at the last :meth:`read`."""
        self.more = False
        """Whether the last :meth:`read` left some for the next."""

    def distrust(self) -> str | None:
        """Return why the folder cannot be used; None where it can."""
        try:
            state = self.path.stat()
        except OSError as error:
            return f"{self.path}: {error.strerror}"
        if state.st_uid not in self._trusted or (state.st_mode & 0o022 and not state.st_mode & stat.S_ISVTX):
            return f"{self.path} may be written by others than root; its files prove nothing"
        return None

    def close(self) -> None:
        """Let another agent have the folder."""
        self._lock.close()

    def read(self, known: Collection[str]) -> list[HookEvent]:
        """Return the events of files that are not among ``known`` names, the oldest :data:`MAX_EVENTS`; faults are counted."""
        self.errors = Counter()
        self.more = False
        try:
            names = os.listdir(self.path)  # noqa: PTH208  names are all that is wanted of thousands
        except FileNotFoundError:
            self.present = frozenset()
            return []  # no hook is installed, or none has run since the boot
        except OSError:
            self.errors["hooks_unreadable"] += 1
            return []
        self.present = frozenset(names)
        if not self._lock.take():
            self.errors[HELD] += 1
            return []
        if self._lock.unguarded:
            self.errors["unguarded_hooks"] += 1
        fresh = sorted(
            name for name in names if name not in known and name not in self._broken and _NAME.fullmatch(name)
        )
        if fresh and self.distrust() is not None:
            self.errors["hooks_distrusted"] += 1
            return []
        self.more = len(fresh) > MAX_EVENTS
        events = [event for name in fresh[:MAX_EVENTS] if (event := self._event(name)) is not None]
        if len(names) > len(fresh):
            self._sweep(names)
        self._broken &= set(names)
        # By instant: a name's may have been replaced by the kernel's.
        return sorted(events, key=lambda event: (event.at_us, event.action == "start", event.name))

    def discard(self, names: Collection[str]) -> set[str]:
        """Delete files that are no longer needed; return the names of those that could not be."""
        kept = set()
        for name in names:
            try:
                os.unlink(os.path.join(self.path, name))  # noqa: PTH108, PTH118  a thousand of them after a long silence
            except FileNotFoundError:
                continue
            except OSError:
                kept.add(name)
        return kept

    def _event(self, name: str) -> HookEvent | None:
        path = os.path.join(self.path, name)  # noqa: PTH118
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError:
            self.errors["hook_unreadable"] += 1
            self._broken.add(name)
            return None
        try:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode) or state.st_uid not in self._trusted:
                raise HookError("not a file of root's")  # noqa: TRY301
            text = os.read(descriptor, MAX_FILE_BYTES).decode(errors="replace")
            return parse_event(name, text, state.st_mtime_ns)
        except HookError:
            self.errors["hook_malformed"] += 1
            self._broken.add(name)
            return None
        except OSError:
            self.errors["hook_unreadable"] += 1
            return None
        finally:
            os.close(descriptor)

    def _sweep(self, names: list[str]) -> None:
        """Remove what a script that was killed left half written."""
        for name in names:
            if not (name.startswith(".") and _NAME.fullmatch(name[1:])):
                continue
            path = self.path / name
            try:
                # By the kernel's own idea of now: the folder was changed by whatever came last.
                if self.path.stat().st_mtime_ns - path.lstat().st_mtime_ns > _STALE_TEMP_NS:
                    path.unlink()
            except OSError:
                continue


def _gpus(text: str) -> tuple[str, ...]:
    """Return the devices of a list such as ``0,1``, ``0-3`` or ``GPU-…,MIG-…``."""
    found: list[str] = []
    for part in text.split(",")[:_MAX_DEVICES]:
        span = _RANGE.fullmatch(part)
        if span is not None:
            first, last = int(span[1]), int(span[2])
            found += [str(number) for number in range(first, min(last + 1, first + _MAX_DEVICES))]
        elif _DEVICE.fullmatch(part):
            found.append(part)
    return tuple(dict.fromkeys(found))


def _started_at_us(text: str, at_us: int) -> int | None:
    """Return Slurm's start of the job; None for one after its own prolog, or over a year before it: that is none."""
    if _is_number(text) and at_us - _LONGEST_JOB_US <= int(text) * _US_PER_S <= at_us + _US_PER_S:
        return int(text) * _US_PER_S
    return None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10


def _number(values: dict[str, str], key: str) -> int | None:
    text = values.get(key, "")
    return int(text) if _is_number(text) else None


def _text(values: dict[str, str], key: str) -> str | None:
    return values.get(key) or None
