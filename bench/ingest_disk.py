"""ingest.disk: bytes a sample of sealed hours, of trace-driven data, everything in the files counted.

The rows go the way of the product: hot table, sealer, published segment. A sample is one measured value; ids, times, the row's
own bookkeeping, dictionary and footer are counted in the bytes and not as samples. The peer is VictoriaMetrics with the same
values after force_merge, its data alone (its index is told beside it).
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, Final

from bench import victoria
from bench.report import Result
from bench.stand import stand
from bench.trace_fleet import METRICS
from bench.trace_stand import HOUR, START_AT, TraceStand, furnish, size_of
from ingest.store.seal import Sealer, hour_of
from ingest.store.segments import Segments

TARGET_RATIO: Final = 1.0
GOAL_RATIO: Final = 0.8


def run() -> list[Result]:
    devices, hours = size_of("WATTLEDGER_BENCH_DISK_DEVICES", 1_000), size_of("WATTLEDGER_BENCH_DISK_HOURS", 1)
    with tempfile.TemporaryDirectory(prefix="wl-bench-disk-") as folder, stand() as on:
        loaded = furnish(on.database, devices, hours)
        ours, detail = _sealed(loaded, Path(folder) / "segments")
        peer = _peer(loaded, Path(folder) / "victoria", detail)
    detail |= {
        "devices": devices,
        "hours": hours,
        "goal_ratio": GOAL_RATIO,
        "data": "measured traces, rest synthesized",
    }
    met = peer is not None and ours <= TARGET_RATIO * peer
    return [Result("ingest.disk", ours, "B/sample", f"<= {TARGET_RATIO:g} x peer", met, peer, detail)]


def _sealed(loaded: TraceStand, folder: Path) -> tuple[float, dict[str, Any]]:
    sealer = Sealer(loaded.database, Segments.at(folder))
    began_s, cpu_s = time.perf_counter(), time.process_time()
    done = [sealer.seal(hour_of(1, START_AT + number * HOUR)) for number in range(loaded.hours)]
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    rows = sum(each.rows for each in done)
    size = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    detail: dict[str, Any] = {
        "samples": rows * len(METRICS),
        "bytes": size,
        "bytes_per_row": round(size / rows, 2),
        "seal_rows_per_s": round(rows / wall_s),
        "seal_cpu_us_per_row": round(cpu_s * 1e6 / rows, 2),
    }
    return size / (rows * len(METRICS)), detail


def _peer(loaded: TraceStand, folder: Path, detail: dict[str, Any]) -> float | None:
    if not victoria.is_installed():
        detail["peer"] = victoria.MISSING
        return None
    with loaded.database.connect("admin") as connection:
        uuids = {int(str(device)): str(uuid) for device, uuid in connection.execute("SELECT id, uuid FROM devices")}
    with victoria.victoria(folder) as server:
        samples = server.load(
            loaded.rows, METRICS, lambda device: {"gpu": uuids[device], "node": f"node-{(device - 1) // 8 + 1}"}
        )
        server.merge()
    # After its end: what it holds in memory while running is on the disk then.
    data, index = (
        sum(f.stat().st_size for f in (folder / part).rglob("*") if f.is_file()) for part in ("data", "indexdb")
    )
    detail |= {
        "peer": "VictoriaMetrics after force_merge",
        "peer_bytes": data,
        "peer_index_bytes": index,
        "peer_b_per_sample_with_index": round((data + index) / samples, 4),
    }
    return data / samples
