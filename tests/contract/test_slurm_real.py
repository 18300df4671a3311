"""The Slurm plane against a real two-node Slurm with fake GPUs (Debian's slurm packages, started by ../shared/slurm/up.sh)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from analytics.actions.plane import Identity, RunReading, RunState, mismatch
from analytics.actions.slurm import SlurmPlane
from analytics.model.budget import Step

pytestmark = pytest.mark.slow
NEEDED = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "sbatch", "bc")


@pytest.fixture(scope="module")
def cluster(shared: Path) -> Iterator[dict[str, str]]:
    search = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [program for program in NEEDED if shutil.which(program, path=search) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: install slurm-wlm slurmdbd slurmrestd munge mariadb-server bc")
    folder = tempfile.mkdtemp(prefix="wl-slurm-")
    environment = {**os.environ, "PATH": search, "L": folder, "SLURM_CONF": f"{folder}/etc/slurm.conf"}
    try:
        with Path(folder, "up.log").open("wb") as log:
            # Daemons keep the descriptors they inherit: a pipe would never end.
            subprocess.run(
                ["bash", str(shared / "slurm" / "up.sh"), "linuxproc"],
                env=environment,
                check=True,
                timeout=120,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        yield environment
    finally:
        subprocess.run(["bash", str(shared / "slurm" / "down.sh")], env=environment, check=False, timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def submit(cluster: dict[str, str], script: str = "sleep 300") -> str:
    command = ["sbatch", "--parsable", "--account=research", "--gres=gpu:2", "--output=/dev/null"]
    # A name and a comment that try to pass for columns.
    command += ["--job-name=x|RUNNING|1|root|research", "--comment=StartTime=1970-01-01", f"--wrap={script}"]
    done = subprocess.run(command, env=cluster, check=True, capture_output=True, text=True, timeout=30)
    return done.stdout.strip().split(";")[0]


def wait_for(plane: SlurmPlane, native_id: str, *states: RunState) -> RunReading:
    deadline = time.monotonic() + 60
    while True:
        reading = plane.read(native_id)
        if reading is not None and reading.state in states:
            return reading
        assert time.monotonic() < deadline, f"job {native_id} is {reading}"
        time.sleep(0.2)


def test_a_real_job_is_read_suspended_resumed_and_cancelled(cluster: dict[str, str]) -> None:
    plane = SlurmPlane(environment=cluster)
    before = datetime.now(UTC) - timedelta(seconds=2)
    native_id = submit(cluster)
    running = wait_for(plane, native_id, RunState.RUNNING)
    assert (running.cluster, running.user_name, running.account) == ("lab", "root", "research")
    assert running.started_at is not None
    assert before <= running.started_at <= datetime.now(UTC)
    meant = Identity("lab", native_id, running.started_at, "root", "research")
    assert mismatch(meant, running, timedelta(seconds=1)) is None

    plane.act(Step.SUSPEND, native_id)
    wait_for(plane, native_id, RunState.SUSPENDED)
    plane.undo(Step.SUSPEND, native_id)
    wait_for(plane, native_id, RunState.RUNNING)
    plane.act(Step.CANCEL, native_id)
    ended = wait_for(plane, native_id, RunState.ENDED)
    assert ended.native_state in {"CANCELLED", "COMPLETING"}


def test_a_requeued_job_is_another_run_of_the_same_id(cluster: dict[str, str]) -> None:
    plane = SlurmPlane(environment=cluster)
    native_id = submit(cluster)
    first = wait_for(plane, native_id, RunState.RUNNING)
    assert first.started_at is not None
    meant = Identity("lab", native_id, first.started_at, "root", "research")
    subprocess.run(["scontrol", "requeue", native_id], env=cluster, check=True, timeout=30)
    requeued = wait_for(plane, native_id, RunState.PENDING)
    assert "start is" in (mismatch(meant, requeued, timedelta(seconds=1)) or "")
    plane.act(Step.CANCEL, native_id)


def test_a_real_cluster_does_not_know_a_job_that_never_was(cluster: dict[str, str]) -> None:
    assert SlurmPlane(environment=cluster).read("999999") is None
