"""From a decision to a stopped job, and every reason for which it is not stopped. Real PostgreSQL, scripts for Slurm."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from analytics.actions import records
from analytics.actions.enforcement import Enforcement, EnforcementRound
from analytics.actions.errors import PlaneRefusedError
from analytics.actions.executor import Executor
from analytics.actions.pause import pause, resume
from analytics.actions.plan import plan
from analytics.actions.settings import ActionSettings
from analytics.actions.webhooks import Deliverer
from analytics.io import action_log, budgets
from analytics.io.action_log import Action, Status
from collector.wire import Origin
from ingest.store.engine import Database
from ingest.store.tables import control
from tests.fakes.books import Books, hour, usage
from tests.fakes.slurm import FakeSlurm

POLICY = """\
version: 1
webhooks:
  ops: {url: "${OPS_URL}", secret: "${OPS_SECRET}"}
budgets:
  - name: nlp
    tenant: acme/nlp
    period: day
    currency: USD
    limits: {cost: 100}
    armed: true
    ladder:
      - {at: 80%, do: warn, webhook: ops}
      - {at: 100%, do: cancel, approval: AUTOMATIC, grace: 10m, webhook: ops}
"""
NOW = datetime(2026, 11, 11, 2, 20, tzinfo=UTC)
AFTER_GRACE = NOW + timedelta(minutes=10)


@dataclass
class World:
    """A tenant over budget with one running job, in the books and in Slurm."""

    database: Database
    books: Books
    engine: sa.Engine
    slurm: FakeSlurm
    settings: ActionSettings
    now: datetime = NOW

    def job(self, native_id: str, **values: Any) -> int:
        job_id = self.books.job("acme/nlp", native_id, **values)
        self.slurm.job(native_id, values.get("started_at", hour(0)))
        return job_id

    def spend(self, amount: str, job_id: int, number: int = 1, **values: Any) -> None:
        tenant_id = self.books.tenant("acme/nlp")
        rows = [usage(job_id=job_id, tenant_id=tenant_id, devices={self.books.device_ids[0]: 1}, cost=amount, **values)]
        self.books.close(number, rows)

    def policy(self, text: str = POLICY) -> None:
        with self.engine.begin() as conn:
            budgets.apply(conn, text, hour(0), actor="test")

    def evaluate(self) -> tuple[int, ...]:
        with self.engine.begin() as conn:
            return plan(conn, budgets.evaluate(conn, self.now), self.settings, {"lab"}, self.now)

    def executor(self, **changes: Any) -> Executor:
        made = Executor(self.engine, {"lab": self.slurm.plane(timeout_s=2)}, self.settings, lambda: self.now)
        return replace(made, **changes)

    def act(self, at: datetime = AFTER_GRACE) -> tuple[Action, ...]:
        self.now = at
        self.evaluate()
        return self.executor().run_once()

    def log(self) -> list[Action]:
        with self.engine.connect() as conn:
            return list(reversed(action_log.find(conn)))

    def messages(self) -> list[str]:
        with self.engine.connect() as conn:
            return list(conn.execute(sa.select(control.outbox.c.kind).order_by(control.outbox.c.id)).scalars())


@pytest.fixture
def world(db: Database, tmp_path: Path) -> Iterator[World]:
    admin, worker = db.create_engine("admin"), db.create_engine("worker", pool_size=6)
    state = tmp_path / "state"
    state.mkdir()
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        made = World(
            db, Books.open(conn), worker, FakeSlurm.create(tmp_path / "slurm"), ActionSettings(state, enforced=True)
        )
        yield made
    worker.dispose()
    admin.dispose()


@pytest.fixture
def over(world: World) -> World:
    """The world with a tenant at 120 % of an armed budget, its one job running, and the action planned."""
    world.policy()
    world.spend("120", world.job("42"))
    assert len(world.evaluate()) == 1
    return world


def test_an_armed_and_enforced_budget_stops_the_job_after_its_grace(over: World) -> None:
    assert over.executor().run_once() == ()
    (done,) = over.act()
    assert (done.status, done.dry_run, done.kind) == (Status.DONE, False, "cancel")
    assert over.slurm.acts() == ["scancel 42"]
    assert done.result is not None
    assert done.result["outcome"] == "accepted"
    assert done.result["read_before"]["native_state"] == "RUNNING"
    assert done.result["read_after"]["native_state"] == "CANCELLED"
    assert over.messages() == ["budget.rung_reached", "budget.rung_reached"]


@pytest.mark.parametrize(
    ("armed", "enforced", "why"),
    [
        (False, True, "the policy is not armed"),
        (True, False, "the deployment does not enforce"),
        (False, False, "the policy is not armed"),
    ],
)
def test_unless_both_switches_are_on_everything_is_a_dry_run(
    world: World, *, armed: bool, enforced: bool, why: str
) -> None:
    world.settings = replace(world.settings, enforced=enforced)
    world.policy(POLICY if armed else POLICY.replace("armed: true", "armed: false"))
    world.spend("120", world.job("42"))
    world.evaluate()
    world.act()
    (entry,) = world.log()
    assert (entry.status, entry.dry_run) == (Status.DRY_RUN, True)
    assert why in entry.evidence["dry_run_because"]
    assert entry.target["native_id"] == "42"  # what it would have done
    assert world.slurm.acts() == []


def test_simulated_spend_only_ever_makes_a_dry_run(world: World) -> None:
    world.policy()
    world.spend("120", world.job("42"), origin=Origin.SIMULATED)
    world.evaluate()
    world.act()
    assert [entry.status for entry in world.log()] == [Status.DRY_RUN]
    assert world.slurm.acts() == []


def test_a_simulated_job_is_never_acted_on_for_live_spend(world: World) -> None:
    world.policy()
    world.spend("120", world.job("42", origin=int(Origin.SIMULATED)))
    world.evaluate()
    assert [entry.status for entry in world.log()] == [Status.DRY_RUN]


def test_manual_approval_is_waited_for_and_recorded(world: World) -> None:
    world.policy(POLICY.replace("AUTOMATIC", "MANUAL"))
    world.spend("120", world.job("42"))
    (action_id,) = world.evaluate()
    assert world.act() == ()
    with world.engine.begin() as conn:
        assert records.approve(conn, action_id, world.now, actor="ada") is not None
    (done,) = world.act()
    assert (done.status, done.evidence["approved_by"]) == (Status.DONE, "ada")


def test_late_data_alone_waits_for_approval_even_where_the_rung_is_automatic(world: World) -> None:
    world.policy()
    job_id, tenant_id = world.job("42"), world.books.tenant("acme/nlp")

    def costs(amount: str) -> list[dict[str, Any]]:
        return [usage(job_id=job_id, tenant_id=tenant_id, devices={world.books.device_ids[0]: 1}, cost=amount)]

    world.books.close(1, costs("50"), costs("120"))
    world.evaluate()
    assert world.act() == ()
    (entry,) = world.log()
    assert (entry.status, entry.evidence["approval"]) == (Status.PLANNED, "MANUAL")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"start": AFTER_GRACE}, "another run of the same id"),  # requeued: same id, later start
        ({"user": "eve"}, "owner"),
        ({"account": "other"}, "account"),
        ({"state": "SUSPENDED"}, "state is SUSPENDED"),
        ({"state": "PENDING"}, "state is PENDING"),
    ],
)
def test_a_run_that_is_not_the_one_decided_on_is_contested_and_left_alone(
    over: World, change: dict[str, Any], why: str
) -> None:
    over.slurm.job("42", **{"start": hour(0), **change})
    (contested,) = over.act()
    assert contested.status is Status.CONTESTED
    assert contested.result is not None
    assert why in contested.result["why"]
    assert over.slurm.acts() == []
    assert over.messages()[-1] == "action.contested"


@pytest.mark.parametrize("gone", [True, False])
def test_a_job_that_ended_meanwhile_is_skipped(over: World, *, gone: bool) -> None:
    if gone:
        over.slurm.forget("42")
    else:
        over.slurm.job("42", hour(0), state="COMPLETED")
    (skipped,) = over.act()
    assert skipped.status is Status.SKIPPED
    assert over.slurm.acts() == []


def test_disarming_the_policy_in_the_grace_period_calls_it_off(over: World) -> None:
    with over.engine.begin() as conn:
        budgets.apply(conn, POLICY.replace("armed: true", "armed: false"), over.now, actor="ada")
    over.now = AFTER_GRACE
    (skipped,) = over.executor().run_once()
    assert skipped.status is Status.SKIPPED
    assert over.slurm.acts() == []


def test_turning_enforcement_off_in_the_grace_period_calls_it_off(over: World) -> None:
    over.settings = replace(over.settings, enforced=False)
    (skipped,) = over.act()
    assert skipped.status is Status.SKIPPED
    assert over.slurm.acts() == []


def test_a_decision_nobody_renewed_is_not_acted_on(over: World) -> None:
    over.now = NOW + timedelta(minutes=31)
    assert over.executor().run_once() == ()
    assert over.slurm.acts() == []


def test_one_action_per_hour_even_of_two_budgets(over: World) -> None:
    other = POLICY.replace("name: nlp", "name: all").replace("tenant: acme/nlp", "tenant: acme")
    over.policy(POLICY + other[other.index("  - name") :])
    over.job("43")
    over.act()
    over.act(AFTER_GRACE + timedelta(minutes=11))
    assert len(over.slurm.acts()) == 1
    over.act(AFTER_GRACE + timedelta(minutes=61))
    over.act(AFTER_GRACE + timedelta(minutes=72))
    assert len(over.slurm.acts()) == 2


def test_a_contested_job_does_not_keep_the_budget_from_the_next_one(over: World) -> None:
    over.slurm.job("42", hour(0), user="eve")  # not the owner decided on
    over.job("41", started_at=hour(0) - timedelta(minutes=1))  # older, so chosen second
    assert [entry.status for entry in over.act()] == [Status.CONTESTED]
    over.act(AFTER_GRACE + timedelta(minutes=61))
    over.act(AFTER_GRACE + timedelta(minutes=72))
    assert over.slurm.acts() == ["scancel 41"]


def test_a_dry_run_names_the_next_job_an_hour_later(world: World) -> None:
    world.settings = replace(world.settings, enforced=False)
    world.policy()
    world.spend("120", world.job("42"))
    world.job("41", started_at=hour(0) - timedelta(minutes=1))
    for minutes in (0, 30, 61, 122):
        world.now = NOW + timedelta(minutes=minutes)
        world.evaluate()
    assert [entry.target["native_id"] for entry in world.log()] == ["42", "41"]


def test_that_no_job_is_left_is_written_down_once(over: World, caplog: pytest.LogCaptureFixture) -> None:
    over.slurm.job("42", hour(0), user="eve")
    over.job("inf", workload_kind="inference", started_at=hour(0))  # always protected
    over.act()
    for minutes in (61, 62):
        over.act(AFTER_GRACE + timedelta(minutes=minutes))
    with over.engine.connect() as conn:
        noted = conn.execute(sa.select(control.audit).where(control.audit.c.action == "actions.none_left")).all()
    assert [row.detail for row in noted] == [{"running": 2, "closed": 1, "protected": 1}]
    assert noted[0].subject == "nlp/cost/2026-11-11T00:00:00+00:00/cancel"
    assert caplog.text.count("none of 2 running jobs may be taken") == 1


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


def test_a_job_the_plane_refuses_to_show_is_contested_and_told_not_asked_for_ever(world: World) -> None:
    job_id = world.books.job("acme/nlp", "7.batch")  # not a Slurm job id
    world.spend("120", job_id)
    world.policy()
    world.evaluate()
    assert [action.status for action in world.act()] == [Status.CONTESTED]
    assert world.slurm.acts() == []
    assert world.messages()[-1] == "action.contested"


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
    assert max(world.slurm.act_times_s()) < paused_at + 1


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


def test_planning_the_same_twice_adds_nothing(over: World) -> None:
    assert over.evaluate() == ()
    assert len(over.log()) == 1
    assert over.messages() == ["budget.rung_reached", "budget.rung_reached"]


def test_one_round_after_another_decides_plans_tells_and_stops(world: World) -> None:
    world.policy()
    world.spend("120", world.job("42"))
    received: list[str] = []

    def receive(request: httpx.Request) -> httpx.Response:
        received.append(json.loads(request.content)["event"])
        return httpx.Response(204)

    environment = {"OPS_URL": "https://ops.example", "OPS_SECRET": "k"}
    with httpx.Client(transport=httpx.MockTransport(receive)) as client:
        deliverer = Deliverer(world.engine, client, environment, lambda: world.now)
        rounds = Enforcement(world.engine, world.executor(), deliverer, lambda: world.now)
        assert rounds.run() == EnforcementRound(decisions=1, planned=1, acted=0, delivered=2, undelivered=0)
        assert rounds.run() == EnforcementRound(decisions=1, planned=0, acted=0, delivered=0, undelivered=0)
        world.now = AFTER_GRACE
        assert rounds.run().acted == 1
    assert world.slurm.acts() == ["scancel 42"]
    assert received == ["budget.rung_reached", "budget.rung_reached"]
    with world.engine.connect() as conn:  # the second round said nothing new; the third came 10 minutes later
        assert conn.execute(sa.select(sa.func.count()).select_from(control.decisions)).scalar_one() == 2
