"""Sends a simulated fleet to a running ingest over HTTP: history as fast as it is taken, then live at wall-clock pace.

A handful of requests are in flight at a time, also across the end of a step; 429, 5xx and broken connections are tried again, honouring Retry-After, up to a
limit. Any other refusal stops the feed: a simulator has nothing to quarantine. It starts no server and reads no answer's body
but to quote it.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event
from typing import Final, Self

import httpx

from collector import wire
from wattledger.simulate.cursor import Cursor, Step
from wattledger.simulate.fleet import LIVE_BATCH_S, Fleet
from wattledger.simulate.otlp import TRACES_CONTENT_TYPE, TRACES_PATH
from wattledger.simulate.spec import US_PER_S

MAX_ATTEMPTS: Final = 12
FIRST_BACKOFF_S: Final = 0.2
LONGEST_PAUSE_S: Final = 30.0
_RETRIED: Final = frozenset({408, 425, 429})


class FeedError(RuntimeError):
    """Ingest refused what was sent, or did not answer for too long."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a feed is; rates over its whole run. ``until_us`` is the simulated instant acknowledged up to."""

    until_us: int
    rows: int
    bodies: int
    sent_bytes: int
    spans: int
    retries: int
    elapsed_s: float

    @property
    def rows_per_s(self) -> float:
        """Device rows acknowledged per second."""
        return self.rows / self.elapsed_s if self.elapsed_s else 0.0


@dataclass(frozen=True, slots=True)
class _Request:
    path: str
    body: bytes
    headers: dict[str, str]
    rows: int = 0
    spans: int = 0
    skew_us: int | None = None


@dataclass(frozen=True, slots=True)
class _Sent:
    request: _Request
    taken: bool
    retries: int


@dataclass(slots=True)
class _Sending:
    """A step on its way: how many of its requests are not answered yet, and whether all are under way."""

    step: Step
    unanswered: int = 0
    all_sent: bool = False


def _ignore(_progress: Progress) -> None:
    """Report nothing."""


class Feed:
    """One fleet on its way to one ingest. Use as a context manager: it holds connections and threads."""

    def __init__(
        self,
        fleet: Fleet,
        base_url: str,
        token: str | None = None,
        *,
        cursor: Cursor | None = None,
        in_flight: int = 16,
        traces: bool = True,
        stop: Event | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Open nothing yet. Setting ``stop`` ends any sending soon, in order; ``transport`` replaces the network in tests."""
        self._fleet = fleet
        self.cursor = cursor or Cursor(None, fleet.spec.start_at_us)
        self._in_flight = in_flight
        self._traces = traces
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(
            base_url=base_url,
            headers=headers,
            timeout=httpx.Timeout(30.0),
            limits=httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight),
            transport=transport,
        )
        self._threads = ThreadPoolExecutor(in_flight, thread_name_prefix="feed")
        self._stop = stop or Event()
        self._rows = self._bodies = self._bytes = self._spans = self._retries = 0
        self._started_s = time.monotonic()

    def __enter__(self) -> Self:
        """Return the feed."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of threads and connections; requests in flight are finished, none is tried again."""
        self._stop.set()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def catch_up(self, until_us: int, report: Callable[[Progress], None] = _ignore) -> Progress:
        """Send everything from the cursor up to the last live batch that ends by ``until_us``.

        Reports after every body. Raises FeedError when ingest refuses a body or stays away; feeding again goes on from the
        last step that was acknowledged whole.
        """
        self.cursor.resume()
        self._send(iter(lambda: self.cursor.next_step(until_us), None), report)
        return self.progress()

    def live(
        self,
        report: Callable[[Progress], None] = _ignore,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> Progress:
        """Follow the wall clock until stopped: each batch is sent when its window is over."""
        self.cursor.resume()
        while not self._stop.is_set():
            step = self.cursor.next_step(now_us())
            if step is None:
                wait_us = self.cursor.done_until_us + LIVE_BATCH_S * US_PER_S - now_us()
                self._stop.wait(max(0.02, min(float(LIVE_BATCH_S), wait_us / US_PER_S)))
                continue
            self._send([step], report)
        return self.progress()

    def progress(self) -> Progress:
        """Return how far the feed is."""
        return Progress(
            until_us=self.cursor.done_until_us,
            rows=self._rows,
            bodies=self._bodies,
            sent_bytes=self._bytes,
            spans=self._spans,
            retries=self._retries,
            elapsed_s=time.monotonic() - self._started_s,
        )

    def _send(self, steps: Iterable[Step], report: Callable[[Progress], None]) -> None:
        """Send steps, the next while the last answers of one are awaited; record each that is acknowledged whole.

        What a stop interrupts stays in hand and is sent again by the next feed.
        """
        pending: dict[Future[_Sent], _Sending] = {}
        under_way: deque[_Sending] = deque()
        for step in steps:
            while len(under_way) > 1 and pending:
                self._settle(pending, under_way, report)
            if self._stop.is_set():
                break
            self.cursor.begin(step)
            sending = _Sending(step)
            under_way.append(sending)
            for request in self._requests(step):
                if len(pending) >= 2 * self._in_flight:
                    self._settle(pending, under_way, report)
                if self._stop.is_set():
                    break
                pending[self._threads.submit(self._post, request)] = sending
                sending.unanswered += 1
            else:
                sending.all_sent = True
                self._finish(under_way, report)  # its answers may all be here
        while pending:
            self._settle(pending, under_way, report)

    def _settle(
        self, pending: dict[Future[_Sent], _Sending], under_way: deque[_Sending], report: Callable[[Progress], None]
    ) -> None:
        """Wait for an answer; ``pending`` loses what was answered."""
        done, _ = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            sending = pending.pop(future)
            sent = future.result()
            self._retries += sent.retries
            if sent.taken:
                sending.unanswered -= 1
                self._rows += sent.request.rows
                self._bytes += len(sent.request.body)
                self._bodies += 1
                self._spans += sent.request.spans
        self._finish(under_way, report)
        report(self.progress())

    def _finish(self, under_way: deque[_Sending], report: Callable[[Progress], None]) -> None:
        while under_way and under_way[0].all_sent and not under_way[0].unanswered:
            self.cursor.finish(under_way.popleft().step)
            report(self.progress())

    def _requests(self, step: Step) -> Iterator[_Request]:
        samples = {"Content-Type": wire.CONTENT_TYPE, "Content-Encoding": wire.CONTENT_ENCODING}
        for batch in self._fleet.batches(step.start_us, step.end_us, step.batch_seconds):
            yield _Request(wire.SAMPLES_PATH, batch.body, samples, rows=batch.rows, skew_us=batch.skew_us)
        if self._traces:
            for export in self._fleet.traces(step.start_us, step.end_us):
                yield _Request(TRACES_PATH, export.body, {"Content-Type": TRACES_CONTENT_TYPE}, spans=export.spans)

    def _post(self, request: _Request) -> _Sent:
        """Send one request until it is taken or the feed is stopped; raise FeedError when it never will be."""
        reason = ""
        for attempt in range(MAX_ATTEMPTS):
            headers = dict(request.headers)
            if request.skew_us is not None:
                # History is shipped from the spool now, however old it is: the sender's clock is today's.
                headers[wire.SENT_AT_HEADER] = str(time.time_ns() // 1000 + request.skew_us)
            after_s = 0.0
            try:
                response = self._client.post(request.path, content=request.body, headers=headers)
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                if response.is_success or self._refused_by_skew(request, response):
                    return _Sent(request, taken=True, retries=attempt)
                reason = f"HTTP {response.status_code}: {response.text[:400]}"
                if response.status_code < 500 and response.status_code not in _RETRIED:
                    raise FeedError(f"ingest refused a body for {request.path}: {reason}")
                after_s = _retry_after_s(response.headers.get("Retry-After"))
            backoff_s = min(LONGEST_PAUSE_S, FIRST_BACKOFF_S * 2**attempt)
            if self._stop.wait(max(after_s, backoff_s * (0.5 + random.random() / 2))):
                return _Sent(request, taken=False, retries=attempt + 1)
        raise FeedError(f"gave up on {request.path} after {MAX_ATTEMPTS} attempts: {reason}")

    @staticmethod
    def _refused_by_skew(request: _Request, response: httpx.Response) -> bool:
        """Say whether ingest did what it must with a planted skew: keep the body as a dead letter and say so."""
        return bool(request.skew_us) and 400 <= response.status_code < 500 and response.status_code not in _RETRIED


def _retry_after_s(header: str | None) -> float:
    """Return the pause asked for in whole seconds; a date or nonsense counts as none, the backoff is there anyway."""
    if header is None or not header.strip().isdecimal():
        return 0.0
    return min(float(header), LONGEST_PAUSE_S)
