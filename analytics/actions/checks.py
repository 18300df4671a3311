"""What has to hold right before an action is claimed, asked of the store; planning was up to a grace period ago."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from analytics.actions.settings import ActionSettings
from analytics.io import action_log, budgets
from analytics.io.action_log import Action
from analytics.model.budget import STEP_SEVERITY, Approval, Step


@dataclass(frozen=True, slots=True)
class Wait:
    """Not now; the action stays planned."""

    why: str


def before_claim(conn: sa.Connection, action: Action, settings: ActionSettings, now: datetime) -> Wait | str | None:
    """Return None to go on, :class:`Wait` for later, or the reason for which the action is over."""
    if action.dry_run:
        return "a dry run is never carried out"
    evidence = action.evidence
    if now >= datetime.fromisoformat(evidence["period_end_at"]):
        return "the period is over"
    if not settings.enforced:
        return "the deployment does not enforce any more"
    budget = None if action.budget_id is None else budgets.current(conn, action.budget_id)
    if budget is None:
        return "the budget was changed or removed since"
    if not budget.armed:
        return "the policy is not armed"
    if now < datetime.fromisoformat(evidence["not_before_at"]):
        return Wait("in its grace period")
    if evidence["approval"] != Approval.AUTOMATIC and not evidence["approved_by"]:
        return Wait("not approved yet")
    latest = action_log.latest_decision(conn, budget.budget_id)
    if latest is None or now - latest.decided_at > settings.max_decision_age:
        return Wait("the last decision is too old")
    if latest.rung == "none" or STEP_SEVERITY[Step(latest.rung)] < STEP_SEVERITY[Step(action.kind)]:
        return "the last decision asks for less"
    if not latest.evidence["armed"]:
        return "the last decision's evidence does not arm the policy"
    return None
