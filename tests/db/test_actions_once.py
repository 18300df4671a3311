"""A job is acted on once, whatever races, hangs, dies or sleeps; what became of it is read, and can be undone where that is possible."""

from __future__ import annotations

import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from analytics.actions.errors import PlaneRefusedError
from analytics.actions.executor import Executor
from analytics.actions.settings import ActionSettings
from analytics.io import action_log
from analytics.io.action_log import Status
from ingest.store.engine import Database
from tests.db.actions_world import AFTER_GRACE, POLICY, World
from tests.fakes.books import hour, usage
from tests.fakes.slurm import FakeSlurm

pytestmark = pytest.mark.db


def test_two_executors_racing_act_once(over: World) -> None:
    over.now = AFTER_GRACE
    over.evaluate()
    over.slurm.mode("slow")
    with ThreadPoolExecutor(4) as pool:
        results = [future.result() for future in [pool.submit(over.executor().run_once) for _ in range(4)]]
    assert sum(len(result) for result in results) == 1
    assert over.slurm.acts() == ["scancel 42"]


def test_a_plane_that_times_out_after_it_worked_is_found_done(over: World) -> None:
    over.slurm.mode("hang-after")
    (done,) = over.act()
    assert done.status is Status.DONE
    assert done.result is not None
    assert done.result["outcome"].startswith("timeout")
    assert over.slurm.acts() == ["scancel 42"]


def test_a_cancel_that_does_nothing_fails_with_an_alert_and_is_tried_anew_a_limited_number_of_times(
    over: World,
) -> None:
    over.slurm.mode("ignore")
    at = AFTER_GRACE
    for _ in range(4):
        over.act(at)  # acts, or plans the next attempt
        over.act(at + timedelta(minutes=3))  # settles: it still runs
        at += timedelta(minutes=61)
        over.spend("120", 1, number=(at - hour(0)) // timedelta(hours=1) - 1)  # books stay fresh
        over.act(at)
        at += timedelta(minutes=11)
    assert len(over.slurm.acts()) == over.settings.max_attempts
    assert {entry.status for entry in over.log()} == {Status.FAILED}
    assert over.messages().count("action.failed") == over.settings.max_attempts


def test_an_unreachable_plane_gives_the_action_back(over: World) -> None:
    over.slurm.mode("dead")
    (released,) = over.act()
    assert (released.status, released.executed_at) == (Status.PLANNED, None)
    over.slurm.mode("fine")
    assert [entry.status for entry in over.act()] == [Status.DONE]


def _die_at_act(database: Database, slurm: Path, settings: ActionSettings, at: datetime) -> None:
    engine = database.create_engine("worker")
    Executor(engine, {"lab": FakeSlurm(slurm).plane()}, settings, lambda: at).run_once()


@pytest.mark.parametrize("mode", ["hang-after", "hang"])
def test_an_executor_killed_between_act_and_record_is_reconciled_without_a_second_act(over: World, mode: str) -> None:
    over.now = AFTER_GRACE
    over.evaluate()
    over.slurm.mode(mode)  # the command hangs: the executor is in the middle of it
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=_die_at_act, args=(over.database, over.slurm.root, over.settings, AFTER_GRACE))
    child.start()
    over.slurm.wait_for_acts(1)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    over.slurm.mode("fine")
    assert over.executor().run_once() == ()  # its lease still runs
    over.now = AFTER_GRACE + timedelta(minutes=3)
    (settled,) = over.executor().run_once()
    assert settled.status is (Status.DONE if mode == "hang-after" else Status.FAILED)
    assert over.slurm.acts() == ["scancel 42"]


def test_a_resumed_executor_whose_action_was_taken_over_does_nothing(over: World) -> None:
    over.now = AFTER_GRACE
    over.evaluate()
    executor = over.executor()
    (planned,) = over.log()
    with over.engine.begin() as conn:
        claimed = action_log.swap(conn, planned, Status.EXECUTING, expect=Status.PLANNED, executed_at=over.now)
    assert claimed is not None
    over.now += timedelta(minutes=3)  # stopped here for longer than its lease; somebody else settles the action
    assert [entry.status for entry in over.executor().reconcile()] == [Status.FAILED]
    assert executor._act(claimed, deadline=executor.monotonic() + 60) is None
    assert over.slurm.acts() == []


def test_an_executor_that_slept_past_its_deadline_gives_the_action_back(over: World) -> None:
    over.now = AFTER_GRACE
    over.evaluate()
    (planned,) = over.log()
    with over.engine.begin() as conn:
        claimed = action_log.swap(conn, planned, Status.EXECUTING, expect=Status.PLANNED, executed_at=over.now)
    assert claimed is not None
    released = over.executor()._act(claimed, deadline=0)
    assert released is not None
    assert released.status is Status.PLANNED
    assert over.slurm.acts() == []


def test_suspend_can_be_undone_and_cancel_cannot(world: World) -> None:
    world.policy(
        POLICY.replace("    currency: USD\n", "")
        .replace("{cost: 100}", "{energy_kwh: 0.000000001}")
        .replace("cancel", "suspend")
    )
    job_id, tenant_id = world.job("42"), world.books.tenant("acme/nlp")
    world.books.close(1, [usage(job_id=job_id, tenant_id=tenant_id, devices={world.books.device_ids[0]: 3_600_000})])
    world.evaluate()
    (done,) = world.act()
    assert (done.status, world.slurm.state("42")) == (Status.DONE, "SUSPENDED")
    undone = world.executor().undo(done.action_id, actor="ada")
    assert (undone.status, world.slurm.state("42")) == (Status.UNDONE, "RUNNING")
    with pytest.raises(PlaneRefusedError, match="only one that is done"):
        world.executor().undo(done.action_id, actor="ada")
