"""What a probe is and what it hands over; each source of measurements is one module beside this one.

A probe reads devices at the sampling cadence; a source reads all else (ports, meters, engines, jobs) at a pace of its
own, and may take its time. Both read and date. They keep no history, aggregate nothing, and turn no fault of one device or
field into a fault of the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from collector import wire
from collector.wire import DeviceRef, Feed, Origin, Stream

Values = dict[str, int | float | None]
"""Readings by the column names of the device stream; a name that is absent was not read, None was not supported."""

Row = dict[str, int | float | str | None]
"""One row by the column names of its stream."""

EventKind = Literal[
    "xid",
    "lost",
    "hung",  # a driver call about it does not come back; ``recovered`` once it did
    "recovered",
    "removed",  # a MIG instance that was destroyed: nothing is wrong
    "driver_reload",
    "driver_unavailable",
    "counter_reset",
    "not_supported",
    "mig_reconfigured",
    "recovery_action",  # the driver asks for something, a GPU reset say (NVML field 230)
]

_INTEGER_BITS: Final = {"i16": 15, "i32": 31, "i64": 63}
_HIGHEST: Final[dict[Stream, dict[str, int]]] = {
    stream: {entry.name: 2 ** _INTEGER_BITS[entry.type] - 1 for entry in columns if entry.type in _INTEGER_BITS}
    for stream, columns in wire.COLUMNS.items()
}


@dataclass(frozen=True, slots=True)
class Epoch:
    """Within one epoch a counter only grows; readings of two epochs never share a batch."""

    boot_id: str
    driver_epoch: int
    feed: Feed
    origin: Origin


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """What one device said at one instant; ``device`` is its position in the sweep's device table."""

    device: int
    at_us: int
    values: Values


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """Something that happened to a device; the counter it had then is in the reading of the same sweep, if any."""

    device: int
    at_us: int
    kind: EventKind
    code: int | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Sweep:
    """One round over all devices. A device that could not be read is missing from ``readings``.

    The device table only grows within the life of a probe, so a position keeps its meaning.
    """

    epoch: Epoch
    devices: tuple[DeviceRef, ...]
    readings: tuple[DeviceReading, ...] = ()
    events: tuple[DeviceEvent, ...] = ()
    errors: dict[str, int] = field(default_factory=dict)
    """Failed calls by kind, for the agent's own health."""
    rows: dict[Stream, tuple[Row, ...]] = field(default_factory=dict)
    """What the probe reads more rarely, ready for the wire: device health, links of devices. As in an :class:`Observation`,
    rows of a stream with a ``device`` column carry ``device_uuid`` instead; all of them carry ``at_us``."""


@dataclass(frozen=True, slots=True)
class ProcessReading:
    """One process on one device, as the driver saw it at ``at_us``; on a MIG board the device is the instance."""

    device_uuid: str
    pid: int
    """In the pid namespace of the agent; 0 or a foreign number where the agent lives in another one than the driver's."""
    at_us: int
    used_memory_bytes: int | None
    sm_util_percent: int | None
    """Of the device's time, over the last few seconds; 0 for a process that ran no kernel, None where it is not supported (MIG)."""
    memory_util_percent: int | None
    gpu_instance: int | None
    """MIG's number of the GPU instance; None on a board that is not cut up."""
    kind: Literal["compute", "graphics", "mps"]
    """``mps``: a client of an MPS server, whose share of the utilization is not to be trusted."""


class Probe(Protocol):
    """A source of device readings."""

    def read(self) -> Sweep:
        """Read every device once; the faults of devices and drivers are told in the sweep, not raised."""
        ...

    def close(self) -> None:
        """Let go of driver and files; reading again re-opens them."""
        ...


@dataclass(frozen=True, slots=True)
class Observation:
    """What one reading of a source gave.

    Rows are ready for the wire but for one thing: where the stream has a ``device`` column they carry ``device_uuid`` instead,
    and the recorder, which knows the device table, puts the position in (a row of a device nobody has read is counted and left
    out, but for begins and ends of allocations). A row without ``at_us`` gets the instant of the reading.
    """

    rows: dict[Stream, tuple[Row, ...]] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    """Failed reads by kind, prefixed with the source's name."""


@dataclass(frozen=True, slots=True)
class Sight:
    """One thing this node shows or hides, for ``--once --pretty``: the first thing an operator runs."""

    subject: str
    """What it is, as an operator would say it: ``InfiniBand ports``, ``per-process utilization``."""
    seen: bool
    detail: str
    """What was found, or why nothing was."""
    remedy: str | None = None
    """Which right, package or setting would add it; None where nothing would, or nothing is missing."""


class Source(Protocol):
    """A source of rows beside the devices' own. Each runs in a thread of its own, so that none delays a sample."""

    name: str
    period_s: float

    def read(self) -> Observation:
        """Read once; faults are counted in the observation, not raised. Must come back within its own timeouts."""
        ...

    def sights(self) -> tuple[Sight, ...]:
        """Say what this source can and cannot see on this node."""
        ...

    def close(self) -> None:
        """Let go of files and sockets."""
        ...


def out_of_range(values: Mapping[str, int | float | str | None], stream: Stream = Stream.DEVICE) -> list[str]:
    """Return the columns whose value the wire type cannot hold; a driver that answers nonsense must not stop a batch."""
    highest = _HIGHEST[stream]
    return [
        name
        for name, value in values.items()
        if name in highest and value is not None and not -highest[name] <= value <= highest[name]  # type: ignore[operator]
    ]
