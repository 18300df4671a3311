"""A process that closes hours for a worker: takes tasks from a pipe, tells through it what became of each hour, ends with its worker.

It bounds its own memory: an allocation beyond that ends this process and no other. It decides nothing about what is closed when.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import resource
import signal
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import psycopg

from analytics.closing.hours import Here
from analytics.closing.request import MinutesTask, Task
from analytics.io.open_rows import OpenRows
from ingest.store.segments import Segments

log = logging.getLogger(__name__)
OUT_OF_MEMORY: Final = 77
"""Exit code of a child that was refused memory and lived to say so; others are ended by the allocator."""
_MIB: Final = 1 << 20
_KEPT: Final = 3
"""A part of so many of what it may have is for rows of open hours."""
_SPARE: Final = 1.5
"""Allocators keep address space that holds nothing: the parent looks at what is resident, and this bounds a leap between two looks."""


@dataclass(frozen=True, slots=True)
class Ready:
    """It has started, and waits for a task."""


@dataclass(frozen=True, slots=True)
class End:
    """The task is done."""

    is_made: bool = True
    """Of minutes: False = not for now."""


@dataclass(frozen=True, slots=True)
class Gone:
    """The database went away in the middle of it."""

    message: str


@dataclass(frozen=True, slots=True)
class Broke:
    """A fault of ours: what it was."""

    traceback: str


def serve(pipe: Connection, cap_mib: int, log_level: int) -> None:
    """Do tasks until the pipe is closed or the parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # told to the whole group of processes: the worker's to answer
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    root = logging.getLogger()
    root.handlers = [_Teller(pipe)]
    root.setLevel(log_level)
    _bound_memory(cap_mib)
    places: dict[str, Segments] = {}
    rows = OpenRows(cap_mib * _MIB // _KEPT)
    pipe.send(Ready())
    while True:
        try:
            task: Task | MinutesTask = pipe.recv()
        except EOFError:
            return
        _do(pipe, task, places, rows)


def _do(pipe: Connection, task: Task | MinutesTask, places: dict[str, Segments], rows: OpenRows) -> None:
    if not task.is_open:
        rows.drop()  # hours that are closed have all of the memory
    if task.segments is not None:  # kept, for the files it has checked
        known = places.setdefault(task.segments.shown_as, task.segments)
        task = task.reading(known)
    try:
        if isinstance(task, MinutesTask):
            pipe.send(End(Here(rows).make_minutes(task)))
            return
        for told in Here(rows).close(task):
            pipe.send(told)
        pipe.send(End())
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except psycopg.OperationalError as error:
        pipe.send(Gone(str(error)))
    except BrokenPipeError:
        raise
    except Exception:  # noqa: BLE001 - the outermost loop of this process: its parent says it aloud
        pipe.send(Broke(traceback.format_exc()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _bound_memory(cap_mib: int) -> None:
    (has_kib,) = [int(line.split()[1]) for line in _status() if line.startswith("VmData:")]
    most = has_kib * 1024 + int(cap_mib * _MIB * _SPARE)
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bounds = [most, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), hard))
    except OSError as error:  # a filter of system calls
        log.warning("a leap in memory is not bounded here (%s); only what the parent sees five times a second", error)
    # Should the machine itself run short, the kernel takes a child that can be had again, and not the database. Where a
    # container forbids it, it takes whoever is largest.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _status() -> list[str]:
    return Path("/proc/self/status").read_text(encoding="ascii").splitlines()


class _Teller(logging.Handler):
    """Sends what is logged to the parent, which logs it as its own."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args = record.getMessage(), None
        if record.exc_info:
            record.exc_text = record.exc_text or logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        with contextlib.suppress(OSError):  # the parent is gone, and so is this process in a moment
            self._pipe.send(record)
