"""A process that closes hours for a worker: takes tasks from a pipe, tells through it what became of each hour, ends with its worker.

It bounds its own memory: an allocation beyond that ends this process and no other. It decides nothing about what is closed when.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import psycopg

from analytics.closing.halves import Half, HalfDone, do_half
from analytics.closing.hours import Here
from analytics.closing.request import Keep, MinutesTask, Share, Shared, Task
from analytics.io.open_rows import Look, OpenRows
from ingest.store.segments import Segments

log = logging.getLogger(__name__)
OUT_OF_MEMORY: Final = 77
"""Exit code of a child that was refused memory and lived to say so; others are ended by the allocator."""
_MIB: Final = 1 << 20
_KEPT: Final = 3
"""A part of so many of what it may have is for rows of open hours."""
_KEPT_BESIDE: Final = 6
"""And of so many, while a half of an hour is closed beside them."""
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
    pipe.send(Ready())
    _Tasks(pipe, cap_mib * _MIB).serve()


class _Tasks:
    """Does one task after the other, and what another process asks of this one; and asks in turn."""

    def __init__(self, pipe: Connection, most_bytes: int) -> None:
        self._pipe = pipe
        self._places: dict[str, Segments] = {}
        self._most_bytes = most_bytes
        self._rows = OpenRows(most_bytes // _KEPT)
        self._look: Look | None = None
        """At an open hour of which this process did a half; kept once its books are written."""
        self._asked = 0

    def serve(self) -> None:
        while True:
            try:
                told = self._pipe.recv()
            except EOFError:
                return
            if isinstance(told, Keep):
                if self._look is not None:
                    self._rows.keep(self._look)
                self._look = None
            elif isinstance(told, Share | Task | MinutesTask):
                self._look = None
                self._guarded(told)
            # An answer that came too late for who asked is nobody's.

    def ask(self, half: Half) -> None:
        self._asked += 1
        self._pipe.send(Share(self._asked, pickle.dumps(half, pickle.HIGHEST_PROTOCOL)))

    def answer(self) -> HalfDone | None:
        while True:
            try:
                told = self._pipe.recv()
            except EOFError:
                sys.exit(1)  # the worker is gone, and so is this process in a moment
            if isinstance(told, Shared) and told.number == self._asked:
                return None if told.pickled is None else pickle.loads(told.pickled)  # noqa: S301 - of the process beside this one

    def _guarded(self, asked: Share | Task | MinutesTask) -> None:
        try:
            self._do(asked)
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        except psycopg.OperationalError as error:
            self._pipe.send(Gone(str(error)))
        except (BrokenPipeError, EOFError):
            raise
        except Exception:  # noqa: BLE001 - the outermost loop of this process: its parent says it aloud
            self._pipe.send(Broke(traceback.format_exc()))

    def _do(self, asked: Share | Task | MinutesTask) -> None:
        if isinstance(asked, Share):
            half: Half = pickle.loads(asked.pickled)  # noqa: S301 - of the process beside this one
            self._make_room(is_open=half.is_at_hand, is_part=True)
            done, self._look = do_half(
                half if half.segments is None else half.reading(self._known(half.segments)), self._rows
            )
            self._pipe.send(Shared(asked.number, pickle.dumps(done, pickle.HIGHEST_PROTOCOL)))
            return
        self._make_room(is_open=asked.is_open, is_part=asked.is_shared)
        here = Here(self._rows, self)
        if asked.segments is not None:
            asked = asked.reading(self._known(asked.segments))
        if isinstance(asked, MinutesTask):
            self._pipe.send(End(here.make_minutes(asked)))
            return
        for told in here.close(asked):
            self._pipe.send(told)
        self._pipe.send(End())

    def _known(self, segments: Segments) -> Segments:
        """Return those of before, for the files that were checked."""
        return self._places.setdefault(segments.shown_as, segments)

    def _make_room(self, *, is_open: bool, is_part: bool) -> None:
        """Forget rows of open hours where hours that are closed want their memory: many of them all of it, a part of one most of it."""
        if not is_open and not (is_part and self._rows.size_bytes <= self._most_bytes // _KEPT_BESIDE):
            self._rows.drop()


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
