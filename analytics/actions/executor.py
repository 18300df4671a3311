"""Carries out planned actions: claim, read again, act once, reconcile, record. The only module that touches a job.

An action is claimed by swapping its row before anything is asked of the plane, and a claimed action is never acted on again:
whoever finds one that was left behind only looks at what became of the job. It refuses to act while paused, on a run that is
not exactly the one that was decided on, on stale decisions, and faster than the settings allow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from analytics.actions import checks, records
from analytics.actions.checks import Wait
from analytics.actions.errors import PlaneError, PlaneRefusedError, PlaneTimeoutError, PlaneUnavailableError
from analytics.actions.pause import paused
from analytics.actions.plane import Plane, RunState, mismatch
from analytics.actions.settings import ActionSettings
from analytics.io import action_log
from analytics.io.action_log import Action, Status
from analytics.model.budget import Step


@dataclass(frozen=True, slots=True)
class Executor:
    """Acts for one process. ``engine`` connects as the worker role, ``planes`` maps cluster to scheduler."""

    engine: sa.Engine
    planes: Mapping[str, Plane]
    settings: ActionSettings
    clock: Callable[[], datetime]
    monotonic: Callable[[], float] = time.monotonic

    def run_once(self) -> tuple[Action, ...]:
        """Reconcile what was left behind, carry out what is due, and return every action that changed."""
        return (*self.reconcile(), *self.execute_due())

    def execute_due(self) -> tuple[Action, ...]:
        """Carry out the planned actions whose time has come, oldest first, until the hour's allowance is used."""
        changed: list[Action] = []
        with self.engine.connect() as conn:
            waiting = action_log.find(conn, statuses=(Status.PLANNED,))
        for action in reversed(waiting):
            if paused(self.settings.state_dir) is not None:
                break
            after = self._execute(action)
            changed += [] if after is None else [after]
        return tuple(changed)

    def reconcile(self) -> tuple[Action, ...]:
        """Look at what became of actions that were sent, and of those whose executor died; never act."""
        changed: list[Action] = []
        with self.engine.connect() as conn:
            open_actions = action_log.find(conn, statuses=(Status.EXECUTING,))
        for action in reversed(open_actions):
            sent = action.result is not None
            if not sent and self.clock() - (action.executed_at or action.planned_at) < self.settings.lease:
                continue  # its executor may be at it right now
            after = self._settle(action)
            changed += [] if after is None else [after]
        return tuple(changed)

    def undo(self, action_id: int, *, actor: str) -> Action:
        """Take back a done action where the plane can (resume a suspended job); raises PlaneError where it cannot."""
        with self.engine.connect() as conn:
            found = action_log.find(conn, action_id=action_id)
        if not found or found[0].status is not Status.DONE:
            raise PlaneRefusedError(
                f"action {action_id} is {found[0].status if found else 'unknown'}; only one that is done can be undone"
            )
        (action,) = found
        plane, identity = self._plane(action), records.identity(action)
        reading = plane.read(identity.native_id)
        wrong = "the job is gone" if reading is None else mismatch(identity, reading, self.settings.start_tolerance)
        if wrong is not None:
            raise PlaneRefusedError(f"action {action_id} cannot be undone: {wrong}")
        plane.undo(Step(action.kind), identity.native_id)
        now = self.clock()
        with self.engine.begin() as conn:
            undone = action_log.swap(
                conn, action, Status.UNDONE, expect=Status.DONE, undo={"by": actor, "at": now.isoformat()}
            )
            action_log.audit(conn, now, actor, "action.undo", f"action/{action_id}", {})
        if undone is None:
            raise PlaneRefusedError(f"action {action_id} was changed by somebody else meanwhile; look again")
        return undone

    def _execute(self, action: Action) -> Action | None:
        now = self.clock()
        with self.engine.begin() as conn:
            verdict = checks.before_claim(conn, action, self.settings, now)
            if isinstance(verdict, Wait):
                return None
            if verdict is not None:
                return records.close(conn, action, Status.SKIPPED, now, {"outcome": "skipped", "why": verdict})
            if not action_log.take_turn(conn, now, self.settings.max_actions_per_hour):
                return None
            claimed = action_log.swap(conn, action, Status.EXECUTING, expect=Status.PLANNED, executed_at=now)
        if claimed is None:
            return None  # another executor was faster
        deadline = self.monotonic() + self.settings.lease.total_seconds() / 2
        return self._act(claimed, deadline)

    def _act(self, claimed: Action, deadline: float) -> Action | None:
        identity = records.identity(claimed)
        try:
            plane = self._plane(claimed)
            reading = plane.read(identity.native_id)
        except PlaneRefusedError as error:  # asking again would be refused again, and keep the budget waiting for ever
            return self._contest(claimed, str(error), None)
        except PlaneError as error:
            return self._release(claimed, str(error))
        if reading is None or reading.state is RunState.ENDED:
            return self._close(claimed, Status.SKIPPED, {"outcome": "skipped", "why": "the job had already ended"})
        wrong = mismatch(identity, reading, self.settings.start_tolerance)
        if wrong is None and reading.state is not RunState.RUNNING:
            wrong = f"state is {reading.native_state}, meant running"
        if wrong is not None:
            return self._contest(claimed, wrong, records.as_json(reading))
        # Last look, in this order: still our action, still our time, still not paused.
        with self.engine.begin() as conn:
            ours = action_log.swap(conn, claimed, Status.EXECUTING, expect=Status.EXECUTING)
        if ours is None:
            return None
        if self.monotonic() > deadline:
            return self._release(ours, "this process was stopped between claim and act")
        if paused(self.settings.state_dir) is not None:
            return self._release(ours, "actions were paused")
        outcome = "accepted"
        try:
            plane.act(Step(ours.kind), identity.native_id)
        except (PlaneTimeoutError, PlaneRefusedError, PlaneUnavailableError) as error:
            outcome = f"{'timeout' if isinstance(error, PlaneTimeoutError) else 'refused'}: {error}"
        result = {"outcome": outcome, "acted_at": self.clock().isoformat(), "read_before": records.as_json(reading)}
        with self.engine.begin() as conn:
            sent = action_log.swap(conn, ours, Status.EXECUTING, expect=Status.EXECUTING, result=result)
        return None if sent is None else (self._settle(sent) or sent)

    def _settle(self, action: Action) -> Action | None:
        """Close an action by what became of its job; None while that is open or cannot be seen."""
        identity, now = records.identity(action), self.clock()
        try:
            reading = self._plane(action).read(identity.native_id)
        except PlaneError:
            return None
        result = {
            **(action.result or {"outcome": "unknown: its executor did not record it"}),
            "read_after": records.as_json(reading),
        }
        another_run = reading is not None and mismatch(identity, reading, self.settings.start_tolerance) is not None
        suspended = reading is not None and reading.state is RunState.SUSPENDED and action.kind == Step.SUSPEND
        if reading is None or reading.state is RunState.ENDED or another_run or suspended:
            return self._close(action, Status.DONE, result)
        if now - (action.executed_at or action.planned_at) < self.settings.reconcile_within:
            return None
        return self._close(action, Status.FAILED, {**result, "why": "the job still runs"}, alert=True)

    def _contest(self, action: Action, why: str, reading: object) -> Action | None:
        return self._close(
            action, Status.CONTESTED, {"outcome": "contested", "why": why, "read_before": reading}, alert=True
        )

    def _release(self, action: Action, why: str) -> Action | None:
        """Give a claimed action back: nothing was asked of the plane."""
        evidence = {**action.evidence, "released_because": why}
        with self.engine.begin() as conn:
            return action_log.swap(
                conn, action, Status.PLANNED, expect=Status.EXECUTING, executed_at=None, evidence=evidence
            )

    def _close(
        self, action: Action, status: Status, result: Mapping[str, object], *, alert: bool = False
    ) -> Action | None:
        with self.engine.begin() as conn:
            return records.close(conn, action, status, self.clock(), result, alert=alert)

    def _plane(self, action: Action) -> Plane:
        cluster = str(action.target["cluster"])
        if cluster not in self.planes:
            raise PlaneUnavailableError(f"no control plane for cluster {cluster!r} in this process")
        return self.planes[cluster]
