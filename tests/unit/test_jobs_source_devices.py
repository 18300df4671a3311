"""The job source and its devices: who shares one, devices that go for good, an agent that begins without its state."""

from __future__ import annotations

from pathlib import Path

import pytest

from collector.wire import COLUMNS, JOBS_BEGUN_ANEW, Stream
from tests.fakes.job_node import GPUS, JobNode, S

JOB_31 = "0::/system.slice/slurmstepd.scope/job_31/step_0/user/task_0"
JOB_32 = "0::/system.slice/slurmstepd.scope/job_32/step_0/user/task_0"
LOGIN = "0::/user.slice/user-1000.slice/session-3.scope"


@pytest.fixture
def node(tmp_path: Path) -> JobNode:
    return JobNode(tmp_path)


def test_shares_are_gathered_by_holder(node: JobNode) -> None:
    node.run(700, 0, JOB_31, memory=100, sm=30)
    node.run(701, 0, JOB_31, memory=50, sm=20)
    node.run(702, 0, LOGIN, memory=7, sm=1)
    node.read()
    node.read()
    nobody, job = node.rows[Stream.DEVICE_SHARE]
    assert (nobody["native_job_id"], nobody["memory_used_bytes"], nobody["sm_util_percent"]) == (None, 7, 1.0)
    assert (job["native_job_id"], job["processes"], job["memory_used_bytes"], job["sm_util_percent"]) == (
        "31",
        2,
        150,
        50.0,
    )
    assert (job["method"], job["evidence"], job["span_us"]) == ("process_utilization", "cgroup", 5 * S)
    assert set(job) <= {column.name for column in COLUMNS[Stream.DEVICE_SHARE]} | {"device_uuid"}


def test_one_holder_alone_is_measured_and_what_a_driver_does_not_say_is_null(node: JobNode) -> None:
    node.run(700, 0, JOB_31, memory=None, sm=None)
    node.read()
    (row,) = node.rows[Stream.DEVICE_SHARE]
    assert (row["method"], row["memory_used_bytes"], row["sm_util_percent"]) == ("measured", None, None)


def test_mps_clients_share_by_their_thread_percentage_where_all_have_one(node: JobNode) -> None:
    node.run(700, 0, JOB_31, kind="mps", environ={"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "25"})
    node.run(701, 0, JOB_32, kind="mps", environ={"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "50.5"})
    node.read()
    assert [(row["native_job_id"], row["share_ratio"], row["method"]) for row in node.rows[Stream.DEVICE_SHARE]] == [
        ("31", 0.25, "mps_threads"),
        ("32", 0.505, "mps_threads"),
    ]
    node.run(702, 0, LOGIN, kind="mps")
    node.read()
    assert {row["method"] for row in node.rows[Stream.DEVICE_SHARE]} == {"equal"}


def test_shards_are_shared_by_number_where_the_driver_measures_nothing(node: JobNode) -> None:
    node.hook("start", 31, "0", shards=1)
    node.hook("start", 32, "0", shards=3)
    node.run(700, 0, JOB_31, sm=None)
    node.run(701, 0, JOB_32, sm=None)
    told = node.read()
    assert told[-2:] == ["0.000001 +31 gpu0 0.25 hook", "0 +32 gpu0 0.75 hook"]
    assert [(row["native_job_id"], row["share_ratio"], row["method"]) for row in node.rows[Stream.DEVICE_SHARE]] == [
        ("31", 0.25, "shards"),
        ("32", 0.75, "shards"),
    ]


def test_a_device_that_is_gone_after_a_restart_is_given_back_as_of_when_its_processes_were_seen_last(
    node: JobNode,
) -> None:
    node.run(100, 1, JOB_31)
    node.run(101, 2, JOB_32)
    assert node.read() == ["-1 +31 gpu1 cgroup", "-1 +32 gpu2 cgroup"]
    assert node.read() == []
    node.devices = (GPUS[0], GPUS[2], GPUS[3])  # GPU 1 fell off the bus, or is a MIG instance that is no more
    node.end(100)
    node.restart()
    told = [row for _ in range(59) for row in node.read()]  # from 15 s to 305 s; first what may not have arrived
    assert told == ["-1 +31 gpu1 cgroup", "-1 +32 gpu2 cgroup"]
    assert [row for _ in range(3) for row in node.read()] == [
        "5 -31 gpu1 cgroup"
    ]  # what was on the disk when the agent ended
    assert [row for _ in range(5) for row in node.read()] == []
    # It is back, and the process was there all the time: it goes on where it was seen last.
    node.devices = GPUS
    node.run(100, 1, JOB_31, ago_s=400)
    assert node.read() == ["5.000001 +31 gpu1 cgroup"]


def test_a_device_that_is_missing_for_a_while_keeps_its_job(node: JobNode) -> None:
    node.run(100, 1, JOB_31)
    assert node.read() == ["-1 +31 gpu1 cgroup"]
    listed, node.devices, node.list = node.list, (GPUS[0],), []
    node.restart()
    assert [row for _ in range(50) for row in node.read()] == [
        "-1 +31 gpu1 cgroup"
    ]  # told again, as after each restart
    node.devices, node.list = GPUS, listed
    assert [row for _ in range(70) for row in node.read()] == []


def test_without_any_device_the_driver_is_late_and_nothing_is_gone(node: JobNode) -> None:
    node.run(100, 1, JOB_31)
    assert node.read() == ["-1 +31 gpu1 cgroup"]
    node.devices = ()
    node.restart()
    assert [row for _ in range(90) for row in node.read()] == ["-1 +31 gpu1 cgroup"]


def test_a_device_that_is_gone_stays_its_hook_s_until_the_epilog(node: JobNode) -> None:
    node.hook("start", 31, "1")
    node.run(100, 1, JOB_31)
    assert node.read() == ["0 +31 gpu1 hook"]
    node.devices = (GPUS[0],)
    node.end(100)
    node.restart()
    assert [row for _ in range(90) for row in node.read()] == ["0 +31 gpu1 hook"]
    node.hook("end", 31)
    assert node.read() == ["455 -31 gpu1 hook"]


def begun_anew(node: JobNode) -> list[float]:
    """When, by the node events of the last reading, an agent began that knew nothing; seconds since the tests' clock began."""
    rows = node.rows.get(Stream.NODE_EVENT, [])
    return [(int(row["at_us"] or 0) - 1_800_000_000 * S) / S for row in rows if row["kind"] == JOBS_BEGUN_ANEW]


def test_an_agent_without_its_state_tells_what_it_finds_held_as_of_its_start(node: JobNode) -> None:
    node.hook("start", 31, "0")
    node.run(100, 1, JOB_32)
    assert node.read() == ["0 +31 gpu0 hook", "-1 +32 gpu1 cgroup"]
    node.facts.values.clear()
    node.restart()
    # What is known of their begins is told as ever; and, once it has looked around, that they were held at 10 s, when it began.
    assert node.read() == ["0 +31 gpu0 hook", "-1 +32 gpu1 cgroup"]
    node.hook("start", 33, "3")  # begins after that and needs no word
    assert node.read() == ["10 +33 gpu3 hook"]
    assert begun_anew(node) == []
    assert node.read() == ["10 +31 gpu0 hook", "10 +32 gpu1 cgroup"]
    assert begun_anew(node) == [10]
    assert node.read() == []
    assert begun_anew(node) == []
    node.restart()  # it may not have reached the spool: told again for a while, as all that was told
    node.read()
    assert begun_anew(node) == [10]
    node.clock.advance(900)
    node.restart()
    node.read()
    assert begun_anew(node) == []


def test_one_that_ended_before_it_had_looked_around_leaves_that_to_the_next(node: JobNode) -> None:
    node.facts.values.clear()
    node.restart()
    node.run(100, 1, JOB_31)
    assert node.read() == ["-1 +31 gpu1 cgroup"]
    node.restart()
    told = [row for _ in range(3) for row in node.read()]
    assert told == ["-1 +31 gpu1 cgroup", "5 +31 gpu1 cgroup"]
    assert begun_anew(node) == [5]


def test_while_a_place_of_evidence_does_not_answer_nothing_is_said_to_be_over(node: JobNode) -> None:
    node.facts.values.clear()
    node.mapping.mkdir(mode=0o777)
    node.mapping.chmod(0o777)  # anybody's: not believed
    node.restart()
    for _ in range(6):
        node.read()
        assert begun_anew(node) == []
    node.mapping.chmod(0o755)
    node.read()
    assert begun_anew(node) == [5]
