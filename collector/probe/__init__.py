"""What a probe is and what it hands over; each source of measurements is one module beside this one.

A probe reads and dates. It keeps no history, aggregates nothing, and turns no fault of one device or field into a fault
of the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from collector import wire
from collector.wire import DeviceRef, Feed, Origin, Stream

Values = dict[str, int | float | None]
"""Readings by the column names of the device stream; a name that is absent was not read, None was not supported."""

EventKind = Literal["xid", "lost", "recovered", "driver_reload", "driver_unavailable", "counter_reset", "not_supported"]

_INTEGER_BITS: Final = {"i16": 15, "i32": 31, "i64": 63}
_HIGHEST: Final[dict[str, int]] = {
    entry.name: 2 ** _INTEGER_BITS[entry.type] - 1
    for entry in wire.COLUMNS[Stream.DEVICE]
    if entry.type in _INTEGER_BITS
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


class Probe(Protocol):
    """A source of device readings."""

    def read(self) -> Sweep:
        """Read every device once; the faults of devices and drivers are told in the sweep, not raised."""
        ...

    def close(self) -> None:
        """Let go of driver and files; reading again re-opens them."""
        ...


def out_of_range(values: Values) -> list[str]:
    """Return the columns whose value the wire type cannot hold; a driver that answers nonsense must not stop a batch."""
    return [
        name for name, value in values.items() if value is not None and name in _HIGHEST and abs(value) > _HIGHEST[name]
    ]
