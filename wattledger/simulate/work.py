"""Which job holds each device at each reading, and what it asks of the device then. It knows no counters."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from wattledger.simulate import physics
from wattledger.simulate.jobs import Job, Profile
from wattledger.simulate.spec import US_PER_S, FleetSpec, Floats, Int64s

Array = npt.NDArray[Any]


class Table:
    """The jobs of a block as columns, so that the work of every cell is a gather. The last row is "no job"."""

    def __init__(self, jobs: list[Job]) -> None:
        profiles = [job.profile for job in jobs] + [Profile(0.0, 0.0, context_mw=0.0, memory_ratio=0.0, nvlink=0.0)]
        self.none = len(jobs)
        self.start_us = np.array([job.start_us for job in jobs] + [0], dtype=np.int64)
        self.held = np.array([1] * len(jobs) + [0], dtype=np.int16)
        self.load = _floats(profiles, "load")
        self.noise = _floats(profiles, "noise")
        self.diurnal = _floats(profiles, "diurnal")
        self.checkpoint_s = _floats(profiles, "checkpoint_s")
        self.context_mw = _floats(profiles, "context_mw")
        self.memory_ratio = _floats(profiles, "memory_ratio")
        self.nvlink = _floats(profiles, "nvlink")
        self.heat = _floats(profiles, "heat")
        self.limit_mw = _floats(profiles, "limit_mw")

    def work(self, holder: Array, at_us: Int64s, noise: Floats) -> physics.Work:
        """Return what each cell's holder asks of its device at the cell's reading."""
        since_s = ((at_us - self.start_us[holder]).clip(0) // 1000).astype(np.float32) / np.float32(1000)
        load = self.load[holder] + self.noise[holder] * noise
        day = ((at_us // US_PER_S) % 86_400).astype(np.float32) * np.float32(2 * np.pi / 86_400)
        load *= np.float32(1) + self.diurnal[holder] * np.sin(day - np.float32(np.pi / 2))
        every_s = self.checkpoint_s[holder]
        saving = (every_s > 0) & (np.fmod(since_s, np.maximum(every_s, np.float32(1))) < np.float32(30))
        load[saving] = np.float32(0.18)
        load *= (since_s / np.float32(90) + np.float32(0.25)).clip(0, 1)
        return physics.Work(
            load=load.clip(0, 1),
            context_mw=self.context_mw[holder],
            limit_mw=self.limit_mw[holder],
            heat=self.heat[holder] * (since_s / np.float32(600)).clip(0, 1),
        )


def _floats(profiles: list[Profile], name: str) -> Floats:
    return np.array([getattr(profile, name) for profile in profiles], dtype=np.float32)


def first_slot_at_or_after(spec: FleetSpec, node: int, at_us: int) -> int:
    """Return the slot whose interval contains the instant: its reading is the first at or after it."""
    return -((spec.start_at_us + int(spec.phases_us[node]) - at_us) // spec.cadence_us)


def runs(spec: FleetSpec, devices: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Return (node, first device, number of devices) for each node of a job; devices come in order, without holes in a node."""
    per_node: dict[int, list[int]] = {}
    for device in devices:
        per_node.setdefault(spec.node_of(device), []).append(device)
    return [(node, held[0], len(held)) for node, held in per_node.items()]


def holders(spec: FleetSpec, jobs: list[Job], at_us: Int64s, table: Table) -> Array:
    """Return which job (by position in the table) holds each device at each reading."""
    slots = at_us.shape[0]
    first = int((at_us[0, 0] - spec.phases_us[0] - spec.start_at_us) // spec.cadence_us)
    holder = np.full((slots, spec.devices), table.none, dtype=np.int32)
    for position, job in enumerate(jobs):
        for node, device, count in runs(spec, job.devices):
            begin = max(0, first_slot_at_or_after(spec, node, job.start_us) - first)
            end = min(slots, first_slot_at_or_after(spec, node, job.end_us) - first)
            if begin < end:
                holder[begin:end, device : device + count] = position
    return holder
