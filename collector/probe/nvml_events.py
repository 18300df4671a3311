"""The driver's own events: XIDs and recovery actions, taken from one event set without waiting for more.

Events from before a device was registered are lost, which is why the kernel log is read besides. There is no registration for
a MIG instance: an event of its board says which GPU instance it was.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final, Literal

import pynvml

from collector.probe.nvml_codes import DRIVER_CODES, FATAL_CODES

_MAX_EVENTS_AT_ONCE: Final = 64
_NO_WAIT_MS: Final = 0
_NO_INSTANCE: Final = 0xFFFFFFFF
_XID: Final[int] = pynvml.nvmlEventTypeXidCriticalError
_RECOVERY_ACTION: Final[int] = pynvml.nvmlEventTypeGpuRecoveryAction


@dataclass(frozen=True, slots=True)
class DriverEvent:
    """One event; ``code`` is the XID or the recovery action."""

    handle_value: int | None
    kind: Literal["xid", "recovery_action"]
    code: int
    gpu_instance: int | None


class EventSet:
    """The events of all devices registered with it."""

    def __init__(self) -> None:
        """Create it. Raises pynvml.NVMLError."""
        self._set: Any = pynvml.nvmlEventSetCreate()

    def register(self, handle: Any) -> None:
        """Add a device. Raises pynvml.NVMLError."""
        wanted = _XID
        try:
            wanted |= pynvml.nvmlDeviceGetSupportedEventTypes(handle) & _RECOVERY_ACTION
        except pynvml.NVMLError as error:
            if error.value in FATAL_CODES:
                raise
        pynvml.nvmlDeviceRegisterEvents(handle, wanted, self._set)

    def take(self, errors: Counter[str]) -> list[DriverEvent]:
        """Return the events that wait. Raises pynvml.NVMLError where the driver is gone."""
        events: list[DriverEvent] = []
        for _ in range(_MAX_EVENTS_AT_ONCE):
            try:
                data = pynvml.nvmlEventSetWait_v2(self._set, _NO_WAIT_MS)
            except pynvml.NVMLError as error:
                if error.value in DRIVER_CODES:
                    raise
                if error.value != pynvml.NVML_ERROR_TIMEOUT:  # a lost device among them is its own visit's business
                    errors[f"events:{error.value}"] += 1
                break
            if data.eventType not in (_XID, _RECOVERY_ACTION):
                continue
            events.append(
                DriverEvent(
                    handle_value=ctypes.cast(data.device, ctypes.c_void_p).value,
                    kind="xid" if data.eventType == _XID else "recovery_action",
                    code=int(data.eventData),
                    gpu_instance=None if data.gpuInstanceId == _NO_INSTANCE else data.gpuInstanceId,
                )
            )
        return events

    def free(self) -> None:
        """Let go of it. Raises pynvml.NVMLError."""
        pynvml.nvmlEventSetFree(self._set)
