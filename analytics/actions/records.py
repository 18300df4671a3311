"""How actions are closed in the log, approved, and told: every end of an action is a row, a result and maybe an alert."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from analytics.actions.plane import Identity, RunReading
from analytics.io import action_log, outbox
from analytics.io.action_log import Action, Status


def identity(action: Action) -> Identity:
    """Return the run an action was decided on."""
    target = action.target
    return Identity(
        cluster=target["cluster"],
        native_id=target["native_id"],
        started_at=datetime.fromisoformat(target["started_at"]),
        user_name=target["user_name"],
        account=target["account"],
    )


def close(
    conn: sa.Connection,
    action: Action,
    status: Status,
    now: datetime,
    result: Mapping[str, Any],
    *,
    alert: bool = False,
) -> Action | None:
    """Record how an action ended, unless somebody else did; an alert goes to the rung's receiver in the same transaction."""
    closed = action_log.swap(conn, action, status, expect=action.status, result=dict(result), reconciled_at=now)
    receiver = action.evidence.get("webhook")
    if closed is not None and alert and receiver:
        outbox.queue(conn, f"{action.idempotency_key}/{status}", f"action.{status}", receiver, message(closed), now)
    return closed


def approve(conn: sa.Connection, action_id: int, now: datetime, *, actor: str) -> Action | None:
    """Let a person agree to a planned action; None if there is no such action waiting."""
    found = action_log.find(conn, action_id=action_id, statuses=(Status.PLANNED,))
    if not found:
        return None
    evidence = {**found[0].evidence, "approved_by": actor, "approved_at": now.isoformat()}
    approved = action_log.swap(conn, found[0], Status.PLANNED, expect=Status.PLANNED, evidence=evidence)
    if approved is not None:
        action_log.audit(conn, now, actor, "action.approve", f"action/{action_id}", {})
    return approved


def message(action: Action) -> dict[str, Any]:
    """Return the webhook payload of an action that needs eyes (docs/budgets.md)."""
    return {
        "version": 1,
        "event": f"action.{action.status}",
        "action": action.action_id,
        "tenant": action.tenant_path,
        "kind": action.kind,
        "target": dict(action.target),
        "result": dict(action.result or {}),
        "reason": action.evidence.get("reason"),
    }


def as_json(reading: RunReading | None) -> dict[str, Any] | None:
    """Return a plane's answer for the log."""
    if reading is None:
        return None
    started_at = reading.started_at.isoformat() if reading.started_at else None
    return {**asdict(reading), "started_at": started_at, "state": reading.state.value}
