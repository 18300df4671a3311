"""Carries signed orders to agents: kept for a node until they expire, handed to nobody but that node.

The store cannot make an order: the keys are with the operator and on the nodes.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from collector.wire import Command
from ingest.store.tables import control, reference

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def order(conn: sa.Connection, node_id: int, command: Command) -> int:
    """Keep an order for a node; return its id. Raises IntegrityError where its nonce was used before."""
    table = control.agent_commands
    values = {
        "node_id": node_id,
        "verb": command.verb,
        "args": command.args,
        "nonce": command.nonce,
        "issued_at": _instant(command.issued_at_us),
        "expires_at": _instant(command.expires_at_us),
        "signature": command.signature,
    }
    return int(conn.execute(sa.insert(table).values(values).returning(table.c.id)).scalar_one())


def note(conn: sa.Connection, actor: str, number: int, command: Command) -> None:
    """Put an order on the audit."""
    detail = {"node": command.node, "verb": command.verb, "args": command.args, "expires_at_us": command.expires_at_us}
    conn.execute(
        sa.insert(control.audit).values(
            actor=actor, action="agent.order", subject=f"agent_command/{number}", detail=detail
        )
    )


def waiting(conn: sa.Connection, node_id: int, now: datetime, *, at_most: int = 100) -> list[Command]:
    """Return the orders of a node that have not expired, oldest first, and note that they were fetched.

    The same order is handed out until it expires: an answer may be lost, and the agent knows each nonce it has seen.
    """
    table, nodes = control.agent_commands, reference.nodes
    live = sa.and_(table.c.node_id == node_id, table.c.expires_at > now)
    rows = conn.execute(
        sa.select(table, nodes.c.name.label("node"))
        .join(nodes, nodes.c.id == table.c.node_id)
        .where(live)
        .order_by(table.c.id)
        .limit(at_most)
    ).all()
    if any(row.fetched_at is None for row in rows):
        conn.execute(sa.update(table).where(live, table.c.fetched_at.is_(None)).values(fetched_at=now))
    return [
        Command(row.id, row.node, row.verb, row.args, row.nonce, _us(row.issued_at), _us(row.expires_at), row.signature)
        for row in rows
    ]


def _instant(at_us: int) -> datetime:
    return _UNIX_EPOCH + timedelta(microseconds=at_us)


def _us(at: datetime) -> int:
    return (at - _UNIX_EPOCH) // timedelta(microseconds=1)
