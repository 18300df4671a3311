"""Processor time of the processes of a benchmark: where each CPU second of a row went, by who spent it.

On a machine that others use too this is the part of a result that still says something. Linux only: it reads ``/proc``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.stand import Stand

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PARENT, _TIMES = 1, slice(11, 15)
"""Of the fields behind the name in ``/proc/PID/stat``: the parent, and own and ended children's user and system time."""


class Spent:
    """CPU seconds of the load generator (this process), ingest and PostgreSQL between two moments."""

    def __init__(self, on: Stand, ingest_pid: int | None) -> None:
        with on.database.connect("admin") as conn:
            row = conn.execute("SELECT pg_backend_pid()").fetchone()
            self._postmaster = _parent(int(str(row[0] if row else 0)))
        self._ingest_pid = ingest_pid
        self.by_process_s: dict[str, float] = {}

    @contextmanager
    def during(self) -> Iterator[None]:
        """Add what is spent inside to :attr:`by_process_s`."""
        before = self._now_s()
        yield
        for name, now_s in self._now_s().items():
            self.by_process_s[name] = self.by_process_s.get(name, 0.0) + now_s - before[name]

    def us_per_row(self, rows: int) -> dict[str, float]:
        return {name: round(spent_s * 1e6 / rows, 3) for name, spent_s in self.by_process_s.items()}

    def _now_s(self) -> dict[str, float]:
        # Backends that end meanwhile are in their parent's account, so the sum over the family never loses any.
        postgres = [self._postmaster, *_children(self._postmaster)]
        spent = {"load": time.process_time(), "postgres": sum(map(_ticks_s, postgres))}
        return spent if self._ingest_pid is None else spent | {"ingest": _ticks_s(self._ingest_pid)}


def _fields(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):  # it ended between being listed and being read
        return []


def _parent(pid: int) -> int:
    return int(_fields(pid)[_PARENT])


def _children(pid: int) -> list[int]:
    found = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [child for child in found if (fields := _fields(child)) and int(fields[_PARENT]) == pid]


def _ticks_s(pid: int) -> float:
    return sum(map(int, _fields(pid)[_TIMES])) / _TICKS_PER_S
