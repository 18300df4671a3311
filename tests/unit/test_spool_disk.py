"""Disks that are full, read-only or damaged: what was stored stays, what cannot be stored is said, and it goes on by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from collector.errors import SpoolError
from collector.spool import Envelope, Lane, Spool
from tests.fakes.agent import ScriptedProbe, Stand

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
TRACES = Envelope("/v1/traces", "application/json")
# A file may not grow beyond this many bytes: what a full disk is to the one who writes, without being root.
_LIMITED = """
import resource, signal, sys
from pathlib import Path
from collector.errors import SpoolError
from collector.spool import Spool
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
spool = Spool(Path(sys.argv[1]), max_bytes=1 << 30)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
stored = failed = 0
for _ in range(60):
    try:
        spool.put(lambda _uuid, _number: b"x" * 20_000, 0)
        stored += 1
    except SpoolError:
        failed += 1
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
last = spool.put(lambda _uuid, _number: b"y", 0)
print(stored, failed, last, len(spool.damaged_files))
spool.close()
"""


def held(spool: Spool) -> list[int]:
    found: list[int] = []
    while (batch := spool.oldest(after=found[-1] if found else 0)) is not None:
        found.append(batch.sequence)
    return found


def fill(ballast: Path) -> None:
    """Write until the disk is full."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4_096))


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system of that size; only root may."""
    disk = folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_file_that_may_grow_no_more_refuses_batches_and_takes_them_again_once_it_may(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _LIMITED, str(tmp_path / "spool.db")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    stored, failed, last, damaged = map(int, run.stdout.split())
    assert stored >= 5
    assert failed >= 5
    assert stored + failed == 60
    assert damaged == 0
    assert last == stored + 1  # no number was spent on what was refused
    spool = Spool(tmp_path / "spool.db", max_bytes=4 * MIB)
    assert not spool.damaged_files
    assert held(spool) == list(range(1, stored + 2))
    spool.close()


@pytest.mark.root
def test_on_a_full_disk_rows_wait_in_memory_and_travel_once_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path, "1m") as disk:
        stand = Stand(disk)
        ballast = disk / "ballast"
        probe = ScriptedProbe(stand.clock, readings=60)

        def weather(left: int) -> None:
            if left == 45:
                fill(ballast)
            if left == 15:
                ballast.unlink()

        probe.before_read = weather
        stand.probes["nvml"] = probe
        stand.run()
        assert stand.agent is not None
        assert stand.agent.recorder.state.spool_failures >= 1
        assert stand.agent.recorder.state.dropped_rows == 0
        assert not stand.spool.damaged_files
        assert not stand.spool.durable
        assert sum(stream["samples"].sum() for body in stand.bodies() for name, stream in body.streams.items() if name == "device_samples") == 120  # fmt: skip
        stand.spool.close()


@pytest.mark.root
def test_a_disk_that_turned_read_only_is_an_error_and_no_damage(tmp_path: Path) -> None:
    with small_disk(tmp_path, "4m") as disk:
        spool = Spool(disk / "spool.db", max_bytes=MIB)
        spool.put(lambda _uuid, _number: b"one", 0)
        spool.close()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(SpoolError, match="cannot open the spool"):
            Spool(disk / "spool.db", max_bytes=MIB)
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        spool = Spool(disk / "spool.db", max_bytes=MIB)
        assert (held(spool), spool.damaged_files) == ([1], [])
        spool.close()


@pytest.mark.parametrize("cut", [1, 100, 4_000, 5_000])
def test_a_journal_whose_end_is_cut_off_loses_at_most_what_lay_there_and_no_more(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    copy = tmp_path / "copy.db"
    spool = Spool(path, max_bytes=MIB)
    for _ in range(10):
        spool.put(lambda _uuid, _number: b"x" * 2_000, 0)
    # As a power cut would leave it: the file and its journal, with the journal's tail not yet on the disk.
    copy.write_bytes(path.read_bytes())
    journal = Path(f"{path}-wal").read_bytes()
    Path(f"{copy}-wal").write_bytes(journal[: len(journal) - cut])
    spool.close()
    after = Spool(copy, max_bytes=MIB)
    assert not after.damaged_files
    assert held(after) == list(range(1, 10))
    assert after.put(lambda _uuid, _number: b"new", 0) == 10
    after.close()


@pytest.mark.parametrize("garbage", [b"\xff" * 64, os.urandom(512)])
def test_a_damaged_page_in_the_middle_is_found_at_the_start_and_the_file_kept(garbage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    spool = Spool(path, max_bytes=64 * MIB)
    for _ in range(100):
        spool.put(lambda _uuid, _number: b"x" * 3_000, 0)
    before = spool.uuid
    spool.close()
    with path.open("r+b") as file:
        file.seek(4_096)  # the root of the first table
        file.write(garbage)
    spool = Spool(path, max_bytes=64 * MIB)
    if spool.damaged_files:
        assert spool.uuid != before
        assert spool.damaged_files[0].stat().st_size > 100_000
    else:  # what was hit did not matter
        assert len(held(spool)) == 100
    spool.put(lambda _uuid, _number: b"goes on", 0)
    spool.close()


def test_bodies_of_both_lanes_outlive_the_process(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from collector.spool import *\n"
        "spool = Spool(Path(sys.argv[1]), max_bytes=1 << 20)\n"
        "spool.put(lambda *_: b'batch', 1)\n"
        "spool.put_forward(b'spans', Envelope('/v1/traces', 'application/json'), 2)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "spool.db")], cwd=ROOT, check=False)
    spool = Spool(tmp_path / "spool.db", max_bytes=MIB)
    forward = spool.oldest(lane=Lane.FORWARDS)
    assert forward is not None
    assert (forward.body, forward.envelope) == (b"spans", TRACES)
    assert held(spool) == [1]
    spool.close()
