"""Which job is taken: the run that was decided on or none, one an hour, then the next."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from analytics.io.action_log import Status
from ingest.store.tables import control
from tests.db.actions_world import AFTER_GRACE, NOW, POLICY, World
from tests.fakes.books import hour

pytestmark = pytest.mark.db


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


def test_a_job_the_plane_refuses_to_show_is_contested_and_told_not_asked_for_ever(world: World) -> None:
    job_id = world.books.job("acme/nlp", "7.batch")  # not a Slurm job id
    world.spend("120", job_id)
    world.policy()
    world.evaluate()
    assert [action.status for action in world.act()] == [Status.CONTESTED]
    assert world.slurm.acts() == []
    assert world.messages()[-1] == "action.contested"


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
