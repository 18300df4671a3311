"""agent.cost: what the agent takes from the node it measures, at 1 Hz and at 10 Hz, and what it puts on the wire.

The real process with its default settings, all fields, GPM, processes, jobs and the host's own counters, reading eight devices of a
replay library and shipping to a server on loopback. Measured from outside, as the kernel accounts it; driver time is not in
it, as there is no driver. Beside it, in the same run, the node exporter and nvitop.
"""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from bench.agent_peers import PeerCost, cpu_s, node_exporter, nvitop
from bench.report import Result
from tests.fakes.nvml.build import build, environment, start_agent

GPUS: Final = 8
DURATION_S: Final = 60.0
TARGET_PERCENT: Final = 0.5
TARGET_MIB: Final = 45.0
_SETTLE_S: Final = 15.0  # imports, the first rows and batches, the first connection
_S_PER_DAY: Final = 86_400


class _Sink(ThreadingHTTPServer):
    """Takes every batch and counts its bytes, those of the request's head included."""

    def __init__(self) -> None:
        self.bodies: list[int] = []
        self.bytes = 0
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Sink

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        sink = self.server
        sink.bodies.append(len(body))
        sink.bytes += len(body) + len(self.requestline) + 2 + len(bytes(self.headers))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
        """Say nothing."""


@dataclass(frozen=True, slots=True)
class _Cost:
    cpu_percent: float
    peak_mib: float
    wire_bytes_per_s: float
    batches: int
    log: str = field(repr=False)

    @property
    def bytes_per_gpu_and_day(self) -> float:
        return self.wire_bytes_per_s * _S_PER_DAY / GPUS


def run(duration_s: float = DURATION_S, settle_s: float = _SETTLE_S) -> list[Result]:
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
        slow = _measure(library, Path(folder) / "1hz.db", duration_s, settle_s)
        fast = _measure(library, Path(folder) / "10hz.db", duration_s, settle_s, "--sample-s", "0.1")
        peers = {hz: _peers(library, 1 / hz, duration_s) for hz in (1, 10)}
    return [*_results(slow, "1hz", peers[1], targets=True), *_results(fast, "10hz", peers[10], targets=False)]


def _measure(library: Path, spool: Path, duration_s: float, settle_s: float, *flags: str) -> _Cost:
    with _Sink() as sink:
        thread = threading.Thread(target=sink.serve_forever, kwargs={"poll_interval": 0.5})
        thread.start()
        url = f"http://127.0.0.1:{sink.server_port}"
        process = start_agent(
            library, spool, "--server-url", url, "--node", "bench", "--cpu-cap-percent", "0", *flags, gpus=GPUS
        )
        try:
            time.sleep(settle_s)
            before_s, before_bytes, began_s = cpu_s(process.pid), sink.bytes, time.monotonic()
            batches = len(sink.bodies)
            time.sleep(duration_s)
            took_s = time.monotonic() - began_s
            used_s, sent = cpu_s(process.pid) - before_s, sink.bytes - before_bytes
            peak_mib = _peak_mib(process.pid)
            batches = len(sink.bodies) - batches
        finally:
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=15)
            sink.shutdown()
            thread.join()
    return _Cost(100 * used_s / took_s, peak_mib, sent / took_s, batches, log)


def _peers(library: Path, period_s: float, duration_s: float) -> list[PeerCost]:
    return [
        nvitop(period_s, duration_s, environment(library, gpus=GPUS)),
        node_exporter(period_s, duration_s),
    ]


def _results(cost: _Cost, pace: str, peers: list[PeerCost], *, targets: bool) -> list[Result]:
    beside = {peer.name: peer.as_detail() for peer in peers}
    measured = next((peer for peer in peers if peer.skipped is None), None)
    detail = {"gpus": GPUS, "peers": beside, "batches": cost.batches, "health": cost.log.splitlines()[-1:]}
    return [
        Result(
            f"agent.cost.cpu.{pace}",
            cost.cpu_percent,
            "% of a core",
            f"<= {TARGET_PERCENT} %" if targets else "reported",
            cost.cpu_percent <= TARGET_PERCENT or not targets,
            measured.cpu_percent if measured else None,
            detail | {"baseline": measured.name if measured else None},
        ),
        Result(
            f"agent.cost.rss.{pace}",
            cost.peak_mib,
            "MiB, peak",
            f"<= {TARGET_MIB:g} MiB" if targets else "reported",
            cost.peak_mib <= TARGET_MIB or not targets,
            measured.rss_mib if measured else None,
            {"baseline": measured.name if measured else None},
        ),
        Result(f"agent.cost.wire.{pace}", cost.bytes_per_gpu_and_day, "bytes/GPU/day", "reported", met=True),
    ]


def _peak_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
