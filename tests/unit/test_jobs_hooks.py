"""What the agent believes of the hooks' files, and what it does not."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from collector.jobs.hooks import HookError, HookFolder, parse_event

AT_NS = 1_800_000_000_123_456_789
NAME = f"{AT_NS}.77.start.31"
TEXT = f"wattledger-hook=1\nevent=start\nat_ns={AT_NS}\njob=31\ngpus=0,1\ncluster=lab\nuid=1000\n"


def put(folder: Path, name: str = NAME, text: str = TEXT, written_at_ns: int = AT_NS + 4_000_000) -> Path:
    folder.mkdir(mode=0o755, exist_ok=True)
    path = folder / name
    path.write_text(text)
    os.utime(path, ns=(written_at_ns, written_at_ns))
    return path


def test_an_event_is_its_name_and_its_lines() -> None:
    event = parse_event(NAME, TEXT + "array_job=30\narray_task=4\nnode=gpu1\nshards=3\nunknown=ignored\n", AT_NS)
    assert event.at_us == AT_NS // 1_000
    assert (event.job_id, event.native_id, event.gpus) == ("31", "30_4", ("0", "1"))
    assert event.started_at_us == 1_800_000_000_000_000  # whole seconds, as Slurm's own
    assert (event.node, event.shards, event.uid) == ("gpu1", 3, 1000)


@pytest.mark.parametrize(
    ("gpus", "devices"),
    [
        ("", ()),
        ("0-3,7", ("0", "1", "2", "3", "7")),
        ("GPU-6fcf6f6a-1,MIG-7", ("GPU-6fcf6f6a-1", "MIG-7")),
        ("1,1,1", ("1",)),
        ("0;rm,../x,2", ("2",)),
        ("9-3", ()),
    ],
)
def test_devices_are_numbers_ranges_or_uuids(gpus: str, devices: tuple[str, ...]) -> None:
    assert parse_event(NAME, TEXT.replace("gpus=0,1", f"gpus={gpus}"), AT_NS).gpus == devices


@pytest.mark.parametrize(
    ("started", "at_us"),
    [
        ("1799999990", 1_799_999_990_000_000),
        ("1800000001", 1_800_000_001_000_000),  # Slurm rounds, the prolog does not
        ("1800000900", 1_800_000_000_000_000),  # a start after the prolog is no start
        ("0", 1_800_000_000_000_000),
        ("1000000000", 1_800_000_000_000_000),  # nor is one of 25 years ago
        ("soon", 1_800_000_000_000_000),
    ],
)
def test_slurm_s_own_start_counts_where_it_can_be_true(started: str, at_us: int) -> None:
    assert parse_event(NAME, f"{TEXT}started={started}\n", AT_NS).started_at_us == at_us


def test_a_date_far_from_the_kernel_s_gives_way_to_it() -> None:
    assert parse_event(NAME, TEXT, AT_NS + 60_000_000_000).at_us == (AT_NS + 60_000_000_000) // 1_000


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("31", TEXT),
        (f"{AT_NS}.77.start.32", TEXT),
        (f"{AT_NS}.77.end.31", TEXT),
        (NAME, ""),
        (NAME, TEXT.replace("wattledger-hook=1", "wattledger-hook=2")),
        (NAME, "\0" * 100),
    ],
)
def test_what_is_not_a_hook_s_file_is_refused(name: str, text: str) -> None:
    with pytest.raises(HookError):
        parse_event(name, text, AT_NS)


def test_ends_come_before_starts_of_the_same_instant_and_all_in_order(tmp_path: Path) -> None:
    put(tmp_path / "jobs")
    end = TEXT.replace("event=start", "event=end").replace("job=31", "job=30")
    put(tmp_path / "jobs", f"{AT_NS}.78.end.30", end)
    put(tmp_path / "jobs", f"{AT_NS - 1_000}.79.start.29", TEXT.replace("job=31", "job=29"), AT_NS)
    found = HookFolder(tmp_path / "jobs").read(())
    assert [(event.action, event.job_id) for event in found] == [("start", "29"), ("end", "30"), ("start", "31")]


def test_a_known_file_is_not_read_again_and_a_bad_one_is_counted_once(tmp_path: Path) -> None:
    put(tmp_path / "jobs")
    put(tmp_path / "jobs", f"{AT_NS}.78.start.32", "nonsense")
    folder = HookFolder(tmp_path / "jobs")
    assert [event.job_id for event in folder.read(())] == ["31"]
    assert folder.errors == {"hook_malformed": 1}
    assert folder.read({NAME}) == []
    assert not folder.errors


def test_a_folder_that_is_not_there_is_no_fault(tmp_path: Path) -> None:
    folder = HookFolder(tmp_path / "jobs")
    assert folder.read(()) == []
    assert not folder.errors
    assert "No such file" in (folder.distrust() or "")


def test_a_folder_that_others_may_write_proves_nothing(tmp_path: Path) -> None:
    put(tmp_path / "jobs")
    (tmp_path / "jobs").chmod(0o777)
    folder = HookFolder(tmp_path / "jobs")
    assert folder.read(()) == []
    assert folder.errors == {"hooks_distrusted": 1}
    assert "written by others" in (folder.distrust() or "")


def test_the_file_of_somebody_else_and_links_and_pipes_are_not_believed(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    path = put(jobs)
    (jobs / f"{AT_NS}.78.start.32").symlink_to(path)
    os.mkfifo(jobs / f"{AT_NS}.79.start.33")
    stranger = HookFolder(jobs, trusted_uids={os.geteuid()})
    assert [event.job_id for event in stranger.read(())] == ["31"]
    assert stranger.errors.total() == 2
    assert HookFolder(jobs, trusted_uids={4_242}).read(()) == []


def test_what_a_killed_script_left_is_swept_after_an_hour(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    put(jobs, "." + NAME, "half", AT_NS)
    put(jobs, f".{AT_NS}.78.start.32", "just now", AT_NS + 3_600_000_000_000)
    (jobs / "agent.lock").touch()  # by the agent before
    os.utime(jobs, ns=(AT_NS + 3_700_000_000_000, AT_NS + 3_700_000_000_000))
    HookFolder(jobs).read(())
    assert [path.name for path in jobs.glob(".*")] == [f".{AT_NS}.78.start.32"]


def test_a_second_agent_takes_nothing_away_from_the_first(tmp_path: Path) -> None:
    put(tmp_path / "jobs")
    first, second = HookFolder(tmp_path / "jobs"), HookFolder(tmp_path / "jobs")
    assert len(first.read(())) == 1
    assert second.read(()) == []
    assert second.errors == {"hooks_held_by_another_agent": 1}
    first.close()
    assert len(second.read(())) == 1
    second.close()


def test_whoever_may_only_look_into_the_folder_cannot_keep_the_agent_from_it(tmp_path: Path) -> None:
    put(tmp_path / "jobs")
    looking = os.open(tmp_path / "jobs", os.O_RDONLY)  # as every user of the node may
    folder = HookFolder(tmp_path / "jobs")
    try:
        fcntl.flock(looking, fcntl.LOCK_EX)
        assert len(folder.read(())) == 1
    finally:
        folder.close()
        os.close(looking)
    assert (tmp_path / "jobs" / "agent.lock").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["link", "pipe", "second name"])
def test_a_lock_that_somebody_else_put_there_is_replaced(tmp_path: Path, kind: str) -> None:
    put(tmp_path / "jobs")
    other, lock = tmp_path / "other", tmp_path / "jobs" / "agent.lock"
    other.write_text("mine")
    other.chmod(0o644)
    if kind == "link":
        lock.symlink_to(other)
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.hardlink_to(other)
    with other.open() as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        folder = HookFolder(tmp_path / "jobs")
        assert len(folder.read(())) == 1
        folder.close()
    assert lock.is_file()
    assert other.stat().st_mode & 0o777 == 0o644


def test_a_folder_made_anew_is_held_anew(tmp_path: Path) -> None:
    path = put(tmp_path / "jobs")
    folder = HookFolder(tmp_path / "jobs")
    assert len(folder.read(())) == 1
    path.unlink()
    (tmp_path / "jobs").rename(tmp_path / "old")
    put(tmp_path / "jobs")
    assert len(folder.read(())) == 1
    folder.close()
