"""The dead letters for a person: which wait and why, one with its body, and what becomes of it. It replays nothing itself.

Nothing is discarded in silence: who drops a letter leaves an audit row that says what it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from ingest.store.tables import control, reference, samples


@dataclass(frozen=True, slots=True)
class LetterHead:
    """One dead letter without its body."""

    letter_id: int
    received_at: datetime
    site: str | None
    node: str | None
    reason: str
    detail: str
    skew_us: int | None
    body_bytes: int
    replayed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter as it came."""

    head: LetterHead
    site_id: int | None
    headers: Mapping[str, str]
    body: bytes


def heads(
    conn: sa.Connection, *, most: int, reason: str | None = None, with_replayed: bool = False
) -> tuple[LetterHead, ...]:
    """Return the newest letters first, at most ``most``; those replayed only when asked for."""
    query = _heads().order_by(samples.dead_letters.c.id.desc()).limit(most)
    if reason is not None:
        query = query.where(samples.dead_letters.c.reason == reason)
    if not with_replayed:
        query = query.where(samples.dead_letters.c.replayed_at.is_(None))
    return tuple(_head(row) for row in conn.execute(query))


def waiting(conn: sa.Connection) -> int:
    """Return how many letters were not replayed yet."""
    letters = samples.dead_letters
    return int(conn.execute(sa.select(sa.func.count()).where(letters.c.replayed_at.is_(None))).scalar_one())


def letter(conn: sa.Connection, letter_id: int) -> Letter | None:
    """Return one letter with headers and body, or None."""
    letters = samples.dead_letters
    row = conn.execute(
        _heads().add_columns(letters.c.site_id, letters.c.headers, letters.c.body).where(letters.c.id == letter_id)
    ).one_or_none()
    return None if row is None else Letter(_head(row), row.site_id, dict(row.headers), bytes(row.body))


def ids(conn: sa.Connection, *, reason: str | None = None, replayed: bool = False) -> tuple[int, ...]:
    """Return the letters that wait, or those replayed, oldest first."""
    letters = samples.dead_letters
    done = letters.c.replayed_at.is_not(None) if replayed else letters.c.replayed_at.is_(None)
    query = sa.select(letters.c.id).where(done).order_by(letters.c.id)
    if reason is not None:
        query = query.where(letters.c.reason == reason)
    return tuple(conn.execute(query).scalars())


def mark_replayed(conn: sa.Connection, letter_id: int) -> None:
    """Note that a letter is in the tables now; the first time stands."""
    letters = samples.dead_letters
    conn.execute(
        sa.update(letters)
        .where(letters.c.id == letter_id, letters.c.replayed_at.is_(None))
        .values(replayed_at=sa.func.now())
    )


def update_reason(conn: sa.Connection, letter_id: int, reason: str, detail: str) -> None:
    """Note why a letter still cannot be taken."""
    letters = samples.dead_letters
    conn.execute(sa.update(letters).where(letters.c.id == letter_id).values(reason=reason, detail=detail))


def drop(conn: sa.Connection, letter_id: int, *, actor: str) -> LetterHead | None:
    """Delete a letter, leaving an audit row that says what it was; None where there is none of this id. Needs the owner."""
    found = letter(conn, letter_id)
    if found is None:
        return None
    conn.execute(sa.delete(samples.dead_letters).where(samples.dead_letters.c.id == letter_id))
    head = found.head
    detail = {
        "received_at": head.received_at.isoformat(),
        "site": head.site,
        "node": head.node,
        "reason": head.reason,
        "body_bytes": head.body_bytes,
        "body_sha256": hashlib.sha256(found.body).hexdigest(),
        "replayed": head.replayed_at is not None,
    }
    conn.execute(
        sa.insert(control.audit).values(
            actor=actor, action="deadletter.drop", subject=f"deadletter/{letter_id}", detail=detail
        )
    )
    return head


def _heads() -> sa.Select[Any]:
    letters, sites, nodes = samples.dead_letters, reference.sites, reference.nodes
    return (
        sa.select(
            letters.c.id,
            letters.c.received_at,
            sites.c.name.label("site"),
            nodes.c.name.label("node"),
            letters.c.reason,
            letters.c.detail,
            letters.c.skew_us,
            sa.func.length(letters.c.body).label("body_bytes"),
            letters.c.replayed_at,
        )
        .outerjoin(sites, sites.c.id == letters.c.site_id)
        .outerjoin(nodes, nodes.c.id == letters.c.node_id)
    )


def _head(row: Any) -> LetterHead:
    return LetterHead(
        letter_id=row.id,
        received_at=row.received_at,
        site=row.site,
        node=row.node,
        reason=row.reason,
        detail=row.detail,
        skew_us=row.skew_us,
        body_bytes=row.body_bytes,
        replayed_at=row.replayed_at,
    )
