"""What the probe asks of the driver, each in one function that may hang without harm: it changes nothing but its answer.

These run in a reader's thread (:mod:`collector.probe.nvml_reader`); NVML's errors come back as values.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pynvml

from collector.clock import Clock
from collector.probe.nvml_codes import FATAL_CODES, LOST_CODES
from collector.probe.nvml_device import NvmlDevice
from collector.probe.nvml_events import DriverEvent, EventSet
from collector.probe.nvml_mig import MigInstance
from collector.probe.nvml_visit import Visit
from collector.wire import DeviceRef

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """NVML's code, and the device as far as it was opened."""

    code: int
    device: NvmlDevice | MigInstance | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """The library is initialised and sees so many devices."""

    devices: int
    driver_version: str | None


@dataclass(frozen=True, slots=True)
class Identified:
    """The device at one index."""

    ref: DeviceRef
    handle: Any


@dataclass(frozen=True, slots=True)
class Visited:
    """A device that answered, and for a board what became of its MIG instances, by position."""

    device: NvmlDevice | MigInstance
    visit: Visit
    instances: tuple[tuple[int, Visited | Failure], ...] = ()


@dataclass(frozen=True, slots=True)
class Happened:
    """The driver events that waited; ``spoiled`` where a lost device keeps the set from telling those of the others."""

    events: tuple[DriverEvent, ...]
    errors: Counter[str]
    spoiled: bool


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing to tell, or an event set that was created."""

    event_set: EventSet | None = None


Answer = Failure | Opened | Identified | Visited | Happened | Done


def open_library(*, initialised: bool) -> Answer:
    """Initialise NVML, unless it still is, and count the devices. Where that fails it is left shut down."""
    try:
        if not initialised:
            pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Failure(error.value)
    try:
        return Opened(pynvml.nvmlDeviceGetCount(), _driver_version())
    except pynvml.NVMLError as error:
        if not initialised:
            close_library((), None)
        return Failure(error.value)


def identify(index: int) -> Answer:
    """Say which device is at this index."""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = pynvml.nvmlDeviceGetUUID(handle)
        model = pynvml.nvmlDeviceGetName(handle)
    except pynvml.NVMLError as error:
        return Failure(error.value)
    except UnicodeDecodeError:  # the binding decodes what a broken board says
        return Failure(pynvml.NVML_ERROR_UNKNOWN)
    memory_bytes: int | None = None
    bus_id: Any = None
    try:
        memory_bytes = int(pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).total)
        bus_id = pynvml.nvmlDeviceGetPciInfo(handle).busId
    except pynvml.NVMLError as error:
        _LOG.info("device %s does not tell its memory or bus: %s", uuid, error)
    pci_bus_id = bus_id.decode("ascii", "replace") if isinstance(bus_id, bytes) else bus_id
    return Identified(DeviceRef(uuid, model, memory_bytes=memory_bytes, pci_bus_id=pci_bus_id), handle)


def create_event_set() -> Answer:
    """Create what driver events are collected in."""
    try:
        return Done(EventSet())
    except pynvml.NVMLError as error:
        return Failure(error.value)


def renew_event_set(old: EventSet) -> Answer:
    """Put a new one in the place of an event set that is spoiled."""
    try:
        old.free()
    except pynvml.NVMLError as error:
        _LOG.info("the event set could not be freed: %s", error)
    return create_event_set()


def visit_board(
    ref: DeviceRef,
    device: NvmlDevice | None,
    instances: Sequence[tuple[int, MigInstance]],
    *,
    event_set: EventSet | None,
    clock: Clock,
    gpm: bool,
    share: float,
) -> Answer:
    """Read a board, found again by its UUID where it was not open, and its instances: one task, as they hang together."""
    try:
        if device is None:
            device = NvmlDevice(pynvml.nvmlDeviceGetHandleByUUID(ref.uuid), ref.uuid, ref.model, gpm=gpm, share=share)
        refused = _register(device, event_set)
        visit = device.visit(clock)
    except pynvml.NVMLError as error:
        return Failure(error.value, device)
    if refused is not None:
        visit.errors[f"events:{refused}"] += 1
        if refused == pynvml.NVML_ERROR_NOT_SUPPORTED:
            visit.newly_unsupported.append("xid")
    return Visited(device, visit, tuple((position, _visit_instance(entry, clock)) for position, entry in instances))


def read_exactly(device: NvmlDevice, clock: Clock) -> Answer:
    """Read a board's counters and gauges."""
    try:
        return Visited(device, device.without_pcie(device.exact(clock)))
    except pynvml.NVMLError as error:
        return Failure(error.value, device)


def take_events(event_set: EventSet) -> Answer:
    """Take the driver events that wait."""
    errors: Counter[str] = Counter()
    try:
        events = tuple(event_set.take(errors))
        return Happened(events, errors, spoiled=any(f"events:{code}" in errors for code in LOST_CODES))
    except pynvml.NVMLError as error:
        return Failure(error.value)


def run_all(actions: Sequence[Callable[[], None]]) -> Answer:
    """Do what was put off, such as closing devices that are no longer read."""
    for action in actions:
        action()
    return Done()


def close_library(actions: Sequence[Callable[[], None]], event_set: EventSet | None) -> Answer:
    """Let go of everything, so that a GPU can be reset or cut up and the driver unloaded."""
    run_all(actions)
    try:
        if event_set is not None:
            event_set.free()
    except pynvml.NVMLError as error:
        _LOG.info("the event set was gone before it could be freed: %s", error)
    try:
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        _LOG.info("NVML was gone before it could be shut down: %s", error)
    return Done()


def _visit_instance(instance: MigInstance, clock: Clock) -> Visited | Failure:
    try:
        return Visited(instance, instance.visit(clock))
    except pynvml.NVMLError as error:
        return Failure(error.value, instance)


def _register(device: NvmlDevice, event_set: EventSet | None) -> int | None:
    """Register a board for events once; return NVML's code where it is refused."""
    if event_set is None or device.registered:
        return None
    device.registered = True
    try:
        event_set.register(device.handle)
    except pynvml.NVMLError as error:
        if error.value in FATAL_CODES:
            raise
        device.events_code = error.value
        return int(error.value)
    return None


def _driver_version() -> str | None:
    try:
        version = pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError:
        return None  # decorates a remark, no more
    return version.decode("ascii", "replace") if isinstance(version, bytes) else str(version)
