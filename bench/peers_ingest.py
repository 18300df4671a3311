"""ingest.peers: taking the same samples in, beside VictoriaMetrics and Prometheus: samples/s, processor time and bytes a sample.

An hour of a trace-driven fleet. Each node sends its own requests one after the other: natively to us, by remote write to the
peers, the same samples in each, made beforehand. Best of rounds, taken in turns, each into an empty store. What an answer
promises differs and is told: ours comes after a commit that is on the disk, theirs when the samples are in memory.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import uvloop

from bench import load, peers_servers, victoria
from bench.agent_peers import cpu_s
from bench.bodies import DEVICES, Node
from bench.cpu import Spent
from bench.report import Result
from bench.stand import Stand, agent_tokens, empty_samples, ingest_process, stand
from bench.trace_bodies import Rows, native, node_rows, remote_write
from bench.trace_fleet import METRICS, Traces
from bench.trace_stand import shared_folder, size_of
from ingest.store.seal import Sealer, hour_of
from ingest.store.segments import Segments

INSTANTS: Final = 360
"""An hour at ten seconds."""
_PER_BODY: Final = 60
ROUNDS: Final = 3
_US: Final = 1_000_000
_REMOTE: Final = (
    "Content-Type: application/x-protobuf\r\nContent-Encoding: snappy\r\nX-Prometheus-Remote-Write-Version: 0.1.0\r\n"
)
_STORED: Final = """
SELECT (SELECT count(*) FROM device_samples), sum(pg_total_relation_size(inhrelid)) FROM pg_inherits
WHERE inhparent = 'device_samples'::regclass
"""
_VICTORIA_COUNT: Final = 'vm_rows_inserted_total{type="promremotewrite"}'
_PROMETHEUS_COUNT: Final = "prometheus_tsdb_head_samples_appended_total"
_PROMISES: Final = {
    "wattledger": "committed, fsync on",
    "victoria-metrics": "in memory; on the disk within seconds",
    "prometheus": "in memory and in the log, without fsync",
}


@dataclass
class _Taken:
    """What one store did with the samples, by round; bytes at rest after the last."""

    rates: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    rest_cpu_us: float | None = None
    """Processor time a sample of bringing them to rest: sealing, merging, writing a block."""
    bytes_at_rest: float = 0.0
    more: dict[str, Any] = field(default_factory=dict)

    def as_detail(self) -> dict[str, Any]:
        told = {"samples_per_s": [round(rate) for rate in self.rates], "cpu_us": [round(us, 3) for us in self.cpu_us]}
        return {**told, "rest_cpu_us": self.rest_cpu_us, "bytes_at_rest": round(self.bytes_at_rest, 4), **self.more}


def run() -> list[Result]:
    nodes_wanted = max(1, size_of("WATTLEDGER_BENCH_PEERS_DEVICES", 800) // DEVICES)
    rounds = size_of("WATTLEDGER_BENCH_PEERS_ROUNDS", ROUNDS)
    hour_at = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=2)
    rows = list(node_rows(Traces.read(shared_folder()), nodes_wanted, INSTANTS, int(hour_at.timestamp()) * _US))
    nodes = [Node(number) for number in range(nodes_wanted)]
    theirs = [list(remote_write(node, of, _PER_BODY)) for node, of in zip(nodes, rows, strict=True)]
    samples = nodes_wanted * DEVICES * INSTANTS * len(METRICS)
    ours, peers = _Taken(), {"victoria-metrics": _Taken(), "prometheus": _Taken()}
    peers = {name: taken for name, taken in peers.items() if shutil.which(name)}
    with tempfile.TemporaryDirectory(prefix="wl-bench-peers-") as name, stand() as on:
        folder = Path(name)
        tokens = agent_tokens(on.database, [node.name for node in nodes])
        with ingest_process(on) as pid:
            for number in range(rounds):
                _ours(on, pid, tokens, rows, samples, ours)
                if "victoria-metrics" in peers:
                    _victoria(folder / f"vm-{number}", theirs, samples, peers["victoria-metrics"])
                if "prometheus" in peers:
                    _prometheus(folder / f"prom-{number}", theirs, samples, peers["prometheus"])
        _seal(on, hour_at, folder / "segments", samples, ours)
    size = {"samples": samples, "nodes": nodes_wanted, "samples_per_request": _PER_BODY * DEVICES * len(METRICS)}
    return [result for name, taken in peers.items() for result in _results(name, ours, taken, size)] or [
        Result("ingest.peers.rate", max(ours.rates), "samples/s", "a peer beside it", False, None, _missing(ours))
    ]


def _missing(ours: _Taken) -> dict[str, Any]:
    return {"peer": f"not installed; apt install {' '.join(peers_servers.PACKAGES)}", "ours": ours.as_detail()}


def _results(peer: str, ours: _Taken, theirs: _Taken, size: dict[str, Any]) -> Iterator[Result]:
    detail = {
        "peer": peer,
        "peer_version": peers_servers.version(peer),
        "answer_promises": {"ours": _PROMISES["wattledger"], "peer": _PROMISES[peer]},
        "ours": ours.as_detail(),
        "theirs": theirs.as_detail(),
        **size,
    }
    measured = (
        ("rate", "samples/s", max(ours.rates), max(theirs.rates)),
        ("cpu", "us CPU/sample", min(ours.cpu_us), min(theirs.cpu_us)),
        ("bytes", "B/sample at rest", ours.bytes_at_rest, theirs.bytes_at_rest),
    )
    for name, unit, value, baseline in measured:
        yield Result(f"ingest.peers.{name}.{peer}", value, unit, "reported", True, baseline, detail)


def _ours(on: Stand, pid: int, tokens: dict[str, str], rows: Sequence[Rows], samples: int, taken: _Taken) -> None:
    empty_samples(on.database)
    # A batch counts once: each round is a new spool of the same node.
    nodes = [Node(number) for number in range(len(rows))]
    bodies = [list(native(node, of, _PER_BODY)) for node, of in zip(nodes, rows, strict=True)]
    spent = Spent(on, pid)
    with spent.during():
        rate = _sent(on.port, [tokens[node.name] for node in nodes], bodies, samples)
        with on.database.connect("admin", autocommit=True) as connection:
            connection.execute("CHECKPOINT")
    by_process = spent.us_per_row(samples)
    taken.rates.append(rate)
    taken.cpu_us.append(by_process["ingest"] + by_process["postgres"])
    with on.database.connect("admin") as connection:
        ((stored, size),) = connection.execute(_STORED).fetchall()
    if int(str(stored)) * len(METRICS) != samples:
        raise RuntimeError(f"{stored} rows are stored, {samples / len(METRICS):.0f} were sent")
    taken.more |= {
        "cpu_us_ingest": by_process["ingest"],
        "cpu_us_postgres": by_process["postgres"],
        "hot_bytes": round(int(str(size)) / samples, 2),
        "request_bytes": round(_size(bodies) / samples, 3),
    }


def _seal(on: Stand, hour_at: datetime, folder: Path, samples: int, taken: _Taken) -> None:
    spent = Spent(on, None)
    with spent.during():
        Sealer(on.database, Segments.at(folder)).seal(hour_of(1, hour_at))
    by_process = spent.us_per_row(samples)
    taken.rest_cpu_us = round(by_process["load"] + by_process["postgres"], 3)
    taken.bytes_at_rest = _bytes(folder) / samples


def _victoria(folder: Path, bodies: list[list[bytes]], samples: int, taken: _Taken) -> None:
    with victoria.victoria(folder) as server:
        pid, port = _listening(server), int(server.client.base_url.port or 0)
        with _counted(pid, samples, taken.cpu_us.append):
            taken.rates.append(_sent(port, [""] * len(bodies), bodies, samples, "/api/v1/write"))
            server.client.get("/internal/force_flush").raise_for_status()
        _check(server.client.get("/metrics").text, _VICTORIA_COUNT, samples)
        with _counted(pid, samples, lambda us: setattr(taken, "rest_cpu_us", round(us, 3))):
            server.merge()
    taken.bytes_at_rest = _bytes(folder / "data") / samples
    taken.more = {"index_bytes": round(_bytes(folder / "indexdb") / samples, 4)}
    taken.more["request_bytes"] = round(_size(bodies) / samples, 3)
    shutil.rmtree(folder)


def _prometheus(folder: Path, bodies: list[list[bytes]], samples: int, taken: _Taken) -> None:
    with peers_servers.prometheus(folder) as server:
        with _counted(server.pid, samples, taken.cpu_us.append):
            taken.rates.append(_sent(server.port, [""] * len(bodies), bodies, samples, "/api/v1/write"))
        _check(httpx.get(f"http://127.0.0.1:{server.port}/metrics").text, _PROMETHEUS_COUNT, samples)
        with _counted(server.pid, samples, lambda us: setattr(taken, "rest_cpu_us", round(us, 3))):
            taken.bytes_at_rest = _bytes(server.snapshot()) / samples
    taken.more = {
        "request_bytes": round(_size(bodies) / samples, 3),
        "at_rest": "a snapshot's block, its index included",
    }
    shutil.rmtree(folder)


def _check(metrics: str, counter: str, samples: int) -> None:
    """Raise RuntimeError unless the peer says that it took all samples: one that drops some would look fast."""
    line = next((line for line in metrics.splitlines() if line.startswith((f"{counter} ", f"{counter}{{"))), "")
    if int(float(line.rpartition(" ")[2] or 0)) != samples:
        raise RuntimeError(f"the peer counts {line or counter!r}, {samples} samples were sent")


@contextmanager
def _counted(pid: int, samples: int, tell: Callable[[float], None]) -> Iterator[None]:
    before_s = cpu_s(pid)
    yield
    tell((cpu_s(pid) - before_s) * 1e6 / samples)


def _sent(
    port: int, tokens: Sequence[str], bodies: Sequence[Sequence[bytes]], samples: int, path: str | None = None
) -> float:
    """Send each node's bodies one after the other, all nodes at once; return samples per second."""

    async def main() -> float:
        where = () if path is None else (path, _REMOTE)
        connections = await load.connect(port, tokens, *where)
        began_s = time.perf_counter()
        answers = await load.flat_out(connections, bodies)
        elapsed_s = time.perf_counter() - began_s
        for connection in connections:
            connection.close()
        failed = [answer for answer in answers if answer.status not in (200, 204)]
        if failed:
            raise RuntimeError(f"{len(failed)} bodies not taken, first: {failed[0].status} {failed[0].body[:200]!r}")
        return samples / elapsed_s

    return uvloop.run(main())


def _listening(server: victoria.Victoria) -> int:
    """Return the process of the server, found by its folder among its command line."""
    wanted = f"-storageDataPath={server.folder}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if wanted in words:
                return int(entry.name)
    raise RuntimeError(f"no process serves {server.folder}")


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _size(bodies: Sequence[Sequence[bytes]]) -> int:
    return sum(len(body) for queue in bodies for body in queue)
