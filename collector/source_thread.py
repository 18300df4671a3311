"""Runs each source in a thread of its own and hands what they saw to the main loop through one bounded queue.

A source that hangs holds up itself alone and is told of, one that is slow skips turns instead of piling them up, and one that raises is
counted and read again. Where the queue is full observations are dropped and counted, but for those with begins or ends of
allocations: their source waits for room. It looks into no row.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import Final, Protocol, runtime_checkable

from collector.clock import US_PER_S, Clock
from collector.probe import Observation, Source
from collector.wire import Stream

_LOG = logging.getLogger(__name__)

MAX_WAITING: Final = 64
"""Observations that may wait for the main loop, which takes them within a second: far more than a healthy agent has."""
_LONGEST_FIRST_WAIT_S: Final = 5.0
_LEAST_WAIT_S: Final = 0.05
_ROOM_WAIT_S: Final = 0.1
OVERDUE_S: Final = 15.0
OVERDUE_PERIODS: Final = 3
"""A reading that took both so long and so many periods hangs, as far as anybody can say."""


@runtime_checkable
class Eager(Protocol):
    """A source that knows when there is something new, and is read then: at the begin of a job, say."""

    def wait(self, timeout_s: float) -> bool:
        """Return once there is something new (True), or after that time."""
        ...

    def stop(self) -> None:
        """End the present wait and all later ones, from another thread."""
        ...


@dataclass(frozen=True, slots=True)
class Seen:
    """One observation, when it was made, and how long after the one before (0 for the first)."""

    source: str
    at_us: int
    since_us: int
    observation: Observation


@dataclass(slots=True)
class _Reading:
    """A reading under way."""

    source: Source
    began_s: float
    counted: int = 0
    """Periods it took that were counted already."""


class SourceThreads:
    """All sources of one agent."""

    def __init__(
        self,
        sources: Sequence[Source],
        clock: Clock,
        *,
        ring: Callable[[], None] = lambda: None,
        jitter: Callable[[], float] = random.random,
        overdue_s: float = OVERDUE_S,
    ) -> None:
        """Start nothing yet; ``ring`` is called once something waits, ``jitter`` gives shares of the first wait.

        A reading of ``overdue_s`` and :data:`OVERDUE_PERIODS` periods is told of by :meth:`take_overdue`.
        """
        self.sources = tuple(sources)
        self._clock = clock
        self._ring = ring
        self._jitter = jitter
        self._waiting: Queue[Seen] = Queue(MAX_WAITING)
        self._left_over: deque[Seen] = deque(maxlen=len(self.sources) or 1)
        """What sources still waited to hand over when they were to end: one observation each."""
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._errors: Counter[str] = Counter()
        self._logged: set[str] = set()
        self._overdue_s = overdue_s
        self._under_way: dict[str, _Reading] = {}
        self._overdue_told: set[str] = set()

    def start(self) -> None:
        """Begin to read; the first readings are spread over a period, so that sources do not come in step."""
        for source in self.sources:
            thread = threading.Thread(target=self._run, args=(source,), name=f"source-{source.name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def take(self) -> list[Seen]:
        """Return what was seen since the last call, in the order it came."""
        found: list[Seen] = []
        while True:
            try:
                found.append(self._waiting.get_nowait())
            except Empty:
                break
        while self._left_over:
            found.append(self._left_over.popleft())
        return found

    def take_errors(self) -> Counter[str]:
        """Return the faults since the last call, by kind; a reading that is not back counts each period it takes."""
        with self._lock:
            now_s = time.monotonic()
            for name, reading in self._under_way.items():
                passed = int((now_s - reading.began_s) / reading.source.period_s)
                if passed > reading.counted:
                    self._errors[f"{name}:overdue"] += passed - reading.counted
                    reading.counted = passed
            errors, self._errors = self._errors, Counter()
        return errors

    def take_overdue(self) -> list[tuple[str, float]]:
        """Return the sources that hang and the seconds so far; each once in the life of the agent."""
        with self._lock:
            now_s = time.monotonic()
            found = [
                (name, now_s - reading.began_s)
                for name, reading in self._under_way.items()
                if name not in self._overdue_told
                and now_s - reading.began_s >= max(self._overdue_s, OVERDUE_PERIODS * reading.source.period_s)
            ]
            self._overdue_told.update(name for name, _ in found)
        return found

    def close(self, patience_s: float = 1.0) -> None:
        """End the threads and close the sources; those inside a call that hangs are left behind."""
        self._closing.set()
        for source in self.sources:
            if isinstance(source, Eager):
                source.stop()
        until_s = time.monotonic() + patience_s
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))

    def _run(self, source: Source) -> None:
        try:
            self._pace(source)
        finally:
            try:
                source.close()
            except Exception:  # noqa: BLE001  the end of the thread
                _LOG.exception("source %s could not be closed", source.name)

    def _pace(self, source: Source) -> None:
        self._closing.wait(self._jitter() * min(source.period_s, _LONGEST_FIRST_WAIT_S))
        period_us = round(source.period_s * US_PER_S)
        due_us = self._clock.now().monotonic_us
        seen_us: int | None = None
        while not self._closing.is_set():
            observation, counted = self._observe(source)
            now = self._clock.now()
            if observation is not None:
                since_us = 0 if seen_us is None else now.monotonic_us - seen_us
                seen_us = now.monotonic_us
                self._hand_over(Seen(source.name, now.wall_us, since_us, observation))
            missed = max(-1, (now.monotonic_us - due_us) // period_us)  # -1: read early, so what was due still is
            if missed > counted:  # the others were counted while they passed
                self._count(f"{source.name}:slow", missed - counted)
            due_us += (missed + 1) * period_us
            self._wait(source, due_us)

    def _wait(self, source: Source, due_us: int) -> None:
        """Return when the next reading is due, or earlier where the source has something new."""
        left_s = (due_us - self._clock.now().monotonic_us) / US_PER_S
        if not isinstance(source, Eager):
            self._closing.wait(left_s)
            return
        # A source that is woken all the time is still read at most so often.
        self._closing.wait(min(_LEAST_WAIT_S, max(0.0, left_s)))
        if not self._closing.is_set():
            source.wait(max(0.0, left_s - _LEAST_WAIT_S))

    def _observe(self, source: Source) -> tuple[Observation | None, int]:
        """Read once; return what was seen, None where it failed, and the periods that were counted as overdue meanwhile."""
        reading = _Reading(source, time.monotonic())
        with self._lock:
            self._under_way[source.name] = reading
        observation = self._read(source)
        with self._lock:
            self._under_way.pop(source.name, None)
        return observation, reading.counted

    def _read(self, source: Source) -> Observation | None:
        try:
            return source.read()
        except Exception as error:  # noqa: BLE001  the outermost loop of the thread
            kind = f"{source.name}:{type(error).__name__}"
            self._count(kind, 1)
            if kind not in self._logged:  # once: it may fail like this for years
                self._logged.add(kind)
                _LOG.exception("source %s failed in a way nobody foresaw; it is read again", source.name)
            return None

    def _hand_over(self, seen: Seen) -> None:
        if Stream.ALLOCATION in seen.observation.rows:
            self._wait_for_room(seen)
            self._ring()
            return
        try:
            self._waiting.put_nowait(seen)
        except Full:
            self._count(f"{seen.source}:dropped", 1)
            return
        self._ring()

    def _wait_for_room(self, seen: Seen) -> None:
        # Its source notes such rows as told before it gives them: dropped, they would never be told again.
        while not self._closing.is_set():
            try:
                self._waiting.put(seen, timeout=_ROOM_WAIT_S)
            except Full:
                continue
            return
        self._left_over.append(seen)

    def _count(self, kind: str, amount: int) -> None:
        with self._lock:
            self._errors[kind] += amount
