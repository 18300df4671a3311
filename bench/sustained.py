"""ingest.sustained: 1,250 agents at 150,000 rows/s for ten minutes, or what this machine takes, while a worker closes hours.

First the limit is looked for: flat out for a moment, then paced beside the worker until a pace is kept. Then the same senders
go on at that pace, and at half of it. Rows are a fleet's history at ten seconds, so that hours fill and are closed many times
faster than they pass. Told: rows/s kept, how far answers fell behind, the growth of ingest's memory, latency at half load; at
the end the tables must hold what was acknowledged, to the row. Shorter: WATTLEDGER_BENCH_SUSTAINED_S.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import uvloop

from bench import load
from bench.agent_peers import rss_mib
from bench.bodies import DEVICES, Node, columns
from bench.cpu import Spent
from bench.report import Result
from bench.stand import Stand, agent_tokens, ingest_process, stand
from bench.trace_stand import size_of
from collector.arrow import ColumnData
from collector.batch import Columns

SENDERS: Final = 1_250
ROWS: Final = 480
RATE: Final = 150_000
DURATION_S: Final = 600
P99_LIMIT_MS: Final = 150.0
SLOPE_LIMIT_MIB: Final = 2.0
"""Growth of ingest's memory a minute: less than what ten minutes of an ordinary day's scatter show."""
LAG_LIMIT_S: Final = 2.0
_CADENCE_US: Final = 10_000_000
_SHARE_OF_LIMIT: Final = 0.9
_SLOWER: Final = 0.85
_PROBES: Final = 8
_BEHIND_S: Final = 20.0
"""Where answers fall so far behind, a pace is given up."""
_BYTES_PER_ROW: Final = 330
"""What a row takes on the disk for the time of the run: hot rows (257), the log, what closing writes."""
_MORE_ROWS: Final = 1.3
"""Of all stages together to those of the measured one."""


@dataclass
class _Stage:
    """What happened at one pace. Latency counts from when a body was due."""

    pace: float
    elapsed_s: float = 0.0
    answers: list[load.Answered] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    """How far the oldest unanswered body was behind, each second."""
    rss: list[tuple[float, float]] = field(default_factory=list)
    """(seconds, MiB) of ingest, each second."""

    @property
    def rate(self) -> float:
        return self.acknowledged * ROWS / self.elapsed_s

    @property
    def acknowledged(self) -> int:
        return sum(answer.status == 200 for answer in self.answers)

    @property
    def refused(self) -> int:
        return len(self.answers) - self.acknowledged

    @property
    def is_kept(self) -> bool:
        """Whether nothing was refused and answers were not behind at the end."""
        return not self.refused and max(self.lags_s[-5:], default=0.0) <= LAG_LIMIT_S

    def latency_ms(self) -> dict[str, float]:
        ordered = sorted(answer.latency_s for answer in self.answers)
        picks = {"median": 0.5, "p99": 0.99, "max": 1.0}
        return {
            name: round(ordered[min(len(ordered) - 1, int(at * len(ordered)))] * 1e3, 1) for name, at in picks.items()
        }

    def slope_mib_per_min(self) -> float:
        """Return the growth of memory by least squares, the first quarter left out: caches fill in it."""
        points = self.rss[len(self.rss) // 4 :]
        if len(points) < 3:
            return 0.0
        fit = statistics.linear_regression([at for at, _ in points], [mib for _, mib in points])
        return fit.slope * 60


class _Fleet:
    """The senders, and what they send next: all of them the same ten minutes of history, then the next ten."""

    def __init__(self, on: Stand, ingest_pid: int, connections: list[load.Connection], nodes: list[Node]) -> None:
        self._port, self._pid = on.port, ingest_pid
        self._connections, self._nodes = connections, nodes
        self._instants = ROWS // DEVICES
        hours = timedelta(hours=46)  # within the hot tables
        self._start_us = int((datetime.now(UTC) - hours).replace(minute=0, second=0, microsecond=0).timestamp()) * 10**6
        self._template = columns(ROWS, 0)
        self.turns = 0

    @property
    def clock_s(self) -> float:
        """What time it is for the senders."""
        return (self._start_us + self.turns * self._instants * _CADENCE_US) / 1e6

    def tell(self, clock: Path) -> None:
        """Say to the worker what time it is for the senders; a few bytes, so that the loop may wait for them."""
        clock.write_text(str(self.clock_s))

    async def go(self, stage: _Stage, duration_s: float, clock: Path) -> None:
        """Send at the pace for so long, then wait for what is unanswered."""
        interval_s = SENDERS * ROWS / stage.pace
        start_s = time.perf_counter() + 0.2
        watch = asyncio.create_task(self._watch(stage, start_s))
        gc.disable()  # a pause of the senders would count as the server's latency
        try:
            turn = 0
            while turn * interval_s < duration_s and not (stage.lags_s and stage.lags_s[-1] > _BEHIND_S):
                rows = self._rows()
                for number, (node, connection) in enumerate(zip(self._nodes, self._connections, strict=True)):
                    due_s = start_s + interval_s * (turn + number / SENDERS)
                    body = node.body(rows)
                    early_s = due_s - time.perf_counter()
                    await asyncio.sleep(max(0.0, early_s))
                    connection.send(body, due_s)
                self.turns += 1
                turn += 1
                self.tell(clock)
            for connection in self._connections:
                stage.answers += await connection.answered()
        finally:
            gc.enable()
            watch.cancel()
        stage.elapsed_s = max(turn * interval_s, time.perf_counter() - start_s)

    async def flat_out(self, turns: int) -> float:
        """Send bodies made beforehand as fast as they are answered; return rows/s."""
        bodies: list[list[bytes]] = [[] for _ in self._nodes]
        for _ in range(turns):
            rows = self._rows()
            for node, queue in zip(self._nodes, bodies, strict=True):
                queue.append(node.body(rows))
            self.turns += 1
        began_s = time.perf_counter()
        answers = await load.flat_out(self._connections, bodies)
        elapsed_s = time.perf_counter() - began_s
        refused = [answer for answer in answers if answer.status != 200]
        if refused:
            raise RuntimeError(f"{len(refused)} bodies refused, first: {refused[0].status} {refused[0].body[:200]!r}")
        return len(answers) * ROWS / elapsed_s

    def _rows(self) -> Columns:
        first_us = self._start_us + self.turns * self._instants * _CADENCE_US
        steps = [row // DEVICES for row in range(ROWS)]
        whole = self.turns * self._instants
        replaced = {
            "at_us": [first_us + step * _CADENCE_US for step in steps],
            "span_us": [_CADENCE_US] * ROWS,
            # 500 W: each board's counter goes on where the last body ended.
            "energy_mj": [9 * 10**11 + (whole + step) * 5_000_000 for step in steps],
        }
        data = {name: ColumnData(array("q", values)) for name, values in replaced.items()}
        return Columns(ROWS, {**self._template.data, **data})

    async def _watch(self, stage: _Stage, start_s: float) -> None:
        while True:
            await asyncio.sleep(1.0)
            now_s = time.perf_counter()
            waiting = [since for each in self._connections if (since := each.waiting_since_s) is not None]
            stage.lags_s.append(max(0.0, now_s - min(waiting, default=now_s)))
            stage.rss.append((now_s - start_s, rss_mib(self._pid)))


def run() -> list[Result]:
    duration_s = float(size_of("WATTLEDGER_BENCH_SUSTAINED_S", DURATION_S))
    wanted = size_of("WATTLEDGER_BENCH_SUSTAINED_RATE", RATE)
    _refuse_small_disk(duration_s * wanted * _MORE_ROWS * _BYTES_PER_ROW)
    with stand() as on, ingest_process(on) as pid, tempfile.TemporaryDirectory(prefix="wl-bench-clock-") as folder:
        nodes = [Node(number) for number in range(SENDERS)]
        tokens = agent_tokens(on.database, [node.name for node in nodes])
        clock = Path(folder) / "clock"
        return uvloop.run(_measured(on, pid, nodes, tokens, clock, duration_s, wanted))


async def _measured(
    on: Stand, pid: int, nodes: list[Node], tokens: dict[str, str], clock: Path, duration_s: float, wanted: int
) -> list[Result]:
    connections = await load.connect(on.port, [tokens[node.name] for node in nodes])
    fleet = _Fleet(on, pid, connections, nodes)
    fleet.tell(clock)
    joined = _Stage(ROWS * SENDERS / 6.0)
    await fleet.go(joined, 1.0, clock)  # nodes do not all join in the second that is measured
    flat_out = await fleet.flat_out(3)
    acknowledged = joined.acknowledged + 3 * SENDERS
    sys.stderr.write(f"  {flat_out:,.0f} rows/s flat out\n")
    probes: list[_Stage] = []
    pace = min(float(wanted), _SHARE_OF_LIMIT * flat_out)
    probe_s = min(45.0, max(10.0, duration_s / 10))
    with _worker(on.socket_dir, clock) as worker:
        for _ in range(_PROBES):
            probes.append(_Stage(pace))
            await fleet.go(probes[-1], probe_s, clock)
            sys.stderr.write(f"  {pace:,.0f} rows/s {'kept' if probes[-1].is_kept else 'not kept'}\n")
            if probes[-1].is_kept:
                break
            pace *= _SLOWER
        full, spent = _Stage(pace), Spent(on, pid)
        with spent.during():
            await fleet.go(full, duration_s, clock)
        half = _Stage(pace / 2)
        await fleet.go(half, max(10.0, duration_s / 10), clock)
    for connection in connections:
        connection.close()
    acknowledged += sum(stage.acknowledged for stage in (*probes, full, half))
    _check(on, acknowledged * ROWS, fleet.turns * SENDERS * ROWS)
    detail = {
        "senders": SENDERS,
        "rows_per_body": ROWS,
        "asked_rows_per_s": wanted,
        "pace_rows_per_s": round(pace),
        "flat_out_rows_per_s": round(flat_out),
        "probes": [{"pace": round(probe.pace), "kept": probe.is_kept} for probe in probes],
        "duration_s": round(full.elapsed_s, 1),
        "refused_bodies": full.refused,
        "latency_ms": full.latency_ms(),
        # PostgreSQL's is with what the worker asks and writes.
        "cpu_us_per_row": spent.us_per_row(max(1, full.acknowledged * ROWS)),
        "rss_mib": {
            "first": round(full.rss[0][1]),
            "last": round(full.rss[-1][1]),
            "max": round(max(m for _, m in full.rss)),
        },
        "rss_mib_by_minute": [round(mib, 1) for _, mib in full.rss[::60]],
        "worker": worker.told,
        "rows_checked": acknowledged * ROWS,
    }
    return _results(full, half, pace, detail)


def _results(full: _Stage, half: _Stage, pace: float, detail: dict[str, Any]) -> list[Result]:
    is_kept = full.is_kept and full.rate >= 0.99 * pace
    slope, lag_s, p99_ms = full.slope_mib_per_min(), max(full.lags_s), half.latency_ms()["p99"]
    kept = f">= {pace:,.0f} rows/s, the pace found to be kept"
    at_half = {
        "half_pace_rows_per_s": round(half.pace),
        "latency_ms": half.latency_ms(),
        "refused_bodies": half.refused,
    }
    return [
        Result("ingest.sustained.rate", full.rate, "rows/s", kept, is_kept, float(RATE), detail),
        Result(
            "ingest.sustained.memory",
            slope,
            "MiB/min",
            f"<= {SLOPE_LIMIT_MIB:g} MiB/min",
            slope <= SLOPE_LIMIT_MIB,
            detail=detail,
        ),
        Result("ingest.sustained.lag", lag_s, "s, worst", f"<= {LAG_LIMIT_S:g} s", lag_s <= LAG_LIMIT_S, detail=detail),
        Result(
            "ingest.sustained.half.p99",
            p99_ms,
            "ms",
            f"< {P99_LIMIT_MS:g} ms at half the pace",
            p99_ms < P99_LIMIT_MS and not half.refused,
            detail={**detail, **at_half},
        ),
    ]


@dataclass
class _Worker:
    told: dict[str, Any] = field(default_factory=dict)


@contextmanager
def _worker(socket_dir: Path, clock: Path) -> Iterator[_Worker]:
    """Run the worker; what it did is there when it has ended."""
    words = ["-m", "bench.sustained_worker", str(socket_dir), str(clock)]
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE)
    made = _Worker()
    try:
        yield made
    finally:
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=300)
    if process.returncode:
        raise RuntimeError(f"the worker ended with code {process.returncode}")
    made.told |= json.loads(out)


def _check(on: Stand, acknowledged: int, sent: int) -> None:
    """Raise RuntimeError unless the tables hold the rows that were acknowledged: none less, none twice."""
    with on.database.connect("admin") as connection:
        ((stored,),) = connection.execute("SELECT count(*) FROM device_samples").fetchall()
    if int(str(stored)) != acknowledged:
        raise RuntimeError(f"{stored} rows are stored, {acknowledged} of {sent} sent were acknowledged")


def _refuse_small_disk(bytes_needed: float) -> None:
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < bytes_needed:
        raise RuntimeError(
            f"{tempfile.gettempdir()} has {free / 2**30:.0f} GiB free, this needs {bytes_needed / 2**30:.0f}; set TMPDIR, "
            f"or a shorter WATTLEDGER_BENCH_SUSTAINED_S than {os.environ.get('WATTLEDGER_BENCH_SUSTAINED_S', DURATION_S)}"
        )
