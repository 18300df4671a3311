"""Turns decisions into rows of the action log and messages; touches no job.

Unless the policy is armed, the deployment enforces, the figures and the job are live and a plane can reach the job, the row
is a dry run: it says what would have been done and is never executed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any

import sqlalchemy as sa

from analytics.actions.settings import ALWAYS_PROTECTED, ActionSettings
from analytics.io import action_log, outbox
from analytics.io.action_log import NewAction, RunningJob, Status
from analytics.io.budgets import RecordedDecision
from analytics.model.budget import STEP_SEVERITY, Approval, Budget, Decision, Rung, Step
from collector.wire import Origin

log = logging.getLogger(__name__)
NONE_LEFT = "actions.none_left"


def plan(
    conn: sa.Connection,
    recorded: Iterable[RecordedDecision],
    settings: ActionSettings,
    clusters: Collection[str],
    now: datetime,
) -> tuple[int, ...]:
    """Write down what the decisions ask for and return the new actions' ids; the caller commits.

    ``clusters`` are those a plane of this process can reach. Planning the same decisions again adds nothing.
    """
    planned: list[int] = []
    for entry in recorded:
        if entry.decision.rung is None:
            continue
        _tell(conn, entry.decision, now)
        if entry.decision.rung.do is not Step.WARN:
            action_id = _plan_act(conn, entry, entry.decision.rung, settings, clusters, now)
            planned += [] if action_id is None else [action_id]
    return tuple(planned)


def choose(
    jobs: Iterable[RunningJob], budget: Budget, running_accelerators: int, settings: ActionSettings
) -> RunningJob | None:
    """Return the job one action may take: the largest that fits the cap, else the smallest there is; newest among equals.

    The largest stops the most per action, the newest loses the least work. Protected jobs do not come into it.
    """
    free = [job for job in jobs if protected_by(job, budget) is None]
    cap = settings.max_running_ratio * running_accelerators
    fitting = [job for job in free if job.accelerators <= cap]
    if fitting:
        return max(fitting, key=lambda job: (job.accelerators, job.started_at, job.job_id))
    return min(free, key=lambda job: (job.accelerators, -job.started_at.timestamp(), -job.job_id), default=None)


def protected_by(job: RunningJob, budget: Budget) -> str | None:
    """Return the rule that protects a job, or None."""
    for rules in (ALWAYS_PROTECTED, budget.protect):
        for attribute, globs in rules.items():
            value = job.attributes.get(attribute)
            for glob in globs:
                if value is not None and fnmatchcase(value, glob):
                    return f"{attribute}: {glob}"
    return None


def message(decision: Decision, rung: Rung, event: str) -> dict[str, Any]:
    """Return the webhook payload (docs/budgets.md): amounts as decimal strings in ``unit``, instants in RFC 3339."""
    budget = decision.budget
    return {
        "version": 1,
        "event": event,
        "budget": budget.name,
        "tenant": budget.tenant_path,
        "measure": budget.measure.value,
        "unit": budget.unit,
        "rung": {"at_ratio": str(rung.at_ratio), "do": rung.do.value, "grace_s": rung.grace_s},
        "verdict": decision.verdict.value,
        "spent": str(decision.spent),
        "limit": str(decision.limit),
        "left": str(decision.left),
        "forecast": None if decision.forecast is None else str(decision.forecast),
        "forecast_basis": decision.forecast_basis,
        "period_start_at": decision.period_start_at.isoformat(),
        "period_end_at": decision.period_end_at.isoformat(),
        "decided_at": decision.decided_at.isoformat(),
        "reason": decision.reason,
        "origin": decision.origin.name.lower(),
        "armed": decision.armed,
    }


def _tell(conn: sa.Connection, decision: Decision, now: datetime) -> None:
    """Queue a message for each rung reached that has a receiver, once per rung and period."""
    budget = decision.budget
    for rung in budget.ladder:
        reached = decision.rung is not None and (STEP_SEVERITY[rung.do], rung.at_ratio) <= (
            STEP_SEVERITY[decision.rung.do],
            decision.rung.at_ratio,
        )
        if reached and rung.webhook is not None:
            key = f"{_key(decision)}/{rung.at_ratio.normalize()}/{rung.do}/{rung.webhook.name}"
            outbox.queue(
                conn, key, "budget.rung_reached", rung.webhook.name, message(decision, rung, "budget.rung_reached"), now
            )


def _plan_act(
    conn: sa.Connection,
    entry: RecordedDecision,
    rung: Rung,
    settings: ActionSettings,
    clusters: Collection[str],
    now: datetime,
) -> int | None:
    decision, budget = entry.decision, entry.decision.budget
    recent = action_log.acts_of_budget(conn, budget.name, budget.measure.value, now - timedelta(hours=1))
    live_wanted = decision.armed and settings.enforced
    # A dry run keeps the pace the live one would have, or it would not show what live would do.
    if _full(recent, settings, live=live_wanted):
        return None
    running = action_log.running_jobs(conn, budget.tenant_path)
    subject = f"{_key(decision)}/{rung.do}"
    known = action_log.statuses(conn, f"{subject}/")
    keys: dict[int, str] = {}
    for job in running:
        is_dry = bool(_why_dry(decision, job, settings, clusters))
        if key := _free_key(f"{subject}/{_run(job)}", known, settings, dry=is_dry):
            keys[job.job_id] = key
    left = [job for job in running if job.job_id in keys]
    taken = choose(left, budget, action_log.running_accelerators(conn), settings)
    if taken is None:
        _note_none_left(conn, subject, running, left, now)
        return None
    why_dry = _why_dry(decision, taken, settings, clusters)
    needs_approval = decision.needs_approval
    action = NewAction(
        decision_id=entry.decision_id,
        tenant_id=budget.tenant_id,
        idempotency_key=keys[taken.job_id],
        kind=rung.do.value,
        plane="slurm",
        target={
            "cluster": taken.cluster,
            "native_id": taken.native_id,
            "started_at": taken.started_at.isoformat(),
            "user_name": taken.user_name,
            "account": taken.account,
            "accelerators": taken.accelerators,
            "job_id": taken.job_id,
        },
        status=Status.DRY_RUN if why_dry else Status.PLANNED,
        dry_run=bool(why_dry),
        evidence={
            "reason": decision.reason,
            "dry_run_because": why_dry,
            "approval": Approval.MANUAL.value if needs_approval else Approval.AUTOMATIC.value,
            "approved_by": None,
            "not_before_at": (now + timedelta(seconds=rung.grace_s)).isoformat(),
            "period_end_at": decision.period_end_at.isoformat(),
            "webhook": rung.webhook.name if rung.webhook else None,
            "decision": dict(decision.evidence),
            "origin": decision.origin.name.lower(),
        },
    )
    return action_log.add(conn, action, now)


def _run(job: RunningJob) -> str:
    return f"{job.cluster}/{job.native_id}/{job.started_at.isoformat()}"


def _free_key(prefix: str, known: Mapping[str, Status], settings: ActionSettings, *, dry: bool) -> str | None:
    """Return the key of the next act on a run, or None: it was acted on, called off, contested, or failed too often.

    Only a failed act is planned anew; whatever else is in the log under the key stands for the period.
    """
    failed = [key for key, status in known.items() if key.startswith(f"{prefix}/live/") and status is Status.FAILED]
    attempt = 1 + len(failed)
    key = f"{prefix}/{'dry' if dry else 'live'}/{attempt}"
    return None if attempt > settings.max_attempts or key in known else key


def _note_none_left(
    conn: sa.Connection, subject: str, running: Collection[RunningJob], left: Collection[RunningJob], now: datetime
) -> None:
    """Write down, once per rung and period, that jobs run over budget and none of them may be taken."""
    if not running or action_log.is_audited(conn, NONE_LEFT, subject):
        return
    detail = {"running": len(running), "closed": len(running) - len(left), "protected": len(left)}
    action_log.audit(conn, now, "worker", NONE_LEFT, subject, detail)
    log.warning(
        "%s: none of %d running jobs may be taken: %d are closed in the action log, %d are protected",
        subject,
        *detail.values(),
    )


def _full(recent: Iterable[action_log.Action], settings: ActionSettings, *, live: bool) -> bool:
    same_mode = [action for action in recent if action.dry_run is not live]
    return (
        any(action.status in action_log.OPEN for action in same_mode) or len(same_mode) >= settings.max_actions_per_hour
    )


def _why_dry(decision: Decision, job: RunningJob, settings: ActionSettings, clusters: Collection[str]) -> list[str]:
    why = []
    if not decision.budget.armed:
        why.append("the policy is not armed")
    elif not decision.armed:
        why.append("the evidence does not arm the policy")
    if not settings.enforced:
        why.append("the deployment does not enforce")
    if job.origin != Origin.LIVE:
        why.append(f"the job is {Origin(job.origin).name.lower()}")
    if job.cluster not in clusters:
        why.append(f"no control plane for cluster {job.cluster!r}")
    return why


def _key(decision: Decision) -> str:
    budget = decision.budget
    return f"{budget.name}/{budget.measure}/{decision.period_start_at.isoformat()}"
