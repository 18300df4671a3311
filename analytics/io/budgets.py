"""Budgets in the store: a policy applied as dated rows, the budgets in force, what was spent, what was decided.

The one place that knows the SQL of budgets. It never updates a budget: a change closes the row as known and inserts what
holds until now and what holds from now. It acts on nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from analytics.io.budget_policy import BudgetPolicy, PlacedBudget, ProtectModel, parse
from analytics.io.spend import load_spend
from analytics.model.budget import Approval, Budget, Decision, Measure, Required, Rung, Step, Webhook, decide
from analytics.model.period import Period
from ingest.store.tables import books, control, reference

DECISION_REPEATED_AFTER = timedelta(minutes=5)
_POLICY_LOCK = "policy/budgets"
_SAME_DECISION = ("period_start_at", "rung", "spent", "limit_value", "reason", "evidence", "origin")
_SAME = ("tenant_id", "name", "period", "time_zone", "measure", "limit_value", "currency", "ladder", "protect", "armed")


@dataclass(frozen=True, slots=True)
class Applied:
    """What applying a policy changed, in limits (a budget with two limits counts twice)."""

    added: int
    changed: int
    removed: int
    unchanged: int


@dataclass(frozen=True, slots=True)
class RecordedDecision:
    decision_id: int
    decision: Decision


def apply(conn: sa.Connection, text: str, now: datetime, *, actor: str) -> Applied:
    """Make a policy file the policy in force from ``now``; raises PolicyError and changes nothing if it has a fault.

    Tenants it names are created. Applying the same file again changes nothing. The caller commits.
    """
    policy = parse(text)
    _one_at_a_time(conn, now)
    budgets = control.budgets
    current = {
        (row.name, row.measure): row
        for row in conn.execute(sa.select(budgets).where(budgets.c.superseded_at.is_(None), _in_force_after(now)))
    }
    wanted = _wanted_rows(conn, policy, now)
    added = changed = unchanged = 0
    for key, values in wanted.items():
        row = current.pop(key, None)
        if row is not None and _is_same(row, values):
            unchanged += 1
            continue
        if row is not None:
            _end(conn, row, max(now, values["valid_from"]), now)
        conn.execute(sa.insert(budgets).values(**values))
        added, changed = (added, changed + 1) if row is not None else (added + 1, changed)
    for row in current.values():
        _end(conn, row, now, now)
    result = Applied(added, changed, len(current), unchanged)
    conn.execute(
        sa.insert(control.audit).values(
            at=now,
            actor=actor,
            action="policy.apply",
            subject=f"budgets/{policy.sha256.hex()[:16]}",
            detail=asdict(result),
        )
    )
    return result


def in_force(conn: sa.Connection, now: datetime, *, tenant_paths: tuple[str, ...] | None = None) -> tuple[Budget, ...]:
    """Return the budgets in force at ``now`` as known now, by tenant path, name and measure; of all tenants or of these."""
    budgets, tenants = control.budgets, reference.tenants
    query = (
        sa.select(budgets, tenants.c.path)
        .join(tenants, tenants.c.id == budgets.c.tenant_id)
        .where(
            budgets.c.superseded_at.is_(None),
            budgets.c.valid_from <= now,
            sa.or_(budgets.c.valid_to.is_(None), budgets.c.valid_to > now),
        )
        .order_by(tenants.c.path, budgets.c.name, budgets.c.measure)
    )
    if tenant_paths is not None:
        query = query.where(tenants.c.path.in_(tenant_paths))
    return tuple(_budget(row) for row in conn.execute(query))


def current(conn: sa.Connection, budget_id: int) -> Budget | None:
    """Return a budget by id while it is our knowledge; None once it was changed or removed."""
    budgets, tenants = control.budgets, reference.tenants
    row = conn.execute(
        sa.select(budgets, tenants.c.path)
        .join(tenants, tenants.c.id == budgets.c.tenant_id)
        .where(budgets.c.id == budget_id, budgets.c.superseded_at.is_(None))
    ).one_or_none()
    return None if row is None else _budget(row)


def evaluate(conn: sa.Connection, now: datetime, required: Required | None = None) -> tuple[RecordedDecision, ...]:
    """Decide every budget in force and record each decision; the caller commits and hands them to ``actions.plan``."""
    return tuple(
        record(conn, decide(budget, load_spend(conn, budget, now), now, required)) for budget in in_force(conn, now)
    )


def record(conn: sa.Connection, decision: Decision) -> RecordedDecision:
    """Insert a decision, or return the last one's id while it says the same and is fresh.

    A worker decides every few seconds; only what changed, or a sign of life every few minutes, is worth a row.
    """
    decisions = control.decisions
    values = {
        "budget_id": decision.budget.budget_id,
        "tenant_id": decision.budget.tenant_id,
        "decided_at": decision.decided_at,
        "period_start_at": decision.period_start_at,
        "rung": decision.rung.do.value if decision.rung else "none",
        "spent": decision.spent,
        "limit_value": decision.limit,
        "forecast": decision.forecast,
        "reason": decision.reason,
        "evidence": {
            **decision.evidence,
            "verdict": decision.verdict.value,
            "armed": decision.armed,
            "needs_approval": decision.needs_approval,
        },
        "origin": int(decision.origin),
    }
    last = conn.execute(
        sa.select(decisions)
        .where(decisions.c.budget_id == decision.budget.budget_id)
        .order_by(decisions.c.id.desc())
        .limit(1)
    ).one_or_none()
    fresh = last is not None and decision.decided_at - last.decided_at < DECISION_REPEATED_AFTER
    if last is not None and fresh and all(getattr(last, key) == values[key] for key in _SAME_DECISION):
        return RecordedDecision(last.id, decision)
    row = conn.execute(sa.insert(decisions).values(**values).returning(decisions.c.id))
    return RecordedDecision(row.scalar_one(), decision)


def webhooks(conn: sa.Connection) -> Mapping[str, Webhook]:
    """Return the receivers of the policy in force by name, as references."""
    rows = conn.execute(sa.select(control.budgets.c.ladder).where(control.budgets.c.superseded_at.is_(None)))
    return {hook["name"]: Webhook(**hook) for (ladder,) in rows for rung in ladder if (hook := rung.get("webhook"))}


def _one_at_a_time(conn: sa.Connection, now: datetime) -> None:
    """Serialize appliers on a row: the second waits for the first's commit and then sees its rows."""
    swap = insert(books.watermarks).values(name=_POLICY_LOCK, value="", lease_epoch=1, updated_at=now)
    conn.execute(
        swap.on_conflict_do_update(
            index_elements=["name"], set_={"lease_epoch": books.watermarks.c.lease_epoch + 1, "updated_at": now}
        )
    )


def _wanted_rows(conn: sa.Connection, policy: BudgetPolicy, now: datetime) -> dict[tuple[str, str], dict[str, Any]]:
    tenant_ids = _tenant_ids(conn, {placed.model.tenant for placed in policy.budgets})
    return {
        (placed.model.name, measure.value): {
            "tenant_id": tenant_ids[placed.model.tenant],
            "name": placed.model.name,
            "period": placed.model.period.value,
            "time_zone": placed.time_zone,
            "measure": measure.value,
            "limit_value": limit,
            "currency": placed.model.currency if measure is Measure.COST else None,
            "ladder": _ladder(placed, policy),
            "protect": _protect(policy.protect, placed.model.protect),
            "armed": placed.model.armed,
            "policy_sha256": policy.sha256,
            "policy_line": placed.line,
            "valid_from": placed.valid_from_at or now,
            "valid_to": placed.valid_to_at,
            "recorded_at": now,
        }
        for placed in policy.budgets
        for measure, limit in placed.model.limits.given().items()
    }


def _ladder(placed: PlacedBudget, policy: BudgetPolicy) -> list[dict[str, Any]]:
    rungs = []
    for rung in placed.model.ladder:
        hook = policy.webhooks[rung.webhook] if rung.webhook else None
        rungs.append(
            {
                "at_ratio": str(rung.at),
                "do": rung.do.value,
                "approval": rung.approval.value,
                "grace_s": rung.grace,
                "webhook": {"name": rung.webhook, "url": hook.url, "secret": hook.secret} if hook else None,
            }
        )
    return rungs


def _protect(*models: ProtectModel) -> dict[str, list[str]]:
    return {
        attribute: globs
        for attribute in ProtectModel.model_fields
        if (globs := [glob for model in models for glob in getattr(model, attribute)])
    }


def _tenant_ids(conn: sa.Connection, paths: set[str]) -> dict[str, int]:
    tenants = reference.tenants
    conn.execute(
        insert(tenants).on_conflict_do_nothing(index_elements=["path"]), [{"path": path} for path in sorted(paths)]
    )
    rows = conn.execute(sa.select(tenants.c.path, tenants.c.id).where(tenants.c.path.in_(paths)))
    return {path: tenant_id for path, tenant_id in rows}  # noqa: C416 - rows are Row objects, dict() would type them Any


def _in_force_after(now: datetime) -> sa.ColumnElement[bool]:
    return sa.or_(control.budgets.c.valid_to.is_(None), control.budgets.c.valid_to > now)


def _is_same(row: Any, values: Mapping[str, Any]) -> bool:
    starts_as_before = row.valid_from == values["valid_from"] or (values["valid_from"] == values["recorded_at"])
    return (
        starts_as_before
        and row.valid_to == values["valid_to"]
        and all(getattr(row, key) == values[key] for key in _SAME)
    )


def _end(conn: sa.Connection, row: Any, at: datetime, now: datetime) -> None:
    """Supersede a row; if it had begun, what we now know is that it held until ``at``."""
    budgets = control.budgets
    conn.execute(sa.update(budgets).where(budgets.c.id == row.id).values(superseded_at=now))
    if row.valid_from < at:
        made = {"id", "superseded_at", "recorded_xid", "superseded_xid"}
        kept = {column.name: getattr(row, column.name) for column in budgets.c if column.name not in made}
        conn.execute(sa.insert(budgets).values(**{**kept, "valid_to": min(row.valid_to or at, at), "recorded_at": now}))


def _budget(row: Any) -> Budget:
    return Budget(
        budget_id=row.id,
        tenant_id=row.tenant_id,
        tenant_path=row.path,
        name=row.name,
        period=Period(row.period),
        time_zone=row.time_zone,
        measure=Measure(row.measure),
        limit=Decimal(row.limit_value),
        currency=row.currency,
        ladder=tuple(_rung(rung) for rung in row.ladder),
        armed=row.armed,
        protect={attribute: tuple(globs) for attribute, globs in row.protect.items()},
    )


def _rung(raw: Mapping[str, Any]) -> Rung:
    hook = raw.get("webhook")
    return Rung(
        at_ratio=Decimal(raw["at_ratio"]),
        do=Step(raw["do"]),
        approval=Approval(raw["approval"]),
        grace_s=raw["grace_s"],
        webhook=Webhook(**hook) if hook else None,
    )
