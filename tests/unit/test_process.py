import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ingest.store.embedded.process import ProcessId, carriers_of, processes_in, start_ticks

pytestmark = pytest.mark.unit

SLEEP = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]


def test_a_zombie_is_not_alive() -> None:
    with subprocess.Popen(["true"]) as process:
        identity = ProcessId(process.pid, start_ticks(process.pid) or 0)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, not reaped
        assert Path(f"/proc/{process.pid}").exists()
        assert not identity.is_alive()
        assert start_ticks(process.pid) is None


def test_a_recycled_pid_is_never_signalled() -> None:
    with subprocess.Popen(SLEEP) as process:
        real = ProcessId.of(process.pid)
        assert real is not None
        recycled = ProcessId(process.pid, real.start_ticks - 1)
        assert not recycled.signal(signal.SIGKILL)
        assert process.poll() is None
        assert real.signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    assert not real.signal(signal.SIGKILL)


def test_processes_are_found_by_their_working_folder(tmp_path: Path) -> None:
    with subprocess.Popen(SLEEP, cwd=tmp_path) as process:
        assert [found.pid for found in processes_in(tmp_path.resolve())] == [process.pid]
        process.kill()


def test_processes_are_found_by_the_mark_in_their_environment() -> None:
    with subprocess.Popen(SLEEP, env={"MARK": "m-17", "OTHER": "m-1"}) as process:
        deadline = time.monotonic() + 10
        while not carriers_of("MARK", "m-17") and time.monotonic() < deadline:  # the environment appears with exec
            time.sleep(0.01)
        assert [found.pid for found in carriers_of("MARK", "m-17")] == [process.pid]
        assert carriers_of("MARK", "m-1") == []
        process.kill()
