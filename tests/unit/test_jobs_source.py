"""The job source as a whole, on a node in a folder: what it tells of jobs that come and go, with and without the agent."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from collector.jobs.hooks import HookFolder
from collector.jobs.source import FACT
from collector.wire import COLUMNS, Stream
from tests.fakes.job_node import GPUS, JobNode, S

JOB_31 = "0::/system.slice/slurmstepd.scope/job_31/step_0/user/task_0"
JOB_32 = "0::/system.slice/slurmstepd.scope/job_32/step_0/user/task_0"
LOGIN = "0::/user.slice/user-1000.slice/session-3.scope"


@pytest.fixture
def node(tmp_path: Path) -> JobNode:
    return JobNode(tmp_path)


def test_a_hook_s_job_holds_its_gpus_from_hook_to_hook_with_all_that_slurm_says(node: JobNode) -> None:
    assert node.read() == []
    node.hook("start", 31, "0,2", ago_s=0.25, user="ada", account="research", partition="train", name="x\x1by")
    assert node.read(0.5) == ["4.75 +31 gpu0 hook", "4.75 +31 gpu2 hook"]
    first = node.rows[Stream.ALLOCATION][0]
    assert (first["cluster"], first["user"], first["account"], first["partition"]) == (
        "lab",
        "ada",
        "research",
        "train",
    )
    assert first["job_name"] == "x\N{REPLACEMENT CHARACTER}y"
    assert first["job_started_at_us"] == 1_800_000_004 * S
    assert set(first) <= {column.name for column in COLUMNS[Stream.ALLOCATION]} | {"device_uuid"}
    assert node.read() == node.read() == []
    node.hook("end", 31, "0,2", ago_s=1.0)
    assert node.read(0.5) == ["14.5 -31 gpu0 hook", "14.5 -31 gpu2 hook"]
    assert list(node.hooks.glob("[0-9]*")) == []


def test_the_number_of_a_board_is_its_minor_number_where_the_driver_tells_it(node: JobNode) -> None:
    for gpu in range(4):
        node.board(gpu, minor=3 - gpu)
    node.hook("start", 31, "1")
    node.hook("start", 32, GPUS[0].uuid)
    node.hook("start", 33, "7")
    assert node.read() == ["0 +31 gpu2 hook", "0 +32 gpu0 hook"]
    assert node.errors["jobs:hook_device_unknown"] == 1


def test_without_the_driver_s_list_of_minor_numbers_a_number_places_nothing_until_it_is_there(node: JobNode) -> None:
    shutil.move(node.proc.root / "driver", node.root / "away")
    node.mapping.mkdir(mode=0o755)
    (node.mapping / "1").write_text("33 1000\n")
    node.hook("start", 31, "0")
    node.hook("start", 32, GPUS[2].uuid)
    assert node.read() == ["0 +32 gpu2 hook"]
    assert node.errors == {
        "jobs:hook_device_unknown": 1,
        "jobs:minor_numbers_unknown": 1,
        "jobs:mapped_device_unknown": 1,
    }
    assert "GPU numbers of Slurm" in {sight.subject for sight in node.source.sights()}
    (node.mapping / "1").unlink()
    shutil.move(node.root / "away", node.proc.root / "driver")
    assert node.read() == ["0 +31 gpu0 hook"]
    assert "GPU numbers of Slurm" not in {sight.subject for sight in node.source.sights()}


def test_a_job_that_began_before_the_driver_was_there_gets_its_gpu_from_the_hook_s_instant(node: JobNode) -> None:
    node.devices = ()
    node.hook("start", 31, "0")
    assert node.read() == []
    node.restart()
    node.devices = GPUS
    assert node.read() == ["0 +31 gpu0 hook"]


def test_jobs_that_began_and_ended_while_no_agent_ran_are_told_at_their_instants(node: JobNode) -> None:
    node.hook("start", 31, "0")
    assert node.read() == ["0 +31 gpu0 hook"]
    node.clock.advance(1_000)
    node.hook("end", 31, ago_s=600)
    node.hook("start", 32, "0", ago_s=599)
    node.hook("end", 32, ago_s=400)
    node.hook("start", 33, "0", ago_s=399.5)
    node.restart()
    told = node.read(0)
    assert told[1:] == ["405 -31 gpu0 hook", "406 +32 gpu0 hook", "605 -32 gpu0 hook", "605.5 +33 gpu0 hook"]
    assert told[0] == "0 +31 gpu0 hook"  # told again word for word: nobody knows whether it reached the spool


def test_a_night_of_short_jobs_writes_little_and_all_that_was_told_lately_is_told_again(node: JobNode) -> None:
    written: list[tuple[str, int]] = []
    keep = node.facts.remember
    node.facts.remember = lambda name, value: (written.append((name, len(value))), keep(name, value))[1]  # type: ignore[method-assign, func-returns-value]
    told: list[str] = []
    for number in range(400):  # a job in ten seconds on each of four GPUs, for a good quarter of an hour
        node.hook("start", 1_000 + number, str(number % 4), user="ada", account="research", name="one-of-an-array")
        told += node.read(0.5)
        node.hook("end", 1_000 + number, str(number % 4))
        told += node.read(2.0)
    assert len(told) == 800
    assert max(size for _, size in written) < 25_000
    assert sum(size for _, size in written) < 800 * 20_000  # it was 800 times a quarter of a megabyte
    assert len(node.facts.values) < 60  # places are used again
    node.restart()
    again = node.read(0)
    kept = 2 * int(900 / 2.5)
    assert again == told[-len(again) :]
    assert kept <= len(again) <= kept + 17 + 16


def test_a_part_of_what_was_told_that_is_damaged_is_counted_and_costs_itself_alone(node: JobNode) -> None:
    for number in range(12):  # the first nine jobs' rows make a part
        node.hook("start", 31 + number, "0")
        node.hook("end", 31 + number, ago_s=-0.25)
        node.read(1.0)
    (part,) = (name for name in node.facts.values if name != FACT)
    node.facts.values[part] = "[1,[]]"
    node.restart()
    assert [line.split()[1] for line in node.read()] == ["+40", "-40", "+41", "-41", "+42", "-42"]
    assert node.errors["jobs:state_damaged"] == 1


def test_after_a_quarter_of_an_hour_nothing_is_told_again(node: JobNode) -> None:
    node.hook("start", 31, "0")
    node.read()
    for _ in range(20):
        assert node.read(60.0) == []
    node.restart()
    assert node.read() == []


def test_an_agent_whose_memory_is_lost_learns_running_jobs_again_from_the_files_of_their_starts(node: JobNode) -> None:
    node.hook("start", 31, "0")
    node.hook("start", 32, "1")
    node.hook("end", 32, ago_s=-1)
    node.read()
    node.facts.values.clear()
    node.restart()
    assert node.read() == ["0 +31 gpu0 hook"]
    node.facts.values[FACT] = node.facts.values[FACT][:100]
    node.restart()
    assert node.read() == ["0 +31 gpu0 hook"]
    assert node.errors["jobs:state_damaged"] == 1


def test_while_facts_cannot_be_kept_rows_go_out_and_the_hooks_files_stay(node: JobNode) -> None:
    node.read()
    node.facts.broken = True
    node.hook("start", 31, "0", ago_s=1)
    node.hook("end", 31)
    assert node.read() == ["4 +31 gpu0 hook", "5 -31 gpu0 hook"]
    assert node.errors["jobs:state_not_kept"] == 1
    assert len(list(node.hooks.glob("[0-9]*"))) == 2
    node.facts.broken = False
    node.restart()
    assert node.read() == ["4 +31 gpu0 hook", "5 -31 gpu0 hook"]
    assert list(node.hooks.glob("[0-9]*")) == []


def test_while_facts_cannot_be_read_nothing_is_told_and_nothing_is_lost(node: JobNode) -> None:
    node.hook("start", 31, "0")
    node.read()
    node.facts.broken = True
    node.hook("end", 31)
    node.restart()
    assert node.read() == []
    assert node.errors == {"jobs:state_unreadable": 1}
    node.facts.broken = False
    assert node.read() == ["0 +31 gpu0 hook", "5 -31 gpu0 hook"]


def test_a_reboot_ends_what_ran_and_old_hooks_tell_of_no_job_of_this_boot(node: JobNode) -> None:
    node.hook("start", 31, "0")
    node.read()
    node.clock.advance(1_000)
    node.boot_id = "boot-2"
    node.restart()
    assert node.read()[1:] == ["5 -31 gpu0 hook"]
    assert node.read() == []
    assert list(node.hooks.glob("[0-9]*")) == []


def test_what_a_hook_says_of_a_job_that_was_seen_before_travels_with_its_end(node: JobNode) -> None:
    node.run(700, 0, JOB_31)
    node.read()
    assert node.rows[Stream.ALLOCATION][0]["account"] is None
    node.hook("start", 31, "0", ago_s=7, account="research")
    node.read()
    node.hook("end", 31)
    node.end(700)
    assert node.read() == ["10 -31 gpu0 cgroup"]
    assert node.rows[Stream.ALLOCATION][0]["account"] == "research"


def test_a_requeued_job_is_another_run_of_the_same_id(node: JobNode) -> None:
    node.hook("start", 31, "0")
    node.read()
    node.hook("end", 31)
    node.read()
    node.hook("start", 31, "0")
    node.read()
    begun = node.rows[Stream.ALLOCATION][0]
    assert begun["action"] == 1
    assert begun["job_started_at_us"] == 1_800_000_010 * S


@pytest.mark.parametrize("shared", [False, True])
def test_a_requeued_job_whose_epilog_was_lost_holds_the_gpu_of_its_new_run_alone(
    tmp_path: Path, *, shared: bool
) -> None:
    node = JobNode(tmp_path, slurm_shared=shared)
    node.hook("start", 31, "0", started=1_799_999_000)
    assert node.read() == ["0 +31 gpu0 hook"]
    node.hook("start", 31, "1", started=1_800_000_003)
    assert node.read() == ["5 -31 gpu0 hook", "5 +31 gpu1 hook"]
    (event,) = node.rows[Stream.NODE_EVENT]
    assert (event["kind"], event["subject"]) == ("job_end_missing", GPUS[0].uuid)
    assert event["detail"] == "an earlier run of job 31 held it when it began again"
    node.hook("end", 31, "1", started=1_800_000_003)
    assert node.read() == ["10 -31 gpu1 hook"]
    assert list(node.hooks.glob("[0-9]*")) == []


def test_a_requeued_job_on_the_same_gpu_is_told_as_two_runs(node: JobNode) -> None:
    node.hook("start", 31, "0")
    node.read(after_s=121)  # as long as Slurm lets a requeued job wait
    node.hook("start", 31, "0")
    assert node.read() == ["121 -31 gpu0 hook", "121 +31 gpu0 hook"]
    starts = [row["job_started_at_us"] for row in node.rows[Stream.ALLOCATION]]
    assert starts == [1_800_000_000 * S, 1_800_000_121 * S]
    assert [event["kind"] for event in node.rows[Stream.NODE_EVENT]] == ["job_end_missing"]


def test_a_prolog_that_runs_twice_without_slurm_s_own_start_tells_of_one_job(node: JobNode) -> None:
    node.hook("start", 31, "0")
    assert node.read() == ["0 +31 gpu0 hook"]
    node.hook("start", 31, "0")
    assert node.read() == []
    assert Stream.NODE_EVENT not in node.rows
    # The file that stays is the first one's: who learns from it again tells the same start.
    assert [path.name[:19] for path in node.hooks.glob("[0-9]*")] == [str(1_800_000_000 * S * 1_000)]
    node.hook("end", 31)
    assert node.read() == ["10 -31 gpu0 hook"]
    assert list(node.hooks.glob("[0-9]*")) == []


def test_without_hooks_processes_tell_and_a_requeue_is_known_by_its_slurmstepd(node: JobNode) -> None:
    node.proc.stepd(500, "31", start_s=4_990.5)
    node.run(700, 0, JOB_31, ago_s=2)
    assert node.read() == ["-2 +31 gpu0 cgroup"]
    assert node.rows[Stream.ALLOCATION][0]["job_started_at_us"] == (1_800_000_000 - 10) * S
    node.end(700)
    node.run(701, 0, JOB_31, ago_s=0)  # the next command of the same script
    assert node.read() == []
    node.end(701)
    node.proc.end(500)
    assert [node.read() for _ in range(3)] == [[], [], ["10 -31 gpu0 cgroup"]]
    node.proc.stepd(501, "31", start_s=5_024.5)
    node.run(702, 0, JOB_31, ago_s=0)
    assert node.read() == ["25 +31 gpu0 cgroup"]
    assert node.rows[Stream.ALLOCATION][0]["job_started_at_us"] == (1_800_000_000 + 24) * S


def test_an_environment_moves_a_process_among_its_user_s_own_jobs_only(node: JobNode) -> None:
    node.hook("start", 31, "")
    node.run(700, 0, LOGIN, uid=1000, environ={"SLURM_JOB_ID": "31"})
    node.run(701, 1, LOGIN, uid=1001, environ={"SLURM_JOB_ID": "31"})
    node.run(702, 2, LOGIN, uid=1000, environ={"SLURM_JOB_ID": "99"})
    assert node.read() == ["-1 +31 gpu0 environ"]
    shares = {row["device_uuid"]: row["native_job_id"] for row in node.rows[Stream.DEVICE_SHARE]}
    assert shares == {GPUS[0].uuid: "31", GPUS[1].uuid: None, GPUS[2].uuid: None}


def test_with_environ_never_a_process_outside_all_cgroups_is_nobody_s(tmp_path: Path) -> None:
    node = JobNode(tmp_path, environ="never")
    node.hook("start", 31, "")
    node.run(700, 0, LOGIN, environ={"SLURM_JOB_ID": "31"})
    assert node.read() == []
    assert node.rows[Stream.DEVICE_SHARE][0]["native_job_id"] is None


def test_a_stranger_on_a_granted_gpu_is_an_event_and_nobody_is_billed(node: JobNode) -> None:
    node.hook("start", 31, "0")
    node.read()
    node.run(700, 0, JOB_32)
    assert node.read() == []
    assert node.read() == ["10 -31 gpu0 hook"]
    (event,) = node.rows[Stream.NODE_EVENT]
    assert (event["kind"], event["subject"], event["at_us"]) == (
        "attribution_conflict",
        GPUS[0].uuid,
        1_800_000_010 * S,
    )
    assert event["detail"] == "hook says job 31, cgroup says job 32 uses it"
    node.end(700)
    assert node.read() == ["20 +31 gpu0 hook"]


def test_a_process_whose_cgroup_and_slurmstepd_disagree_is_an_event_once(node: JobNode) -> None:
    node.proc.stepd(500, "32", start_s=4_900)
    node.run(700, 0, JOB_31, parent=500)
    assert node.read() == []
    assert [event["kind"] for event in node.rows[Stream.NODE_EVENT]] == ["attribution_conflict"]
    assert node.rows[Stream.DEVICE_SHARE][0]["native_job_id"] is None
    node.read()
    assert Stream.NODE_EVENT not in node.rows


def test_a_node_that_slurm_calls_otherwise_is_told_once(tmp_path: Path) -> None:
    node = JobNode(tmp_path, node="gpu-7.example.org")
    node.hook("start", 31, "0", node="gpu-7")
    node.hook("start", 32, "1", node="gpu-7", ago_s=-0.5)
    assert node.read() == ["0 +31 gpu0 hook", "0.5 +32 gpu1 hook"]
    (event,) = node.rows[Stream.NODE_EVENT]
    assert (event["kind"], event["subject"]) == ("node_name_mismatch", None)
    assert event["detail"] == "Slurm calls this node gpu-7, the agent gpu-7.example.org; set node to Slurm's name"
    seen = {sight.subject: sight for sight in node.source.sights()}
    assert 'set node = "gpu-7"' in (seen["name of this node"].remedy or "")
    node.hook("end", 31, node="gpu-7")
    node.read()
    assert Stream.NODE_EVENT not in node.rows


def test_a_hooks_folder_that_another_agent_holds_is_told_once(node: JobNode) -> None:
    node.hook("start", 31, "0")
    other = HookFolder(node.hooks)
    other.read(())
    assert node.read() == []
    assert Stream.NODE_EVENT not in node.rows  # the agent before this one may be about to let go
    node.read()
    (event,) = node.rows[Stream.NODE_EVENT]
    assert (event["kind"], event["subject"]) == ("hooks_held", None)
    node.read()
    assert Stream.NODE_EVENT not in node.rows
    other.close()
    assert node.read() == ["0 +31 gpu0 hook"]


@pytest.mark.parametrize("name", ["", "gpu-7"])
def test_a_node_of_the_same_name_or_of_none_has_nothing_to_tell(tmp_path: Path, name: str) -> None:
    node = JobNode(tmp_path, node=name)
    node.hook("start", 31, "0", node="gpu-7")
    node.read()
    assert Stream.NODE_EVENT not in node.rows
    assert "name of this node" not in {sight.subject for sight in node.source.sights()}


def test_jobstats_files_tell_holders_and_since_when(node: JobNode) -> None:
    node.mapping.mkdir(mode=0o755)
    (node.mapping / "1").write_text("31 1000\n")
    (node.mapping / GPUS[2].uuid).write_text("32 1000\n33 1001\n")
    (node.mapping / "3").write_text("\n")
    (node.mapping / "notes").write_text("34 1000\n")
    at_us = 1_799_999_990 * S
    for name in ("1", GPUS[2].uuid):
        os.utime(node.mapping / name, ns=(at_us * 1_000, at_us * 1_000))
    assert node.read() == [
        "-10 +31 gpu1 job-mapping",
        "-10 +32 gpu2 0.5 job-mapping",
        "-10 +33 gpu2 0.5 job-mapping",
    ]
    assert node.read() == []
    (node.mapping / "1").unlink()
    assert node.read() == ["10 -31 gpu1 job-mapping"]


def test_a_driver_that_has_not_looked_again_ends_nothing(node: JobNode) -> None:
    node.run(700, 0, JOB_31)
    node.read()
    same = tuple(node.list)
    node.source._processes = lambda: same
    assert [node.read() for _ in range(10)] == [[]] * 10
    assert node.rows == {}


def test_a_thousand_jobs_of_a_night_without_an_agent_are_taken_in_by_portions(node: JobNode) -> None:
    node.clock.advance(10_000)
    for number in range(1_000):
        node.hook("start", number + 1, str(number % 4), ago_s=9_000 - number)
        node.hook("end", number + 1, str(number % 4), ago_s=9_000 - number - 0.5)
    told: list[str] = []
    for portion in range(4):
        assert node.source.wait(0.0) is (portion > 0)  # more is there, so it does not sleep
        told += node.read()
        assert len(told) == min(2_000, 512 * (portion + 1))
    assert len(told) == 2_000
    assert len({line.split()[1] for line in told}) == 2_000
    assert list(node.hooks.glob("[0-9]*")) == []
    assert node.facts.writes == 8  # a part of told rows and the state, four times
    assert node.read() == []
    node.source.close()


def test_an_idle_job_is_not_forgotten_however_many_jobs_without_a_gpu_come_and_go(
    node: JobNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.jobs.roster.MAX_RUNS", 300)
    node.hook("start", 31, "0")
    node.hook("start", 32, "9")  # a board that is not there yet
    assert node.read() == ["0 +31 gpu0 hook"]
    for number in range(1_000, 1_400):
        node.hook("start", number)
        node.hook("end", number)
        if number % 50 == 49:
            assert node.read() == []
    assert {path.name.split(".")[-1] for path in node.hooks.glob("[0-9]*")} == {"31", "32"}
    node.hook("end", 31)
    node.hook("end", 32)
    assert node.read() == ["45 -31 gpu0 hook"]
    assert list(node.hooks.glob("[0-9]*")) == []


def test_what_the_agent_may_not_delete_it_takes_in_once(node: JobNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node.source._folder, "discard", set)
    node.hook("start", 31, "0", ago_s=1)
    node.hook("end", 31)
    assert len(node.read()) == 2
    assert node.read() == []
    for _ in range(20):
        node.read(60.0)
    node.hook("start", 32, "0")
    assert node.read() == ["1210 +32 gpu0 hook"]
    node.restart()
    monkeypatch.setattr(node.source._folder, "discard", set)
    assert node.read() == ["1210 +32 gpu0 hook"]  # the latest again, and nothing of job 31


def test_in_a_pid_namespace_of_its_own_the_agent_believes_no_pid(node: JobNode) -> None:
    (node.proc.root / "self" / "ns").mkdir(parents=True)
    (node.proc.root / "self" / "ns" / "pid").symlink_to("pid:[4026532000]")
    node.run(700, 0, JOB_31)
    assert node.read() == []
    assert node.errors == {"jobs:foreign_pid_namespace": 1}
    sight = node.source.sights()[0]
    assert not sight.seen
    assert "hostPID" in (sight.remedy or "")


def test_sights_say_what_would_add_what(node: JobNode) -> None:
    seen = {sight.subject: sight for sight in node.source.sights()}
    assert "prolog.sh" in (seen["Slurm prolog and epilog"].remedy or "")
    assert not seen["Kubernetes pod-resources"].seen
    node.hook("start", 31, "0")
    node.read()
    seen = {sight.subject: sight for sight in node.source.sights()}
    assert seen["Slurm prolog and epilog"].seen
    node.hooks.chmod(0o777)
    seen = {sight.subject: sight for sight in node.source.sights()}
    assert "0755" in (seen["Slurm prolog and epilog"].remedy or "")
    node.source.close()


def test_a_clock_that_is_set_back_makes_nobody_blind_to_what_follows(node: JobNode) -> None:
    node.clock.step(3_600)
    node.hook("start", 31, "0")
    assert node.read() == ["3600 +31 gpu0 hook"]
    node.hook("end", 31)
    assert node.read() == ["3605 -31 gpu0 hook"]
    node.clock.step(-3_600)
    node.hook("start", 32, "0", ago_s=-0.25)
    assert node.read() == ["10.25 +32 gpu0 hook"]
    assert node.errors["jobs:clock_set_back"] == 1
    (event,) = node.rows[Stream.NODE_EVENT]
    assert (event["kind"], event["subject"]) == ("job_clock_set_back", None)
    assert event["detail"] == "the wall clock was set back by 3600.000 s; 0 holdings had begun later than that"
    node.hook("end", 32)
    assert node.read() == ["15 -32 gpu0 hook"]
    assert "jobs:clock_set_back" not in node.errors
    node.run(700, 0, JOB_31.replace("31", "33"))
    assert node.read() == ["19 +33 gpu0 cgroup"]


def test_what_runs_while_the_clock_is_set_back_ends_no_earlier_than_it_was_told_to_begin(node: JobNode) -> None:
    node.clock.step(60)
    node.hook("start", 31, "0")
    node.hook("start", 32, "1")
    assert node.read() == ["60 +31 gpu0 hook", "60 +32 gpu1 hook"]
    node.clock.step(-60)
    node.hook("end", 31)
    assert node.read() == ["60 -31 gpu0 hook"]
    assert "2 holdings" in str(node.rows[Stream.NODE_EVENT][0]["detail"])
    node.hook("start", 33, "0")
    assert node.read() == ["10 +33 gpu0 hook"]
    node.clock.advance(90)
    node.hook("end", 32)
    assert node.read() == ["105 -32 gpu1 hook"]


def test_a_clock_that_was_set_back_while_no_agent_ran_is_noticed_too(node: JobNode) -> None:
    node.clock.step(3_600)
    node.hook("start", 31, "0")
    node.read()
    node.hook("end", 31)
    node.read()
    node.clock.step(-3_600)
    node.hook("start", 32, "0", ago_s=-1)
    node.restart()
    assert node.read()[-1] == "15 +32 gpu0 hook"  # as of the first reading: when the clock was set nobody saw
    assert node.errors["jobs:clock_set_back"] == 1


def test_a_hook_and_a_process_dated_by_the_clock_before_it_was_set_back_are_of_now_or_not_heard(node: JobNode) -> None:
    node.run(700, 1, JOB_31)
    node.read()
    node.clock.step(3_600)
    node.hook("start", 32, "0")
    late = list(node.list)
    node.clock.step(-3_600)
    node.source._processes = lambda: tuple(replace(r, at_us=r.at_us + 3_600 * S) for r in late)
    assert node.read() == ["10 +32 gpu0 hook"]
    assert node.errors["jobs:hook_from_the_future"] == node.errors["jobs:processes_from_the_future"] == 1
