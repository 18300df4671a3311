"""``--once``: reads for a while and shows what can be seen here, the first thing an operator runs. Sends and keeps nothing."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path
from typing import Final

import pynvml

from collector.clock import Clock
from collector.config import Settings
from collector.probe import Probe, Row, Sweep
from collector.probe.nvml import NvmlProbe
from collector.probe.replay import ReplayProbe
from collector.run import read_boot_id
from collector.sampler import Cadence, RowBuilder

DURATION_S: Final = 10.0
_HEADER: Final = (
    "device",
    "model",
    "power W",
    "min",
    "max",
    "energy J",
    "gpu %",
    "SM",
    "tensor",
    "DRAM",
    "memory GiB",
    "temp C",
)
_MW_PER_W: Final = 1_000
_MJ_PER_J: Final = 1_000
_BYTES_PER_GIB: Final = 2**30


def read_once(settings: Settings, clock: Clock, stop: threading.Event, *, replay: Path | None) -> tuple[str, bool]:
    """Read for ten seconds; return the table and whether any device answered."""
    probe: Probe
    if replay is not None:
        probe = ReplayProbe(replay, clock, boot_id=f"replay-{uuid.uuid4()}")
    else:
        probe = NvmlProbe(clock, boot_id=read_boot_id(), driver_epoch=0, gpm=settings.gpm)
    period_us = settings.sample_us
    # One row for the whole time: its length is a multiple of the period far beyond it, so that only flush ends it.
    builder = RowBuilder(period_us=period_us, row_us=period_us * 1_000_000)
    cadence = Cadence(period_us, clock.now())
    until_us = clock.now().monotonic_us + round(DURATION_S * 1_000_000)
    sweep: Sweep | None = None
    first_mj: dict[int, int | float] = {}
    remarks: list[str] = []
    last_due_us = 0
    while not stop.is_set() and clock.now().monotonic_us < until_us:
        clock.wait(cadence.wait_s(clock.now()))
        tick = cadence.reached(clock.now())
        if tick is None or tick.clock_step_us:
            continue
        sweep = probe.read()
        builder.add(tick.due_us, sweep.readings)
        last_due_us = tick.due_us
        for reading in sweep.readings:
            if reading.values.get("energy_mj") is not None:
                first_mj.setdefault(reading.device, reading.values["energy_mj"] or 0)
        remarks += [
            f"device {event.device}: {event.kind} {event.detail or event.code or ''}".rstrip() for event in sweep.events
        ]
    rows = builder.flush(last_due_us)
    probe.close()
    if sweep is None or not rows:
        why = getattr(probe, "unavailable_code", None)
        reason = f": {pynvml.NVMLError(why)}" if why is not None else ""
        return f"no device answered{reason}; is the driver loaded and may this user read it?", False
    lines = [_HEADER, *(_line(sweep, row, first_mj) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join(table + remarks), True


def _line(sweep: Sweep, row: Row, first_mj: dict[int, int | float]) -> tuple[str, ...]:
    position = int(row["device"] or 0)
    energy_mj = row.get("energy_mj")
    used_mj = energy_mj - first_mj[position] if isinstance(energy_mj, int) and position in first_mj else None
    return (
        sweep.devices[position].uuid,
        sweep.devices[position].model,
        _scaled(row.get("power_average_mw"), _MW_PER_W),
        _scaled(row.get("power_min_mw"), _MW_PER_W),
        _scaled(row.get("power_max_mw"), _MW_PER_W),
        _scaled(used_mj, _MJ_PER_J),
        _scaled(row.get("gpu_util_percent"), 1),
        _scaled(row.get("sm_active_ratio"), 1, places=2),
        _scaled(row.get("tensor_active_ratio"), 1, places=2),
        _scaled(row.get("dram_active_ratio"), 1, places=2),
        _scaled(row.get("memory_used_bytes"), _BYTES_PER_GIB, places=1),
        _scaled(row.get("temp_c"), 1),
    )


def _scaled(value: object, divisor: int, *, places: int = 0) -> str:
    return f"{value / divisor:.{places}f}" if isinstance(value, int | float) else "-"
