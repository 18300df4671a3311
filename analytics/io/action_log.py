"""The action log in the store. Every change of an action swaps the lease epoch it read, in its own transaction.

So of two executors, or of one that was stopped for a minute and resumes, only one gets anywhere. It decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from ingest.store.tables import books, control, reference, work

RATE_ROW: Final = "actions/rate"
ACTS: Final = ("suspend", "cancel")


class Status(StrEnum):
    PLANNED = "planned"
    DRY_RUN = "dry_run"
    EXECUTING = "executing"
    DONE = "done"
    FAILED = "failed"
    CONTESTED = "contested"
    SKIPPED = "skipped"
    UNDONE = "undone"


OPEN: Final = (Status.PLANNED, Status.EXECUTING)


@dataclass(frozen=True, slots=True)
class NewAction:
    """What is to be written down about an action before anything is done."""

    decision_id: int
    tenant_id: int
    idempotency_key: str
    kind: str
    plane: str
    target: Mapping[str, Any]
    status: Status
    dry_run: bool
    evidence: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Action:
    """One row of the action log, with the budget its decision was about."""

    action_id: int
    decision_id: int | None
    budget_id: int | None
    tenant_path: str
    idempotency_key: str
    kind: str
    plane: str
    target: Mapping[str, Any]
    status: Status
    dry_run: bool
    evidence: Mapping[str, Any]
    result: Mapping[str, Any] | None
    undo: Mapping[str, Any] | None
    lease_epoch: int
    planned_at: datetime
    executed_at: datetime | None
    reconciled_at: datetime | None


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job that runs as far as we know, with everything a policy can protect it by."""

    job_id: int
    cluster: str
    native_id: str
    started_at: datetime
    user_name: str | None
    account: str | None
    accelerators: int
    origin: int
    tenant_path: str
    attributes: Mapping[str, str | None]


def add(conn: sa.Connection, action: NewAction, now: datetime) -> int | None:
    """Insert an action; None if its idempotency key is already in the log."""
    values = {
        "decision_id": action.decision_id,
        "tenant_id": action.tenant_id,
        "idempotency_key": action.idempotency_key,
        "kind": action.kind,
        "plane": action.plane,
        "target": dict(action.target),
        "status": action.status.value,
        "dry_run": action.dry_run,
        "evidence": dict(action.evidence),
        "planned_at": now,
    }
    statement = insert(control.actions).values(**values).on_conflict_do_nothing(index_elements=["idempotency_key"])
    return conn.execute(statement.returning(control.actions.c.id)).scalar_one_or_none()


def find(
    conn: sa.Connection,
    *,
    statuses: tuple[Status, ...] | None = None,
    action_id: int | None = None,
    before_id: int | None = None,
    limit: int | None = None,
) -> tuple[Action, ...]:
    """Return actions, newest first."""
    query = _query().order_by(control.actions.c.id.desc())
    if statuses is not None:
        query = query.where(control.actions.c.status.in_([status.value for status in statuses]))
    if action_id is not None:
        query = query.where(control.actions.c.id == action_id)
    if before_id is not None:
        query = query.where(control.actions.c.id < before_id)
    if limit is not None:
        query = query.limit(limit)
    return tuple(_actions(conn, query))


def acts_of_budget(conn: sa.Connection, name: str, measure: str, since: datetime) -> tuple[Action, ...]:
    """Return acts on jobs planned for a budget since an instant, dry runs too, or still open."""
    budgets, actions = control.budgets, control.actions
    query = _query().where(
        budgets.c.name == name,
        budgets.c.measure == measure,
        actions.c.kind.in_(ACTS),
        sa.or_(actions.c.planned_at >= since, actions.c.status.in_(OPEN)),
    )
    return tuple(_actions(conn, query.order_by(actions.c.id)))


def statuses(conn: sa.Connection, key_prefix: str) -> dict[str, Status]:
    """Return the status of every action whose idempotency key begins like this, by key."""
    actions = control.actions
    query = sa.select(actions.c.idempotency_key, actions.c.status).where(
        sa.func.starts_with(actions.c.idempotency_key, key_prefix)
    )
    return {row.idempotency_key: Status(row.status) for row in conn.execute(query)}


def swap(conn: sa.Connection, action: Action, status: Status, *, expect: Status, **values: Any) -> Action | None:
    """Change an action if nobody else did since it was read; None means somebody did, and nothing was written."""
    actions = control.actions
    changed = conn.execute(
        sa.update(actions)
        .where(
            actions.c.id == action.action_id,
            actions.c.status == expect.value,
            actions.c.lease_epoch == action.lease_epoch,
        )
        .values(status=status.value, lease_epoch=actions.c.lease_epoch + 1, **values)
    ).rowcount
    if not changed:
        return None
    (swapped,) = find(conn, action_id=action.action_id)
    return swapped


def take_turn(conn: sa.Connection, now: datetime, max_per_hour: int) -> bool:
    """Say whether one more act fits into the hour before ``now``; holds the turn until the transaction ends.

    The row swapped here is what keeps two executors with two different actions from both finding room for one.
    """
    turn = insert(books.watermarks).values(name=RATE_ROW, value="", lease_epoch=1, updated_at=now)
    conn.execute(
        turn.on_conflict_do_update(
            index_elements=["name"], set_={"lease_epoch": books.watermarks.c.lease_epoch + 1, "updated_at": now}
        )
    )
    actions = control.actions
    acted = (Status.EXECUTING.value, Status.DONE.value, Status.FAILED.value, Status.UNDONE.value)
    used = conn.execute(
        sa.select(sa.func.count())
        .select_from(actions)
        .where(
            actions.c.kind.in_(ACTS),
            actions.c.dry_run.is_(False),
            actions.c.status.in_(acted),
            actions.c.executed_at > now - timedelta(hours=1),
        )
    ).scalar_one()
    return int(used) < max_per_hour


def latest_decision(conn: sa.Connection, budget_id: int) -> Any | None:
    """Return the newest decision row of a budget."""
    decisions = control.decisions
    query = sa.select(decisions).where(decisions.c.budget_id == budget_id).order_by(decisions.c.id.desc()).limit(1)
    return conn.execute(query).one_or_none()


def running_jobs(conn: sa.Connection, tenant_path: str) -> tuple[RunningJob, ...]:
    """Return the jobs of a tenant subtree that run, by id."""
    jobs, tenants = work.jobs, reference.tenants
    query = (
        sa.select(jobs, tenants.c.path)
        .join(tenants, tenants.c.id == jobs.c.tenant_id)
        .where(
            _running(),
            sa.or_(tenants.c.path == tenant_path, sa.func.starts_with(tenants.c.path, f"{tenant_path}/")),
        )
        .order_by(jobs.c.id)
    )
    return tuple(
        RunningJob(
            job_id=row.id,
            cluster=row.cluster,
            native_id=row.native_id,
            started_at=row.started_at,
            user_name=row.user_name,
            account=row.account,
            accelerators=row.accelerators or 0,
            origin=row.origin,
            tenant_path=row.path,
            attributes={
                "jobs": row.native_id,
                "names": row.name,
                "users": row.user_name,
                "accounts": row.account,
                "partitions": row.partition,
                "qos": row.qos,
                "namespaces": row.namespace,
                "workload_kinds": row.workload_kind,
            },
        )
        for row in conn.execute(query)
    )


def running_accelerators(conn: sa.Connection) -> int:
    """Return the accelerators of all running jobs of the deployment."""
    total = sa.func.coalesce(sa.func.sum(work.jobs.c.accelerators), 0)
    return int(conn.execute(sa.select(total).where(_running())).scalar_one())


def audit(conn: sa.Connection, now: datetime, actor: str, action: str, subject: str, detail: Mapping[str, Any]) -> None:
    conn.execute(
        sa.insert(control.audit).values(at=now, actor=actor, action=action, subject=subject, detail=dict(detail))
    )


def is_audited(conn: sa.Connection, action: str, subject: str) -> bool:
    audit_rows = control.audit
    query = sa.select(audit_rows.c.id).where(audit_rows.c.action == action, audit_rows.c.subject == subject).limit(1)
    return conn.execute(query).first() is not None


def _running() -> sa.ColumnElement[bool]:
    return sa.and_(work.jobs.c.ended_at.is_(None), work.jobs.c.state == "running")


def _query() -> sa.Select[Any]:
    actions, decisions, budgets, tenants = control.actions, control.decisions, control.budgets, reference.tenants
    return (
        sa.select(actions, decisions.c.budget_id, tenants.c.path)
        .join(tenants, tenants.c.id == actions.c.tenant_id)
        .outerjoin(decisions, decisions.c.id == actions.c.decision_id)
        .outerjoin(budgets, budgets.c.id == decisions.c.budget_id)
    )


def _actions(conn: sa.Connection, query: sa.Select[Any]) -> Iterator[Action]:
    for row in conn.execute(query):
        yield Action(
            action_id=row.id,
            decision_id=row.decision_id,
            budget_id=row.budget_id,
            tenant_path=row.path,
            idempotency_key=row.idempotency_key,
            kind=row.kind,
            plane=row.plane,
            target=row.target,
            status=Status(row.status),
            dry_run=row.dry_run,
            evidence=row.evidence,
            result=row.result,
            undo=row.undo,
            lease_epoch=row.lease_epoch,
            planned_at=row.planned_at,
            executed_at=row.executed_at,
            reconciled_at=row.reconciled_at,
        )
