"""VictoriaMetrics as the peer of storage benchmarks: started on loopback, filled with the same data, merged, asked, ended."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
import polars as pl

PROGRAM: Final = "victoria-metrics"
MISSING: Final = f"not installed; apt install {PROGRAM}"
_START_TIMEOUT_S: Final = 30.0
_MERGE_TIMEOUT_S: Final = 300.0
_LINES_PER_REQUEST: Final = 2_000


def is_installed() -> bool:
    return shutil.which(PROGRAM) is not None


@dataclass
class Victoria:
    """A running server."""

    client: httpx.Client
    folder: Path

    def load(self, rows: pl.DataFrame, metrics: Sequence[str], labels: Callable[[int], dict[str, str]]) -> int:
        """Import each metric of each device as a series; return the samples. ``rows`` are sorted by device and time."""
        samples = 0
        lines: list[bytes] = []
        for (device_id,), of_device in rows.partition_by("device_id", as_dict=True, maintain_order=True).items():
            times = of_device["at"].dt.epoch("ms").to_list()
            for name in metrics:
                series = {"metric": {"__name__": name, **labels(int(device_id))}, "values": of_device[name].to_list()}
                lines.append(orjson.dumps({**series, "timestamps": times}))
                samples += of_device.height
            if len(lines) > _LINES_PER_REQUEST:
                self._post(lines)
                lines = []
        self._post(lines)
        return samples

    def _post(self, lines: list[bytes]) -> None:
        self.client.post("/api/v1/import", content=b"\n".join(lines), timeout=120).raise_for_status()

    def merge(self) -> None:
        """Flush, merge all parts into one, and wait until that is done."""
        self.client.get("/internal/force_flush").raise_for_status()
        self.client.get("/internal/force_merge", timeout=_MERGE_TIMEOUT_S).raise_for_status()
        deadline = time.monotonic() + _MERGE_TIMEOUT_S
        quiet = 0
        while quiet < 4:
            text = self.client.get("/metrics").text
            active = sum(
                float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("vm_active_merges")
            )
            quiet = quiet + 1 if active == 0 else 0
            if time.monotonic() > deadline:
                raise TimeoutError("VictoriaMetrics is still merging")
            time.sleep(0.5)

    def bytes_of(self, part: str) -> int:
        """Return the size of a part of its store: ``data`` or ``indexdb``."""
        top = self.folder / part
        return sum(path.stat().st_size for path in top.rglob("*") if path.is_file())

    def query_range(self, query: str, start_s: float, end_s: float, step_s: int) -> list[dict[str, Any]]:
        """Return the series of a range query, past any cache of results."""
        given: dict[str, str | float] = {
            "query": query,
            "start": start_s,
            "end": end_s,
            "step": f"{step_s}s",
            "nocache": "1",
        }
        answer = self.client.get("/api/v1/query_range", params=given, timeout=120)
        answer.raise_for_status()
        result: list[dict[str, Any]] = orjson.loads(answer.content)["data"]["result"]
        return result


@contextmanager
def victoria(folder: Path) -> Iterator[Victoria]:
    """Run a server on a folder, which keeps its data for the next one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [PROGRAM, f"-storageDataPath={folder}", f"-httpListenAddr={address}", "-retentionPeriod=100y"]
    command += ["-search.latencyOffset=0s", "-search.maxStalenessInterval=0", "-search.disableCache"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=30) as client:
            _wait(client, process)
            yield Victoria(client, folder)
    finally:
        process.terminate()
        process.wait(60)


def _wait(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            if client.get("/health").is_success:
                return
        except httpx.TransportError:
            if time.monotonic() > deadline or process.poll() is not None:
                raise
        time.sleep(0.1)


def forget_pages(folder: Path) -> None:
    """Have the kernel let go of what it holds of a folder's files, so that the next read comes from the disk."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
