"""The audit: one row for each administrative act, with what it changed. Rows are only ever added (ADR 0023).

Refuses to keep secrets: what is named like one is kept as ``***``, whoever hands it in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psycopg
import sqlalchemy as sa
from psycopg.types.json import Jsonb

from ingest.store.tables import control

HIDDEN: Final = "***"
_SECRET_NAME: Final = re.compile(r"(secret|passw|token$|_key$|^key$|authorization|credential|signature)", re.IGNORECASE)
_BEARER: Final = re.compile(r"wl_[1-9]\d{0,9}_[A-Za-z0-9_-]{43}")
_MOST_TEXT: Final = 4_000


@dataclass(frozen=True, slots=True)
class Act:
    """One row: who did what to what, and what that changed. Order of ids is order of insertion."""

    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    detail: Mapping[str, Any]


def note(
    conn: sa.Connection,
    actor: str,
    action: str,
    subject: str,
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    **detail: Any,
) -> None:
    """Add a row in the caller's transaction, so that there is no act without its row and no row without its act.

    ``before`` and ``after`` hold what changed; null before: it was not there, null after: it is no more. Values are kept as
    JSON; instants, decimals and the like as their text.
    """
    changed: dict[str, Any] = dict(detail)
    if before is not None or after is not None:
        changed |= {"before": before, "after": after}
    conn.execute(
        sa.insert(control.audit).values(actor=actor, action=action, subject=subject, detail=_kept(changed, ""))
    )


def note_on(driver: psycopg.Connection[Any], actor: str, action: str, subject: str, **detail: Any) -> None:
    """As :func:`note`, for work that is done on a plain psycopg connection."""
    driver.execute(
        "INSERT INTO audit (actor, action, subject, detail) VALUES (%s, %s, %s, %s)",
        [actor, action, subject, Jsonb(_kept(detail, ""))],
    )


def acting(conn: sa.Connection, actor: str) -> None:
    """Tell an idle connection in whose name it works, for acts that are noted far below whoever knows it."""
    with conn.begin():
        conn.execute(sa.select(sa.func.set_config("wattledger.actor", actor, False)))


def actor(conn: sa.Connection) -> str:
    """Return in whose name a connection works; the role of the database where nobody said."""
    named = sa.func.nullif(sa.func.current_setting("wattledger.actor", True), "")
    return str(conn.execute(sa.select(sa.func.coalesce(named, sa.func.session_user()))).scalar_one())


def acts(
    conn: sa.Connection,
    *,
    before_id: int | None = None,
    from_at: datetime | None = None,
    to_at: datetime | None = None,
    actor: str | None = None,
    action: str | None = None,
    limit: int = 100,
) -> Sequence[Act]:
    """Return acts, newest first. ``action`` is a kind (``token.create``) or what it begins with (``token``)."""
    table = control.audit
    query = sa.select(table).order_by(table.c.id.desc()).limit(limit)
    if before_id is not None:
        query = query.where(table.c.id < before_id)
    if from_at is not None:
        query = query.where(table.c.at >= from_at)
    if to_at is not None:
        query = query.where(table.c.at < to_at)
    if actor is not None:
        query = query.where(table.c.actor == actor)
    if action is not None:
        query = query.where(sa.or_(table.c.action == action, sa.func.starts_with(table.c.action, f"{action}.")))
    return [Act(row.id, row.at, row.actor, row.action, row.subject, row.detail) for row in conn.execute(query)]


def _kept(value: Any, name: str) -> Any:
    """Return a value as JSON keeps it, without what looks like a secret by its name or by its form."""
    if value is not None and _SECRET_NAME.search(name):
        return HIDDEN
    if isinstance(value, Mapping):
        return {str(key): _kept(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_kept(inner, "") for inner in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value.isoformat() if isinstance(value, datetime) else str(value)
    return _BEARER.sub(HIDDEN, text)[:_MOST_TEXT]
