"""The processes in which a worker closes hours: spawned when there is something to close, kept, bounded in memory, replaced when they die.

A child that dies takes the hour it was at, never the worker. Its hours are tried again one by one, then with few devices at a
time; an hour that still dies is told of, and left to its caller.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Final

import psycopg

from analytics.closing.beside import Beside
from analytics.closing.child import OUT_OF_MEMORY, Broke, End, Gone, Ready, serve
from analytics.closing.request import Died, Done, Keep, MinutesTask, Share, Shared, Task, Told
from analytics.errors import AnalyticsError, InputError
from analytics.io.hours import batches

log = logging.getLogger(__name__)
MEMORY_VARIABLE: Final = "WATTLEDGER_CLOSE_MEMORY_MIB"
MEMORY_MIB: Final = 1_024
LEAST_MEMORY_MIB: Final = 256
"""A child that has done nothing yet has some 150."""
LOOK_S: Final = 0.2
"""How often a child's memory is looked at, and whether the worker is to stop."""
SILENT_S: Final = 900.0
"""A child that tells nothing for so long is ended: it stands still, or its hour is none that it can do."""
_FEWER: Final = 10
"""An hour that ends its child is tried again with so many times fewer devices in memory together."""
_STARTS_WITH: Final = {
    # The allocator of pgpq otherwise takes a GiB of what RLIMIT_DATA allows when the first row is saved, and uses next to none of it.
    "MIMALLOC_ARENA_EAGER_COMMIT": "0",
    # Of polars: what one shard gave back is there for the next, instead of being unmapped and faulted in again (a fifth of the time), and all
    # threads have one arena, so that nothing is held twice.
    "_RJEM_MALLOC_CONF": "oversize_threshold:0,dirty_decay_ms:10000,muzzy_decay_ms:0,narenas:1",
    # Of numpy, the same; but what is larger goes back: of arrays of all sizes in one heap a child had its bound full of holes in half a day.
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "256000000",
}
"""Of a child's environment, read while it loads libraries; what the worker's own environment says comes first. Six hours of 10,000 boards:
14.2 core-seconds instead of 18.1, 699 MiB of data instead of 1,427."""
_THREADS: Final = "POLARS_MAX_THREADS"
"""Of a child, where there are as many children as processors: each then has one of its own, and work cut for two costs a seventh more."""
_starting = threading.Lock()
_GIVEN_UP: Final = "the worker is to stop; the hours at hand are left due"
_PAGE_BYTES: Final = 4_096
_MIB: Final = 1 << 20


PROCESSES_VARIABLE: Final = "WATTLEDGER_CLOSE_PROCESSES"
PROCESSES: Final = 2
"""Two close a day that fell behind in half the time, on a machine with two processors; most rounds have one hour or two."""


class ClosingError(AnalyticsError):
    """A child broke in a way that no hour accounts for; what it was is in the message."""


class StoppedError(AnalyticsError):
    """The worker is to stop: what its child was at is as if it had not begun."""


class _DeathError(Exception):
    """The child ended in the middle of a task."""


def memory_of(env: Mapping[str, str]) -> int:
    """Return how many MiB a closing process may have; raises InputError for what is no number, or too small to start with."""
    said = env.get(MEMORY_VARIABLE, "")
    if not said:
        return MEMORY_MIB
    if not said.isdecimal() or int(said) < LEAST_MEMORY_MIB:
        raise InputError(f"{MEMORY_VARIABLE}={said!r} must be a whole number of MiB, at least {LEAST_MEMORY_MIB}")
    return int(said)


def processes_of(env: Mapping[str, str]) -> int:
    """Return in how many processes hours are closed, by default two where there are two processors; raises InputError for none."""
    said = env.get(PROCESSES_VARIABLE, "")
    if not said:
        return min(PROCESSES, len(os.sched_getaffinity(0)))
    if not said.isdecimal() or int(said) < 1:
        raise InputError(f"{PROCESSES_VARIABLE}={said!r} must be a whole number, at least 1")
    return int(said)


class Child:
    """One process, kept between tasks. For one thread, but for :meth:`end` and ``stop``."""

    def __init__(self, memory_mib: int, stop: Callable[[], bool], silent_s: float, threads: int | None = None) -> None:
        """Nothing is started yet. ``stop``: once it holds, whatever is being closed is given up. ``threads``: of polars; None = its own choice."""
        self.memory_mib = memory_mib
        self._threads = threads
        self._stop = stop
        self._silent_s = silent_s
        self._context = multiprocessing.get_context("spawn")
        self._child: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._pid: int | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id, where there is one."""
        return self._pid

    def close(self, task: Task, beside: Beside | None = None) -> Iterator[Told]:
        """Tell of each hour of a task what became of it, trying again those whose child died.

        ``beside``: has another child do half of an hour that may be shared; one that is tried again is done by this one alone.
        Raises psycopg.OperationalError where the database is gone, StoppedError, and ClosingError for a fault of the child.
        """
        waiting = [replace(task, is_shared=beside is not None)]
        while waiting:
            at = waiting.pop(0)
            left = list(at.batch.hours)
            try:
                for told in self._attempt(at, beside):
                    if isinstance(told, End | Shared):
                        break
                    if isinstance(told, Done):
                        left.remove(told.hour)
                    yield told
            except _DeathError as death:
                at = replace(at, is_shared=False)
                first = at.batch.hours[0]
                log.warning("closing %s hours of site %s from %s: %s", len(left), first.site_id, first.hour_at, death)
                if len(at.batch.hours) > 1:
                    waiting = [replace(at, batch=each) for each in batches(left, 1)] + waiting
                elif left and at.devices_at_once == task.devices_at_once:
                    waiting.insert(0, replace(at, devices_at_once=max(1, at.devices_at_once // _FEWER)))
                elif left:
                    yield Died(left[0], str(death))

    def make_minutes(self, task: MinutesTask, beside: Beside | None = None) -> bool:
        """Write an hour's minutes; False, logged, where they cannot be made for now, or their process died. Raises as above."""
        first = replace(task, is_shared=beside is not None)
        few = replace(task, devices_at_once=max(1, task.devices_at_once // _FEWER))
        for attempt in (first, few):
            try:
                for told in self._attempt(attempt, beside):
                    if isinstance(told, End):
                        return told.is_made
            except _DeathError as death:
                log.warning("site %s, hour %s: no minutes for now: %s", task.hour.site_id, task.hour.hour_at, death)
        return False

    def half(self, asked: Share) -> bytes | None:
        """Return what was made of half an hour, for the child that asked; null where it was not done, logged."""
        try:
            for told in self._attempt(
                asked, silent_s=self._silent_s / 2
            ):  # who asked waits for it, and is to have as long again
                if isinstance(told, Shared):
                    return told.pickled
        except (_DeathError, ClosingError, psycopg.OperationalError) as error:
            log.warning("half of an hour is done by the process that asked for it: %s", error)
        except StoppedError:
            pass
        return None

    def keep(self) -> None:
        """Have it keep the rows of the half that it did last."""
        if self._pipe is not None:
            with suppress(OSError):  # it has ended since
                self._pipe.send(Keep())

    def end(self) -> None:
        """End the child, whatever it is in the middle of: what it has not committed never was."""
        child, pipe = self._child, self._pipe
        self._child = self._pipe = self._pid = None
        if child is not None:
            child.kill()
            child.join()
            child.close()
        if pipe is not None:
            pipe.close()

    def _attempt(
        self, task: Task | MinutesTask | Share, beside: Beside | None = None, silent_s: float | None = None
    ) -> Iterator[Told | Shared | End]:
        """Yield what the child tells of a task, and at last that it is at its end."""
        child, pipe = self._started()
        is_over = False
        try:
            pipe.send(task)  # what it tells while it starts is heard first
            while True:
                told = self._heard(child, pipe, silent_s or self._silent_s)
                if isinstance(told, Ready):
                    continue
                if isinstance(told, logging.LogRecord):
                    logging.getLogger(told.name).handle(told)
                    continue
                if isinstance(told, Share):
                    if beside is not None:
                        beside.begin(told, pipe)
                    continue
                is_over = isinstance(told, End | Gone | Broke | Shared)
                if isinstance(told, Gone):
                    raise psycopg.OperationalError(told.message)
                if isinstance(told, Broke):
                    raise ClosingError(f"closing failed in its process:\n{told.traceback}")
                yield told
                if is_over:
                    return
        except (EOFError, ConnectionError) as error:
            if self._stop():  # who ends all of us at once may reach a child before it listens to its worker alone
                raise StoppedError(_GIVEN_UP) from error
            raise _DeathError(self._end_of(child)) from error
        finally:
            if not is_over:  # also where nobody listens any more: what it would tell next is nobody's answer
                self.end()

    def _started(self) -> tuple[SpawnProcess, Connection]:
        if self._child is not None and self._pipe is not None and self._child.is_alive():
            return self._child, self._pipe
        self.end()
        ours, theirs = self._context.Pipe()
        level = logging.getLogger().getEffectiveLevel()
        child = self._context.Process(
            target=serve, args=(theirs, self.memory_mib, level), name="wattledger-closing", daemon=True
        )
        with _starting, _environment(_STARTS_WITH | ({_THREADS: str(self._threads)} if self._threads else {})):
            child.start()
        theirs.close()
        self._child, self._pipe, self._pid = child, ours, child.pid
        return child, ours

    def _heard(self, child: SpawnProcess, pipe: Connection, silent_s: float) -> Any:
        """Return what the child tells next, looking after it while it tells nothing."""
        silent_from_s = time.monotonic()
        while not pipe.poll(LOOK_S):
            if self._stop():
                raise StoppedError(_GIVEN_UP)
            if not child.is_alive():
                raise EOFError
            resident_mib = _resident_bytes(child) // _MIB
            if resident_mib > self.memory_mib:
                raise _DeathError(f"its process was ended at {resident_mib} MiB, of {self.memory_mib} it may have")
            if time.monotonic() - silent_from_s > silent_s:
                raise _DeathError(f"its process told nothing for {silent_s:g} s and was ended")
        return pipe.recv()

    def _end_of(self, child: SpawnProcess) -> str:
        child.join(timeout=5.0)
        code = child.exitcode
        self.end()
        if code == OUT_OF_MEMORY:
            return f"its process was refused memory beyond the {self.memory_mib} MiB it may have"
        if code == -signal.SIGABRT:
            return f"its process aborted, as one does that is refused memory; it may have {self.memory_mib} MiB"
        if code is not None and code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process ended by itself with {code}"


class Pool:
    """The worker's children. Hours of one task are divided among them, each a run of hours that follow one another. For one thread.

    One hour is closed by one child; of a large site's, the child that closes it asks another one to read half of the devices.
    """

    def __init__(
        self,
        memory_mib: int = MEMORY_MIB,
        stop: threading.Event | None = None,
        silent_s: float = SILENT_S,
        children: int = 1,
    ) -> None:
        """Nothing is started yet. ``stop``: once set, whatever is being closed is given up. ``memory_mib``: of each child."""
        self._stop = stop or threading.Event()
        self._given_up = threading.Event()
        threads = max(1, len(os.sched_getaffinity(0)) // children) if children > 1 else None
        self._children = [Child(memory_mib, self._is_to_stop, silent_s, threads) for _ in range(children)]

    @property
    def pids(self) -> list[int]:
        """Process ids of the children there are."""
        return [child.pid for child in self._children if child.pid is not None]

    def close(self, task: Task) -> Iterator[Told]:
        """Tell of each hour of a task what became of it, trying again those whose child died.

        Raises psycopg.OperationalError where the database is gone, StoppedError, and ClosingError for a fault of a child.
        """
        parts = _divided(task, len(self._children))
        if len(parts) == 1:
            yield from self._close_one(task)
            return
        heard: queue.SimpleQueue[Told | BaseException | None] = queue.SimpleQueue()
        self._given_up.clear()
        threads = [
            threading.Thread(target=_tell_of, args=(child, part, heard), name="closing")
            for child, part in zip(self._children, parts, strict=False)
        ]
        for thread in threads:
            thread.start()
        try:
            waiting = len(threads)
            while waiting:
                told = heard.get()
                if isinstance(told, BaseException):
                    raise told
                if told is None:
                    waiting -= 1
                else:
                    yield told
        finally:
            self._given_up.set()  # after one that failed nobody listens to the others
            for thread in threads:
                thread.join()
            self._given_up.clear()

    def _close_one(self, task: Task) -> Iterator[Told]:
        with self._beside(task) as beside:
            for told in self._of(task).close(task, beside if len(task.batch.hours) == 1 else None):
                if beside is not None and isinstance(told, Done) and told.is_kept:
                    beside.keep()
                yield told

    def make_minutes(self, task: MinutesTask) -> bool:
        """Write an hour's minutes; False, logged, where they cannot be made for now, or their process died. Raises as above."""
        with self._beside(task) as beside:
            return self._of(task).make_minutes(task, beside if task.is_at_hand else None)

    def end(self) -> None:
        """End the children, whatever they are in the middle of: what they have not committed never was."""
        for child in self._children:
            child.end()

    def _of(self, task: Task | MinutesTask) -> Child:
        """Return the child for a task of its own: one keeps rows of open hours, which hours that are closed would take the memory of."""
        return self._children[-1 if task.is_open else 0]

    @contextmanager
    def _beside(self, task: Task | MinutesTask) -> Iterator[Beside | None]:
        """Give the child that can be asked for half of an hour, where there is one."""
        others = [child for child in self._children if child is not self._of(task)]
        if not others:
            yield None
            return
        beside = Beside(others[0 if task.is_open else -1], self._given_up)
        try:
            yield beside
        finally:
            beside.end()

    def _is_to_stop(self) -> bool:
        return self._stop.is_set() or self._given_up.is_set()


def _divided(task: Task, parts: int) -> list[Task]:
    """Return a task as several of about as many hours, and as many devices x hours in memory together as it had."""
    hours = task.batch.hours
    size = -(-len(hours) // parts)
    if size == len(hours) or hours[0].is_rating_only:
        return [task]
    runs = [hours[first : first + size] for first in range(0, len(hours), size)]
    device_hours = task.devices_at_once * len(hours)
    return [
        replace(task, batch=replace(task.batch, hours=run), devices_at_once=max(1, device_hours // len(run)))
        for run in runs
    ]


def _tell_of(child: Child, task: Task, heard: queue.SimpleQueue[Told | BaseException | None]) -> None:
    try:
        for told in child.close(task):
            heard.put(told)
        heard.put(None)
    except BaseException as error:  # noqa: BLE001 - the end of a thread: raised where it is listened to
        heard.put(error)


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Have what is wanted in the environment, where nothing else is said there, until the end."""
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def _resident_bytes(child: SpawnProcess) -> int:
    try:
        return int(Path(f"/proc/{child.pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0  # it just ended, which the pipe tells
