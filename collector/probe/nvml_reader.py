"""Asks the driver in a thread of its own, so that a call that does not come back costs the one who asked its patience only.

A driver call cannot be cancelled: a thread that waits in one is given up, and another goes on with the next task. The
number of threads given up is bounded; beyond it nothing is asked until one comes back. It knows nothing of NVML or devices.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum, auto
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final, Generic, TypeVar

_LOG = logging.getLogger(__name__)

MAX_HANGING: Final = 8
"""Threads given up at a time: each takes some kB, and a driver that hangs in so many places hangs in all."""
_LATER_PATIENCE: Final = 0.2
"""Of the patience, for the tasks after one that hung: several that hang must not hold up the rest several times."""

_BUSY_PATIENCE: Final = 8
"""A task that is overdue may use a core for so many times its patience, for a driver may well spin; waiting for one is free."""
_LEAST_PROGRESS: Final = 0.1
"""Of the time watched; a thread that must share the interpreter with others makes little of it."""
_LOOK_S: Final = 0.02
_NS_PER_S: Final = 1_000_000_000

T = TypeVar("T")
Key = tuple[str, int, int]
"""What was asked, in which opening of the library, of which position: by this a late answer is recognised."""
Task = tuple[Key, Callable[[], T]]


class NoAnswer(Enum):
    """Why a task has no answer."""

    OVERDUE = auto()
    """It did not come back in time; :meth:`Reader.returned` tells when it does."""
    NOT_ASKED = auto()
    """It was not begun, because too many had not come back."""
    RAISED = auto()
    """It raised what no task should: a mistake of ours, which is logged once and must not cost the other tasks."""


class Reader(Generic[T]):
    """Runs tasks one after the other; to be used from one thread."""

    def __init__(self, patience_s: float) -> None:
        """Wait for each task at most that long. No thread is started before there is something to do."""
        self._patience_s = patience_s
        self._lane: _Lane[T] | None = None
        self._given_up: list[_Lane[T]] = []
        self._complained: set[tuple[str, int]] = set()

    @property
    def hanging(self) -> int:
        """How many threads wait in calls that have not come back."""
        return sum(lane.late is None for lane in self._given_up)

    def run(self, tasks: Sequence[Task[T]], *, patience_s: float | None = None) -> list[T | NoAnswer]:
        """Return the answers in the order of the tasks.

        A task must not change what others see but through its answer: an overdue one goes on at some time, beside its
        successors.
        """
        answers: list[T | NoAnswer] = [NoAnswer.NOT_ASKED] * len(tasks)
        begin = 0
        patience_s = self._patience_s if patience_s is None else patience_s
        while begin < len(tasks):
            if self._lane is None:
                if self.hanging >= MAX_HANGING:
                    break
                self._lane = _Lane(self._complained)
            overdue = self._lane.work(tasks, begin, answers, patience_s)
            if overdue is None:
                break
            answers[overdue] = NoAnswer.OVERDUE
            self._given_up.append(self._lane)
            self._lane = None
            begin = overdue + 1
            patience_s = min(patience_s, self._patience_s * _LATER_PATIENCE)
        return answers

    def returned(self) -> list[tuple[Key, T | None]]:
        """Return the answers that came too late since the last call, None for what raised; their threads have ended."""
        if not self._given_up:
            return []
        back = [lane for lane in self._given_up if lane.late is not None]
        self._given_up = [lane for lane in self._given_up if lane.late is None]
        return [lane.late for lane in back if lane.late is not None]

    def stop(self) -> None:
        """End the idle thread; one that hangs ends when it comes back."""
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.stop()


class _Lane(Generic[T]):
    """One thread and what it is at."""

    def __init__(self, complained: set[tuple[str, int]]) -> None:
        self._complained = complained
        self.late: tuple[Key, T | None] | None = None
        """Set once a lane that was given up has come back."""
        self._inbox: SimpleQueue[_Round[T] | None] = SimpleQueue()
        self._finished: SimpleQueue[None] = SimpleQueue()
        self._lock = threading.Lock()
        # A daemon: the process must be able to end while a call hangs.
        self._thread = threading.Thread(target=self._live, name="nvml-reader", daemon=True)
        self._thread.start()

    def work(
        self,
        tasks: Sequence[Task[T]],
        begin: int,
        answers: list[T | NoAnswer],
        patience_s: float,
    ) -> int | None:
        """Have the tasks from ``begin`` on done; return the position of the one that hangs, after which this lane is lost."""
        turn = _Round(tasks, begin, answers)
        self._inbox.put(turn)
        wait_s = patience_s
        spent_ns: dict[int, int] = {}
        while True:
            try:
                self._finished.get(timeout=wait_s)
            except Empty:
                wait_s = patience_s - (time.monotonic() - turn.since_s)
                if wait_s > 0:
                    continue
                position = turn.at
                worked_ns = self._progress_ns()
                if worked_ns is not None:
                    spent_ns[position] = spent_ns.get(position, 0) + worked_ns
                    if spent_ns[position] < _BUSY_PATIENCE * patience_s * _NS_PER_S:
                        wait_s = _LOOK_S
                        continue
                with self._lock:
                    if turn.at == position and not turn.done:
                        turn.given_up = True
                        return position
                wait_s = _LOOK_S
            else:
                return None

    def _progress_ns(self) -> int | None:
        """Watch the thread for a moment; return the time it had a core, None where it neither had one nor waited for one.

        Who waits in a call does neither. Who lacks a core, on a node that jobs keep busy, does not hang.
        """
        before = self._scheduled_ns()
        time.sleep(_LOOK_S)
        after = self._scheduled_ns()
        if before is None or after is None:
            return None  # a kernel that does not tell: then patience alone decides
        on_core_ns, waiting_ns = after[0] - before[0], after[1] - before[1]
        return on_core_ns if on_core_ns + waiting_ns > _LOOK_S * _NS_PER_S * _LEAST_PROGRESS else None

    def _scheduled_ns(self) -> tuple[int, int] | None:
        try:
            schedstat = Path(f"/proc/self/task/{self._thread.native_id}/schedstat").read_bytes()
            on_core_ns, waiting_ns, _ = schedstat.split()
        except (OSError, ValueError):
            return None
        return int(on_core_ns), int(waiting_ns)

    def stop(self) -> None:
        self._inbox.put(None)

    def _live(self) -> None:
        while (turn := self._inbox.get()) is not None:
            for position in range(turn.begin, len(turn.tasks)):
                key, task = turn.tasks[position]
                turn.since_s = time.monotonic()  # before the position: a new task must never be seen with an old begin
                turn.at = position
                answer: T | NoAnswer
                try:
                    answer = task()
                except Exception as error:  # noqa: BLE001  the outermost loop of this thread
                    answer = NoAnswer.RAISED
                    self._complain(key, error)
                with self._lock:
                    if turn.given_up:
                        self.late = (key, None if isinstance(answer, NoAnswer) else answer)
                        return
                    turn.answers[position] = answer
                    turn.done = position == len(turn.tasks) - 1
            self._finished.put(None)

    def _complain(self, key: Key, error: Exception) -> None:
        if (key[0], key[2]) not in self._complained:
            self._complained.add((key[0], key[2]))
            _LOG.error("asking %s of position %d failed; going on without", key[0], key[2], exc_info=error)


class _Round(Generic[T]):
    """One call of :meth:`Reader.run`, or what is left of it after a task hung."""

    __slots__ = ("answers", "at", "begin", "done", "given_up", "since_s", "tasks")

    def __init__(self, tasks: Sequence[Task[T]], begin: int, answers: list[T | NoAnswer]) -> None:
        self.tasks = tasks
        self.begin = begin
        self.answers = answers
        self.at = begin
        self.since_s = time.monotonic()
        self.given_up = False
        self.done = False
