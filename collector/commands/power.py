"""Reads and sets the power limit of one device: the one thing an order may change.

It decides nothing and remembers nothing. Setting needs root, or CAP_SYS_ADMIN where the driver asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import pynvml

from collector.errors import AgentError


class PowerError(AgentError):
    """The driver did not do it; the message says why."""


@dataclass(frozen=True, slots=True)
class PowerLimit:
    """What a device's limit is, and what its board allows."""

    now_mw: int
    min_mw: int
    max_mw: int
    default_mw: int | None = None
    """What the board comes with; None where it does not say."""


class PowerControl(Protocol):
    """Whatever can limit the power of devices."""

    def devices(self) -> tuple[str, ...]:
        """Return the UUIDs of the devices there are. Raises PowerError."""
        ...

    def limit(self, device_uuid: str) -> PowerLimit:
        """Return the present limit. Raises PowerError."""
        ...

    def set_limit(self, device_uuid: str, limit_mw: int) -> None:
        """Set it. Raises PowerError."""
        ...


class NvmlPower:
    """NVIDIA boards. Each call opens NVML for itself, so that nothing is held between two."""

    def __init__(self, released: Callable[[], bool] = lambda: False) -> None:
        """Leave NVML shut while ``released`` says that the devices are let go for maintenance."""
        self._released = released

    def devices(self) -> tuple[str, ...]:
        """Return the UUIDs of the boards."""
        with _Nvml(self._released):
            handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
            return tuple(pynvml.nvmlDeviceGetUUID(handle) for handle in handles)

    def limit(self, device_uuid: str) -> PowerLimit:
        """Return the configured limit, which is not the enforced one: another limiter may be below it."""
        with _Nvml(self._released):
            handle = pynvml.nvmlDeviceGetHandleByUUID(device_uuid)
            low_mw, high_mw = pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle)
            now_mw = int(pynvml.nvmlDeviceGetPowerManagementLimit(handle))
            return PowerLimit(now_mw, int(low_mw), int(high_mw), _default_mw(handle))

    def set_limit(self, device_uuid: str, limit_mw: int) -> None:
        """Set the configured limit."""
        with _Nvml(self._released):
            handle = pynvml.nvmlDeviceGetHandleByUUID(device_uuid)
            pynvml.nvmlDeviceSetPowerManagementLimit(handle, limit_mw)


def _default_mw(handle: object) -> int | None:
    try:
        return int(pynvml.nvmlDeviceGetPowerManagementDefaultLimit(handle))
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return None


class _Nvml:
    """NVML, opened for one call (it counts its users) and its errors told as ours."""

    def __init__(self, released: Callable[[], bool]) -> None:
        self._released = released

    def __enter__(self) -> None:
        if self._released():
            raise PowerError("the devices are released for maintenance")
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise PowerError(f"NVML cannot be opened: {error}") from error

    def __exit__(self, _kind: object, fault: BaseException | None, _trace: object) -> None:
        try:
            pynvml.nvmlShutdown()
        except pynvml.NVMLError as error:
            fault = fault or error
        if isinstance(fault, pynvml.NVMLError):
            raise PowerError(str(fault)) from fault
