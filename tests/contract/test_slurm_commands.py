"""The Slurm plane against scripts that answer in Slurm's words."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from analytics.actions.errors import PlaneRefusedError, PlaneTimeoutError, PlaneUnavailableError
from analytics.actions.plane import RunState
from analytics.actions.slurm import SlurmPlane
from analytics.model.budget import Step
from tests.fakes.slurm import FakeSlurm

START = datetime(2026, 11, 11, 3, 0, 7, tzinfo=UTC)


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    fake = FakeSlurm.create(tmp_path / "slurm")
    fake.job("42", START)
    return fake


def test_a_running_job_is_read_with_cluster_start_owner_and_state(slurm: FakeSlurm) -> None:
    reading = slurm.plane().read("42")
    assert reading is not None
    assert (reading.cluster, reading.native_id, reading.started_at) == ("lab", "42", START)
    assert (reading.user_name, reading.account, reading.state) == ("ada", "research", RunState.RUNNING)


def test_an_unknown_job_is_none_and_not_an_error(slurm: FakeSlurm) -> None:
    assert slurm.plane().read("43") is None


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "TIMEOUT", "NODE_FAIL"])
def test_a_job_on_its_way_out_has_ended(slurm: FakeSlurm, state: str) -> None:
    slurm.job("42", START, state=state)
    reading = slurm.plane().read("42")
    assert reading is not None
    assert reading.state is RunState.ENDED


def test_a_state_of_a_newer_slurm_is_other_and_never_running(slurm: FakeSlurm) -> None:
    slurm.job("42", START, state="LEVITATING")
    reading = slurm.plane().read("42")
    assert reading is not None
    assert reading.state is RunState.OTHER


def test_cancel_and_suspend_and_resume_ask_the_right_commands(slurm: FakeSlurm) -> None:
    plane = slurm.plane()
    plane.act(Step.SUSPEND, "42")
    assert slurm.state("42") == "SUSPENDED"
    plane.undo(Step.SUSPEND, "42")
    assert slurm.state("42") == "RUNNING"
    plane.act(Step.CANCEL, "42")
    assert slurm.state("42") == "CANCELLED"
    assert slurm.acts() == ["scontrol suspend 42", "scontrol resume 42", "scancel 42"]


@pytest.mark.parametrize("native_id", ["", "42;reboot", "--state=all", "-u root", "42 43", "all", "4" * 20, "42\n"])
def test_what_is_not_a_slurm_job_id_never_reaches_a_command(slurm: FakeSlurm, native_id: str) -> None:
    with pytest.raises(PlaneRefusedError, match="not a Slurm job id"):
        slurm.plane().act(Step.CANCEL, native_id)
    assert slurm.acts() == []


def test_a_cancelled_job_cannot_be_undone(slurm: FakeSlurm) -> None:
    with pytest.raises(PlaneRefusedError, match="cannot be undone"):
        slurm.plane().undo(Step.CANCEL, "42")


def test_a_refusal_carries_slurms_words(slurm: FakeSlurm) -> None:
    slurm.mode("refuse")
    with pytest.raises(PlaneRefusedError, match="Access/permission denied"):
        slurm.plane().act(Step.CANCEL, "42")


def test_a_dead_controller_is_unavailable_to_read_and_a_timeout_to_act(slurm: FakeSlurm) -> None:
    slurm.mode("dead")
    with pytest.raises(PlaneUnavailableError):
        slurm.plane().read("42")
    with pytest.raises(PlaneTimeoutError):
        slurm.plane().act(Step.CANCEL, "42")


def test_a_command_that_does_not_come_back_is_a_timeout(slurm: FakeSlurm) -> None:
    slurm.mode("hang")
    with pytest.raises(PlaneTimeoutError, match="did not answer"):
        slurm.plane(timeout_s=0.3).act(Step.CANCEL, "42")


def test_a_machine_without_slurm_says_so(tmp_path: Path) -> None:
    with pytest.raises(PlaneUnavailableError, match="install Slurm's commands"):
        SlurmPlane(bin_dir=tmp_path).read("42")
