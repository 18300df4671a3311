"""Messages to be delivered at least once: queued in the transaction of what they tell, claimed before they are sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from ingest.store.tables import control


@dataclass(frozen=True, slots=True)
class Message:
    """One message claimed for one attempt. ``receiver`` is a name in the policy, never a URL."""

    message_id: int
    idempotency_key: str
    kind: str
    receiver: str
    payload: Mapping[str, Any]
    attempt: int


def queue(conn: sa.Connection, key: str, kind: str, receiver: str, payload: Mapping[str, Any], now: datetime) -> bool:
    """Queue a message; False if one of this key was queued before."""
    values = {
        "idempotency_key": key,
        "kind": kind,
        "url_ref": receiver,
        "payload": dict(payload),
        "next_attempt_at": now,
        "created_at": now,
    }
    statement = insert(control.outbox).values(**values).on_conflict_do_nothing(index_elements=["idempotency_key"])
    return conn.execute(statement.returning(control.outbox.c.id)).scalar_one_or_none() is not None


def due(conn: sa.Connection, now: datetime, max_attempts: int, limit: int = 100) -> tuple[int, ...]:
    """Return the ids of messages whose time has come, oldest first."""
    outbox = control.outbox
    query = (
        sa.select(outbox.c.id)
        .where(outbox.c.delivered_at.is_(None), outbox.c.attempts < max_attempts, outbox.c.next_attempt_at <= now)
        .order_by(outbox.c.id)
        .limit(limit)
    )
    return tuple(conn.execute(query).scalars())


def claim(conn: sa.Connection, message_id: int, now: datetime, retry_at: datetime) -> Message | None:
    """Take a message for one attempt, or None if another sender just did. ``retry_at``: when the next attempt may come."""
    outbox = control.outbox
    row = conn.execute(
        sa.update(outbox)
        .where(outbox.c.id == message_id, outbox.c.delivered_at.is_(None), outbox.c.next_attempt_at <= now)
        .values(attempts=outbox.c.attempts + 1, next_attempt_at=retry_at)
        .returning(outbox)
    ).one_or_none()
    if row is None:
        return None
    return Message(row.id, row.idempotency_key, row.kind, row.url_ref, row.payload, row.attempts)


def delivered(conn: sa.Connection, message: Message, now: datetime) -> None:
    outbox = control.outbox
    conn.execute(sa.update(outbox).where(outbox.c.id == message.message_id).values(delivered_at=now, last_error=None))


def not_delivered(
    conn: sa.Connection, message: Message, error: str, *, retry_at: datetime | None, max_attempts: int
) -> None:
    """Record why an attempt failed. ``retry_at`` None: give up, the message stays with its error."""
    outbox = control.outbox
    values: dict[str, Any] = {"last_error": error}
    values |= {"attempts": max_attempts} if retry_at is None else {"next_attempt_at": retry_at}
    conn.execute(sa.update(outbox).where(outbox.c.id == message.message_id).values(**values))
