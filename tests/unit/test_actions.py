"""Which job an action may take, what stops all of them, and when a run is another one."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from analytics.actions.pause import FLAG, pause, paused, resume
from analytics.actions.plan import choose, message, protected_by
from analytics.actions.plane import Identity, RunReading, RunState, mismatch
from analytics.actions.settings import ActionSettings
from analytics.actions.webhooks import signature
from analytics.io.action_log import RunningJob
from analytics.model.budget import Budget, Measure, Rung, Spend, Step, decide
from analytics.model.period import Period

START = datetime(2026, 11, 11, 3, tzinfo=UTC)
MEANT = Identity("lab", "42", START, "ada", "research")
FOUND = RunReading("lab", "42", START, "ada", "research", RunState.RUNNING, "RUNNING")
SECOND = timedelta(seconds=1)


def job(native_id: str, accelerators: int, *, start_h: int = 0, **attributes: str) -> RunningJob:
    at = START + timedelta(hours=start_h)
    return RunningJob(int(native_id), "lab", native_id, at, "ada", "research", accelerators, 1, "acme", attributes)


def budget(**protect: tuple[str, ...]) -> Budget:
    return Budget(
        1, 1, "acme", "b", Period.DAY, "UTC", Measure.COST, Decimal(1), "USD", (), armed=True, protect=protect
    )


def chosen(jobs: list[RunningJob], running: int, limits: Budget | None = None) -> str | None:
    found = choose(jobs, limits or budget(), running, ActionSettings(Path("/nowhere")))
    return found.native_id if found else None


def test_the_largest_job_within_one_percent_of_the_running_gpus_is_taken() -> None:
    assert chosen([job("1", 8), job("2", 16), job("3", 4)], running=1000) == "1"  # 1 % is 10


def test_one_job_may_always_be_taken_and_then_the_smallest() -> None:
    assert chosen([job("1", 8), job("2", 4)], running=100) == "2"


def test_among_equals_the_newest_loses_the_least_work() -> None:
    assert chosen([job("1", 1), job("2", 1, start_h=5), job("3", 1, start_h=2)], running=100) == "2"


def test_production_serving_and_wattledger_itself_are_protected_without_being_asked() -> None:
    assert chosen([job("1", 1, workload_kinds="inference"), job("2", 1, names="wattledger-canary")], 100) is None
    assert protected_by(job("1", 1, namespaces="kube-system"), budget()) == "namespaces: kube-*"


def test_a_policys_own_list_protects_by_glob() -> None:
    rules = budget(names=("release-*",), jobs=("7",))
    assert (
        chosen([job("1", 1, names="release-9"), job("7", 1, jobs="7"), job("8", 1, names="sweep")], 100, rules) == "8"
    )


def test_the_same_run_is_recognized() -> None:
    assert mismatch(MEANT, FOUND, SECOND) is None
    assert mismatch(MEANT, replace(FOUND, started_at=START + timedelta(milliseconds=900)), SECOND) is None


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (replace(FOUND, cluster="other"), "cluster"),
        (replace(FOUND, native_id="43"), "job id"),
        (replace(FOUND, started_at=START + timedelta(seconds=2)), "another run"),
        (replace(FOUND, started_at=None), "not started"),
        (replace(FOUND, user_name="eve"), "owner"),
        (replace(FOUND, account="other"), "account"),
    ],
)
def test_any_difference_makes_it_another_run(found: RunReading, says: str) -> None:
    assert says in (mismatch(MEANT, found, SECOND) or "")


def test_an_owner_we_do_not_know_is_a_mismatch_not_a_pass() -> None:
    assert "owner" in (mismatch(replace(MEANT, user_name=None), FOUND, SECOND) or "")
    assert "account" in (mismatch(replace(MEANT, account=None), FOUND, SECOND) or "")


def test_pause_holds_until_resume_and_says_who_and_why(tmp_path: Path) -> None:
    assert paused(tmp_path) is None
    pause(tmp_path, by="ada", reason="wrong prices", now=START)
    flag = paused(tmp_path)
    assert flag is not None
    assert (flag.by, flag.reason) == ("ada", "wrong prices")
    assert resume(tmp_path)
    assert paused(tmp_path) is None
    assert not resume(tmp_path)


@pytest.mark.parametrize("content", ["", "stop!", json.dumps([1]), json.dumps({"who": 1})])
def test_a_flag_made_by_hand_pauses_too(tmp_path: Path, content: str) -> None:
    (tmp_path / FLAG).write_text(content)
    assert paused(tmp_path) is not None


def test_a_missing_state_folder_counts_as_paused(tmp_path: Path) -> None:
    assert paused(tmp_path / "gone") is not None


def test_impossible_settings_are_all_named() -> None:
    with pytest.raises(ValueError, match=r"max_actions_per_hour 0.*max_running_ratio 0"):
        ActionSettings(Path(), max_actions_per_hour=0, max_running_ratio=Decimal(0))


def test_the_signature_covers_time_and_body() -> None:
    # printf '1700000000.{}' | openssl dgst -sha256 -hmac key
    assert signature("key", 1_700_000_000, b"{}") == (
        "t=1700000000,v1=9d713ed406bb7076d4123f0dc2c39d2df5c654ed4b0cd56b52c8b4c940bd63ae"
    )


def test_the_documented_message_has_the_fields_that_are_sent() -> None:
    page = (Path(__file__).parents[2] / "docs" / "budgets.md").read_text()
    documented = json.loads(page.split("```json\n")[1].split("```")[0])
    rung = Rung(Decimal("0.8"), Step.WARN)
    spend = Spend(Decimal(1), Decimal(0), frozenset(), frozenset(), 1.0, START)
    sent = message(decide(replace(budget(), ladder=(rung,)), spend, START), rung, "budget.rung_reached")
    assert set(documented) == {*sent, "id"}
