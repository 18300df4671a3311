"""Reads NVIDIA devices through NVML and survives what happens to them.

One sweep asks each device in turn. A lost device is told once and looked for again; a driver that was unloaded, reloaded
or never there leaves empty sweeps until it answers, and then a new driver epoch begins with devices found again by UUID,
never by index. It does not attribute devices to jobs, does not aggregate, and holds no lock or thread.
"""

from __future__ import annotations

import ctypes
import logging
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import pynvml

from collector.clock import US_PER_S, Clock
from collector.errors import LibraryReplacedError
from collector.probe import DeviceEvent, DeviceReading, Epoch, EventKind, ProcessReading, Sweep, Values
from collector.probe.nvml_device import DRIVER_CODES, LOST_CODES, NvmlDevice
from collector.wire import DeviceRef, Feed, Origin

_LOG = logging.getLogger(__name__)

_FIRST_BACKOFF_US: Final = US_PER_S
_LONGEST_BACKOFF_US: Final = 60 * US_PER_S
_LOOK_FOR_LOST_US: Final = 30 * US_PER_S
_FAILURES_BEFORE_LOST: Final = 3
_MAX_EVENTS_PER_SWEEP: Final = 64
_NO_WAIT_MS: Final = 0
_NO_DRIVER_CODES: Final = DRIVER_CODES | {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
    pynvml.NVML_ERROR_UNKNOWN,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
}


@dataclass(slots=True)
class _Slot:
    """One position of the device table; ``device`` is None while the device cannot be reached."""

    ref: DeviceRef
    device: NvmlDevice | None = None
    handle_value: int | None = None
    failures: int = 0
    lost: bool = False
    look_again_us: int = 0
    last_energy_mj: int | None = None


class _DriverGoneError(Exception):
    """The driver, not one device, stopped answering; carries NVML's code."""


class NvmlProbe:
    """All NVIDIA devices of this node."""

    def __init__(self, clock: Clock, *, boot_id: str, driver_epoch: int, gpm: bool = True) -> None:
        """Open nothing yet: the first :meth:`read` does. ``driver_epoch`` is the number of the epoch that begins then."""
        self._clock = clock
        self._boot_id = boot_id
        self._driver_epoch = driver_epoch
        self._gpm = gpm
        self._slots: list[_Slot] = []
        self._open = False
        self._opened_before = False
        self._new_epoch_on_open = False
        self._event_set: Any = None
        self._retry_at_us = 0
        self._backoff_us = _FIRST_BACKOFF_US
        self._unavailable_code: int | None = None
        self._events: list[DeviceEvent] = []
        self._errors: Counter[str] = Counter()
        self._processes: tuple[ProcessReading, ...] = ()

    @property
    def unavailable_code(self) -> int | None:
        """NVML's code while there is no driver to talk to; None while there is one."""
        return self._unavailable_code

    def read(self) -> Sweep:
        """Read every device that can be reached. Raises LibraryReplacedError where only a new process can go on."""
        self._events, self._errors = [], Counter()
        readings: list[DeviceReading] = []
        if self._ensure_open():
            try:
                readings = self._read_devices()
                self._read_xid_events()
            except _DriverGoneError as gone:
                self._driver_gone(gone.args[0])
        return Sweep(
            epoch=Epoch(self._boot_id, self._driver_epoch, Feed.NATIVE, Origin.LIVE),
            devices=tuple(slot.ref for slot in self._slots),
            readings=tuple(readings),
            events=tuple(self._events),
            errors=dict(self._errors),
        )

    def processes(self) -> tuple[ProcessReading, ...]:
        """Return who used the devices when the driver was last asked: in :meth:`read`, every five seconds.

        Costs nothing, asks no driver, and may be called from any thread. A device that cannot be read has no entries.
        """
        return self._processes

    def read_exact(self, device_uuids: Collection[str]) -> Sweep:
        """Read the counters and gauges of these devices now, as far as one driver call a device gives them.

        For the instant at which something begins or ends on them. To be called by the thread that calls :meth:`read`. A device
        that is unknown or does not answer has no reading; the sweep carries no events and no rows: what happened to a device is
        found out and told by the next :meth:`read`.
        """
        readings: list[DeviceReading] = []
        errors: Counter[str] = Counter()
        for position, slot in enumerate(self._slots):
            if slot.device is None or slot.ref.uuid not in device_uuids:
                continue
            values: Values = {}
            try:
                slot.device.read_fields(values, errors)
            except pynvml.NVMLError as error:
                errors[f"exact:{error.value}"] += 1
                continue
            readings.append(DeviceReading(position, self._clock.now().wall_us, values))
        epoch = Epoch(self._boot_id, self._driver_epoch, Feed.NATIVE, Origin.LIVE)
        return Sweep(epoch, tuple(slot.ref for slot in self._slots), tuple(readings), errors=dict(errors))

    def close(self) -> None:
        """Shut NVML down, so that the driver may be unloaded or a GPU reset; the next read opens it again."""
        if not self._open:
            return
        self._open = False
        for slot in self._slots:
            if slot.device is not None:
                slot.device.close()
                slot.device = None
        event_set, self._event_set = self._event_set, None
        try:
            if event_set is not None:
                pynvml.nvmlEventSetFree(event_set)
            pynvml.nvmlShutdown()
        except pynvml.NVMLError as error:
            _LOG.info("NVML was gone before it could be shut down: %s", error)

    def _ensure_open(self) -> bool:
        if self._open:
            return True
        now_us = self._clock.now().monotonic_us
        if now_us < self._retry_at_us:
            return False
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH and self._opened_before:
                # The library on disk is a new one, but this process keeps the old one mapped and cannot swap it.
                raise LibraryReplacedError("the NVIDIA driver was upgraded; restart to load its new library") from error
            if error.value not in _NO_DRIVER_CODES:
                self._errors[f"init:{error.value}"] += 1
            self._unavailable(error.value, now_us)
            return False
        try:
            self._find_devices()
        except pynvml.NVMLError as error:
            self._open = True
            self.close()
            self._unavailable(error.value, now_us)
            return False
        self._opened()
        return True

    def _opened(self) -> None:
        self._open = self._opened_before = True
        self._backoff_us = _FIRST_BACKOFF_US
        if self._unavailable_code is not None:
            _LOG.info("NVML answers again: %d devices", sum(slot.device is not None for slot in self._slots))
        self._unavailable_code = None
        if not self._new_epoch_on_open:
            return
        self._new_epoch_on_open = False
        self._driver_epoch += 1
        for position, slot in enumerate(self._slots):
            slot.last_energy_mj = None
            if slot.device is not None:
                self._event(position, "driver_reload")

    def _unavailable(self, code: int, now_us: int) -> None:
        if code != self._unavailable_code:
            _LOG.warning("no NVIDIA driver to read: %s; trying again", pynvml.NVMLError(code))
        self._unavailable_code = code
        self._retry_at_us = now_us + self._backoff_us
        self._backoff_us = min(2 * self._backoff_us, _LONGEST_BACKOFF_US)

    def _driver_gone(self, code: int) -> None:
        self._errors[f"driver:{code}"] += 1
        self.close()
        self._new_epoch_on_open = True
        self._unavailable(code, self._clock.now().monotonic_us)

    def _find_devices(self) -> None:
        """Give every device of the table its handle by UUID, and append devices not seen before."""
        known = {slot.ref.uuid for slot in self._slots}
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuid = pynvml.nvmlDeviceGetUUID(handle)
                if uuid not in known:
                    self._slots.append(_Slot(_describe(handle, uuid)))
            except pynvml.NVMLError as error:
                if error.value in DRIVER_CODES:
                    raise
                self._errors[f"open:{error.value}"] += 1  # a lost device has no UUID to be known by; the others go on
        try:
            self._event_set = pynvml.nvmlEventSetCreate()
        except pynvml.NVMLError as error:
            self._errors[f"events:{error.value}"] += 1
        for position in range(len(self._slots)):
            self._attach(position)

    def _attach(self, position: int) -> bool:
        slot = self._slots[position]
        try:
            handle = pynvml.nvmlDeviceGetHandleByUUID(slot.ref.uuid)
        except pynvml.NVMLError as error:
            if error.value in DRIVER_CODES:
                raise
            self._lost(position, error.value)
            return False
        slot.device = NvmlDevice(handle, gpm=self._gpm)
        slot.handle_value = ctypes.cast(handle, ctypes.c_void_p).value
        slot.failures = 0
        self._register_xid(position, handle)
        return True

    def _read_devices(self) -> list[DeviceReading]:
        readings: list[DeviceReading] = []
        failed: list[int] = []
        for position, slot in enumerate(self._slots):
            if slot.device is None and not self._found_again(position):
                continue
            try:
                readings.append(self._read_device(position, slot))
            except pynvml.NVMLError as error:
                if error.value in DRIVER_CODES:
                    raise _DriverGoneError(error.value) from error
                if error.value in LOST_CODES:
                    self._lost(position, error.value)
                    continue
                self._errors[f"device:{error.value}"] += 1
                failed.append(error.value)
                slot.failures += 1
                if slot.failures >= _FAILURES_BEFORE_LOST:
                    self._lost(position, error.value)
        if failed and not readings:
            # A reloaded driver answers the handles of the one before with all sorts of codes, for every device at once.
            raise _DriverGoneError(failed[0])
        return readings

    def _read_device(self, position: int, slot: _Slot) -> DeviceReading:
        device = slot.device
        assert device is not None  # noqa: S101  narrowed by the caller
        values: Values = {}
        device.read_fields(values, self._errors)
        at = self._clock.now()
        device.read_calls(values, self._errors, at.monotonic_us)
        slot.failures = 0
        if slot.lost:
            slot.lost = False
            self._event(position, "recovered", at_us=at.wall_us)
        energy_mj = values.get("energy_mj")
        if energy_mj is not None:
            if slot.last_energy_mj is not None and energy_mj < slot.last_energy_mj:
                self._event(position, "counter_reset", at_us=at.wall_us, detail=f"from {slot.last_energy_mj} mJ")
            slot.last_energy_mj = int(energy_mj)
        for column in device.newly_unsupported():
            self._event(position, "not_supported", at_us=at.wall_us, detail=column)
        return DeviceReading(position, at.wall_us, values)

    def _found_again(self, position: int) -> bool:
        slot = self._slots[position]
        now_us = self._clock.now().monotonic_us
        if now_us < slot.look_again_us:
            return False
        try:
            return self._attach(position)
        except pynvml.NVMLError as error:
            raise _DriverGoneError(error.value) from error

    def _lost(self, position: int, code: int) -> None:
        slot = self._slots[position]
        if slot.device is not None:
            slot.device.close()
            slot.device = None
        slot.look_again_us = self._clock.now().monotonic_us + _LOOK_FOR_LOST_US
        if not slot.lost:
            slot.lost = True
            self._event(position, "lost", code=code)

    def _register_xid(self, position: int, handle: Any) -> None:
        if self._event_set is None:
            return
        try:
            pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, self._event_set)
        except pynvml.NVMLError as error:
            self._errors[f"events:{error.value}"] += 1
            if error.value == pynvml.NVML_ERROR_NOT_SUPPORTED:
                self._event(position, "not_supported", detail="xid")

    def _read_xid_events(self) -> None:
        """Take the events that wait, without waiting for more."""
        if self._event_set is None:
            return
        for _ in range(_MAX_EVENTS_PER_SWEEP):
            try:
                data = pynvml.nvmlEventSetWait_v2(self._event_set, _NO_WAIT_MS)
            except pynvml.NVMLError as error:
                if error.value in DRIVER_CODES:
                    raise _DriverGoneError(error.value) from error
                if error.value != pynvml.NVML_ERROR_TIMEOUT:
                    self._errors[f"events:{error.value}"] += 1
                return
            handle_value = ctypes.cast(data.device, ctypes.c_void_p).value
            for position, slot in enumerate(self._slots):
                if slot.handle_value == handle_value and handle_value is not None:
                    self._event(position, "xid", code=int(data.eventData))

    def _event(
        self,
        position: int,
        kind: EventKind,
        *,
        code: int | None = None,
        at_us: int | None = None,
        detail: str | None = None,
    ) -> None:
        at_us = self._clock.now().wall_us if at_us is None else at_us
        self._events.append(DeviceEvent(position, at_us, kind, code, detail))


def _describe(handle: Any, uuid: str) -> DeviceRef:
    """Name a device. What only decorates it may be missing; what identifies it is given."""
    memory_bytes: int | None = None
    bus_id: Any = None
    try:
        memory_bytes = int(pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).total)
        bus_id = pynvml.nvmlDeviceGetPciInfo(handle).busId
    except pynvml.NVMLError as error:
        _LOG.info("device %s does not tell its memory or bus: %s", uuid, error)
    pci_bus_id = bus_id.decode("ascii", "replace") if isinstance(bus_id, bytes) else bus_id
    return DeviceRef(uuid, pynvml.nvmlDeviceGetName(handle), memory_bytes=memory_bytes, pci_bus_id=pci_bus_id)
