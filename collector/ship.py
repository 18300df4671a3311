"""Sends what the spool holds to the server, oldest first, one body at a time.

After an outage the backlog is worked off oldest first, but the newest batch gets its turn in between, so that what is
shown is live again at once; rates of bytes and of bodies bound what a returning fleet does to its network, its server and
its own processors. What becomes of a batch depends
on the answer alone. 2xx: ingest has it, it is deleted. A refusal of this very batch (4xx) puts it into quarantine with the
reason, so that one bad batch cannot block the rest. Everything else says nothing about the batch (a busy or unreachable
server, a token or address that is wrong for all batches): it is kept and tried again with a jittered, capped backoff. 403
is among these although it is a 4xx: the token is of another node, site or scope, which an operator mends without touching
the spool. Each lane pauses for itself: what is metered here does not wait for a path of others that fails. It never looks
into a body and never changes one.
"""

from __future__ import annotations

import logging
import math
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from collector import wire
from collector.clock import US_PER_S, Clock, Instant
from collector.errors import AgentError, NoAnswerError
from collector.exchange import Answer, Exchange, http_date
from collector.http import httpx
from collector.spool import Batch, Lane, Spool

_LOG = logging.getLogger(__name__)

TIMEOUT: Final = httpx.Timeout(30.0, connect=5.0)
FIRST_BACKOFF_S: Final = 1.0
LONGEST_BACKOFF_S: Final = 60.0
LONGEST_RETRY_AFTER_S: Final = 3_600.0
LIMIT_S: Final = 60.0
"""For a whole exchange, with a second for each so many bytes of the body:"""
SLOWEST_BYTES_PER_S: Final = 65_536
ANSWER_S: Final = 5.0
"""For the body of an answer, which only says why."""
IDLE_S: Final = 1.0
DRAIN_S: Final = 2.0
"""How long it goes on sending once told to stop, while the server answers."""
BACKLOG_PER_LIVE: Final = 4
"""Bodies of the backlog between two live ones."""
BODIES_PER_S: Final = 10.0
"""A day of batches in a quarter of an hour, at a hundred times what comes meanwhile."""
SLOWEST_BODIES_PER_S: Final = 1.0
BACKLOG_PER_COMMIT: Final = 10
"""Batches of the backlog that are forgotten together; after a kill in between they are sent again, and ingest knows them."""
MAX_FORWARD_TRIES: Final = 10
"""Server errors on one forwarded body, batches being accepted in between, after which the body is at fault: some minutes."""
_LIVE_AGE_US: Final = 60 * US_PER_S
_MAX_ANSWER_BYTES: Final = 2_048
_RETRIED_CODES: Final = frozenset({408, 425, 429})
# Answers about the sender or the address, not about the batch: quarantining for them would empty a healthy spool into
# quarantine over a mistyped token or URL.
_HELD_CODES: Final = frozenset({401, 403, 404, 405, 407})


@dataclass(slots=True)
class ShipState:
    """Counts since the start, for the agent's own health."""

    sent_batches: int = 0
    sent_bytes: int = 0
    refused_batches: int = 0
    failed_attempts: int = 0
    last_failure: str | None = None
    clock_skew_us: int | None = None
    """By how much this clock is ahead of the server's, to half a second, as its answers are dated; None while unknown."""


@dataclass(slots=True)
class _Way:
    """How sending goes: for one lane, or for all of it where no lane is to blame."""

    failures_in_a_row: int = 0
    again_at_us: int = 0
    """Monotonic; nothing is tried before."""


@dataclass(slots=True)
class _Suspect:
    """A forwarded body that the server failed on while it took in batches."""

    sequence: int = 0
    tries: int = 0
    accepted_before: int = -1
    """Batches that had been accepted at the last try."""


class Shipper:
    """The sending end of one spool."""

    def __init__(
        self,
        client: httpx.Client,
        spool: Spool,
        clock: Clock,
        *,
        token: Callable[[], str | None],
        max_bytes_per_s: int | None = None,
        bodies_per_s: float = math.inf,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Send through ``client``, whose base URL is the server's; ``token`` is asked before each attempt, as it may rotate."""
        self._max_bytes_per_s = max_bytes_per_s
        self._usual_bodies_per_s = self._bodies_per_s = bodies_per_s
        self._behind = False
        self._live_sequence = 0
        self._since_live = 0
        self.state = ShipState()
        self._exchange = Exchange(client, limit_s=LIMIT_S, max_bytes=_MAX_ANSWER_BYTES, body_s=ANSWER_S)
        self._spool = spool
        self._clock = clock
        self._token = token
        self._jitter = jitter
        self._ways = {lane: _Way() for lane in Lane}
        self._whole = _Way()
        self._accepted_batches = 0
        self._suspect = _Suspect()
        self._faulty_answers = 0
        self._taken: set[int] = set()
        self._taken_of = spool.uuid
        self._taken_to = 0

    def run(self, stop: threading.Event) -> None:
        """Send until asked to stop, and a moment longer what is left; the outermost loop of its thread."""
        while not stop.is_set():
            self._clock.wait(self._step_and_survive())
        until_us = self._clock.now().monotonic_us + round(DRAIN_S * US_PER_S)
        while not self._ways[Lane.BATCHES].failures_in_a_row and self._clock.now().monotonic_us < until_us:
            if self._step_and_survive() >= IDLE_S:
                break
        try:
            self._forget_taken()
        except AgentError as error:
            _LOG.warning("batches that were sent will be sent again: %s", error)

    def slow_down(self) -> bool:
        """Send half as many bodies a second until the backlog is gone; False where that is not possible. From any thread."""
        pace = self._bodies_per_s
        if not self._behind or pace <= SLOWEST_BODIES_PER_S or math.isinf(pace):
            return False
        self._bodies_per_s = max(SLOWEST_BODIES_PER_S, pace / 2)
        _LOG.info("the backlog is sent at %g bodies a second, to keep to cpu_cap_percent", self._bodies_per_s)
        return True

    def _step_and_survive(self) -> float:
        try:
            return self.step()
        except AgentError as error:
            return self._failed(self._whole, str(error))
        except Exception as error:  # noqa: BLE001  the outermost loop of the thread
            _LOG.exception("sending failed in a way nobody foresaw")
            return self._failed(self._whole, repr(error))

    def step(self) -> float:
        """Try to send the body whose turn it is; return the seconds to wait before the next step."""
        batch = self._next()
        if batch is None:
            return self._idle_s()
        way = self._ways[batch.lane]
        try:
            answer = self._post(batch)
        except NoAnswerError as error:
            self._forget_taken()
            self._failed(way, str(error))
            return self._idle_s(beside=batch.lane)
        code = answer.code
        if 200 <= code < 300:
            # The status decides: ingest gives it once all is committed, and nothing that follows takes that back.
            self._note_fault(answer)
            self._acknowledge(batch)
            self.state.sent_batches += 1
            self.state.sent_bytes += len(batch.body)
            self._accepted_batches += batch.lane is Lane.BATCHES
            self._recovered(way)
            for_bytes_s = len(batch.body) / self._max_bytes_per_s if self._max_bytes_per_s else 0.0
            return max(for_bytes_s, 1 / self._bodies_per_s)
        self._forget_taken()
        reason = f"HTTP {code}: {answer.body.decode('utf-8', 'replace').strip()}"
        refused = 400 <= code < 500 and code not in _RETRIED_CODES and code not in _HELD_CODES
        if refused or (code >= 500 and self._is_at_fault(batch)):
            self._spool.quarantine(batch.sequence, reason, self._clock.now().wall_us, batch.lane)
            self.state.refused_batches += 1
            _LOG.error("the server refused %s %d, it is in quarantine: %s", batch.lane.value, batch.sequence, reason)
            self._recovered(way)
            return 0.0
        self._failed(way, reason, at_least_s=self._retry_after_s(answer.headers.get("Retry-After")))
        return self._idle_s(beside=batch.lane)

    def _next(self) -> Batch | None:
        """Choose: the oldest of the lanes that may go, and while that one is old, now and then the newest batch instead."""
        now = self._clock.now()
        open_lanes = [lane for lane in Lane if self._ways[lane].again_at_us <= now.monotonic_us]
        heads = [head for lane in open_lanes if (head := self._head(lane)) is not None]
        oldest = min(heads, key=lambda head: head.stored_at_us, default=None)
        if oldest is None or now.wall_us - oldest.stored_at_us < _LIVE_AGE_US:
            self._forget_taken()
            self._since_live, self._behind, self._bodies_per_s = 0, False, self._usual_bodies_per_s
            return oldest
        self._behind = True
        self._since_live += 1
        if self._since_live > BACKLOG_PER_LIVE and Lane.BATCHES in open_lanes:
            live = self._spool.newest(after=self._live_sequence)
            if live is not None:
                self._since_live, self._live_sequence = 0, live.sequence
                return live
        return oldest

    def _head(self, lane: Lane) -> Batch | None:
        if lane is Lane.BATCHES and self._taken:
            head = self._spool.oldest(after=self._taken_to)
            if head is not None and head.sequence not in self._taken and self._spool.uuid == self._taken_of:
                return head
            self._forget_taken()
        return self._spool.oldest(lane=lane)

    def _acknowledge(self, batch: Batch) -> None:
        """Forget a body at once, or one of the backlog's together with others: each commit waits for the disk."""
        old = self._clock.now().wall_us - batch.stored_at_us >= _LIVE_AGE_US
        if batch.lane is Lane.FORWARDS or not old:
            self._spool.acknowledge(batch.sequence, batch.lane)
            return
        if not self._taken:
            self._taken_of = self._spool.uuid
        self._taken.add(batch.sequence)
        if batch.sequence != self._live_sequence:
            self._taken_to = batch.sequence
        if len(self._taken) >= BACKLOG_PER_COMMIT:
            self._forget_taken()

    def _forget_taken(self) -> None:
        taken, self._taken, self._taken_to = self._taken, set(), 0
        # In a file that was started anew meanwhile these numbers are of other batches.
        if taken and self._spool.uuid == self._taken_of:
            self._spool.acknowledge_all(taken)

    def _idle_s(self, beside: Lane | None = None) -> float:
        """Return how long nothing can go; after a failure the other lane may go at once."""
        now_us = self._clock.now().monotonic_us
        pauses_us = {lane: way.again_at_us - now_us for lane, way in self._ways.items()}
        if beside is not None and any(pause_us <= 0 for lane, pause_us in pauses_us.items() if lane is not beside):
            return 0.0
        # Not longer: the other lane may have something meanwhile.
        return min([IDLE_S, *(pause_us / US_PER_S for pause_us in pauses_us.values() if pause_us > 0)])

    def _is_at_fault(self, batch: Batch) -> bool:
        """Say whether the server fails on this very body: batches were accepted between so many tries of it."""
        if batch.lane is Lane.BATCHES:
            return False  # what is metered here is kept until the server says that it is wrong
        suspect = self._suspect
        if suspect.sequence != batch.sequence:
            suspect = self._suspect = _Suspect(batch.sequence)
        elif self._accepted_batches == suspect.accepted_before:
            return False
        suspect.tries += 1
        suspect.accepted_before = self._accepted_batches
        return suspect.tries >= MAX_FORWARD_TRIES

    def _post(self, batch: Batch) -> Answer:
        sent = self._clock.now()
        headers = {"Content-Type": batch.envelope.content_type, wire.SENT_AT_HEADER: str(sent.wall_us)}
        if batch.envelope.content_encoding:
            headers["Content-Encoding"] = batch.envelope.content_encoding
        token = self._token()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        more_s = len(batch.body) / SLOWEST_BYTES_PER_S
        answer = self._exchange.ask("POST", batch.envelope.path, headers=headers, body=batch.body, more_s=more_s)
        self._note_skew(sent, answer.headers.get("Date"))
        return answer

    def _note_fault(self, answer: Answer) -> None:
        """Count an answer that says yes and cannot be read to its end: what is sent comes to the server, but slowly."""
        if answer.fault is None:
            self._faulty_answers = 0
            return
        self.state.failed_attempts += 1
        self.state.last_failure = answer.fault
        self._faulty_answers += 1
        if self._faulty_answers == 1:
            _LOG.warning("the server takes what is sent, but its answer cannot be read: %s", answer.fault)

    def _note_skew(self, sent: Instant, date: str | None) -> None:
        """Compare the clocks: the server dated its answer, to the second below, between the sending and now."""
        server = http_date(date)
        if server is None:
            return
        now = self._clock.now()
        middle_us = now.wall_us - (now.monotonic_us - sent.monotonic_us) // 2
        self.state.clock_skew_us = middle_us - round(server.timestamp()) * US_PER_S - US_PER_S // 2

    def _recovered(self, way: _Way) -> None:
        failures = max(way.failures_in_a_row, self._whole.failures_in_a_row)
        if failures:
            _LOG.info("ingest answers again after %d failed attempts", failures)
        way.failures_in_a_row = self._whole.failures_in_a_row = 0

    def _failed(self, way: _Way, reason: str, at_least_s: float = 0.0) -> float:
        """Count a failure and return the pause: half to all of a doubling backoff, so that nodes do not come in step."""
        self.state.failed_attempts += 1
        self.state.last_failure = reason
        backoff_s: float = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(way.failures_in_a_row, 16))
        if way.failures_in_a_row == 0:
            _LOG.warning("cannot ship, what is to be sent waits in the spool: %s", reason)
        way.failures_in_a_row += 1
        pause_s = max(backoff_s * (1 + self._jitter()) / 2, at_least_s * (1 + self._jitter() / 10))
        way.again_at_us = self._clock.now().monotonic_us + round(pause_s * US_PER_S)
        return pause_s

    def _retry_after_s(self, header: str | None) -> float:
        """Read a Retry-After header, seconds or an HTTP date; one that makes no sense counts as absent."""
        if header is None:
            return 0.0
        if header.strip().isdecimal():
            return min(float(header), LONGEST_RETRY_AFTER_S)
        until = http_date(header)
        if until is None:
            return 0.0
        now = datetime.fromtimestamp(self._clock.now().wall_us / US_PER_S, UTC)
        return min(max(0.0, (until - now).total_seconds()), LONGEST_RETRY_AFTER_S)
