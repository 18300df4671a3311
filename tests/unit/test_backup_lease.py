"""Who may write to a backup's target."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wattledger.backup_lease import LEASE, SILENT_AFTER_S, held
from wattledger.backup_manifest import BackupError

pytestmark = pytest.mark.unit


def of_another_machine(target: Path, silent_s: float) -> None:
    lease = target / LEASE
    lease.write_text(
        json.dumps({"token": "t", "what": "a backup", "host": "db-2", "pid": 7, "place": "elsewhere", "since": "02:17"})
    )
    then_s = time.time() - silent_s
    os.utime(lease, (then_s, then_s))


def test_a_second_is_refused_and_told_who_has_it_and_what_to_do(tmp_path: Path) -> None:
    of_another_machine(tmp_path, SILENT_AFTER_S / 2)
    with pytest.raises(BackupError, match=r"a backup is using .*: process 7 on db-2, since 02:17.* or delete "):
        held(tmp_path, "a backup").__enter__()
    assert [path.name for path in tmp_path.iterdir()] == [LEASE]


def test_one_that_is_given_back_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        with held(tmp_path, "a backup") as lease:
            lease.check()
            with pytest.raises(BackupError, match=f"process {os.getpid()} on"):
                held(tmp_path, "`wattledger backup --keep`").__enter__()
            lease.check()
    assert not list(tmp_path.iterdir())


def test_one_silent_for_five_minutes_is_taken_over_and_its_holder_is_told(tmp_path: Path) -> None:
    with held(tmp_path, "a backup", beat_s=3_600) as slow:
        told = json.loads(slow.path.read_text()) | {"place": "elsewhere"}
        slow.path.write_text(json.dumps(told))
        os.utime(slow.path, (0, time.time() - SILENT_AFTER_S - 1))
        with held(tmp_path, "a backup") as quick:
            quick.check()
            slow.beat()
            with pytest.raises(
                BackupError, match="taken over by another backup while this one stood still for 5 minutes"
            ):
                slow.check()
            quick.check()
    assert not list(tmp_path.iterdir())


def test_who_lives_touches_it_however_long_it_takes(tmp_path: Path) -> None:
    with held(tmp_path, "a backup", beat_s=0.01) as lease:
        os.utime(lease.path, (0, 0))
        until = time.monotonic() + 10
        while lease.path.stat().st_mtime == 0:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_process_of_this_machine_that_was_killed_holds_up_nobody(tmp_path: Path) -> None:
    killed = (
        "import os, signal, sys; from pathlib import Path; from wattledger.backup_lease import held\n"
        "with held(Path(sys.argv[1]), 'a backup'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", killed, tmp_path], check=False).returncode == -9
    assert (tmp_path / LEASE).exists()
    with held(tmp_path, "a backup") as lease:
        lease.check()


def test_a_lease_cut_short_by_a_full_disk_is_somebody_s_for_five_minutes(tmp_path: Path) -> None:
    (tmp_path / LEASE).write_text('{"tok')
    with pytest.raises(BackupError, match="something is using"):
        held(tmp_path, "a backup").__enter__()
    os.utime(tmp_path / LEASE, (0, time.time() - SILENT_AFTER_S - 1))
    with held(tmp_path, "a backup"):
        pass
