"""The planted events of each day of a fleet: what goes wrong, where and when. They are the ground truth of detectors.

A plan is a pure function of the spec and the day. Each event reserves its nodes, so ordinary work never mixes with it; on
a fleet too small for all of them the later ones in :data:`_SCRIPTS` are left out, visibly: they are not in the plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from wattledger.simulate.seeds import rng, unit
from wattledger.simulate.spec import BLOCK_US, DAY_US, PLAN_DRAW, US_PER_S, FleetSpec, PlantKind
from wattledger.simulate.tenants import OVERSPENT_KEY

KILL_DELAY_US: Final = 40 * US_PER_S
"""From the loss of a device to the end of the job that held it."""


@dataclass(frozen=True, slots=True)
class Plant:
    """One planted event: what happens during [start, end) and the nodes reserved for it during [reserved, released).

    ``job_from_us`` and ``job_to_us`` say when its own job runs, if it has one. Meaning of [start, end) per kind: the slow or
    idle or overlong job; the device gone until the reboot is over; the driver down; the batches held back; silence; the
    burst of calls.
    """

    kind: PlantKind
    day: int
    start_us: int
    end_us: int
    nodes: tuple[int, ...] = ()
    device: int | None = None
    api_key: str | None = None
    reserved_us: int = 0
    released_us: int = 0
    job_from_us: int | None = None
    job_to_us: int | None = None
    detail: dict[str, int | float | str] = field(default_factory=dict)

    def overlaps(self, start_us: int, end_us: int) -> bool:
        """Say whether the event touches [start, end)."""
        return self.start_us < end_us and self.end_us > start_us


@dataclass(frozen=True, slots=True)
class Reset:
    """A driver reload or reboot of a node: no readings during [down, up), counters from zero after."""

    node: int
    down_us: int
    up_us: int
    reboot: bool
    lost_device: int | None


@dataclass(frozen=True, slots=True)
class _Script:
    kind: PlantKind
    start_h: float
    end_h: float
    reserve_from_h: float
    reserve_to_h: float
    job_h: tuple[float, float] | None = None


_SCRIPTS: Final = (
    _Script(PlantKind.THERMAL_THROTTLE, 2.2, 6.4, 2.2, 6.4, (2.2, 6.4)),
    _Script(PlantKind.IDLE_HOARDER, 1.0, 9.0, 1.0, 9.0, (1.0, 9.0)),
    _Script(PlantKind.RUNAWAY, 4.0, 18.0, 4.0, 18.0, (4.0, 18.0)),
    _Script(PlantKind.LOST_DEVICE, 10.3, 13.4, 8.0, 13.6, (8.0, 10.3)),
    _Script(PlantKind.DRIVER_RELOAD, 15.2, 15.25, 15.1, 15.35),
    _Script(PlantKind.LATE_BATCHES, 11.0, 12.0, 11.0, 12.0),
    _Script(PlantKind.SILENT_NODE, 16.0, 16.9, 14.5, 18.5, (14.5, 18.5)),
    _Script(PlantKind.POWER_CAP, 3.0, 7.5, 3.0, 7.5, (3.0, 7.5)),
    _Script(PlantKind.CLOCK_SKEW, 19.0, 20.0, 19.0, 20.0),
    _Script(PlantKind.KEY_OVERSPEND, 13.0, 15.0, 13.0, 13.0),
)
_LATE_BY_US: Final = 3 * BLOCK_US
_SKEW_US: Final = 900 * US_PER_S
_JITTER_H: Final = 0.08
_REBOOT_H: Final = 0.1
_PLANNED_H: Final = 2.0
_OVERSPEND_FACTOR: Final = 25.0


def event_us(at_us: float) -> int:
    """Round to an instant at which no periodic reading is taken: those come at whole milliseconds."""
    return int(at_us) // 1000 * 1000 + 501


@lru_cache(maxsize=1024)
def plan(spec: FleetSpec, day: int) -> tuple[Plant, ...]:
    """Return the planted events of one day of the fleet, in the order they were placed."""
    if day < 0:
        return ()
    order = [int(node) for node in rng(spec.seed, PLAN_DRAW, day).permutation(spec.nodes)]
    taken: dict[int, list[tuple[int, int]]] = {node: [] for node in range(spec.nodes)}
    cursor = 0
    placed: list[Plant] = []
    for number, script in enumerate(_SCRIPTS):
        if script.kind not in spec.plants:
            continue
        base = spec.start_at_us + day * DAY_US
        jitter_h = (2 * unit(spec.seed, PLAN_DRAW, day, number) - 1) * _JITTER_H
        aligned = script.kind in (PlantKind.LATE_BATCHES, PlantKind.CLOCK_SKEW)
        shift = 0 if aligned else int(jitter_h * BLOCK_US)
        span = (
            base + int(script.reserve_from_h * BLOCK_US) + shift,
            base + int(script.reserve_to_h * BLOCK_US) + shift,
        )
        wanted = 0 if script.kind is PlantKind.KEY_OVERSPEND else 1
        if script.kind is PlantKind.RUNAWAY:
            wanted = max(1, min(4, spec.nodes // 8))
        free = [node for node in order[cursor:] + order[:cursor] if not _busy(taken[node], span)]
        if len(free) < wanted:
            continue
        nodes = tuple(sorted(free[:wanted]))
        cursor = (cursor + wanted) % spec.nodes
        for node in nodes:
            taken[node].append(span)
        placed.append(_placed(spec, script, day, base + shift, nodes, span))
    return tuple(placed)


def _busy(spans: list[tuple[int, int]], wanted: tuple[int, int]) -> bool:
    return any(start < wanted[1] and end > wanted[0] for start, end in spans)


def _placed(
    spec: FleetSpec, script: _Script, day: int, base: int, nodes: tuple[int, ...], span: tuple[int, int]
) -> Plant:
    kind = script.kind
    start, end = (base + int(hours * BLOCK_US) for hours in (script.start_h, script.end_h))
    if kind not in (PlantKind.LATE_BATCHES, PlantKind.CLOCK_SKEW):
        start, end = event_us(start), event_us(end)
    job = tuple(event_us(base + hours * BLOCK_US) for hours in script.job_h) if script.job_h else None
    device: int | None = None
    detail: dict[str, int | float | str] = {}
    if kind is PlantKind.LOST_DEVICE:
        device = nodes[0] * spec.devices_per_node + day % spec.devices_per_node
        job = (event_us(base + 8.0 * BLOCK_US), event_us(start + KILL_DELAY_US))
        detail = {"xid": 79, "rebooted_down_us": event_us(end - _REBOOT_H * BLOCK_US)}
    elif kind is PlantKind.LATE_BATCHES:
        detail = {"arrives_at_us": end + _LATE_BY_US}
    elif kind is PlantKind.CLOCK_SKEW:
        detail = {"skew_us": _SKEW_US}
    elif kind is PlantKind.RUNAWAY:
        detail = {"planned_accelerator_hours": _PLANNED_H * spec.devices_per_node * len(nodes)}
    elif kind is PlantKind.KEY_OVERSPEND:
        detail = {"rate_factor": _OVERSPEND_FACTOR}
    return Plant(
        kind=kind,
        day=day,
        start_us=start,
        end_us=end,
        nodes=nodes,
        device=device,
        api_key=OVERSPENT_KEY if kind is PlantKind.KEY_OVERSPEND else None,
        reserved_us=span[0],
        released_us=span[1],
        job_from_us=job[0] if job else None,
        job_to_us=job[1] if job else None,
        detail=detail,
    )


def plants_between(spec: FleetSpec, start_us: int, end_us: int) -> tuple[Plant, ...]:
    """Return the planted events whose reservation or effect touches [start, end), day by day."""
    first = (start_us - spec.start_at_us) // DAY_US
    last = (end_us - 1 - spec.start_at_us) // DAY_US
    return tuple(
        event
        for day in range(max(0, first), last + 1)
        for event in plan(spec, day)
        if event.overlaps(start_us, end_us) or (event.reserved_us < end_us and event.released_us > start_us)
    )


@lru_cache(maxsize=1024)
def resets_of_day(spec: FleetSpec, day: int) -> tuple[Reset, ...]:
    """Return the driver reloads and reboots of one day, in time order per node."""
    found = []
    for event in plan(spec, day):
        if event.kind is PlantKind.DRIVER_RELOAD:
            found.append(Reset(event.nodes[0], event.start_us, event.end_us, reboot=False, lost_device=None))
        elif event.kind is PlantKind.LOST_DEVICE:
            down = int(event.detail["rebooted_down_us"])
            found.append(Reset(event.nodes[0], down, event.end_us, reboot=True, lost_device=event.device))
    return tuple(sorted(found, key=lambda reset: (reset.node, reset.up_us)))


def late_deliveries(spec: FleetSpec, start_us: int, end_us: int) -> tuple[Plant, ...]:
    """Return the late deliveries that arrive during (start, end]."""
    return tuple(
        event
        for event in plants_between(spec, start_us - _LATE_BY_US - DAY_US, end_us)
        if event.kind is PlantKind.LATE_BATCHES and start_us < int(event.detail["arrives_at_us"]) <= end_us
    )
