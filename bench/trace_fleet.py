"""A fleet's device rows driven by published traces: what the storage benchmarks seal and what their peer is given.

Measured: the course of node power (MLPerf training, 8 x H100, every 2 s), the scatter of a board's power sensor (nvidia-smi on
an A100, every 13 ms), utilization, memory and temperature of a serving card (vLLM, every 0.5 s). Synthesized, because nobody
publishes it: a node's power is split over its boards with a factor and the sensor's scatter for each; clocks, activity and the
traffic and throttle counters follow load by plain rules; error counters stand still, as they do. One row is ten seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from collector.wire import Stream
from ingest.store.sample_tables import TARGETS

Array = npt.NDArray[Any]
CADENCE_S: Final = 10
_READINGS: Final = 5
"""Trace points of two seconds in a row of ten."""
_IN_BOARDS: Final = 0.78
"""Share of a node's wall power that its boards draw under load."""
_NOT_A_METRIC: Final = {"at", "device_id", "epoch_id", "reading", "span_us", "samples", "samples_missed"}
METRICS: Final = tuple(
    name
    for name in TARGETS[Stream.DEVICE].schema
    if name not in _NOT_A_METRIC
    # What an H100 leaves empty or an agent seldom fills: the peer has no such series either.
    and name not in {"encoder_util_percent", "decoder_util_percent", "memory_temp_c", "throttle_sync_boost_ns"}
)
"""Columns with a value in every row; each value is one sample."""


@dataclass(frozen=True, slots=True)
class Traces:
    """The published series, as arrays."""

    node_w: list[Array]
    scatter_w: Array
    serving: Array
    """Rows of (utilization %, temperature C, memory MiB), two seconds apart."""

    @classmethod
    def read(cls, shared: Path) -> Traces:
        """Read them from the folder of the shared data sets."""
        data = shared / "data"
        power = pl.read_parquet(data / "gpu-power" / "mlperf_train_h100_node_power_2s.parquet")
        nodes = power.filter((pl.col("meter") == "ac") & (pl.col("watts") > 500)).partition_by(
            "run", "node", maintain_order=True
        )
        smi = pl.read_csv(data / "nvidia-smi" / "A100_TR_nvidia-smi.csv")
        watts = smi[" power.draw [W]"].str.strip_chars().cast(pl.Float64).to_numpy()
        scatter = np.diff(watts)
        serving = pl.read_parquet(data / "llm-traces" / "vllm_bench_gpu_0.5s.parquet").gather_every(4)
        return cls(
            [node.sort("ts_ms")["watts"].to_numpy() for node in nodes if node.height > 300],
            scatter[np.abs(scatter) < 40],
            serving.select("GPU_utilization", "GPU_temperature", "GPU_used_mem").to_numpy(),
        )


def fleet_rows(traces: Traces, devices: int, rows: int, start_us: int, *, seed: int = 1) -> pl.DataFrame:
    """Return ``rows`` consecutive rows of each device (ids from 1, eight to a node and epoch), by device and time.

    Of eight nodes five train, two serve and one idles. Columns are those of ``device_samples``.
    """
    nodes = [_node(traces, number, rows, seed) for number in range(-(-devices // 8))]
    columns = {name: np.concatenate([node[name] for node in nodes])[: devices * rows] for name in nodes[0]}
    at_us = start_us + (np.arange(rows, dtype=np.int64) + 1) * CADENCE_S * 1_000_000
    of_device = np.repeat(np.arange(devices), rows)
    fixed = {
        "at": np.tile(at_us, devices),
        "device_id": of_device + 1,
        "epoch_id": of_device // 8 + 1,
        "reading": np.zeros(devices * rows),
        "span_us": np.full(devices * rows, CADENCE_S * 1_000_000),
        "samples": np.full(devices * rows, CADENCE_S),
        "samples_missed": np.zeros(devices * rows),
    }
    schema = TARGETS[Stream.DEVICE].schema
    given = fixed | columns
    return pl.DataFrame(
        [
            pl.Series(name, given[name]).cast(kind)
            if name in given
            else pl.Series(name, [None], kind).new_from_index(0, devices * rows)
            for name, kind in schema.items()
        ]
    )


def _node(traces: Traces, number: int, rows: int, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng([seed, number])
    points = rows * _READINGS
    kind = number % 8
    shape = (8, points)
    serving = np.zeros((points, 3))
    if kind < 5:
        node_w = _tiled(traces.node_w, points, rng)
        board_w = node_w[None, :] / 8 * _IN_BOARDS * rng.normal(1, 0.02, (8, 1))
    elif kind < 7:
        start = int(rng.integers(len(traces.serving)))
        serving = np.take(traces.serving, np.arange(start, start + points), axis=0, mode="wrap")
        board_w = 110 + np.stack([np.roll(serving[:, 0], 7 * board) for board in range(8)]) * 3.9
    else:
        board_w = np.full(shape, 1.0) * rng.normal(72, 2, (8, 1))
    scale = np.clip(board_w / 400, 0.02, 1)
    board_w = np.clip(board_w + traces.scatter_w[rng.integers(len(traces.scatter_w), size=shape)] * scale, 40, 699)
    power_mw = np.rint(board_w * 1_000).astype(np.int64)
    by_row = power_mw.reshape(8, rows, _READINGS)
    load = np.clip((by_row.mean(axis=2) / 1_000 - 75) / 600, 0, 1)
    idle = load < 0.01
    per_s = np.clip(load + rng.normal(0, 0.004, load.shape), 0, 1) * ~idle
    ns = np.int64(CADENCE_S * 1_000_000_000)
    capped = np.clip((load - 0.93) * 14, 0, 1)
    util = serving.reshape(rows, _READINGS, 3)[:, :, 0].mean(axis=1) if 5 <= kind < 7 else None
    gpu_util = np.where(idle, 0, np.clip(97 + 3 * load, 0, 100)) if util is None else np.tile(util, (8, 1))
    temp = (
        28 + load * 38 + rng.normal(0, 0.3, (8, 1))
        if util is None
        else np.tile(serving.reshape(rows, _READINGS, 3)[:, -1, 1], (8, 1))
    )
    memory = np.where(idle, 600_000_000, 71_000_000_000 + 2**21 * (np.arange(8)[:, None] * 37 % 11))
    if util is not None:
        memory = np.tile(serving.reshape(rows, _READINGS, 3)[:, -1, 2] * 2**20, (8, 1))
    clock = np.where(idle, 345, 1980 - np.rint(capped * 20) * 15)
    clock = np.where(load > 0.5, clock - np.rint(np.abs(rng.normal(0, 1.2, load.shape))) * 15, clock)

    def counter(step: Array) -> Array:
        return np.cumsum(step.astype(np.int64), axis=1) + rng.integers(10**6, 10**12, (8, 1))

    # Millijoules of ten seconds: each of five readings holds for two.
    columns = {
        "energy_mj": counter(by_row.sum(axis=2) * 2),
        "power_average_mw": by_row.mean(axis=2),
        "power_min_mw": by_row.min(axis=2),
        "power_max_mw": by_row.max(axis=2),
        "power_instant_mw": by_row[:, :, -1],
        "power_limit_mw": np.full((8, rows), 700_000),
        "gpu_util_percent": gpu_util,
        "memory_util_percent": gpu_util * 0.5,
        "sm_active_ratio": per_s * 0.84,
        "tensor_active_ratio": per_s * 0.46,
        "dram_active_ratio": per_s * 0.5,
        "memory_used_bytes": memory,
        "temp_c": temp,
        "sm_clock_mhz": clock,
        "memory_clock_mhz": np.full((8, rows), 2_619),
        "pstate": np.zeros((8, rows)),
        "clocks_event_reasons": np.where(idle, 1, np.where(capped > 0.02, 4, 0)),
        "throttle_power_cap_ns": counter(capped * ns),
        "throttle_sw_thermal_ns": np.zeros((8, rows)),
        "throttle_hw_thermal_ns": np.zeros((8, rows)),
        "throttle_power_brake_ns": np.zeros((8, rows)),
        "pcie_tx_bytes": counter(per_s * 1.8e10),
        "pcie_rx_bytes": counter(per_s * 1.3e10),
        "pcie_replays": np.zeros((8, rows)),
        "nvlink_tx_kib": counter(per_s * 6.0e8 * (kind < 5)),
        "nvlink_rx_kib": counter(per_s * 6.0e8 * (kind < 5)),
        "nvlink_errors": np.zeros((8, rows)),
        "ecc_corrected": np.zeros((8, rows)),
        "ecc_uncorrected": np.zeros((8, rows)),
        "processes": np.where(idle, 0, 1),
    }
    # Six places, as dcgm-exporter prints what the profiling counters say.
    return {
        name: (np.rint(values * 1_000_000) / 1_000_000 if name.endswith("_ratio") else np.rint(values)).reshape(-1)
        for name, values in columns.items()
    }


def _tiled(series: list[Array], points: int, rng: np.random.Generator) -> Array:
    """Return so many points of real nodes' power, one run after the other."""
    parts: list[Array] = []
    have = 0
    while have < points:
        part = series[int(rng.integers(len(series)))]
        start = int(rng.integers(max(1, len(part) // 2))) if not parts else 0
        parts.append(part[start:])
        have += len(part) - start
    return np.concatenate(parts)[:points]
