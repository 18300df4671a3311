"""Moves tenants: what was one tenant's is paid by another from an instant on, and all below it moves along. Dated rows; no path is edited.

A move is of the tenants there are: one that is made below the old path later stays there until it is moved itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from analytics.errors import InputError
from analytics.io.references import MOVES
from analytics.model.tenancy import follow

CURRENT: Final = MOVES + " WHERE superseded_at IS NULL ORDER BY valid_from, id"


class TenantMoveError(ValueError):
    """A move that cannot be; the message says why and what can."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What a move changed; all zero: it was known."""

    tenants_moved: int
    tenants_added: int


def move(conn: psycopg.Connection[Any], old: str, new: str, from_at: datetime, now: datetime) -> Moved:
    """Have ``new`` pay for ``old`` from an instant on, and each tenant below ``old`` become the one of that name below ``new``.

    Both are valid paths. Raises TenantMoveError, and changes nothing, if there is no such tenant, if one would move into itself, or in a circle.
    """
    if new == old or new.startswith(old + "/"):
        raise TenantMoveError(f"{old} cannot move to {new}, which is itself or below it; move it elsewhere")
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('wattledger.bindings', 0))")
        olds = conn.execute(
            "SELECT path, id FROM tenants WHERE path = %(old)s OR starts_with(path, %(old)s || '/') ORDER BY path",
            {"old": old},
        ).fetchall()
        if not olds:
            raise TenantMoveError(
                f"there is no tenant {old}; `wattledger tenants apply` makes those that bindings name"
            )
        news = {path: new + path.removeprefix(old) for path, _ in olds}
        added = conn.execute(
            "INSERT INTO tenants (path) SELECT wanted FROM unnest(%s::text[]) AS wanted "
            "WHERE NOT EXISTS (SELECT FROM tenants WHERE path = wanted) ON CONFLICT DO NOTHING",
            [list(news.values())],
        ).rowcount
        ids: dict[str, int] = dict(
            conn.execute("SELECT path, id FROM tenants WHERE path = ANY (%s)", [list(news.values())]).fetchall()
        )
        known = {(row["tenant_id"], row["to_tenant_id"], row["valid_from"]) for row in current(conn)}
        wanted = [(tenant_id, ids[news[path]], from_at) for path, tenant_id in olds]
        fresh = [row for row in wanted if row not in known]
        with conn.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO tenant_moves (tenant_id, to_tenant_id, valid_from, recorded_at) VALUES (%s, %s, %s, %s)",
                [(*row, now) for row in fresh],
            )
        _refuse_circles(current(conn), [row[0] for row in fresh], from_at)
        if fresh:
            latest = max(from_at, now + timedelta(hours=1))  # no later hour is closed
            conn.execute("INSERT INTO changes (from_at, to_at, kind) VALUES (%s, %s, 'tenants')", [from_at, latest])
        return Moved(len(fresh), added if fresh else 0)


def take_back(conn: psycopg.Connection[Any], old: str, new: str, now: datetime) -> Moved:
    """Supersede the moves of ``old``, and of what is below it, to ``new``: they count as never made, in all hours."""
    with conn.transaction():
        conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('wattledger.bindings', 0))")
        rows = conn.execute(
            """
            UPDATE tenant_moves AS moves SET superseded_at = %(now)s FROM tenants AS before, tenants AS after
            WHERE moves.superseded_at IS NULL AND before.id = moves.tenant_id AND after.id = moves.to_tenant_id
            AND (before.path = %(old)s OR starts_with(before.path, %(old)s || '/')) AND after.path = %(new)s || substr(before.path, length(%(old)s) + 1)
            RETURNING moves.valid_from
            """,
            {"old": old, "new": new, "now": now},
        ).fetchall()
        if not rows:
            raise TenantMoveError(f"no move of {old} to {new} is known")
        from_at = min(row[0] for row in rows)
        latest = max(from_at, now + timedelta(hours=1))
        conn.execute("INSERT INTO changes (from_at, to_at, kind) VALUES (%s, %s, 'tenants')", [from_at, latest])
        return Moved(len(rows), 0)


def current(conn: psycopg.Connection[Any]) -> list[dict[str, Any]]:
    """Return the moves known now, of those visible, in the order that ``follow`` wants."""
    with conn.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(CURRENT).fetchall()


def _refuse_circles(moves: Sequence[Mapping[str, Any]], tenants: Sequence[int], from_at: datetime) -> None:
    instants = sorted({from_at, *(row["valid_from"] for row in moves if row["valid_from"] > from_at)})
    try:
        for at in instants:
            for tenant in tenants:
                follow(tenant, moves, at)
    except InputError as error:
        raise TenantMoveError(f"{error}; `wattledger tenants move --undo OLD NEW` takes one back") from error
