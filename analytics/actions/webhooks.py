"""Delivers queued messages by HTTP, signed, at least once, with a limit. Receivers tell repeats by the idempotency key.

URLs and secrets are read from the environment when a message leaves and are never stored, logged or repeated in an error.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import httpx
import sqlalchemy as sa

from analytics.io import budgets, outbox
from analytics.io.outbox import Message
from analytics.model.budget import Webhook

SIGNATURE_HEADER: Final = "Wattledger-Signature"
IDEMPOTENCY_HEADER: Final = "Idempotency-Key"
MAX_ATTEMPTS: Final = 8
"""With the backoff below the last attempt comes about 2 hours after the first."""
FIRST_DELAY_S: Final = 30.0
MAX_DELAY_S: Final = 3600.0
TIMEOUT_S: Final = 5.0
RETRIED_STATUSES: Final = frozenset({408, 425, 429})
_REFERENCE: Final = re.compile(r"\$\{([A-Z][A-Z0-9_]*)\}")


class ReceiverError(ValueError):
    """The receiver of a message cannot be had: not in the policy, or its reference is not set."""


@dataclass(frozen=True, slots=True)
class Deliverer:
    """Sends what is due. ``client`` must not follow redirects: a redirect would carry the message elsewhere."""

    engine: sa.Engine
    client: httpx.Client
    environment: Mapping[str, str]
    clock: Callable[[], datetime]
    jitter: random.Random = field(default_factory=random.SystemRandom)

    def deliver_due(self) -> tuple[int, int]:
        """Try each due message once; return how many were delivered and how many were not."""
        with self.engine.connect() as conn:
            due = outbox.due(conn, self.clock(), MAX_ATTEMPTS)
            receivers = budgets.webhooks(conn) if due else {}
        delivered = failed = 0
        for message_id in due:
            now = self.clock()
            with self.engine.begin() as conn:
                # Claimed for the longest an attempt can take, so that a second sender does not send it as well.
                message = outbox.claim(conn, message_id, now, now + timedelta(seconds=4 * TIMEOUT_S))
            if message is None:
                continue
            if self._deliver(message, receivers):
                delivered += 1
            else:
                failed += 1
        return delivered, failed

    def _deliver(self, message: Message, receivers: Mapping[str, Webhook]) -> bool:
        try:
            url, secret = self._resolve(message.receiver, receivers)
            body = json.dumps({**message.payload, "id": message.idempotency_key}, sort_keys=True).encode()
            sent_at = int(self.clock().timestamp())
            headers = {
                "Content-Type": "application/json",
                IDEMPOTENCY_HEADER: message.idempotency_key,
                SIGNATURE_HEADER: signature(secret, sent_at, body),
            }
            response = self.client.post(url, content=body, headers=headers, timeout=TIMEOUT_S, follow_redirects=False)
        except ReceiverError as error:
            self._postpone(message, str(error))
            return False
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            self._postpone(message, f"not sent: {type(error).__name__}")  # the error's text may hold the URL
            return False
        if response.is_success:
            with self.engine.begin() as conn:
                outbox.delivered(conn, message, self.clock())
            return True
        final = response.is_client_error and response.status_code not in RETRIED_STATUSES
        self._postpone(message, f"the receiver answered {response.status_code}", final=final)
        return False

    def _postpone(self, message: Message, error: str, *, final: bool = False) -> None:
        delay_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** (message.attempt - 1)) * self.jitter.uniform(0.5, 1.0)
        over = final or message.attempt >= MAX_ATTEMPTS
        retry_at = None if over else self.clock() + timedelta(seconds=delay_s)
        with self.engine.begin() as conn:
            outbox.not_delivered(conn, message, error, retry_at=retry_at, max_attempts=MAX_ATTEMPTS)

    def _resolve(self, receiver: str, receivers: Mapping[str, Webhook]) -> tuple[str, str]:
        hook = receivers.get(receiver)
        if hook is None:
            raise ReceiverError(f"no webhook {receiver!r} in the policy in force")
        return self._value(hook.url), self._value(hook.secret)

    def _value(self, reference: str) -> str:
        match = _REFERENCE.fullmatch(reference)
        value = self.environment.get(match[1]) if match else None
        if not value:
            raise ReceiverError(f"{reference} is not set in the worker's environment")
        return value


def signature(secret: str, sent_at_s: int, body: bytes) -> str:
    """Return the signature header: HMAC-SHA256 over ``<seconds since the epoch>.<body>``, with the seconds.

    A receiver recomputes it and refuses old timestamps, so that a captured message cannot be played again later.
    """
    digest = hmac.new(secret.encode(), f"{sent_at_s}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={sent_at_s},v1={digest}"
