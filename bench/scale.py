"""scale: what 10 x and 100 x devices and 10 x history cost, a row, a device-hour and a question; drawn into docs/scaling.md.

Each size has a stand of its own: a trace-driven fleet's hours go the product's way, from bodies of eight devices to hot rows,
closed books and sealed files, and are asked for energy by tenant. Costs are processor time where they can be. Small sizes
(WATTLEDGER_BENCH_SCALE=small) are for a look: they are drawn into build/ and leave the docs as they are.
"""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import polars as pl
import uvloop

from analytics.io.rollups import energy_by_tenant
from analytics.jobs import HourCloser, WorkerSettings
from bench import load, scale_page
from bench.bodies import DEVICES, Node
from bench.cpu import Spent
from bench.report import Result, machine
from bench.stand import Stand, agent_tokens, ingest_process, stand
from bench.trace_bodies import native, node_rows
from bench.trace_fleet import Traces
from bench.trace_stand import HOUR, TENANTS, shared_folder
from ingest.store.samples import samples
from ingest.store.seal import Sealer, hour_of
from ingest.store.segments import Segments

MAX_GROWTH: Final = 1.25
"""Of the cost of one row, device-hour or answer, from one size to the next ten times as large: room for scatter, and for no square.
Also of the last third of a stand's hours against its first: what other work the machine does meanwhile meets both alike."""
_PER_BODY: Final = 60
_INSTANTS_AN_HOUR: Final = 360
_ROUNDS: Final = 5
_SIZES: Final = {
    "full": {"devices": ((104, 1), (1_000, 1), (10_000, 1)), "hours": ((1_000, 1), (1_000, 10))},
    "small": {"devices": ((8, 1), (80, 1), (800, 1)), "hours": ((80, 1), (80, 10))},
}
"""By axis: (devices, hours). 104 devices are 13 nodes; one of twelve and a half cannot be."""
_HOT_BYTES: Final = (
    "SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = 'device_samples'::regclass"
)
_WORK: Final = """
INSERT INTO tenants (path) SELECT 'bench/t' || n FROM generate_series(1, {tenants}) AS n;
INSERT INTO bindings (position, tenant_id, account, valid_from)
    SELECT id, id, path, '{start}'::timestamptz - interval '1 day' FROM tenants WHERE path LIKE 'bench/t%';
INSERT INTO jobs (site_id, cluster, native_id, started_at, ended_at, account, origin, source)
    SELECT site_id, 'c1', id::text, '{start}', '{end}', 'bench/t' || id % {tenants} + 1, 3, 'agent' FROM nodes;
INSERT INTO allocations (job_id, site_id, device_id, start_at, end_at, evidence)
    SELECT jobs.id, jobs.site_id, device_id, '{start}', '{end}', 'cgroup'
    FROM placements JOIN jobs ON jobs.native_id = node_id::text WHERE superseded_at IS NULL;
"""


@dataclass(frozen=True, slots=True)
class Point:
    """What one size cost."""

    devices: int
    hours: int
    rows: int
    join_cpu_ms: float
    """Of a node that sends for the first time, ingest and PostgreSQL."""
    ingest_us: float
    """CPU of the ingest process, a row."""
    postgres_us: float
    hot_bytes: float
    """A row, with indexes."""
    sealed_bytes: float
    close_cpu_ms: float
    """Of one device-hour, worker and PostgreSQL."""
    seal_us: float
    rollup_ms: float
    """Energy by tenant and minute of all hours, from minute rollups: the median of some."""
    raw_ms: float
    """Energy by device of all hours, from sealed files."""
    by_hour_us: list[float]
    """CPU of ingest and PostgreSQL, a row, of one hour of history after the other; a checkpoint is in none of them."""
    load_average: float
    """Of the machine, when taking in was over: much more than its processors would say that others measured with us."""
    took_s: float

    @property
    def device_hours(self) -> int:
        return self.devices * self.hours

    @property
    def trend(self) -> float | None:
        """What a row of the last third of the hours cost, as a part of what one of the first third did; None = too few."""
        third = len(self.by_hour_us) // 3
        if not third:
            return None
        return sum(self.by_hour_us[-third:]) / sum(self.by_hour_us[:third])


def run() -> list[Result]:
    which = os.environ.get("WATTLEDGER_BENCH_SCALE", "full")
    if which not in _SIZES:
        raise ValueError(f"WATTLEDGER_BENCH_SCALE must be {' or '.join(_SIZES)}, got {which!r}")
    traces = Traces.read(shared_folder())
    measured: dict[tuple[int, int], Point] = {}
    axes: dict[str, list[Point]] = {}
    for axis, sizes in _SIZES[which].items():
        for size in sizes:
            if size not in measured:
                measured[size] = _point(traces, *size)
        axes[axis] = [measured[size] for size in sizes]
    folder = Path("docs") if which == "full" else Path("build/scaling")
    scale_page.write(folder, axes, machine(), datetime.now(UTC))
    results = [result for axis, points in axes.items() for result in _results(axis, points)]
    return [*results, *(_trend(point) for point in axes["hours"] if point.trend is not None)]


def _trend(point: Point) -> Result:
    value = round(point.trend or 0.0, 3)
    detail = {"by_hour_us": point.by_hour_us, "load_average": point.load_average}
    target = f"<= {MAX_GROWTH:g} x the first third's cost of a row"
    return Result("scale.hours.trend", value, "ratio", target, value <= MAX_GROWTH, 1.0, detail)


def _results(axis: str, points: Sequence[Point]) -> list[Result]:
    detail = {
        "points": [asdict(point) for point in points],
        "data": "simulated fleet: measured traces, rest synthesized",
    }
    results = []
    for name, (unit, cost) in scale_page.COSTS.items():
        costs = [cost(point) for point in points]
        steps = [after / before for before, after in pairwise(costs)]
        target = f"<= {MAX_GROWTH:g} x the size a tenth as large"
        results.append(
            Result(
                f"scale.{axis}.{name}", costs[-1], unit, target, max(steps) <= MAX_GROWTH, costs[-2],
                {**detail, "costs": costs, "steps": [round(step, 3) for step in steps]},
            )
        )  # fmt: skip
    return results


def _point(traces: Traces, devices: int, hours: int) -> Point:
    began_s = time.perf_counter()
    start_at = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=hours + 2)
    with tempfile.TemporaryDirectory(prefix="wl-bench-scale-") as folder, stand() as on:
        facts = _taken_in(on, traces, devices, hours, start_at)
        facts |= _closed(on, devices, hours, start_at)
        facts |= _sealed(on, hours, start_at, Segments.at(Path(folder)), Path(folder), int(facts["rows"]))
    gc.collect()
    return Point(devices, hours, took_s=round(time.perf_counter() - began_s, 1), **facts)


def _taken_in(on: Stand, traces: Traces, devices: int, hours: int, start_at: datetime) -> dict[str, Any]:
    nodes = [Node(number) for number in range(devices // DEVICES)]
    tokens = agent_tokens(on.database, [node.name for node in nodes])
    first_us = int(start_at.timestamp()) * 1_000_000
    fleet = node_rows(traces, len(nodes), hours * _INSTANTS_AN_HOUR, first_us)
    bodies = [list(native(node, rows, _PER_BODY)) for node, rows in zip(nodes, fleet, strict=True)]
    rows, joined_rows = devices * hours * _INSTANTS_AN_HOUR, devices * _PER_BODY
    with ingest_process(on) as pid:
        joining, steady, hourly = Spent(on, pid), Spent(on, pid), list[Spent]()

        async def main() -> list[load.Answered]:
            connections = await load.connect(on.port, [tokens[node.name] for node in nodes])
            with joining.during():
                answers = await load.flat_out(connections, [queue[:1] for queue in bodies])
            for number in range(hours):
                hourly.append(Spent(on, pid))
                with steady.during(), hourly[-1].during():
                    answers += await load.flat_out(connections, [_of_hour(queue, number) for queue in bodies])
            with steady.during(), on.database.connect("admin", autocommit=True) as connection:
                connection.execute("CHECKPOINT")
            for connection_ in connections:
                connection_.close()
            return answers

        failed = [answer for answer in uvloop.run(main()) if answer.status != 200]
    if failed:
        raise RuntimeError(f"{len(failed)} bodies not committed, first: {failed[0].status} {failed[0].body[:200]!r}")
    with on.database.connect("admin", autocommit=True) as connection:
        end_at = start_at + hours * HOUR
        connection.execute(_WORK.format(tenants=TENANTS, start=start_at.isoformat(), end=end_at.isoformat()).encode())
        connection.execute("VACUUM ANALYZE")  # as autovacuum does meanwhile
        ((hot,),) = connection.execute(_HOT_BYTES).fetchall()
    per_row = steady.us_per_row(rows - joined_rows)
    first = joining.us_per_row(joined_rows)
    more_us = sum(first[name] - per_row[name] for name in ("ingest", "postgres"))
    return {
        "rows": rows,
        "join_cpu_ms": round(max(0.001, more_us * joined_rows / len(nodes) / 1_000), 3),
        "ingest_us": per_row["ingest"],
        "postgres_us": per_row["postgres"],
        "hot_bytes": round(int(str(hot)) / rows, 1),
        "by_hour_us": [
            _us(spent, len(_of_hour(bodies[0], number)) * joined_rows) for number, spent in enumerate(hourly)
        ],
        "load_average": round(os.getloadavg()[0], 1),
    }


def _of_hour(queue: list[bytes], number: int) -> list[bytes]:
    """Return a node's bodies of one of its hours, without the first of all, by which it joined."""
    an_hour = _INSTANTS_AN_HOUR // _PER_BODY
    return queue[max(1, number * an_hour) : (number + 1) * an_hour]


def _us(spent: Spent, rows: int) -> float:
    per_row = spent.us_per_row(rows)
    return round(per_row["ingest"] + per_row["postgres"], 3)


def _closed(on: Stand, devices: int, hours: int, start_at: datetime) -> dict[str, Any]:
    closer, spent = HourCloser(on.database, WorkerSettings(code_version="bench")), Spent(on, None)
    with spent.during():
        done = closer.run(start_at + (hours + 1) * HOUR)
    if done.failed or done.closed < hours:
        raise RuntimeError(f"not all of {hours} hours were closed: {done}")
    return {"close_cpu_ms": round(sum(spent.by_process_s.values()) * 1e3 / (devices * hours), 4)}


def _sealed(on: Stand, hours: int, start_at: datetime, segments: Segments, folder: Path, rows: int) -> dict[str, Any]:
    sealer, spent = Sealer(on.database, segments), Spent(on, None)
    with spent.during():
        made = sum(sealer.seal(hour_of(1, start_at + number * HOUR)).rows for number in range(hours))
    if made != rows:
        raise RuntimeError(f"{made} rows were sealed, {rows} were sent")
    end_at = start_at + hours * HOUR
    with on.database.connect("admin", autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
        rollup_ms = _median_ms(lambda: energy_by_tenant(connection, start_at, end_at))
    span = pl.col("energy_mj").max() - pl.col("energy_mj").min()
    raw_ms = _median_ms(
        lambda: (
            samples(on.database, start_at, end_at, ["energy_mj"], segments=segments)
            .group_by("device_id")
            .agg(span)
            .collect()
        )
    )
    size = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    return {
        "seal_us": round(sum(spent.by_process_s.values()) * 1e6 / rows, 3),
        "sealed_bytes": round(size / rows, 2),
        "rollup_ms": rollup_ms,
        "raw_ms": raw_ms,
    }


def _median_ms(ask: Callable[[], object]) -> float:
    times = []
    for _ in range(_ROUNDS + 1):
        began_s = time.perf_counter()
        ask()
        times.append((time.perf_counter() - began_s) * 1e3)
    return round(statistics.median(times[1:]), 2)
