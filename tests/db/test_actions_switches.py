"""Two switches, live evidence and a fresh decision: without them nothing is done to a job, and all is written down."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from analytics.actions import records
from analytics.actions.enforcement import Enforcement, EnforcementRound
from analytics.actions.webhooks import Deliverer
from analytics.io.action_log import Status
from collector.wire import Origin
from ingest.store.tables import control
from tests.db.actions_world import AFTER_GRACE, NOW, POLICY, World
from tests.fakes.books import usage

pytestmark = pytest.mark.db


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


def test_disarming_the_policy_in_the_grace_period_calls_it_off(over: World) -> None:
    over.policy(POLICY.replace("armed: true", "armed: false"), over.now)
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
