"""From a pid to whom the process runs for: what proves it, what only hints at it, and what is a contradiction."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal

import pytest

from collector.jobs.processes import ProcessTable, Standing
from tests.fakes.proc import BOOT_AT_US, TICKS_PER_S, FakeProc

pytestmark = pytest.mark.unit

NOW_US = BOOT_AT_US + 5_000_000_000
JOB_31 = "0::/system.slice/slurmstepd.scope/job_31/step_0/user/task_0"
LOGIN = "0::/user.slice/user-1000.slice/session-3.scope"


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path / "proc")


def table(proc: FakeProc, environ: Literal["hint", "never"] = "hint") -> ProcessTable:
    return ProcessTable(proc_root=proc.root, environ=environ, boot_at_us=lambda: BOOT_AT_US, ticks_per_s=TICKS_PER_S)


def standing(
    proc: FakeProc, pid: int, environ: Literal["hint", "never"] = "hint", seen_at_us: int = NOW_US
) -> Standing:
    found = table(proc, environ).standing(pid, seen_at_us)
    assert found is not None
    return found


def who(found: Standing) -> tuple[str | None, str]:
    return (None if found.holder is None else f"{found.holder.kind}:{found.holder.id}"), found.proof


def test_a_cgroup_names_the_job_and_the_start_is_ticks_since_boot(proc: FakeProc) -> None:
    proc.start(700, cgroup=JOB_31, start_s=4_000.25)
    found = standing(proc, 700)
    assert who(found) == ("slurm:31", "cgroup")
    assert found.started_at_us == BOOT_AT_US + 4_000_250_000
    assert found.uid == 1000


def test_without_slurm_s_cgroups_the_slurmstepd_above_names_the_job(proc: FakeProc) -> None:
    proc.stepd(500, "31")
    proc.start(600, parent=500, cgroup="0::/system.slice/slurmd.service", comm="bash")
    proc.start(700, parent=600, cgroup="0::/system.slice/slurmd.service")
    assert who(standing(proc, 700)) == ("slurm:31", "slurmstepd")


@pytest.mark.parametrize("uid", [1000, (1000, 0), (0, 1000)])
def test_a_slurmstepd_that_is_not_root_s_through_and_through_is_a_user_s_costume(
    proc: FakeProc, uid: int | tuple[int, int]
) -> None:
    proc.stepd(500, "99", uid=uid)
    proc.start(700, parent=500, cgroup=LOGIN)
    assert who(standing(proc, 700)) == ("login:1000", "cgroup")


def test_a_sluid_gets_its_number_from_the_slurmstepd(proc: FakeProc) -> None:
    proc.stepd(500, "3385", "0")
    proc.start(700, parent=500, cgroup="0::/system.slice/slurmstepd.scope/s5K1KKYAYG5D00/step_0/user/task_0")
    assert who(standing(proc, 700)) == ("slurm:3385", "cgroup")


def test_a_sluid_without_its_slurmstepd_stays_a_sluid_whatever_the_environment_says(proc: FakeProc) -> None:
    cgroup = "0::/system.slice/slurmstepd.scope/s5K1KKYAYG5D00/step_0/user/task_0"
    proc.start(700, cgroup=cgroup, environ={"SLURM_JOB_ID": "77"})
    assert who(standing(proc, 700)) == ("slurm:s5K1KKYAYG5D00", "cgroup")


def test_cgroup_and_slurmstepd_that_disagree_are_nobody_and_a_finding(proc: FakeProc) -> None:
    proc.stepd(500, "32")
    proc.start(700, parent=500, cgroup=JOB_31, environ={"SLURM_JOB_ID": "31"})
    found = standing(proc, 700)
    assert who(found) == (None, "none")
    assert found.conflict == "cgroup says slurm 31, slurmstepd says job 32"


def test_the_environment_never_overrides_a_cgroup(proc: FakeProc) -> None:
    proc.start(700, cgroup=JOB_31, environ={"SLURM_JOB_ID": "77"})
    assert who(standing(proc, 700)) == ("slurm:31", "cgroup")


def test_the_environment_is_a_hint_where_nothing_else_speaks(proc: FakeProc) -> None:
    proc.start(700, cgroup=LOGIN, environ={"HOME": "/root", "SLURM_JOB_ID": "77", "AWS_SECRET_ACCESS_KEY": "x"})
    found = standing(proc, 700)
    assert who(found) == ("slurm:77", "environ")
    assert found.hints == {"SLURM_JOB_ID": "77"}


@pytest.mark.parametrize("value", ["", "77;reboot", "-1", "7.5", "٣١", "9" * 11, "77\n"])
def test_a_hint_that_is_no_job_number_is_none(proc: FakeProc, value: str) -> None:
    proc.start(700, cgroup=LOGIN, environ={"SLURM_JOB_ID": value})
    assert who(standing(proc, 700)) == ("login:1000", "cgroup")


def test_with_environ_never_the_file_is_not_even_opened(proc: FakeProc) -> None:
    proc.start(700, cgroup=LOGIN)
    (proc.root / "700" / "environ").unlink()
    os.mkfifo(proc.root / "700" / "environ")  # opening it would block for ever
    found = table(proc, "never").standing(700, NOW_US, hints=True)
    assert found is not None
    assert who(found) == ("login:1000", "cgroup")


def test_the_first_of_two_equal_keys_counts_and_a_huge_environment_is_cut(proc: FakeProc) -> None:
    proc.start(700, cgroup=LOGIN, environ={"SLURM_JOB_ID": "77"})
    with (proc.root / "700" / "environ").open("ab") as file:
        file.write(b"SLURM_JOB_ID=78\0" + b"x" * (1 << 20) + b"\0CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=25\0")
    assert standing(proc, 700).hints == {"SLURM_JOB_ID": "77"}


def test_a_process_younger_than_the_reading_is_another_with_the_same_number(proc: FakeProc) -> None:
    proc.start(700, cgroup=JOB_31, start_s=4_000.0)
    seen_at_us = BOOT_AT_US + 3_990_000_000
    assert table(proc).standing(700, seen_at_us) is None
    assert table(proc).standing(700, seen_at_us + 9_500_000) is not None  # ticks and slewing: half a second is nothing


def test_a_number_that_is_given_away_between_two_looks_is_not_remembered(proc: FakeProc) -> None:
    proc.stepd(500, "31")
    proc.start(700, parent=500, start_s=4_000.0)
    processes = table(proc)
    first = processes.standing(700, NOW_US)
    proc.start(700, parent=1, start_s=4_100.0, cgroup=LOGIN)
    second = processes.standing(700, NOW_US)
    assert first is not None
    assert second is not None
    assert (who(first), who(second)) == (("slurm:31", "slurmstepd"), ("login:1000", "cgroup"))


def test_who_is_gone_is_nobody_and_no_error(proc: FakeProc) -> None:
    processes = table(proc)
    assert processes.standing(4_242, NOW_US) is None
    assert not processes.forget_others([])


def test_a_name_that_looks_like_the_rest_of_the_line_does_not_shift_the_fields(proc: FakeProc) -> None:
    proc.start(700, cgroup=JOB_31, comm="x) R 1 2 3 4 (y", start_s=4_000.0)
    assert standing(proc, 700).started_at_us == BOOT_AT_US + 4_000_000_000


@pytest.mark.parametrize(
    "text", [b"", b"700", b"700 (x) S", b"700 (x) S a b c d e f g h i j k l m n o p q r s t u v\n"]
)
def test_a_garbled_stat_is_counted(proc: FakeProc, text: bytes) -> None:
    proc.start(700)
    (proc.root / "700" / "stat").write_bytes(text)
    processes = table(proc)
    assert processes.standing(700, NOW_US) is None
    assert processes.forget_others([])["stat_malformed"] == 1


def test_what_may_not_be_read_is_counted_by_kind(proc: FakeProc) -> None:
    proc.start(700, cgroup=LOGIN)
    (proc.root / "700" / "environ").unlink()
    (proc.root / "700" / "environ").symlink_to("/etc/passwd")  # ELOOP stands for EACCES: as root nothing is forbidden
    processes = table(proc)
    found = processes.standing(700, NOW_US)
    assert found is not None
    assert who(found) == ("login:1000", "cgroup")
    assert processes.forget_others([700]) == {"environ_denied": 1}


def test_the_title_of_a_process_that_is_not_root_s_is_not_even_opened(proc: FakeProc) -> None:
    proc.start(500, comm="slurmstepd", title="slurmstepd: [31.0]")
    (proc.root / "500" / "cmdline").unlink()
    (proc.root / "500" / "cmdline").symlink_to("/etc/passwd")  # opening it would be counted
    proc.start(700, parent=500)
    processes = table(proc, "never")
    found = processes.standing(700, NOW_US)
    assert found is not None
    assert who(found) == (None, "none")
    assert processes.stepds() == {}
    assert processes.forget_others([]) == {}


def test_a_job_began_with_its_first_slurmstepd(proc: FakeProc) -> None:
    proc.stepd(500, "31", "batch", start_s=3_000.0)
    proc.stepd(501, "31", "0", start_s=3_100.0)
    proc.stepd(502, "32", "extern", start_s=3_200.0)
    proc.stepd(503, "99", "0", uid=1000)
    proc.start(504, comm="slurmstepd", title="/usr/sbin/slurmstepd infinity", uid=0)
    assert table(proc).stepds() == {"31": BOOT_AT_US + 3_000_000_000, "32": BOOT_AT_US + 3_200_000_000}


def test_on_this_machine_a_process_is_found_with_its_true_start() -> None:
    processes = ProcessTable()
    found = processes.standing(os.getpid(), time.time_ns() // 1_000)
    assert found is not None
    age_s = time.time() - found.started_at_us / 1e6
    assert 0 <= age_s < 86_400
    assert found.uid == os.getuid()
    assert not processes.stepds() or all(job.isdigit() for job in processes.stepds())
