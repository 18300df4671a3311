"""A real small Slurm in a folder (../shared/slurm/up.sh): two nodes with eight GPUs each that are files, accounting included."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

NEEDED = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "sbatch", "bc")


@dataclass
class SlurmCluster:
    folder: Path
    environment: dict[str, str]

    def run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True, timeout=60)
        return done.stdout.strip()

    def submit(self, *options: str, script: str = "sleep 1") -> str:
        command = ["sbatch", "--parsable", "--account=research", "--output=/dev/null", *options, f"--wrap={script}"]
        return self.run(*command).split(";")[0]

    def wait_for(self, job: str, *states: str) -> None:
        deadline = time.monotonic() + 60
        while True:
            found = self.run("scontrol", "--oneliner", "show", "job", job)
            if any(f"JobState={state}" in found for state in states):
                return
            assert time.monotonic() < deadline, found
            time.sleep(0.1)

    def stop_accounting(self) -> None:
        pid = int((self.folder / "pid" / "slurmdbd.pid").read_text())
        os.kill(pid, 15)
        deadline = time.monotonic() + 30
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)

    def start_accounting(self) -> None:
        subprocess.run(["slurmdbd"], env=self.environment, check=True, timeout=30, stdin=subprocess.DEVNULL)

    @contextmanager
    def rest(self, port: int) -> Iterator[str]:
        """Run slurmrestd as nobody; yield its address."""
        environment = {
            **self.environment,
            "SLURMRESTD_SECURITY": "disable_unshare_sysv,disable_unshare_files",
            "SLURM_JWT": "daemon",
        }
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "slurmrestd", "-a", "rest_auth/jwt"]
        command += ["-s", "openapi/v0.0.38,openapi/dbv0.0.38", f"127.0.0.1:{port}"]
        with (self.folder / "rest.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                except OSError:
                    assert process.poll() is None, (self.folder / "rest.log").read_text()
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                else:
                    break
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def small_cluster(shared: Path) -> Iterator[SlurmCluster]:
    """Start it, some seven seconds; skip where Slurm is not installed."""
    search = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [program for program in NEEDED if shutil.which(program, path=search) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: install slurm-wlm slurmdbd slurmrestd munge mariadb-server bc")
    folder = Path(tempfile.mkdtemp(prefix="wl-slurm-"))
    folder.chmod(0o755)  # slurmrestd, which is nobody, reads its settings there
    environment = {**os.environ, "PATH": search, "L": str(folder), "SLURM_CONF": f"{folder}/etc/slurm.conf"}
    try:
        with (folder / "up.log").open("wb") as log:
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
        yield SlurmCluster(folder, environment)
    finally:
        subprocess.run(["bash", str(shared / "slurm" / "down.sh")], env=environment, check=False, timeout=60)
        shutil.rmtree(folder, ignore_errors=True)
