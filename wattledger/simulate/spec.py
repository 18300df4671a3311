"""What fleet to simulate, and the identities that follow from it. Values only: it draws nothing that changes in time."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from collector.wire import DeviceRef
from wattledger.simulate.seeds import name_uuid, rng, unit

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

US_PER_S: Final = 1_000_000
BLOCK_S: Final = 3600
"""The unit of generation: counters are carried from block to block, so a block is made whole or not at all."""
BLOCK_US: Final = BLOCK_S * US_PER_S
DAY_US: Final = 24 * BLOCK_US
CONTAINER_S: Final = 600
"""Fleets start, and late deliveries are cut, on this grid."""
MEMORY_BYTES: Final = 85_520_809_984
POWER_CAP_MW: Final = 700_000

# The first key of every draw: what it is for. Numbers are part of the simulated world; renumbering makes another one.
DEVICE_DRAW: Final = 1
NOISE_DRAW: Final = 2
SCHEDULE_DRAW: Final = 3
PLAN_DRAW: Final = 4
DELIVERY_DRAW: Final = 5
CALL_DRAW: Final = 6


class PlantKind(StrEnum):
    """The events that can be planted, each once per day of the fleet."""

    THERMAL_THROTTLE = "thermal_throttle"
    POWER_CAP = "power_cap"
    IDLE_HOARDER = "idle_hoarder"
    RUNAWAY = "runaway"
    LOST_DEVICE = "lost_device"
    DRIVER_RELOAD = "driver_reload"
    LATE_BATCHES = "late_batches"
    SILENT_NODE = "silent_node"
    KEY_OVERSPEND = "key_overspend"
    CLOCK_SKEW = "clock_skew"


DEFAULT_PLANTS: Final = frozenset(PlantKind) - {PlantKind.CLOCK_SKEW}
"""Clock skew sends batches to the dead letters, so books do not balance until they are replayed: on request only."""


@dataclass(frozen=True)
class FleetSpec:
    """Everything a fleet is made from: equal specs make equal bytes.

    ``start_at_us`` is the instant before which the fleet did not exist. One fleet is one site; several sites are
    several fleets with different ``site``.
    """

    start_at_us: int
    seed: int = 7
    site: str = "sim-1"
    cluster: str = "sim"
    nodes: int = 16
    devices_per_node: int = 8
    cadence_s: int = 10
    device_model: str = "NVIDIA H100 80GB HBM3"
    unmapped_ratio: float = 0.06
    job_duration_scale: float = 1.0
    llm_calls_per_hour: float = 600.0
    duplicate_ratio: float = 0.004
    reorder_ratio: float = 0.01
    node_meters: bool = True
    plants: frozenset[PlantKind] = field(default=DEFAULT_PLANTS)

    def __post_init__(self) -> None:
        """Refuse a fleet that cannot be, naming the field."""
        if self.start_at_us < DAY_US or self.start_at_us % (CONTAINER_S * US_PER_S):
            raise ValueError(f"start_at_us {self.start_at_us} must be a multiple of 10 minutes after 1970-01-02")
        if not 1 <= self.nodes <= 100_000 or not 1 <= self.devices_per_node <= 64:
            raise ValueError(f"a fleet of {self.nodes} nodes x {self.devices_per_node} devices cannot be simulated")
        if self.cadence_s < 1 or 60 % self.cadence_s:
            raise ValueError(f"cadence_s {self.cadence_s} must divide a minute")
        for name in ("unmapped_ratio", "duplicate_ratio", "reorder_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} must lie in 0 to 1")
        if self.job_duration_scale <= 0 or self.llm_calls_per_hour < 0:
            raise ValueError("job_duration_scale must be above 0 and llm_calls_per_hour at least 0")

    @property
    def devices(self) -> int:
        """Number of devices of the fleet; device ``n * devices_per_node + i`` is device i of node n."""
        return self.nodes * self.devices_per_node

    @property
    def cadence_us(self) -> int:
        """Time between two periodic rows of a device."""
        return self.cadence_s * US_PER_S

    @property
    def slots_per_block(self) -> int:
        """Periodic rows of a device per block."""
        return BLOCK_S // self.cadence_s

    def block_of(self, at_us: int) -> int:
        """Return the block that an instant falls in; negative before the fleet began."""
        return (at_us - self.start_at_us) // BLOCK_US

    def block_start_us(self, block: int) -> int:
        """Return the first instant of a block."""
        return self.start_at_us + block * BLOCK_US

    def node_of(self, device: int) -> int:
        """Return the node a device is in."""
        return device // self.devices_per_node

    def node_name(self, node: int) -> str:
        """Return the node's host name."""
        return f"{self.site}-n{node + 1:04d}"

    def device_uuid(self, device: int) -> str:
        """Return the vendor UUID of a device."""
        return f"GPU-{name_uuid(self.seed, self.site, 'device', device)}"

    def spool(self, node: int) -> str:
        """Return the id of the node's spool: one per node, for ever."""
        return str(name_uuid(self.seed, self.site, self.start_at_us, "spool", node))

    def boot_id(self, node: int, boots: int) -> str:
        """Return the id of the node's boot after so many reboots."""
        return str(name_uuid(self.seed, self.site, "boot", node, boots))

    def device_refs(self, node: int) -> tuple[DeviceRef, ...]:
        """Return the device table of the node's batches."""
        first = node * self.devices_per_node
        return tuple(
            DeviceRef(
                uuid=self.device_uuid(first + index),
                model=self.device_model,
                memory_bytes=MEMORY_BYTES,
                pci_bus_id=f"00000000:{0x18 + 0x11 * index & 0xFF:02X}:00.0",
            )
            for index in range(self.devices_per_node)
        )

    @cached_property
    def phases_us(self) -> Int64s:
        """Where in the cadence each node takes its readings: whole milliseconds, so no reading meets a job event."""
        milliseconds = self.cadence_s * 1000
        return np.array(
            [1000 * int(unit(self.seed, DEVICE_DRAW, node) * milliseconds) for node in range(self.nodes)],
            dtype=np.int64,
        )

    @cached_property
    def traits(self) -> Traits:
        """How the boards differ from one another."""
        draw = rng(self.seed, DEVICE_DRAW)
        count = self.devices
        return Traits(
            idle_mw=draw.uniform(70_000, 90_000, count).astype(np.float32),
            efficiency=draw.normal(1.0, 0.012, count).clip(0.96, 1.04).astype(np.float32),
            inlet_c=draw.uniform(25, 33, count).astype(np.float32),
            first_energy_mj=draw.integers(10**9, 10**12, count, dtype=np.int64),
        )


@dataclass(frozen=True, slots=True)
class Traits:
    """Per device, in device order: idle floor, power for the same work, cooling, and the counter when the fleet began."""

    idle_mw: Floats
    efficiency: Floats
    inlet_c: Floats
    first_energy_mj: Int64s
