"""Prolog, epilog and slurmstepd of a real Slurm with fake GPUs (../shared/slurm/up.sh), through the job source to allocations."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from collector.clock import SystemClock
from collector.jobs.source import JobPlaces, JobSettings, JobSource
from collector.probe import ProcessReading, Row
from collector.wire import DeviceRef, Stream

pytestmark = pytest.mark.slow
NEEDED = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "sbatch", "bc")
SCRIPTS = Path(__file__).resolve().parents[2] / "deploy" / "slurm"
# Of a vendor whose numbers are indices: this machine has no /proc/driver/nvidia to say what an NVIDIA board's would mean.
GPUS = tuple(DeviceRef(f"GPU-{n}", "MI300X", vendor="amd") for n in range(8))
S = 1_000_000


@dataclass
class Cluster:
    environment: dict[str, str]
    hooks: Path
    processes: list[ProcessReading] = field(default_factory=list)

    def run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True, timeout=60)
        return done.stdout.strip()

    def submit(self, script: str, gpus: int = 2) -> str:
        options = ["--parsable", "--account=research", f"--gres=gpu:{gpus}", "--output=/dev/null", f"--wrap={script}"]
        return self.run("sbatch", *options).split(";")[0]

    def field(self, job: str, name: str) -> str:
        words = self.run("scontrol", "show", "job", job).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def source(self) -> JobSource:
        return JobSource(
            clock=SystemClock(threading.Event()),
            processes=lambda: tuple(self.processes),
            devices=lambda: GPUS,
            settings=JobSettings(cluster="?"),
            places=JobPlaces(
                hook_folder=self.hooks,
                mapping_folders=(),
                kubelet_socket=self.hooks / "no",
                pod_folder=self.hooks / "no",
            ),
        )


@pytest.fixture(scope="module")
def cluster(shared: Path) -> Iterator[Cluster]:
    search = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [program for program in NEEDED if shutil.which(program, path=search) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: install slurm-wlm slurmdbd slurmrestd munge mariadb-server bc")
    folder = Path(tempfile.mkdtemp(prefix="wl-slurm-"))
    environment = {
        **os.environ,
        "PATH": search,
        "L": str(folder),
        "SLURM_CONF": f"{folder}/etc/slurm.conf",
        "NODES": "1",
    }
    try:
        with (folder / "up.log").open("wb") as log:
            # Daemons keep the descriptors they inherit: a pipe would never end.
            up = ["bash", str(shared / "slurm" / "up.sh"), "linuxproc"]
            quiet = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
            subprocess.run(up, env=environment, check=True, timeout=120, **quiet)  # type: ignore[call-overload]
        started = Cluster(environment, folder / "jobs")
        for name in ("prolog", "epilog"):
            # slurmd gives its scripts no environment of ours.
            text = (SCRIPTS / f"{name}.sh").read_text().replace("/run/wattledger/jobs", str(started.hooks))
            (folder / f"{name}.sh").write_text(text)
            (folder / f"{name}.sh").chmod(0o755)
        with (folder / "etc" / "slurm.conf").open("a") as conf:
            conf.write(f"Prolog={folder}/prolog.sh\nEpilog={folder}/epilog.sh\nPrologFlags=Alloc\n")
        started.run("scontrol", "reconfigure")
        yield started
    finally:
        subprocess.run(["bash", str(shared / "slurm" / "down.sh")], env=environment, check=False, timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def read_until(source: JobSource, rows: list[Row], enough: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not enough():
        rows += source.read().rows.get(Stream.ALLOCATION, ())
        source.wait(0.5)
        assert time.monotonic() < deadline, [(row["at_us"], row["action"], row["native_job_id"]) for row in rows]


def of(rows: list[Row], job: str, action: int) -> list[Row]:
    return [row for row in rows if row["native_job_id"] == job and row["action"] == action]


def test_real_jobs_hold_their_gpus_from_prolog_to_epilog(cluster: Cluster) -> None:
    source, rows = cluster.source(), list[Row]()
    jobs = [cluster.submit("sleep 1", gpus) for gpus in (8, 4, 4)]
    read_until(source, rows, lambda: all(of(rows, job, 2) for job in jobs))
    source.close()
    assert [len(of(rows, job, 1)) for job in jobs] == [8, 4, 4]
    assert [len(of(rows, job, 2)) for job in jobs] == [8, 4, 4]
    for job in jobs:
        start, end = of(rows, job, 1)[0], of(rows, job, 2)[0]
        assert (start["cluster"], start["account"], start["user"], start["partition"]) == (
            "lab",
            "research",
            "root",
            "train",
        )
        assert start["evidence"] == "hook"
        began_us, over_us, started_us = (
            row[name] for row, name in ((start, "at_us"), (end, "at_us"), (start, "job_started_at_us"))
        )
        assert isinstance(began_us, int)
        assert isinstance(over_us, int)
        assert isinstance(started_us, int)
        slurm_us = round(datetime.fromisoformat(cluster.field(job, "StartTime")).astimezone(UTC).timestamp() * S)
        assert abs(started_us - slurm_us) <= 1 * S
        assert 1 * S <= over_us - began_us <= 20 * S
    # The first had all eight: the others began when it was over, and never met it.
    first_end_us = of(rows, jobs[0], 2)[0]["at_us"]
    assert isinstance(first_end_us, int)
    for job in jobs[1:]:
        later_us = of(rows, job, 1)[0]["at_us"]
        assert isinstance(later_us, int)
        assert later_us >= first_end_us
    assert list(cluster.hooks.glob("[0-9]*")) == []


def test_a_requeued_job_is_two_runs_and_a_failing_job_drains_no_node(cluster: Cluster) -> None:
    source, rows = cluster.source(), list[Row]()
    job = cluster.submit("sleep 300")
    read_until(source, rows, lambda: bool(of(rows, job, 1)))
    time.sleep(1.1)  # Slurm tells runs apart by whole seconds
    cluster.run("scontrol", "requeue", job)

    def is_clean() -> bool:
        return bool(of(rows, job, 2)) and cluster.field(job, "JobState") == "PENDING"

    read_until(source, rows, is_clean)
    # Slurm would wait two minutes, until the old credential is forgotten; launched within a second it would fail, and drain the node.
    time.sleep(3.0)
    cluster.run("scontrol", "update", f"jobid={job}", "starttime=now")
    read_until(source, rows, lambda: len(of(rows, job, 1)) == 4)
    cluster.run("scancel", job)
    failing = cluster.submit("exit 7")
    read_until(source, rows, lambda: len(of(rows, job, 2)) == 4 and bool(of(rows, failing, 2)))
    source.close()
    assert len({row["job_started_at_us"] for row in of(rows, job, 1)}) == 2
    assert cluster.run("sinfo", "-h", "-o", "%t") == "idle"


def test_a_process_of_a_job_is_known_by_the_slurmstepd_above_it(cluster: Cluster) -> None:
    source, rows = cluster.source(), list[Row]()
    job = cluster.submit("sleep 4321", gpus=1)
    read_until(source, rows, lambda: bool(of(rows, job, 1)))
    deadline = time.monotonic() + 30
    pids: list[int] = []
    while not pids:
        assert time.monotonic() < deadline
        found = subprocess.run(["pgrep", "-f", "^sleep 4321$"], capture_output=True, text=True, check=False).stdout
        pids = [int(pid) for pid in found.split()]
        time.sleep(0.1)
    # On a GPU that nobody granted: what is left is whose process it is.
    cluster.processes[:] = [ProcessReading("GPU-7", pids[0], time.time_ns() // 1_000, 1, 1, None, None, "compute")]
    read_until(source, rows, lambda: len(of(rows, job, 1)) == 2)
    assert of(rows, job, 1)[1]["device_uuid"] == "GPU-7"
    assert of(rows, job, 1)[1]["evidence"] == "slurmstepd"
    assert of(rows, job, 1)[1]["job_started_at_us"] == of(rows, job, 1)[0]["job_started_at_us"]
    cluster.run("scancel", job)
    read_until(source, rows, lambda: len(of(rows, job, 2)) == 2)
    source.close()
