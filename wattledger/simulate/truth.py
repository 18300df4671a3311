"""What the books must say of a stretch of simulated time: exact energy, held time and tokens, and what was planted.

Energy is defined as the project defines it: between two readings of one epoch the counter is the integer interpolation
C(t) = c_i + floor((c_{i+1} - c_i) * (t - t_i) / (t_{i+1} - t_i)), and nothing is known between epochs. Readings are those
that were sent; silence and loss leave gaps, as they do in the store. It reads the model, never the bodies.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np

from wattledger.simulate.blocks import Block, Blocks
from wattledger.simulate.encode import resets_until
from wattledger.simulate.jobs import Job, Schedule
from wattledger.simulate.llm import calls_started_between
from wattledger.simulate.plants import Plant, plants_between
from wattledger.simulate.spec import BLOCK_US, FleetSpec

_MARGIN_BLOCKS: Final = 2
"""Whole blocks of readings around the interval: the longest silence planted is an hour."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The readings of one device in one epoch, in time order."""

    at_us: list[int]
    energy_mj: list[int]

    def counter_mj(self, at_us: int) -> int:
        """Return the interpolated counter at an instant within the segment."""
        after = bisect_left(self.at_us, at_us)
        if self.at_us[after] == at_us:
            return self.energy_mj[after]
        before_us, later_us = self.at_us[after - 1], self.at_us[after]
        before_mj, later_mj = self.energy_mj[after - 1], self.energy_mj[after]
        return before_mj + (later_mj - before_mj) * (at_us - before_us) // (later_us - before_us)

    def energy_between_mj(self, start_us: int, end_us: int) -> int:
        """Return the energy of [start, end) as far as the segment spans it."""
        begin, stop = max(start_us, self.at_us[0]), min(end_us, self.at_us[-1])
        return self.counter_mj(stop) - self.counter_mj(begin) if begin < stop else 0


@dataclass(frozen=True, slots=True)
class JobTruth:
    """One job's part of the interval: known energy and held time, summed over its devices."""

    native_id: str
    tenant: str | None
    account: str
    user: str
    workload_kind: str
    start_us: int
    end_us: int
    devices: int
    energy_mj: int
    held_us: int
    plant: str | None


@dataclass(frozen=True, slots=True)
class KeyTruth:
    """One API key's calls that began in the interval, and their tokens as disjoint parts."""

    api_key: str
    tenant: str | None
    calls: int = 0
    calls_without_usage: int = 0
    input_uncached_tokens: int = 0
    cache_read_tokens: int = 0
    output_text_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True)
class Truth:
    """The truth of [start, end). ``device_energy_mj`` is by vendor UUID; ``segments`` by device number, for more questions."""

    start_us: int
    end_us: int
    device_energy_mj: dict[str, int]
    jobs: list[JobTruth]
    keys: list[KeyTruth]
    plants: list[Plant]
    segments: dict[int, list[Segment]] = field(repr=False)

    def energy_mj(self, device: int, start_us: int, end_us: int) -> int:
        """Return the known energy of a device during [start, end), which must lie inside the interval."""
        if start_us < self.start_us or end_us > self.end_us:
            raise ValueError(f"[{start_us}, {end_us}) is not inside [{self.start_us}, {self.end_us})")
        return sum(segment.energy_between_mj(start_us, end_us) for segment in self.segments[device])

    def to_json(self) -> str:
        """Return everything but the readings, for keeping beside the data."""
        shown = {name: getattr(self, name) for name in ("start_us", "end_us", "device_energy_mj")}
        for name in ("jobs", "keys", "plants"):
            shown[name] = [asdict(entry) for entry in getattr(self, name)]
        return json.dumps(shown, indent=1, sort_keys=True)


def make_truth(spec: FleetSpec, blocks: Blocks, schedule: Schedule, start_us: int, end_us: int) -> Truth:
    """Make the truth of [start, end): all readings of the interval are held in memory while it is made."""
    if not spec.start_at_us <= start_us < end_us:
        raise ValueError(f"[{start_us}, {end_us}) is no interval of a fleet that begins at {spec.start_at_us}")
    segments = _segments(spec, blocks, start_us, end_us)

    def energy_mj(device: int, begin_us: int, stop_us: int) -> int:
        return sum(segment.energy_between_mj(begin_us, stop_us) for segment in segments[device])

    def of_job(job: Job) -> JobTruth:
        begin, stop = max(job.start_us, start_us), min(job.end_us, end_us)
        return JobTruth(
            native_id=job.native_id,
            tenant=job.tenant,
            account=job.account,
            user=job.user,
            workload_kind=job.workload_kind,
            start_us=job.start_us,
            end_us=job.end_us,
            devices=len(job.devices),
            energy_mj=sum(energy_mj(device, begin, stop) for device in job.devices),
            held_us=(stop - begin) * len(job.devices),
            plant=job.plant,
        )

    return Truth(
        start_us=start_us,
        end_us=end_us,
        device_energy_mj={
            spec.device_uuid(device): energy_mj(device, start_us, end_us) for device in range(spec.devices)
        },
        jobs=[of_job(job) for job in schedule.between(start_us, end_us)],
        keys=_keys(spec, start_us, end_us),
        plants=[event for event in plants_between(spec, start_us, end_us) if event.overlaps(start_us, end_us)],
        segments=segments,
    )


def _segments(spec: FleetSpec, blocks: Blocks, start_us: int, end_us: int) -> dict[int, list[Segment]]:
    first = max(0, spec.block_of(start_us) - _MARGIN_BLOCKS)
    last = spec.block_of(end_us - 1) + _MARGIN_BLOCKS
    resets: defaultdict[int, list[int]] = defaultdict(list)
    for reset in resets_until(spec, spec.start_at_us + (last + 1) * BLOCK_US):
        resets[reset.node].append(reset.up_us)
    at_us: list[list[int]] = [[] for _ in range(spec.devices)]
    energy_mj: list[list[int]] = [[] for _ in range(spec.devices)]
    for number in range(first, last + 1):
        _read(spec, blocks.get(number), at_us, energy_mj)
    found: dict[int, list[Segment]] = {}
    for device in range(spec.devices):
        instants, values = at_us[device], energy_mj[device]
        cuts = [bisect_left(instants, up_us) for up_us in resets[spec.node_of(device)]]
        edges = [0, *(cut for cut in cuts if 0 < cut < len(instants)), len(instants)]
        found[device] = [
            Segment(instants[begin:stop], values[begin:stop]) for begin, stop in pairwise(edges) if begin < stop
        ]
    return found


def _read(spec: FleetSpec, block: Block, at_us: list[list[int]], energy_mj: list[list[int]]) -> None:
    """Add one block's readings per device, exact readings in their place among the periodic ones."""
    for node in range(spec.nodes):
        exact: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        for event in block.events.get(node, ()):
            if event.energy_mj is not None:
                exact[event.device].append((event.at_us, event.energy_mj))
        for device in range(node * spec.devices_per_node, (node + 1) * spec.devices_per_node):
            rows = np.flatnonzero(block.valid[:, device])
            instants = block.at_us[rows, node].tolist()
            values = block.columns["energy_mj"][rows, device].tolist()
            for when_us, energy in exact[device]:
                place = bisect_right(instants, when_us)
                instants.insert(place, when_us)
                values.insert(place, energy)
            at_us[device] += instants
            energy_mj[device] += values


def _keys(spec: FleetSpec, start_us: int, end_us: int) -> list[KeyTruth]:
    sums: dict[str, KeyTruth] = {}
    for call in calls_started_between(spec, start_us, end_us):
        before = sums.get(call.api_key, KeyTruth(call.api_key, call.tenant))
        sums[call.api_key] = KeyTruth(
            api_key=call.api_key,
            tenant=call.tenant,
            calls=before.calls + 1,
            calls_without_usage=before.calls_without_usage + (not call.usage_known),
            input_uncached_tokens=before.input_uncached_tokens + call.input_tokens - call.cached_tokens,
            cache_read_tokens=before.cache_read_tokens + call.cached_tokens,
            output_text_tokens=before.output_text_tokens + call.output_tokens - call.reasoning_tokens,
            reasoning_tokens=before.reasoning_tokens + call.reasoning_tokens,
        )
    return [sums[name] for name in sorted(sums)]
