"""The state of a device that changes rarely: sizes, limits, thresholds, links, and how worn it is.

One row of the device-health stream per reading. It judges nothing: which values are a reason to drain a node is decided
where all nodes are seen.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import pynvml

from collector.probe import Row, Values, out_of_range
from collector.probe.nvml_ask import Call, Calls, Fields
from collector.probe.nvml_fields import Field
from collector.wire import Stream

_FIELDS: Final = (
    Field(pynvml.NVML_FI_DEV_POWER_MIN_LIMIT, 0, "power_limit_min_mw"),
    Field(pynvml.NVML_FI_DEV_POWER_MAX_LIMIT, 0, "power_limit_max_mw"),
    Field(pynvml.NVML_FI_DEV_POWER_DEFAULT_LIMIT, 0, "power_limit_default_mw"),
    Field(pynvml.NVML_FI_DEV_ECC_SBE_AGG_TOTAL, 0, "ecc_corrected_aggregate"),
    Field(pynvml.NVML_FI_DEV_ECC_DBE_AGG_TOTAL, 0, "ecc_uncorrected_aggregate"),
    Field(pynvml.NVML_FI_DEV_REMAPPED_COR, 0, "remapped_rows_corrected"),
    Field(pynvml.NVML_FI_DEV_REMAPPED_UNC, 0, "remapped_rows_uncorrected"),
    Field(pynvml.NVML_FI_DEV_REMAPPED_PENDING, 0, "remapping_pending"),
    Field(pynvml.NVML_FI_DEV_REMAPPED_FAILURE, 0, "remapping_failed"),
    Field(pynvml.NVML_FI_DEV_RETIRED_SBE, 0, "retired_pages_corrected"),
    Field(pynvml.NVML_FI_DEV_RETIRED_DBE, 0, "retired_pages_uncorrected"),
    Field(pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, 0, "recovery_action"),
)


def _memory(handle: Any) -> tuple[int | None, ...]:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    return memory.total, memory.reserved


def _slowdown(handle: Any) -> tuple[int | None, ...]:
    return (pynvml.nvmlDeviceGetTemperatureThreshold(handle, pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),)


def _shutdown(handle: Any) -> tuple[int | None, ...]:
    return (pynvml.nvmlDeviceGetTemperatureThreshold(handle, pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN),)


def _memory_max(handle: Any) -> tuple[int | None, ...]:
    return (pynvml.nvmlDeviceGetTemperatureThreshold(handle, pynvml.NVML_TEMPERATURE_THRESHOLD_MEM_MAX),)


def _sm_clock_max(handle: Any) -> tuple[int | None, ...]:
    return (pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),)


def _memory_clock_max(handle: Any) -> tuple[int | None, ...]:
    return (pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM),)


def _pcie_generation(handle: Any) -> tuple[int | None, ...]:
    return (pynvml.nvmlDeviceGetCurrPcieLinkGeneration(handle),)


def _pcie_generation_max(handle: Any) -> tuple[int | None, ...]:
    return (pynvml.nvmlDeviceGetMaxPcieLinkGeneration(handle),)


def _pcie_width(handle: Any) -> tuple[int | None, ...]:
    return (pynvml.nvmlDeviceGetCurrPcieLinkWidth(handle),)


def _pcie_width_max(handle: Any) -> tuple[int | None, ...]:
    return (pynvml.nvmlDeviceGetMaxPcieLinkWidth(handle),)


def _mig(handle: Any) -> tuple[int | None, ...]:
    return (pynvml.nvmlDeviceGetMigMode(handle)[0],)


_CALLS: Final = (
    Call(("memory_total_bytes", "memory_reserved_bytes"), _memory),
    Call(("slowdown_temp_c",), _slowdown),
    Call(("shutdown_temp_c",), _shutdown),
    Call(("memory_max_temp_c",), _memory_max),
    Call(("sm_clock_max_mhz",), _sm_clock_max),
    Call(("memory_clock_max_mhz",), _memory_clock_max),
    Call(("pcie_generation",), _pcie_generation),
    Call(("pcie_generation_max",), _pcie_generation_max),
    Call(("pcie_width",), _pcie_width),
    Call(("pcie_width_max",), _pcie_width_max),
    Call(("mig_enabled",), _mig),
)


class Health:
    """Reads one board."""

    def __init__(self, handle: Any) -> None:
        """Assume that everything is supported."""
        self._fields = Fields(handle, _FIELDS)
        self._calls = Calls(handle, _CALLS)

    @property
    def unsupported(self) -> dict[str, int]:
        """The columns that stay null, with NVML's code for why."""
        return self._fields.unsupported | self._calls.unsupported

    def forget(self) -> None:
        """Ask for everything again."""
        self._fields.forget()
        self._calls.forget()

    def read(self, errors: Counter[str]) -> Row:
        """Return the columns of one row. Raises pynvml.NVMLError for a lost device or driver, or where no field is given."""
        values: Values = {}
        self._fields.read(values, errors)
        self._calls.read(values, errors)
        row: Row = dict(values)
        for column in out_of_range(row, Stream.DEVICE_HEALTH):
            errors[f"out_of_range:{column}"] += 1
            row[column] = None
        return row
