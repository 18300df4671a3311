"""One NVIDIA board: asks it everything it supports, each group at its own pace, and remembers what it does not.

What a board refuses with NOT_SUPPORTED (or an older driver does not know, or our rights do not allow) is told once and
asked again each hour. What concerns more than one group, such as a driver that went away, is raised to the probe.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

import pynvml

from collector.clock import Clock
from collector.probe.nvml_ask import Call, Calls, Fields
from collector.probe.nvml_codes import FATAL_CODES, UNSUPPORTED_CODES, WRAPS
from collector.probe.nvml_fields import FIELDS
from collector.probe.nvml_gpm import Gpm
from collector.probe.nvml_health import Health
from collector.probe.nvml_links import Links
from collector.probe.nvml_mig import find_instances
from collector.probe.nvml_pcie import COLUMNS as PCIE_COLUMNS
from collector.probe.nvml_pcie import PcieBytes
from collector.probe.nvml_processes import Processes
from collector.probe.nvml_visit import (
    HEALTH_US,
    INSTANCES_US,
    LINKS_US,
    RETRY_UNSUPPORTED_US,
    SLOW_US,
    Pace,
    Visit,
)
from collector.wire import Stream

_UNKNOWN_PSTATE: Final = 32


def _utilization(handle: Any) -> tuple[int | None, ...]:
    rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
    return rates.gpu, rates.memory


def _encoder(handle: Any) -> tuple[int | None, ...]:
    return (pynvml.nvmlDeviceGetEncoderUtilization(handle)[0],)


def _decoder(handle: Any) -> tuple[int | None, ...]:
    return (pynvml.nvmlDeviceGetDecoderUtilization(handle)[0],)


def _memory(handle: Any) -> tuple[int | None, ...]:
    # Version 2 keeps the driver's own reserve apart from what jobs use.
    return (pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).used,)


def _temperature(handle: Any) -> tuple[int | None, ...]:
    return (pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU),)


def _old_temperature(handle: Any) -> tuple[int | None, ...]:
    return (pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),)


def _sm_clock(handle: Any) -> tuple[int | None, ...]:
    return (pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),)


def _memory_clock(handle: Any) -> tuple[int | None, ...]:
    return (pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),)


def _reasons(handle: Any) -> tuple[int | None, ...]:
    return (pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle),)


def _pstate(handle: Any) -> tuple[int | None, ...]:
    state = pynvml.nvmlDeviceGetPerformanceState(handle)
    return (None if state == _UNKNOWN_PSTATE else state,)


def _power_limit(handle: Any) -> tuple[int | None, ...]:
    return (pynvml.nvmlDeviceGetEnforcedPowerLimit(handle),)


def _power(handle: Any) -> tuple[int | None, ...]:
    return (pynvml.nvmlDeviceGetPowerUsage(handle),)


_POWER_FIELDS: Final = {"power_average_mw", "power_instant_mw"}
_GA100: Final = (8, 0)
_CALLS: Final = (
    Call(("gpu_util_percent", "memory_util_percent"), _utilization),
    Call(("encoder_util_percent",), _encoder),
    Call(("decoder_util_percent",), _decoder),
    Call(("memory_used_bytes",), _memory),
    # The older call goes away in CUDA 14, the newer is missing before driver 560.
    Call(("temp_c",), _temperature, instead=Call(("temp_c",), _old_temperature)),
    Call(("sm_clock_mhz",), _sm_clock),
    Call(("memory_clock_mhz",), _memory_clock),
    Call(("clocks_event_reasons",), _reasons),
)
_SLOW_CALLS: Final = (
    Call(("pstate",), _pstate),
    Call(("power_limit_mw",), _power_limit),
)


class NvmlDevice:
    """Reads one board through the handle it was opened with."""

    def __init__(self, handle: Any, uuid: str, model: str, *, gpm: bool, share: float) -> None:
        """Assume that everything is supported until the board says otherwise. ``share`` spreads what is read rarely."""
        self.handle = handle
        self.handle_value = ctypes.cast(handle, ctypes.c_void_p).value
        self.mig_enabled = False
        self.registered = False
        """Whether it was put into the event set, or refused."""
        self.events_code: int | None = None
        """NVML's code where it was refused."""
        self.reasons: int | float | None = None
        """The clocks-event reasons of the last visit."""
        self._uuid = uuid
        self._model = model
        self._fields = Fields(handle, FIELDS)
        self._calls = Calls(handle, _CALLS)
        self._slow_calls = Calls(handle, _SLOW_CALLS)
        self._power: Calls | None = None
        self._gpm = Gpm(handle, wanted=gpm)
        self._pcie = PcieBytes()
        self._health = Health(handle)
        self._links = Links(handle, uuid)
        self._processes = Processes(handle, uuid)
        self._noticed: set[str] = set()
        self._began = False
        self._mig_refused = False
        self._slow_pace = Pace(SLOW_US, share)
        self._links_pace = Pace(LINKS_US, share)
        self._health_pace = Pace(HEALTH_US, share)
        self._instances_pace = Pace(INSTANCES_US, share)
        self._retry_pace = Pace(RETRY_UNSUPPORTED_US, share)

    @property
    def unsupported(self) -> dict[str, int]:
        """What this board does not give, with NVML's code for why: columns, and names of functions that list processes."""
        return (
            self._measured_unsupported()
            | self._health.unsupported
            | self._links.unsupported
            | self._processes.unsupported
        )

    def hurry_health(self) -> None:
        """Read the health with the next visit: something happened."""
        self._health_pace.hurry()

    def hurry_instances(self) -> None:
        """Look for MIG instances with the next visit: one of them is gone."""
        self._instances_pace.hurry()

    def visit(self, clock: Clock) -> Visit:
        """Read what is due. Raises pynvml.NVMLError for a lost device or driver, or where the fields fail altogether."""
        visit = self.exact(clock)
        at = visit.at
        if self._retry_pace.due(at.monotonic_us) and self._began:
            self._health.forget()
            self._forget_measured()
        if self._fields.unsupported.keys() >= _POWER_FIELDS:
            self._read_power(visit)
        self._calls.read(visit.values, visit.errors)
        self.reasons = visit.values.get("clocks_event_reasons")
        self._gpm.read(visit.values, visit.errors)
        self._widen_pcie(visit)
        if self._health_pace.due(at.monotonic_us):
            self._read_health(visit)  # before what MIG changes
        if self.mig_enabled and not self._mig_refused and self._instances_pace.due(at.monotonic_us):
            self._find_instances(visit)
        if self._slow_pace.due(at.monotonic_us):
            self._read_slow(visit)
        if self._links_pace.due(at.monotonic_us):
            self._read_links(visit)
        visit.drop_out_of_range()
        unsupported = self._measured_unsupported().keys()
        if not unsupported <= self._noticed:
            visit.newly_unsupported = sorted(unsupported - self._noticed)
            self._noticed |= unsupported
        self._began = True
        return visit

    def exact(self, clock: Clock) -> Visit:
        """Read the batched fields, the energy counter among them, and date them right after.

        Raises pynvml.NVMLError where the call as a whole fails.
        """
        visit = Visit(clock.now())
        self._fields.read(visit.values, visit.errors)
        visit.at = clock.now()
        return visit

    def without_pcie(self, visit: Visit) -> Visit:
        """Leave the PCIe bytes out of an exact reading: they mean nothing beside totals kept over whole visits."""
        if self._pcie.narrow:
            for column in PCIE_COLUMNS:
                visit.values.pop(column, None)
        return visit

    def close(self) -> None:
        """Free what was allocated for this device."""
        self._gpm.close()

    def _measured_unsupported(self) -> dict[str, int]:
        unsupported = self._fields.unsupported | self._calls.unsupported | self._slow_calls.unsupported
        if self._power is not None:
            for column in self._power.columns - self._power.unsupported.keys():
                unsupported.pop(column, None)
        if self._gpm.unsupported_code is not None:
            unsupported |= dict.fromkeys(Gpm.columns, self._gpm.unsupported_code)
        if self._pcie.narrow and not self._gpm.gives_pcie:
            unsupported |= dict.fromkeys(PCIE_COLUMNS, WRAPS)
        return unsupported

    def _read_power(self, visit: Visit) -> None:
        """Read the one gauge that drivers before 530 have: up to the GA100 it is instant, later a mean of a second (nvml.h)."""
        if self._power is None:
            self._power = Calls(self.handle, tuple(Call((column,), _power) for column in self._power_column(visit)))
        self._power.read(visit.values, visit.errors)

    def _power_column(self, visit: Visit) -> tuple[str, ...]:
        try:
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(self.handle)
        except pynvml.NVMLError as error:
            _count_unless_fatal(visit, "power", error)
            return ()  # a gauge of unknown meaning is none
        return ("power_instant_mw" if (major, minor) <= _GA100 else "power_average_mw",)

    def _widen_pcie(self, visit: Visit) -> None:
        if not self._began and any(self._fields.is_narrow(column) for column in PCIE_COLUMNS):
            self._pcie.narrow = True
        self._pcie.notice(visit.values)
        if self._pcie.narrow:
            self._gpm.want_pcie()
        self._pcie.unwrap(visit.values, self._gpm.pcie_bytes_per_s, visit.at.monotonic_us)

    def _read_slow(self, visit: Visit) -> None:
        self._slow_calls.read(visit.values, visit.errors)
        if self.mig_enabled:
            return  # its instances tell theirs; the board's list would count them twice
        visit.processes = self._processes.read(visit.at, visit.errors)
        if visit.processes is not None:
            visit.values["processes"] = sum(entry.kind != "graphics" for entry in visit.processes)

    def _read_links(self, visit: Visit) -> None:
        try:
            rows = self._links.read(visit.at, visit.errors)
        except pynvml.NVMLError as error:
            _count_unless_fatal(visit, "links", error)
            return
        visit.rows += [(Stream.FABRIC, row) for row in rows]

    def _read_health(self, visit: Visit) -> None:
        try:
            row = self._health.read(visit.errors)
        except pynvml.NVMLError as error:
            _count_unless_fatal(visit, "health", error)
            return
        visit.rows.append((Stream.DEVICE_HEALTH, row | {"at_us": visit.at.wall_us, "device_uuid": self._uuid}))
        mig_enabled = row.get("mig_enabled") == 1
        if mig_enabled != self.mig_enabled:
            self.mig_enabled = mig_enabled
            visit.instances = ()  # replaced below, where MIG is on
            self._forget_measured()  # another mode, other things supported
            self._instances_pace.hurry()

    def _find_instances(self, visit: Visit) -> None:
        try:
            visit.instances = find_instances(self.handle, self._uuid, self._model)
        except pynvml.NVMLError as error:
            _count_unless_fatal(visit, "instances", error)
            visit.instances = None
            self._mig_refused = error.value in UNSUPPORTED_CODES

    def _forget_measured(self) -> None:
        for group in (self._fields, self._calls, self._slow_calls, self._gpm, self._links, self._processes):
            group.forget()
        self._power = None
        self._mig_refused = False


def _count_unless_fatal(visit: Visit, group: str, error: Any) -> None:
    """Take the failure of a group that is not the device's or the driver's for that group's alone."""
    if error.value in FATAL_CODES:
        raise error
    visit.errors[f"{group}:{error.value}"] += 1
