"""One NVIDIA device: asks it everything it supports and remembers what it does not.

What a device refuses with NOT_SUPPORTED (or an older driver does not know, or our rights do not allow) is told once and
asked again each hour. What concerns more than this device, such as a driver that went away, is raised to the probe.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import pynvml

from collector.clock import US_PER_S
from collector.probe import Values, out_of_range
from collector.probe.nvml_fields import FIELDS, FieldBatch
from collector.probe.nvml_gpm import GpmReader

UNSUPPORTED_CODES: Final = frozenset(
    {
        pynvml.NVML_ERROR_INVALID_ARGUMENT,  # a field number or scope this driver does not know
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_NOT_FOUND,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    }
)
LOST_CODES: Final = frozenset({pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED})
DRIVER_CODES: Final = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)
RETRY_UNSUPPORTED_US: Final = 3_600 * US_PER_S
SLOW_READ_US: Final = 5 * US_PER_S
"""What changes slowly or is read for orientation (limit, process count) is asked this often only."""
_UNKNOWN_PSTATE: Final = 32


class _Call(NamedTuple):
    """A driver call that is not a field: the columns it fills, in order, and whether it may be asked less often."""

    columns: tuple[str, ...]
    ask: Callable[[Any], tuple[int | None, ...]]
    slow: bool = False


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


def _processes(handle: Any) -> tuple[int | None, ...]:
    """Count compute processes: asked with room for none, the driver answers how many there are."""
    count = ctypes.c_uint(0)
    try:
        ask = pynvml.nvmlLib.nvmlDeviceGetComputeRunningProcesses_v3
    except AttributeError as error:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND) from error
    code = ask(handle, ctypes.byref(count), None)
    if code not in (pynvml.NVML_SUCCESS, pynvml.NVML_ERROR_INSUFFICIENT_SIZE):
        raise pynvml.NVMLError(code)
    return (count.value,)


_CALLS: Final = (
    _Call(("gpu_util_percent", "memory_util_percent"), _utilization),
    _Call(("encoder_util_percent",), _encoder),
    _Call(("decoder_util_percent",), _decoder),
    _Call(("memory_used_bytes",), _memory),
    _Call(("temp_c",), _temperature),
    _Call(("sm_clock_mhz",), _sm_clock),
    _Call(("memory_clock_mhz",), _memory_clock),
    _Call(("clocks_event_reasons",), _reasons),
    _Call(("pstate",), _pstate, slow=True),
    _Call(("power_limit_mw",), _power_limit, slow=True),
    _Call(("processes",), _processes, slow=True),
)
_OLD_TEMPERATURE: Final = _Call(("temp_c",), _old_temperature)


class NvmlDevice:
    """Reads one device through the handle it was opened with."""

    def __init__(self, handle: Any, *, gpm: bool) -> None:
        """Assume that everything is supported until the device says otherwise."""
        self._handle = handle
        self._wants_gpm = gpm
        self._told: set[str] = set()
        self._last_slow_us: int | None = None
        self._forget()

    def _forget(self) -> None:
        self._unsupported: set[str] = set()
        self._batch = FieldBatch(FIELDS)
        self._calls = list(_CALLS)
        self._gpm: GpmReader | None = None
        self._gpm_tried = not self._wants_gpm
        self._forgot_at_us: int | None = None

    def read_fields(self, values: Values, errors: Counter[str]) -> None:
        """Read the batched fields, the energy counter among them: the caller dates the reading right after this.

        Raises pynvml.NVMLError where the call as a whole fails.
        """
        code = self._batch.read(self._handle)
        if code != pynvml.NVML_SUCCESS:
            raise pynvml.NVMLError(code)
        refused = []
        for entry, field_code, value in self._batch.answers():
            if field_code in UNSUPPORTED_CODES:
                refused.append(entry)
            elif field_code in LOST_CODES:
                raise pynvml.NVMLError(field_code)
            elif field_code != pynvml.NVML_SUCCESS:
                errors[f"field:{field_code}"] += 1
            elif value is not None:
                earlier = values.get(entry.column)
                values[entry.column] = value if earlier is None else earlier + value
        if refused:
            kept = tuple(entry for entry in self._batch.fields if entry not in refused)
            self._batch = FieldBatch(kept)
            columns = {entry.column for entry in kept}
            self._unsupported |= {entry.column for entry in refused if entry.column not in columns}

    def read_calls(self, values: Values, errors: Counter[str], monotonic_us: int) -> None:
        """Read what has calls of its own, and GPM. Raises pynvml.NVMLError for a lost device or driver."""
        if self._forgot_at_us is None:
            self._forgot_at_us = monotonic_us
        slow = self._last_slow_us is None or monotonic_us - self._last_slow_us >= SLOW_READ_US
        if slow:
            self._last_slow_us = monotonic_us
        for call in tuple(self._calls):
            if call.slow and not slow:
                continue
            try:
                answer = call.ask(self._handle)
            except pynvml.NVMLError as error:
                self._failed_call(call, error, errors)
                continue
            values.update(zip(call.columns, answer, strict=True))
        self._read_gpm(values, errors)
        for column in out_of_range(values):
            errors[f"out_of_range:{column}"] += 1
            values[column] = None
        if monotonic_us - self._forgot_at_us >= RETRY_UNSUPPORTED_US and self._unsupported:
            self._close_gpm()
            self._forget()

    def newly_unsupported(self) -> list[str]:
        """Return the columns found unsupported and not told before."""
        new = sorted(self._unsupported - self._told)
        self._told.update(new)
        return new

    def close(self) -> None:
        """Free what was allocated for this device."""
        self._close_gpm()

    def _failed_call(self, call: _Call, error: Any, errors: Counter[str]) -> None:
        if error.value in LOST_CODES or error.value in DRIVER_CODES:
            raise error
        if error.value not in UNSUPPORTED_CODES:
            errors[f"{call.columns[0]}:{error.value}"] += 1
            return
        self._calls.remove(call)
        if call.ask is _temperature:  # the older call goes away in CUDA 14, the newer is missing before driver 560
            self._calls.append(_OLD_TEMPERATURE)
        else:
            self._unsupported.update(call.columns)

    def _read_gpm(self, values: Values, errors: Counter[str]) -> None:
        try:
            if self._gpm is not None:
                self._gpm.read(values)
            elif not self._gpm_tried:
                self._gpm_tried = True
                self._gpm = GpmReader(self._handle)
        except pynvml.NVMLError as error:
            if error.value in LOST_CODES or error.value in DRIVER_CODES:
                raise
            if error.value in UNSUPPORTED_CODES:
                self._close_gpm()
                self._unsupported.update(GpmReader.columns)
            else:
                errors[f"gpm:{error.value}"] += 1

    def _close_gpm(self) -> None:
        gpm, self._gpm = self._gpm, None
        if gpm is not None:
            try:
                gpm.close()
            except pynvml.NVMLError:
                return  # the driver that owned the samples is gone, and they with it
