"""The kill-switch: a pause keeps what is due waiting and stops a busy executor within a second."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from analytics.actions.pause import pause, resume
from analytics.io import action_log, budgets
from analytics.io.action_log import Status
from tests.db.actions_world import AFTER_GRACE, NOW, World

pytestmark = pytest.mark.db


def test_pause_keeps_a_due_action_waiting_until_resume(over: World) -> None:
    pause(over.settings.state_dir, by="ada", reason="wrong prices", now=NOW)
    assert over.act() == ()
    assert over.slurm.acts() == []
    resume(over.settings.state_dir)
    assert [entry.status for entry in over.act()] == [Status.DONE]


def test_pause_stops_a_busy_executor_within_a_second(world: World) -> None:
    world.settings = replace(world.settings, max_actions_per_hour=100)
    world.policy()
    jobs = [world.job(str(100 + number)) for number in range(20)]
    world.spend("120", jobs[0])
    world.evaluate()
    _copy_plans(world, 19)
    world.now = AFTER_GRACE
    with world.engine.begin() as conn:
        budgets.evaluate(conn, world.now)
    world.slurm.mode("slow")
    thread = threading.Thread(target=world.executor().run_once)
    thread.start()
    world.slurm.wait_for_acts(2)
    paused_at = time.time()
    pause(world.settings.state_dir, by="ada", reason="stop", now=NOW)
    thread.join(30)
    assert not thread.is_alive()
    assert 2 <= len(world.slurm.acts()) < 20
    # One act may have looked for the pause just before it was there; a machine at its limit is no reason for a second.
    assert sum(acted_at > paused_at for acted_at in world.slurm.act_times_s()) <= 1


def _copy_plans(world: World, copies: int) -> None:
    """Plan the same act for other jobs, as other budgets would."""
    (first,) = world.log()
    with world.engine.begin() as conn:
        for number in range(1, copies + 1):
            native_id = str(119 - number)
            action_log.add(
                conn,
                action_log.NewAction(
                    decision_id=first.decision_id or 0,
                    tenant_id=world.books.tenant("acme/nlp"),
                    idempotency_key=f"copy/{number}",
                    kind=first.kind,
                    plane=first.plane,
                    target={**first.target, "native_id": native_id},
                    status=Status.PLANNED,
                    dry_run=False,
                    evidence=first.evidence,
                ),
                world.now,
            )
