"""One hour of the whole fleet as arrays: every periodic row and every exact reading, counters carried from hour to hour.

Between two readings of a device (periodic or at an event) its power is constant, so the true counter and the interpolated
counter of the books are the same function. Counters are summed in integer nanojoules (milliwatts x microseconds) and read
in whole millijoules. A block is a pure function of the spec and the block before.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from collector.wire import Reading
from wattledger.simulate import physics
from wattledger.simulate.jobs import Job, Schedule
from wattledger.simulate.plants import Plant, Reset, plants_between, resets_of_day
from wattledger.simulate.seeds import rng
from wattledger.simulate.spec import (
    BLOCK_US,
    DAY_US,
    MEMORY_BYTES,
    NOISE_DRAW,
    FleetSpec,
    Floats,
    Int64s,
    PlantKind,
)
from wattledger.simulate.work import Array, Table, first_slot_at_or_after, holders, runs

NJ_PER_MJ: Final = 1_000_000
COUNTERS: Final = (
    "throttle_power_cap_ns",
    "throttle_sw_thermal_ns",
    "pcie_tx_bytes",
    "pcie_rx_bytes",
    "nvlink_tx_kib",
    "nvlink_rx_kib",
)
"""Cumulative columns beside the energy counter; all begin at zero with the driver."""


@dataclass(frozen=True, slots=True)
class Carry:
    """What one block hands to the next, per device: counters at its last reading and the temperature then."""

    energy_mj: Int64s
    rest_nj: Int64s
    counters: Int64s
    temp_c: Floats


@dataclass(frozen=True, slots=True)
class Event:
    """One exact reading: a job begins or ends on a device, or something befalls the device. Null energy = unreadable."""

    at_us: int
    slot: int
    device: int
    reading: Reading
    energy_mj: int | None
    job: Job | None = None
    kind: str | None = None
    code: int | None = None
    power_mw: int | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """One hour of the fleet. Slots count from the start of the fleet; arrays are slot x device unless said otherwise.

    ``at_us`` is slot x node. Rows where ``valid`` is false were never taken: agent silent, driver down, device lost.
    """

    first_slot: int
    at_us: Int64s
    columns: dict[str, Array]
    valid: npt.NDArray[np.bool_]
    node_power_mw: Int64s
    events: dict[int, list[Event]]
    resets: tuple[Reset, ...]


class Blocks:
    """The blocks of one fleet: makes each from the one before, keeps a few, and the carries needed to go on."""

    def __init__(self, spec: FleetSpec, schedule: Schedule) -> None:
        """Start at the beginning of the fleet."""
        self._spec = spec
        self._schedule = schedule
        # A block takes 150 bytes a cell: half a gigabyte for 10,000 devices. Late batches want an old one now and then.
        self._keep = 4 if spec.devices <= 2048 else 1
        self._made: OrderedDict[int, Block] = OrderedDict()
        traits = spec.traits
        zeros = np.zeros(spec.devices, dtype=np.int64)
        first = Carry(
            traits.first_energy_mj,
            zeros,
            np.zeros((len(COUNTERS), spec.devices), dtype=np.int64),
            physics.steady_temperature(traits.idle_mw, traits.inlet_c),
        )
        self._carries = {0: first}

    def get(self, number: int) -> Block:
        """Return a block; making one far ahead makes those between."""
        if number < 0:
            raise ValueError(f"block {number} lies before the fleet began")
        found = self._made.get(number)
        if found is not None:
            self._made.move_to_end(number)
            return found
        known = max(block for block in self._carries if block <= number)
        for block in range(known, number + 1):
            made, carry = make_block(self._spec, self._schedule, block, self._carries[block])
            self._carries[block + 1] = carry
            self._forget(block)
        self._made[number] = made
        while len(self._made) > self._keep:
            self._made.popitem(last=False)
        return made

    def _forget(self, block: int) -> None:
        # A carry for each day and for the last few hours: going back costs at most a day's making, memory stays flat.
        old = block - 6
        if old % 24 and old > 0:
            self._carries.pop(old, None)


def make_block(spec: FleetSpec, schedule: Schedule, number: int, carry: Carry) -> tuple[Block, Carry]:
    """Make one hour from the state at its beginning; return it and the state at its end."""
    slots = spec.slots_per_block
    first_slot = number * slots
    starts = spec.start_at_us + (first_slot + np.arange(slots, dtype=np.int64)) * spec.cadence_us
    at_us = starts[:, None] + spec.phases_us[None, :]
    # An event up to one cadence before the block lies in the interval that its first reading ends.
    jobs = schedule.overlapping(number) if number == 0 else _both(schedule, number)
    table = Table(jobs)
    at_device = np.repeat(at_us, spec.devices_per_node, axis=1)
    holder = holders(spec, jobs, at_us, table)
    noise = rng(spec.seed, NOISE_DRAW, number).standard_normal((slots, spec.devices), dtype=np.float32)
    traits = spec.traits
    work = table.work(holder, at_device, noise)
    answer = physics.answer(work, traits.idle_mw, traits.efficiency, noise)

    spent_nj = answer.power_mw * spec.cadence_us
    pending = _job_events(spec, number, jobs, table, noise, answer.power_mw, spent_nj)
    average_mw = spent_nj // spec.cadence_us
    total_nj = np.cumsum(spent_nj, axis=0)
    total_nj += carry.rest_nj
    steps = _counter_steps(spec, table, holder, work, answer)
    totals = np.cumsum(steps, axis=1)
    totals += carry.counters[:, None, :]
    base_mj = np.broadcast_to(carry.energy_mj, total_nj.shape)
    resets = tuple(
        reset for reset in _resets(spec, number) if first_slot <= _slot_after(spec, reset) < first_slot + slots
    )
    if resets:
        base_mj = base_mj.copy()
    for reset in resets:
        _restart(spec, reset, first_slot, at_us, answer.power_mw, (total_nj, spent_nj, base_mj, totals, steps))
    energy_mj = base_mj + total_nj // NJ_PER_MJ

    plants = plants_between(spec, spec.block_start_us(number) - spec.cadence_us, spec.block_start_us(number + 1))
    valid = _valid(spec, plants, _resets(spec, number), at_us)
    temp_c, temp_last = physics.temperatures(answer.power_mw, work.heat, traits.inlet_c, carry.temp_c, spec.cadence_s)
    events = _events(spec, pending, spent_nj, total_nj, base_mj, first_slot)
    for event in _device_events(spec, plants, resets):
        if first_slot <= event.slot < first_slot + slots:
            events.setdefault(spec.node_of(event.device), []).append(event)
    for found in events.values():
        found.sort(key=lambda event: (event.at_us, event.device))
    columns = _columns(table, holder, work, answer, average_mw, noise, temp_c)
    columns["energy_mj"] = energy_mj
    columns.update(zip(COUNTERS, totals, strict=True))
    per_node = answer.power_mw.reshape(slots, spec.nodes, spec.devices_per_node).sum(axis=2)
    block = Block(
        first_slot=first_slot,
        at_us=at_us,
        columns=columns,
        valid=valid,
        node_power_mw=1_150_000 + per_node * 106 // 100,
        events=events,
        resets=resets,
    )
    after = Carry(base_mj[-1] + total_nj[-1] // NJ_PER_MJ, total_nj[-1] % NJ_PER_MJ, totals[:, -1, :].copy(), temp_last)
    return block, after


def _both(schedule: Schedule, number: int) -> list[Job]:
    jobs = {job.native_id: job for block in (number - 1, number) for job in schedule.overlapping(block)}
    return list(jobs.values())


@dataclass(frozen=True, slots=True)
class _Pending:
    """A job event whose reading is not known yet: power before it, and how far into its interval it is."""

    at_us: int
    slot: int
    device: int
    job: Job
    reading: Reading
    before_nj: int
    power_mw: int


def _job_events(
    spec: FleetSpec, number: int, jobs: list[Job], table: Table, noise: Floats, power_mw: Int64s, spent_nj: Int64s
) -> list[_Pending]:
    """Find the events in the block's intervals, and cut those intervals' energy in ``spent_nj`` at them."""
    slots = spec.slots_per_block
    first_slot = number * slots
    found: list[tuple[int, int, int, Job, Reading, int]] = []
    for position, job in enumerate(jobs):
        sides = ((job.start_us, Reading.ALLOCATION_START, table.none), (job.end_us, Reading.ALLOCATION_END, position))
        for at_us, reading, before in sides:
            if not -BLOCK_US < at_us - spec.block_start_us(number) < BLOCK_US:
                continue
            for node, device, count in runs(spec, job.devices):
                slot = first_slot_at_or_after(spec, node, at_us)
                if first_slot <= slot < first_slot + slots:
                    found += [(at_us, slot, device + index, job, reading, before) for index in range(count)]
    if not found:
        return []
    instants = np.array([entry[0] for entry in found], dtype=np.int64)
    at_slots = np.array([entry[1] for entry in found], dtype=np.int64)
    devices = np.array([entry[2] for entry in found], dtype=np.int64)
    holder = np.array([entry[5] for entry in found], dtype=np.int32)
    cells = (at_slots - first_slot, devices)
    ends = spec.start_at_us + at_slots * spec.cadence_us + spec.phases_us[devices // spec.devices_per_node]
    traits = spec.traits
    work = table.work(holder, instants, noise[cells])
    power = physics.answer(work, traits.idle_mw[devices], traits.efficiency[devices], noise[cells]).power_mw
    before_nj = power * (instants - (ends - spec.cadence_us))
    spent_nj[cells] = before_nj + power_mw[cells] * (ends - instants)
    return [
        _Pending(*entry[:5], before_nj=energy, power_mw=watts)
        for entry, energy, watts in zip(found, before_nj.tolist(), power.tolist(), strict=True)
    ]


def _events(
    spec: FleetSpec, pending: list[_Pending], spent_nj: Int64s, total_nj: Int64s, base_mj: Int64s, first_slot: int
) -> dict[int, list[Event]]:
    """Return the readings at job events per node, now that the counter before each interval is known."""
    events: dict[int, list[Event]] = {}
    for entry in pending:
        cell = (entry.slot - first_slot, entry.device)
        reading_nj = int(total_nj[cell]) - int(spent_nj[cell]) + entry.before_nj
        lost = entry.job.lost_device == entry.device and entry.reading is Reading.ALLOCATION_END
        event = Event(
            at_us=entry.at_us,
            slot=entry.slot,
            device=entry.device,
            reading=entry.reading,
            energy_mj=None if lost else int(base_mj[cell]) + reading_nj // NJ_PER_MJ,
            job=entry.job,
            power_mw=entry.power_mw,
        )
        events.setdefault(spec.node_of(entry.device), []).append(event)
    return events


def _counter_steps(spec: FleetSpec, table: Table, holder: Array, work: physics.Work, answer: physics.Answer) -> Int64s:
    ns = np.float32(spec.cadence_s * 1e9)
    pcie = work.load * np.float32(physics.PCIE_BYTES_PER_S * spec.cadence_s)
    nvlink = work.load * table.nvlink[holder] * np.float32(physics.NVLINK_KIB_PER_S * spec.cadence_s)
    parts = (answer.cap_ratio * ns, answer.thermal_ratio * ns, pcie, pcie * np.float32(0.7), nvlink, nvlink)
    return np.stack([part.astype(np.int64) for part in parts])


def _columns(
    table: Table,
    holder: Array,
    work: physics.Work,
    answer: physics.Answer,
    average_mw: Int64s,
    noise: Floats,
    temp_c: Floats,
) -> dict[str, Array]:
    average = average_mw.astype(np.int32)
    spread = (average * (np.float32(0.01) + np.float32(0.008) * np.abs(noise))).astype(np.int32)
    limit = work.limit_mw.astype(np.int32)
    load = work.load
    held = table.held[holder]
    reasons = np.where(load < np.float32(0.005), physics.REASON_IDLE, 0).astype(np.int64)
    reasons |= np.where(answer.cap_ratio > np.float32(0.02), physics.REASON_POWER_CAP, 0)
    reasons |= np.where(answer.thermal_ratio > np.float32(0.02), physics.REASON_SW_THERMAL, 0)
    percent = (load * np.float32(108)).clip(0, 100)
    return {
        "power_average_mw": average,
        "power_min_mw": average - spread,
        "power_max_mw": np.minimum(average + spread, limit),
        "power_instant_mw": answer.power_mw.astype(np.int32),
        "power_limit_mw": limit,
        "gpu_util_percent": percent.astype(np.int16),
        "memory_util_percent": (percent * np.float32(0.55)).astype(np.int16),
        "sm_active_ratio": load * np.float32(0.84),
        "tensor_active_ratio": load * np.float32(0.46),
        "dram_active_ratio": load * np.float32(0.5),
        "memory_used_bytes": 600_000_000
        + (table.memory_ratio[holder] * np.float32(MEMORY_BYTES * 0.97)).astype(np.int64),
        "temp_c": temp_c.astype(np.int16),
        "memory_temp_c": (temp_c * np.float32(1.08)).astype(np.int16),
        "sm_clock_mhz": answer.clock_mhz,
        "clocks_event_reasons": reasons,
        "processes": held,
    }


@lru_cache(maxsize=64)
def _resets(spec: FleetSpec, number: int) -> tuple[Reset, ...]:
    """Return the resets of the days around a block."""
    day = number * BLOCK_US // DAY_US
    return tuple(reset for near in (day - 1, day, day + 1) for reset in resets_of_day(spec, near))


def _slot_after(spec: FleetSpec, reset: Reset) -> int:
    return first_slot_at_or_after(spec, reset.node, reset.up_us)


def _restart(
    spec: FleetSpec,
    reset: Reset,
    first_slot: int,
    at_us: Int64s,
    power_mw: Int64s,
    sums: tuple[Int64s, Int64s, Int64s, Int64s, Int64s],
) -> None:
    """Let the node's counters begin again at zero at the instant the driver is up."""
    total_nj, spent_nj, base_mj, totals, steps = sums
    row = _slot_after(spec, reset) - first_slot
    devices = slice(reset.node * spec.devices_per_node, (reset.node + 1) * spec.devices_per_node)
    lived_us = int(at_us[row, reset.node]) - reset.up_us
    first_nj = power_mw[row, devices] * lived_us
    total_nj[row:, devices] -= total_nj[row, devices] - first_nj
    spent_nj[row, devices] = first_nj
    base_mj[row:, devices] = 0
    first_steps = steps[:, row, devices] * lived_us // spec.cadence_us
    totals[:, row:, devices] -= (totals[:, row, devices] - first_steps)[:, None, :]


def _valid(
    spec: FleetSpec, plants: tuple[Plant, ...], resets: tuple[Reset, ...], at_us: Int64s
) -> npt.NDArray[np.bool_]:
    valid = np.ones((at_us.shape[0], spec.devices), dtype=np.bool_)
    spans: list[tuple[int, int | None, int, int]] = [(reset.node, None, reset.down_us, reset.up_us) for reset in resets]
    for event in plants:
        if event.kind is PlantKind.SILENT_NODE:
            spans.append((event.nodes[0], None, event.start_us, event.end_us))
        elif event.kind is PlantKind.LOST_DEVICE:
            spans.append((event.nodes[0], event.device, event.start_us, event.end_us))
    for node, device, start_us, end_us in spans:
        gone = (at_us[:, node] >= start_us) & (at_us[:, node] < end_us)
        if device is None:
            valid[gone, node * spec.devices_per_node : (node + 1) * spec.devices_per_node] = False
        else:
            valid[gone, device] = False
    return valid


def _device_events(spec: FleetSpec, plants: tuple[Plant, ...], resets: tuple[Reset, ...]) -> list[Event]:
    """Return what befalls devices: loss with its XID, and the reload or reboot that restarts the counters."""
    found = []
    for event in plants:
        if event.kind is PlantKind.LOST_DEVICE and event.device is not None:
            slot = first_slot_at_or_after(spec, event.nodes[0], event.start_us)
            for kind, code in (("xid", 79), ("lost", None)):
                found.append(
                    Event(event.start_us, slot, event.device, Reading.DEVICE_EVENT, None, kind=kind, code=code)
                )
    for reset in resets:
        for index in range(spec.devices_per_node):
            device = reset.node * spec.devices_per_node + index
            kind = "recovered" if device == reset.lost_device else "driver_reload"
            found.append(Event(reset.up_us, _slot_after(spec, reset), device, Reading.DEVICE_EVENT, 0, kind=kind))
    return found
