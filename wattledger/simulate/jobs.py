"""The jobs of the fleet: who held which devices when, and how hard each job works them.

Nodes are filled in groups of four by halving, as a buddy allocator would: a job takes the whole unit, or the unit is split
and each half is filled on its own for a while. Each group is one sequence of draws, extended as far as needed, so the jobs of
an hour do not depend on which hours were asked for. Planted events cut or replace what is in their way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np

from wattledger.simulate.plants import Plant, event_us, plan, plants_between
from wattledger.simulate.seeds import rng
from wattledger.simulate.spec import BLOCK_US, DAY_US, POWER_CAP_MW, SCHEDULE_DRAW, US_PER_S, FleetSpec, PlantKind
from wattledger.simulate.tenants import ORGANISATIONS, UNBOUND

GROUP_NODES: Final = 4
GAP_US: Final = 150 * US_PER_S
"""Least time between two events of one device: above two cadences, so an interval between two readings has one at most."""
SHORTEST_US: Final = 5 * 60 * US_PER_S
_WHOLE_UNIT: Final = {32: 0.22, 16: 0.35, 8: 0.6, 4: 0.55, 2: 0.6}


@dataclass(frozen=True, slots=True)
class Profile:
    """How a job loads its devices; ratios of the board's power range."""

    load: float
    noise: float
    diurnal: float = 0.0
    checkpoint_s: float = 0.0
    context_mw: float = 25_000.0
    memory_ratio: float = 0.8
    nvlink: float = 1.0
    heat: float = 0.0
    limit_mw: int = POWER_CAP_MW


_PROFILES: Final = {
    "training": Profile(0.91, 0.02, checkpoint_s=1800, memory_ratio=0.92),
    "fine-tuning": Profile(0.82, 0.05, checkpoint_s=900, memory_ratio=0.85),
    "inference": Profile(0.42, 0.1, diurnal=0.35, memory_ratio=0.88, nvlink=0.3),
    "batch": Profile(0.6, 0.15, memory_ratio=0.5, nvlink=0.2),
    "simulation": Profile(0.86, 0.03, memory_ratio=0.4, nvlink=0.5),
    "unknown": Profile(0.3, 0.2, memory_ratio=0.2, nvlink=0.0),
}


@dataclass(frozen=True, slots=True)
class Job:
    """One job and what it held: ``devices`` during [start, end). ``tenant`` is what its bindings must say; null = unmapped."""

    native_id: str
    cluster: str
    name: str
    account: str
    user: str
    partition: str
    qos: str
    workload_kind: str
    tenant: str | None
    start_us: int
    end_us: int
    devices: tuple[int, ...]
    profile: Profile
    label: str | None = None
    plant: PlantKind | None = None
    lost_device: int | None = None


class Schedule:
    """The jobs of one fleet, made as far ahead as was asked for and kept by the blocks they touch."""

    def __init__(self, spec: FleetSpec) -> None:
        """Start with nothing made."""
        self._spec = spec
        self._groups = [
            _GroupSchedule(spec, first // GROUP_NODES, first, min(GROUP_NODES, spec.nodes - first))
            for first in range(0, spec.nodes, GROUP_NODES)
        ]
        self._by_block: defaultdict[int, list[Job]] = defaultdict(list)
        self._days_planted = 0
        self._until_us = spec.start_at_us

    def overlapping(self, block: int) -> list[Job]:
        """Return the jobs that hold a device at some time in the block, ordered by start and id."""
        self._extend(self._spec.block_start_us(block + 1))
        return self._by_block[block]

    def between(self, start_us: int, end_us: int) -> list[Job]:
        """Return the jobs that hold a device at some time in [start, end), ordered by start and id."""
        first, last = max(0, self._spec.block_of(start_us)), self._spec.block_of(end_us - 1)
        self._extend(self._spec.block_start_us(last + 1))
        found = {
            job.native_id: job
            for block in range(first, last + 1)
            for job in self._by_block[block]
            if job.start_us < end_us and job.end_us > start_us
        }
        return sorted(found.values(), key=_order)

    def _extend(self, until_us: int) -> None:
        if until_us <= self._until_us:
            return
        touched: set[int] = set()
        while self._spec.start_at_us + self._days_planted * DAY_US < until_us:
            for number, event in enumerate(plan(self._spec, self._days_planted)):
                if event.job_from_us is not None:
                    self._add(_planted_job(self._spec, number, event), touched)
            self._days_planted += 1
        for group in self._groups:
            for job in group.until(until_us):
                left = _beside_plants(self._spec, job)
                if left is not None:
                    self._add(left, touched)
        for block in touched:
            self._by_block[block].sort(key=_order)
        self._until_us = until_us

    def _add(self, job: Job, touched: set[int]) -> None:
        blocks = range(self._spec.block_of(job.start_us), self._spec.block_of(job.end_us - 1) + 1)
        touched.update(blocks)
        for block in blocks:
            self._by_block[block].append(job)


def _order(job: Job) -> tuple[int, str]:
    return job.start_us, job.native_id


class _GroupSchedule:
    """The endless sequence of jobs of one group of nodes."""

    def __init__(self, spec: FleetSpec, group: int, first_node: int, nodes: int) -> None:
        self._spec = spec
        self._rng = rng(spec.seed, SCHEDULE_DRAW, group)
        self._first = first_node * spec.devices_per_node
        self._size = nodes * spec.devices_per_node
        self._next_id = (group + 1) * 100_000
        self._cursor_us = spec.start_at_us

    def until(self, until_us: int) -> Iterator[Job]:
        """Yield the jobs of the cycles that begin before ``until_us`` and were not yielded before."""
        while self._cursor_us < until_us:
            end_us = self._cursor_us + self._duration_us(median_h=7.0, sigma=0.5)
            yield from self._fill(self._first, self._size, self._cursor_us, end_us)
            self._cursor_us = end_us

    def _fill(self, first: int, size: int, start_us: int, end_us: int) -> Iterator[Job]:
        at_us = start_us + self._idle_us()
        whole = _WHOLE_UNIT.get(size, 0.3 if size > 1 else 1.0)
        while end_us - at_us > SHORTEST_US + GAP_US:
            if self._rng.random() < whole:
                stop_us = min(at_us + self._duration_us(median_h=2.2, sigma=1.0), end_us - GAP_US)
                yield self._job(first, size, at_us, stop_us)
                at_us = stop_us + self._idle_us()
            else:
                stop_us = min(at_us + self._duration_us(median_h=4.0, sigma=0.5), end_us)
                half = self._half(size)
                yield from self._fill(first, half, at_us, stop_us)
                yield from self._fill(first + half, size - half, at_us, stop_us)
                at_us = stop_us

    def _half(self, size: int) -> int:
        """Halve a unit on a node boundary where it has more than one node."""
        per_node = self._spec.devices_per_node
        return size // 2 if size <= per_node else max(1, size // per_node // 2) * per_node

    def _duration_us(self, median_h: float, sigma: float) -> int:
        hours = median_h * self._spec.job_duration_scale * float(np.exp(sigma * self._rng.standard_normal()))
        return max(SHORTEST_US, int(min(hours, 36.0 * self._spec.job_duration_scale) * BLOCK_US))

    def _idle_us(self) -> int:
        long_pause = self._rng.random() < 0.06
        return GAP_US + int(self._rng.exponential(4200 if long_pause else 240) * US_PER_S)

    def _job(self, first: int, size: int, start_us: int, end_us: int) -> Job:
        bound = self._rng.random() >= self._spec.unmapped_ratio
        owner = _weighted(self._rng, ORGANISATIONS, [entry.weight for entry in ORGANISATIONS]) if bound else UNBOUND
        kind = _weighted(self._rng, owner.kinds, [weight for _, weight in owner.kinds])[0]
        self._next_id += 1
        base = _PROFILES[kind]
        # The load differs from job to job of one kind, as batch sizes do.
        profile = replace(base, load=min(0.97, base.load * float(self._rng.uniform(0.88, 1.05))))
        return Job(
            native_id=str(self._next_id),
            cluster=self._spec.cluster,
            name=_weighted(self._rng, owner.names, [1.0] * len(owner.names)),
            account=owner.account,
            user=_weighted(self._rng, owner.users, [1.0] * len(owner.users)),
            partition=owner.partition,
            qos=owner.qos,
            workload_kind=kind,
            tenant=owner.path,
            start_us=event_us(start_us),
            end_us=event_us(end_us),
            devices=tuple(range(first, first + size)),
            profile=profile,
        )


_Item = TypeVar("_Item")


def _weighted(draw: np.random.Generator, items: Sequence[_Item], weights: Sequence[float]) -> _Item:
    point = float(draw.random()) * sum(weights)
    for item, weight in zip(items, weights, strict=True):
        point -= weight
        if point < 0:
            return item
    return items[-1]


def _beside_plants(spec: FleetSpec, job: Job) -> Job | None:
    """Return what is left of an ordinary job beside the planted events: all, its first part, or nothing."""
    nodes = {spec.node_of(device) for device in job.devices}
    end_us = job.end_us
    for event in plants_between(spec, job.start_us - GAP_US, job.end_us + GAP_US):
        overlap = job.start_us < event.released_us + GAP_US and end_us > event.reserved_us - GAP_US
        if overlap and nodes.intersection(event.nodes):
            end_us = min(end_us, event_us(event.reserved_us - GAP_US))
    if end_us - job.start_us < SHORTEST_US:
        return None
    return job if end_us == job.end_us else replace(job, end_us=end_us)


_PLANTED: Final[dict[PlantKind, tuple[int, str, str, Profile]]] = {
    # Organisation (position in ORGANISATIONS), workload kind, job name, profile.
    PlantKind.THERMAL_THROTTLE: (0, "training", "llm-pretrain-hot", replace(_PROFILES["training"], heat=1.0)),
    PlantKind.POWER_CAP: (1, "training", "vit-l-capped", replace(_PROFILES["training"], limit_mw=400_000)),
    PlantKind.IDLE_HOARDER: (1, "training", "notebook-keepalive", Profile(0.0, 0.0, memory_ratio=0.7, nvlink=0.0)),
    PlantKind.RUNAWAY: (3, "training", "alpha-net-sweep", replace(_PROFILES["training"], load=0.95)),
    PlantKind.LOST_DEVICE: (0, "fine-tuning", "sft-large", _PROFILES["fine-tuning"]),
    PlantKind.SILENT_NODE: (4, "simulation", "md-run-long", _PROFILES["simulation"]),
}


def _planted_job(spec: FleetSpec, number: int, event: Plant) -> Job:
    position, kind, name, profile = _PLANTED[event.kind]
    owner = ORGANISATIONS[position]
    if event.job_from_us is None or event.job_to_us is None:
        raise ValueError(f"planted event {event.kind} has no job")
    planned = event.detail.get("planned_accelerator_hours")
    return Job(
        native_id=str(90_000_000 + event.day * 100 + number),
        cluster=spec.cluster,
        name=name,
        account=owner.account,
        user=owner.users[0],
        partition=owner.partition,
        qos=owner.qos,
        workload_kind=kind,
        tenant=owner.path,
        start_us=event.job_from_us,
        end_us=event.job_to_us,
        devices=tuple(
            node * spec.devices_per_node + index for node in event.nodes for index in range(spec.devices_per_node)
        ),
        profile=profile,
        label=None if planned is None else f"planned-accelerator-hours={planned:g}",
        plant=event.kind,
        lost_device=event.device,
    )
