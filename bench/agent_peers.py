"""What other programs that watch a node take, measured as the agent is: from outside, over the same time, on the same machine.

Each collects something else, so the figures are an order of magnitude to stand beside, not a race. What cannot be had here is
named with the reason.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SETTLE_S: Final = 5.0
_VENV: Final = Path("build/peers/nvitop")
_NVITOP: Final = """
import sys, time
from nvitop import Device, ResourceMetricCollector
period_s = float(sys.argv[1])
collector = ResourceMetricCollector(Device.all(), interval=period_s)
with collector("bench"):
    print("started", flush=True)
    while True:
        time.sleep(period_s)
        collector.collect()
"""


@dataclass(frozen=True, slots=True)
class PeerCost:
    """What a peer took, or why it was not measured."""

    name: str
    skipped: str | None = None
    cpu_percent: float | None = None
    rss_mib: float | None = None
    collects: str = ""

    def as_detail(self) -> dict[str, object]:
        if self.skipped:
            return {"skipped": self.skipped}
        return {"cpu_percent": self.cpu_percent, "rss_mib": self.rss_mib, "collects": self.collects}


def node_exporter(period_s: float, duration_s: float) -> PeerCost:
    """Scrape Prometheus' node exporter, Debian's or the project's, with its default collectors."""
    name = "prometheus-node-exporter"
    program = shutil.which("prometheus-node-exporter") or shutil.which("node_exporter")
    if program is None:
        return PeerCost(name, "not installed; apt install prometheus-node-exporter")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [program, f"--web.listen-address=127.0.0.1:{port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    stop = threading.Event()
    url = f"http://127.0.0.1:{port}/metrics"
    scraper = threading.Thread(target=_scrape, args=(url, period_s, stop))
    scraper.start()
    try:
        return _measured(name, process, duration_s, "the host: default collectors, scraped")
    finally:
        stop.set()
        scraper.join()
        _end(process)


def nvitop(period_s: float, duration_s: float, environment: Mapping[str, str]) -> PeerCost:
    """Run nvitop's collector of resource metrics over the same fake devices, in a virtual environment of its own."""
    python = _VENV / "bin" / "python"
    if not python.exists():
        try:
            venv.create(_VENV, with_pip=True, clear=True)
            command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "nvitop"]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=180)
        except (subprocess.SubprocessError, OSError) as error:
            shutil.rmtree(_VENV, ignore_errors=True)
            return PeerCost("nvitop", f"cannot be installed: {error}"[:200])
    env = {key: value for key, value in environment.items() if key != "PYTHONPATH"}
    process = subprocess.Popen(
        [str(python), "-c", _NVITOP, str(period_s)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        if process.stdout is None or process.stdout.readline().strip() != "started":
            _, log = process.communicate(timeout=10)
            return PeerCost("nvitop", f"it did not start: {log[-200:]}")
        return _measured(
            "nvitop", process, duration_s, "utilization, memory, clocks, power of the devices, and the host"
        )
    finally:
        _end(process)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process's threads, counted by the kernel in nanoseconds."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _measured(
    name: str, process: subprocess.Popen[str] | subprocess.Popen[bytes], duration_s: float, what: str
) -> PeerCost:
    time.sleep(_SETTLE_S)
    if process.poll() is not None:
        return PeerCost(name, f"it ended with code {process.returncode}")
    before_s, began_s = cpu_s(process.pid), time.monotonic()
    time.sleep(duration_s)
    percent = 100 * (cpu_s(process.pid) - before_s) / (time.monotonic() - began_s)
    return PeerCost(name, None, round(percent, 3), round(rss_mib(process.pid), 1), what)


def _scrape(url: str, period_s: float, stop: threading.Event) -> None:
    while not stop.wait(period_s):
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310  loopback
            answer.read()


def _end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    sys.exit("run `python -m bench agent.cost`")
