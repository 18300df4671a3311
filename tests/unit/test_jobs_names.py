"""Which device a name means, which run a name means, and which pod a folder means."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from collector.jobs.evidence import JobKey
from collector.jobs.hooks import HookEvent
from collector.jobs.mapping import MappingError, read_mapping
from collector.jobs.names import DeviceNames, MinorNumbers, read_minors
from collector.jobs.pods import PodNames
from collector.jobs.roster import MAX_RUNS, POD_GONE_US, Roster
from collector.wire import DeviceRef

S = 1_000_000
T = 1_800_000_000 * S
# NVML's table in an order that is not the bus's; the driver met the second board first.
DEVICES = (
    DeviceRef("GPU-bbbbbbbb-2", "H100", pci_bus_id="00000000:3B:00.0"),
    DeviceRef("GPU-aaaaaaaa-1", "H100", pci_bus_id="00000000:1A:00.0"),
)
MINORS = {0: "GPU-bbbbbbbb-2", 1: "GPU-aaaaaaaa-1"}


@pytest.mark.parametrize(
    ("name", "numbering", "uuid"),
    [
        ("GPU-aaaaaaaa-1", "minor", "GPU-aaaaaaaa-1"),
        ("gpu-AAAAAAAA-1", "minor", "GPU-aaaaaaaa-1"),
        ("GPU-aaaaaaaa-1::7", "minor", "GPU-aaaaaaaa-1"),
        ("0", "minor", "GPU-bbbbbbbb-2"),
        ("0", "index", "GPU-aaaaaaaa-1"),
        ("1", "index", "GPU-bbbbbbbb-2"),
        ("nvidia0", "index", "GPU-bbbbbbbb-2"),
        ("nvidia0/vgpu3", "minor", "GPU-bbbbbbbb-2"),
        ("gpu-1", "minor", "GPU-aaaaaaaa-1"),
        ("0000:3b:00.0", "minor", "GPU-bbbbbbbb-2"),
        ("2", "minor", None),
        ("2", "index", None),
        ("nvidia0/gi0", "minor", None),
        ("0.7", "index", None),
        ("", "minor", None),
        ("GPU-cccccccc-3", "minor", None),
        ("\u0660", "index", None),
    ],
)
def test_a_device_by_each_of_its_names(name: str, numbering: str, uuid: str | None) -> None:
    names = DeviceNames(DEVICES, MINORS)
    assert names.find(name, "minor" if numbering == "minor" else "index") == uuid


def test_without_the_driver_s_list_a_minor_number_means_nothing_but_where_it_is_the_index() -> None:
    names = DeviceNames(DEVICES, {})
    assert not names.numbered
    assert names.find("0") is names.find("nvidia0") is None
    assert names.find("0", "index") == "GPU-aaaaaaaa-1"
    amd = DeviceNames(tuple(DeviceRef(uuid, "MI300", vendor="amd") for uuid in ("X", "Y")), {})
    assert amd.numbered
    assert amd.find("1") == "Y"


def test_the_number_of_a_board_cut_into_instances_names_none_of_them() -> None:
    instance = DeviceRef("MIG-1", "H100", kind="mig", parent_uuid="GPU-bbbbbbbb-2")
    names = DeviceNames((*DEVICES, instance), MINORS)
    assert names.find("0") is None
    assert names.find("1") == "GPU-aaaaaaaa-1"
    assert names.find("MIG-1") == "MIG-1"


def test_minor_numbers_are_read_from_the_driver_s_own_list(tmp_path: Path) -> None:
    assert read_minors(tmp_path) == {}
    for bus, text in {
        "0000:1a:00.0": "Model: \t\t H100\nGPU UUID: \t GPU-aaaaaaaa-1\nDevice Minor: \t 1\n",
        "0000:3b:00.0": "Model: \t\t H100\nGPU UUID: \t GPU-???\nDevice Minor: \t 0\n",  # a board that fell off
        "0000:5c:00.0": "",
    }.items():
        folder = tmp_path / "driver" / "nvidia" / "gpus" / bus
        folder.mkdir(parents=True)
        (folder / "information").write_text(text)
    assert read_minors(tmp_path) == {1: "GPU-aaaaaaaa-1"}


def test_a_driver_that_does_not_answer_is_waited_for_once_and_its_answer_taken_when_it_comes() -> None:
    go, asked = threading.Event(), []

    def read() -> dict[int, str]:
        asked.append(1)
        go.wait(10.0)
        return MINORS

    minors = MinorNumbers(read, patience_s=0.01)
    assert [minors.ask() for _ in range(3)] == [({}, False)] * 3
    assert len(asked) == 1
    go.set()
    until_s = time.monotonic() + 10.0
    while not minors.ask()[1] and time.monotonic() < until_s:
        time.sleep(0.001)
    assert MinorNumbers(read).ask() == (MINORS, True)
    assert minors.ask() == (MINORS, True)


def event(
    action: str, at_s: float, job: str = "31", *, sluid: str | None = None, started_s: float | None = None
) -> HookEvent:
    at_us = round(T + at_s * S)
    started_us = at_us // S * S if started_s is None else round(T + started_s * S)
    return HookEvent(
        "f",
        "start" if action == "start" else "end",
        at_us,
        job,
        job,
        started_us,
        ("0",),
        cluster="c1",
        sluid=sluid,
        uid=7,
        start_told=started_s is not None,
    )


def test_a_hook_and_a_process_of_one_job_are_one_run_whichever_came_first() -> None:
    roster = Roster("lab")
    hooked = roster.hooked(event("start", 10.5))
    assert roster.slurm("31", T + 20 * S, T + 12 * S, T + 10 * S) is hooked
    assert hooked.job.key.cluster == "c1"
    early = Roster("lab")
    seen = early.slurm("31", T + 20 * S, round(T + 12.7 * S), None)
    assert early.hooked(event("start", 10.5)) is seen
    assert seen.job.key.started_at_us == T + 12 * S


def test_a_start_after_the_end_is_another_run_and_so_is_one_with_another_start() -> None:
    roster = Roster("lab")
    first = roster.hooked(event("start", 10))
    assert roster.hooked(event("end", 20)) is first
    second = roster.hooked(event("start", 30))
    assert second is not first
    assert roster.hooked(event("start", 60)) is second  # its prolog ran twice: Slurm lets a requeued job wait longer
    assert roster.hooked(event("start", 60, started_s=45)) is not second  # unless Slurm itself says so
    third = roster.hooked(event("start", 151))  # its epilog was lost
    assert third is not second
    assert roster.hooked(event("start", 151)).job.key.started_at_us == T + 151 * S


def test_a_sluid_that_the_hook_told_is_that_job() -> None:
    roster = Roster("lab")
    run = roster.hooked(event("start", 10, sluid="s5K1KKYAYG5D00"))
    assert roster.slurm("s5K1KKYAYG5D00", T + 20 * S, T + 12 * S, None) is run


def test_jobs_known_by_processes_alone_are_of_the_cluster_the_hooks_told_of_last() -> None:
    roster = Roster("lab")
    assert roster.slurm("1", T, T, None).job.key.cluster == "lab"
    roster.hooked(event("start", 10))
    assert roster.slurm("2", T, T, None).job.key.cluster == "c1"
    assert roster.container("a" * 64, T, T).job.key.cluster == "lab"


def test_a_pod_is_one_run_by_uid_and_by_name_and_keeps_the_id_it_was_first_told_under() -> None:
    roster = Roster("lab")
    named = roster.pod(None, ("a", "web-0"), T, T)
    assert roster.pod("uid-1", ("a", "web-0"), T, T) is named
    assert roster.pod("uid-1", None, T, T) is named
    assert named.job.key.native_id == "a/web-0"
    assert (named.job.namespace, named.job.job_name) == ("a", "web-0")


def test_a_pod_made_anew_under_the_same_name_is_another_run() -> None:
    roster = Roster("lab")
    old = roster.pod("uid-1", ("a", "web-0"), T, T)
    assert roster.pod("uid-2", ("a", "web-0"), T + S, T + S) is not old
    nameless = Roster("lab")
    old = nameless.pod(None, ("a", "web-0"), T, T)
    assert nameless.pod(None, ("a", "web-0"), T + POD_GONE_US, T) is old
    assert nameless.pod(None, ("a", "web-0"), T + 3 * POD_GONE_US, T + 3 * POD_GONE_US) is not old


def test_the_roster_is_bounded_and_forgets_ended_runs_first_and_then_who_was_silent_longest() -> None:
    needed: set[JobKey] = set()
    roster = Roster("lab", lambda: needed)
    for number in range(MAX_RUNS):
        roster.slurm(str(number), T + number, T, None)
    needed.add(roster.runs["slurm", "3"].job.key)
    roster.runs["slurm", "1000"].ended_us = T + 1_000
    roster.slurm("new", T, T, None)
    assert len(roster.runs) == MAX_RUNS - 256
    gone = [int(name) for name in map(str, range(MAX_RUNS)) if roster.knows(("slurm", name)) is None]
    assert gone == [0, 1, 2, *range(4, 257), 1_000]  # 257 of 4,097
    assert roster.knows(("slurm", "new")) is not None


def test_runs_are_forgotten_an_hour_after_their_end_or_a_day_of_silence_unless_they_hold_a_device() -> None:
    roster = Roster("lab")
    ended, silent, holding = (roster.hooked(event("start", 10, job)) for job in ("1", "2", "3"))
    roster.hooked(event("end", 20, "1"))
    roster.forget(ended.seen_us + 3_600 * S, {holding.job.key})
    assert roster.knows(("slurm", "1")) is ended
    roster.forget(ended.seen_us + 3_600 * S + 1, {holding.job.key})
    assert roster.knows(("slurm", "1")) is None
    roster.forget(silent.seen_us + 86_400 * S + 1, {holding.job.key})
    assert roster.knows(("slurm", "2")) is None
    assert roster.knows(("slurm", "3")) is holding


def test_pods_are_found_by_the_names_of_their_log_folders(tmp_path: Path) -> None:
    uid, other, third = ("2fc932ce-fdcc-454b-97bd-aadfdeb4c34" + digit for digit in "012")
    names = PodNames(tmp_path / "pods")
    assert not names.look()
    for folder in (f"a_web-0_{uid}", f"a_db-0_{other}", f"a_db-0_{third}", "rubbish", "a_b", "_x_y"):
        (tmp_path / "pods" / folder).mkdir(parents=True)
    assert names.look()
    assert names.uid_of("a", "web-0") == uid
    born_us = names.born_us(uid)  # None on a filesystem that keeps no births
    assert born_us is None or abs(born_us - (tmp_path / "pods").stat().st_mtime_ns // 1_000) < 60 * S
    assert names.born_us("unknown") is None
    assert names.name_of(other) == ("a", "db-0")
    assert names.uid_of("a", "db-0") is None  # two of that name: one is on its way out, and who knows which
    (tmp_path / "pods" / f"a_db-0_{third}").rmdir()
    os.utime(tmp_path / "pods", ns=(1, 1))
    assert names.look()
    assert names.uid_of("a", "db-0") == other


def test_mapping_files_of_both_layouts_are_read_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "gpustat"
    assert read_mapping(folder) == ()
    folder.mkdir(mode=0o755)
    for name, text in {
        "0": "31 1000\n",
        "1": "31\n32\n31\n",
        "2": "",
        "3.7": "33",
        "GPU-aaaaaaaa-1": "34 1000",
        "4": "job 35\n-1\n12345678901\n36 x\n",
        "readme": "37",
        "99999": "38",
    }.items():
        (folder / name).write_text(text)
    (folder / "5").symlink_to(folder / "0")
    os.mkfifo(folder / "6")
    assert {entry.device: entry.jobs for entry in read_mapping(folder)} == {
        "0": ("31",),
        "1": ("31", "32"),
        "3.7": ("33",),
        "GPU-aaaaaaaa-1": ("34",),
    }
    folder.chmod(0o777)
    with pytest.raises(MappingError, match="written by others"):
        read_mapping(folder)
