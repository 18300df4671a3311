"""Processor time and memory of a process with everything it starts, watched while it works. Linux only: it reads ``/proc``."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_PARENT, _ALL_TIMES = 1, slice(11, 15)
"""Of the fields behind the name in ``/proc/PID/stat``: the parent; user and system time, own and of ended children."""


class Watched:
    """A process and its descendants; memory is what is resident of all of them at one moment, shared pages counted in each."""

    def __init__(self, pid: int, every_s: float = 0.05) -> None:
        self._pid = pid
        self._every_s = every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self.peak_bytes = 0
        self.cpu_s = 0.0
        self._before_s = 0.0

    def __enter__(self) -> Self:
        self._before_s = family_cpu_s(self._pid)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self.cpu_s = family_cpu_s(self._pid) - self._before_s

    def _watch(self) -> None:
        while not self._done.wait(self._every_s):
            self.peak_bytes = max(self.peak_bytes, sum(map(_resident_bytes, family(self._pid))))


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    parents = {int(entry.name): _fields(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    found = [pid]
    for each in found:
        found += [child for child, fields in parents.items() if fields and int(fields[_PARENT]) == each]
    return found


def family_cpu_s(pid: int) -> float:
    """Return processor time of a process and its descendants, also of those that have ended and were waited for."""
    return sum(sum(map(int, _fields(each)[_ALL_TIMES])) for each in family(pid)) / _TICKS_PER_S


def _fields(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):  # it ended between being listed and being read
        return []


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (FileNotFoundError, ProcessLookupError):
        return 0
