"""Sends what the spool holds to ingest, oldest first, one batch at a time.

What becomes of a batch depends on the answer alone. 2xx: ingest has it, it is deleted. A refusal of this very batch (4xx)
puts it into quarantine with the reason, so that one bad batch cannot block the rest. Everything else says nothing about
the batch (a busy or unreachable server, a token or address that is wrong for all batches): it is kept and tried again
with a jittered, capped backoff. 403 is among these although it is a 4xx: the token is of another node, site or scope,
which an operator mends without touching the spool. It never looks into a body and never changes one.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from collector import wire
from collector.clock import US_PER_S, Clock
from collector.errors import AgentError
from collector.http import httpx
from collector.spool import Batch, Spool

_LOG = logging.getLogger(__name__)

TIMEOUT: Final = httpx.Timeout(30.0, connect=5.0)
FIRST_BACKOFF_S: Final = 1.0
LONGEST_BACKOFF_S: Final = 60.0
LONGEST_RETRY_AFTER_S: Final = 3_600.0
IDLE_S: Final = 1.0
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


class Shipper:
    """The sending end of one spool."""

    def __init__(
        self,
        client: httpx.Client,
        spool: Spool,
        clock: Clock,
        *,
        token: Callable[[], str | None],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Send through ``client``, whose base URL is the server's; ``token`` is asked before each attempt, as it may rotate."""
        self.state = ShipState()
        self._client = client
        self._spool = spool
        self._clock = clock
        self._token = token
        self._jitter = jitter
        self._failures_in_a_row = 0

    def run(self, stop: threading.Event) -> None:
        """Send until asked to stop; the outermost loop of its thread, so nothing ends it but ``stop``."""
        while not stop.is_set():
            try:
                pause_s = self.step()
            except AgentError as error:
                pause_s = self._failed(str(error))
            except Exception as error:  # noqa: BLE001  the outermost loop of the thread
                _LOG.exception("sending failed in a way nobody foresaw")
                pause_s = self._failed(repr(error))
            self._clock.wait(pause_s)

    def step(self) -> float:
        """Try to send the oldest batch; return the seconds to wait before the next step."""
        batch = self._spool.oldest()
        if batch is None:
            return IDLE_S
        try:
            code, retry_after, text = self._post(batch)
        except httpx.HTTPError as error:
            return self._failed(f"{type(error).__name__}: {error}")
        if 200 <= code < 300:
            self._spool.acknowledge(batch.sequence)
            self.state.sent_batches += 1
            self.state.sent_bytes += len(batch.body)
            self._recovered()
            return 0.0
        reason = f"HTTP {code}: {text}"
        if 400 <= code < 500 and code not in _RETRIED_CODES and code not in _HELD_CODES:
            self._spool.quarantine(batch.sequence, reason, self._clock.now().wall_us)
            self.state.refused_batches += 1
            _LOG.error("ingest refused batch %d, it is in quarantine: %s", batch.sequence, reason)
            self._recovered()
            return 0.0
        return self._failed(reason, at_least_s=self._retry_after_s(retry_after))

    def _post(self, batch: Batch) -> tuple[int, str | None, str]:
        headers = {
            "Content-Type": wire.CONTENT_TYPE,
            "Content-Encoding": wire.CONTENT_ENCODING,
            wire.SENT_AT_HEADER: str(self._clock.now().wall_us),
        }
        token = self._token()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        with self._client.stream("POST", wire.SAMPLES_PATH, content=batch.body, headers=headers) as response:
            answer = b""
            # An answer read to its end lets the connection be used again; an endless one is cut off.
            for piece in response.iter_bytes():
                answer += piece
                if len(answer) > _MAX_ANSWER_BYTES:
                    break
            text = answer[:_MAX_ANSWER_BYTES].decode("utf-8", "replace").strip()
            return response.status_code, response.headers.get("Retry-After"), text

    def _recovered(self) -> None:
        if self._failures_in_a_row:
            _LOG.info("ingest answers again after %d failed attempts", self._failures_in_a_row)
        self._failures_in_a_row = 0

    def _failed(self, reason: str, at_least_s: float = 0.0) -> float:
        """Count a failure and return the pause: half to all of a doubling backoff, so that nodes do not come in step."""
        self.state.failed_attempts += 1
        self.state.last_failure = reason
        backoff_s: float = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(self._failures_in_a_row, 16))
        if self._failures_in_a_row == 0:
            _LOG.warning("cannot ship, batches wait in the spool: %s", reason)
        self._failures_in_a_row += 1
        return max(backoff_s * (1 + self._jitter()) / 2, at_least_s * (1 + self._jitter() / 10))

    def _retry_after_s(self, header: str | None) -> float:
        """Read a Retry-After header, seconds or an HTTP date; one that makes no sense counts as absent."""
        if header is None:
            return 0.0
        if header.strip().isdecimal():
            return min(float(header), LONGEST_RETRY_AFTER_S)
        try:
            until = parsedate_to_datetime(header)
        except ValueError:
            return 0.0
        if until.tzinfo is None:
            until = until.replace(tzinfo=UTC)
        now = datetime.fromtimestamp(self._clock.now().wall_us / US_PER_S, UTC)
        return min(max(0.0, (until - now).total_seconds()), LONGEST_RETRY_AFTER_S)
