"""Prometheus as the peer of ingest, and what the peers' packages are called: installed where missing, their versions told.

What is there is not installed again. It runs servers on loopback only.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

PACKAGES: Final = {
    "victoria-metrics": "victoria-metrics",
    "prometheus": "prometheus",
    "prometheus-node-exporter": "prometheus-node-exporter",
}
"""Debian's package by the program it brings."""
_START_TIMEOUT_S: Final = 30.0
_INSTALL_TIMEOUT_S: Final = 600.0


class PeersMissingError(RuntimeError):
    """A peer is not there and cannot be installed; the message says what to run."""


def install_missing() -> None:
    """Install the packages whose programs are not there; raises PeersMissingError saying what to do."""
    missing = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    if not missing:
        return
    names = " ".join(missing)
    if shutil.which("apt-get") is None:
        raise PeersMissingError(f"{names}: not installed, and this is no Debian (no apt-get); install them by hand")
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if prefix and shutil.which("sudo") is None:
        raise PeersMissingError(f"{names}: not installed; as root: apt-get install {names}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
        command = [*prefix, "apt-get", *words]
        done = subprocess.run(
            command, check=False, env=environment, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S
        )
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip())[-300:]
            raise PeersMissingError(f"{' '.join(command)} failed ({last}); as root: apt-get install {names}")


def version(program: str) -> str | None:
    """Return the version of the package that brought a program; None where it is not from a package of Debian."""
    if shutil.which(program) is None or shutil.which("dpkg-query") is None:
        return None
    command = ["dpkg-query", "--show", "--showformat=${Version}", PACKAGES[program]]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    return done.stdout.strip() or None if done.returncode == 0 else None


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A running server that takes remote write in."""

    port: int
    pid: int
    folder: Path

    def snapshot(self) -> Path:
        """Have it write what it holds in memory into a block, and return the snapshot's folder."""
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=600) as client:
            answer = client.post("/api/v1/admin/tsdb/snapshot").raise_for_status()
        return self.folder / "snapshots" / str(answer.json()["data"]["name"])


@contextmanager
def prometheus(folder: Path) -> Iterator[Prometheus]:
    """Run Debian's Prometheus on a folder of its own, with nothing to scrape."""
    folder.mkdir(parents=True)
    settings = folder / "prometheus.yml"
    settings.write_text("scrape_configs: []\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    command = ["prometheus", f"--config.file={settings}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--web.enable-remote-write-receiver"]
    command += ["--web.enable-admin-api", "--storage.tsdb.retention.time=100y", "--log.level=error"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(port, process)
        yield Prometheus(port, process.pid, folder / "data")
    finally:
        process.terminate()
        process.wait(60)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/-/ready", timeout=5).is_success:
                return
        except httpx.TransportError:
            if process.poll() is not None:
                raise
        if time.monotonic() > deadline:
            raise TimeoutError("prometheus does not get ready")
        time.sleep(0.1)
