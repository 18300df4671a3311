"""Queues bodies in front of the writers: groups them, bounds what waits, and answers each after its commit.

A group is closed at ``group_rows`` rows or when its first body has waited ``linger_s``, whichever comes first; while a
writer is busy the next group grows by itself. The queue is bounded by bytes, and fullness is answered at once: the
fleet's own disks are the buffer. It knows neither HTTP nor SQL.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, Protocol

from opentelemetry.trace import Link, Span, SpanContext, Tracer, get_current_span

from ingest.errors import UnavailableError
from ingest.store.group import Result
from ingest.store.prepare import Submission

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0


class Sink(Protocol):
    """What a thread of the writer needs: :class:`ingest.store.group.GroupWriter`."""

    def write(self, submissions: Sequence[Submission]) -> list[Result]: ...

    def ping(self) -> None: ...

    def close(self) -> None: ...


Settled = Callable[[Sequence[tuple[Any, Result]], float], None]
"""Called from a writer's thread with the tickets of a group, what became of each, and the seconds its first body took."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is grouped and how much may wait."""

    group_rows: int = 20_000
    linger_s: float = 0.05
    queue_bytes: int = 128 * 1024 * 1024


@dataclass(slots=True)
class Statistics:
    """Counts since the start; read without a lock, each is exact by itself."""

    groups: int = 0
    bodies: int = 0
    rows: int = 0
    busy_s: float = 0.0
    refused_full: int = 0


@dataclass(frozen=True, slots=True)
class _Waiting:
    ticket: Any
    submission: Submission
    since: float
    span: SpanContext | None = None


class Writer:
    """A bounded queue with a thread per sink."""

    def __init__(self, sinks: Sequence[Sink], limits: Limits, settled: Settled) -> None:
        self.statistics = Statistics()
        self.tracer: Tracer | None = None
        """Makes a span of each group, linked to its bodies' spans; set before the start, or never."""
        self._limits = limits
        self._settled = settled
        self._queue: deque[_Waiting] = deque()
        self._queued_bytes = 0
        self._queued_rows = 0
        self._ready = threading.Condition()
        self._stopping = False
        self._down = False
        self._threads = [
            threading.Thread(target=self._run, args=(sink,), name=f"writer-{number}", daemon=True)
            for number, sink in enumerate(sinks)
        ]

    @property
    def queued_bytes(self) -> int:
        return self._queued_bytes

    @property
    def is_down(self) -> bool:
        """Whether the database did not answer when last asked."""
        return self._down

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 30.0) -> None:
        """Write what waits, then end the threads; what comes meanwhile is refused."""
        with self._ready:
            self._stopping = True
            self._ready.notify_all()
        for thread in self._threads:
            thread.join(timeout_s)

    def submit(self, ticket: Any, submission: Submission) -> None:
        """Queue a body; raises UnavailableError when it cannot be kept now."""
        size = submission.body.decoded_bytes
        with self._ready:
            if self._stopping:
                raise UnavailableError("stopping", "this server is stopping; send the batch again", 2)
            if self._down:
                raise UnavailableError("database_unavailable", "the database does not answer; send the batch again", 2)
            # A single body larger than the whole queue is still taken when nothing else waits.
            if self._queue and self._queued_bytes + size > self._limits.queue_bytes:
                self.statistics.refused_full += 1
                raise UnavailableError("queue_full", "more waits to be written than fits; send the batch again", 1)
            span = None if self.tracer is None else get_current_span().get_span_context()
            self._queue.append(_Waiting(ticket, submission, time.monotonic(), span))
            self._queued_bytes += size
            self._queued_rows += submission.body.rows
            # Waking a thread for each of a thousand small bodies would cost more than writing them.
            if len(self._queue) == 1 or self._queued_rows >= self._limits.group_rows:
                self._ready.notify()

    def _run(self, sink: Sink) -> None:
        pause_s = _FIRST_PAUSE_S
        while group := self._next_group():
            started = time.monotonic()
            submissions = [waiting.submission for waiting in group]
            with nullcontext() if self.tracer is None else _spanned(self.tracer, group):
                results = self._write(sink, submissions)
            self._account(group, started)
            settled = [(waiting.ticket, result) for waiting, result in zip(group, results, strict=True)]
            self._settled(settled, time.monotonic() - group[0].since)
            if any(isinstance(result, UnavailableError) and result.reason != "internal" for result in results):
                pause_s = self._recover(sink, pause_s)
            else:
                pause_s = _FIRST_PAUSE_S
        sink.close()

    def _write(self, sink: Sink, submissions: Sequence[Submission]) -> list[Result]:
        try:
            return sink.write(submissions)
        except Exception:  # noqa: BLE001
            # The outermost loop of the thread: whatever it was, the senders keep their batches and the loop goes on.
            _LOG.exception("a group of %d bodies failed in a way nobody foresaw", len(submissions))
        if len(submissions) > 1:
            return [result for submission in submissions for result in self._write(sink, [submission])]
        return [UnavailableError("internal", "the batch could not be written; send it again", 60)]

    def _account(self, group: Sequence[_Waiting], started: float) -> None:
        with self._ready:
            self.statistics.groups += 1
            self.statistics.bodies += len(group)
            self.statistics.rows += sum(waiting.submission.body.rows for waiting in group)
            self.statistics.busy_s += time.monotonic() - started

    def _recover(self, sink: Sink, pause_s: float) -> float:
        """Wait for the database, refusing what comes meanwhile; return the pause for the next time."""
        self._down = True
        try:
            while not self._stopping:
                try:
                    sink.ping()
                    break
                except UnavailableError:
                    self._refuse_queued()
                    time.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        finally:
            self._down = False
        return pause_s

    def _refuse_queued(self) -> None:
        with self._ready:
            queued = list(self._queue)
            self._queue.clear()
            self._queued_bytes = self._queued_rows = 0
        error = UnavailableError("database_unavailable", "the database does not answer; send the batch again", 2)
        self._settled([(waiting.ticket, error) for waiting in queued], 0.0)

    def _next_group(self) -> list[_Waiting]:
        """Return the next group, waiting for it to fill; empty once stopped and drained."""
        with self._ready:
            while True:
                if self._queue:
                    left_s = self._queue[0].since + self._limits.linger_s - time.monotonic()
                    if left_s <= 0 or self._stopping or self._queued_rows >= self._limits.group_rows:
                        return self._take()
                    self._ready.wait(left_s)
                elif self._stopping:
                    return []
                else:
                    self._ready.wait()

    def _take(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        rows = 0
        while self._queue and (not group or rows + self._queue[0].submission.body.rows <= self._limits.group_rows):
            waiting = self._queue.popleft()
            group.append(waiting)
            rows += waiting.submission.body.rows
            self._queued_bytes -= waiting.submission.body.decoded_bytes
        self._queued_rows -= rows
        if self._queue:
            self._ready.notify()
        return group


def _spanned(tracer: Tracer, group: Sequence[_Waiting]) -> AbstractContextManager[Span]:
    return tracer.start_as_current_span(
        "commit group",
        links=[Link(waiting.span) for waiting in group if waiting.span is not None and waiting.span.is_valid],
        attributes={
            "wattledger.bodies": len(group),
            "wattledger.rows": sum(waiting.submission.body.rows for waiting in group),
            "wattledger.waited_s": time.monotonic() - group[0].since,
        },
    )
