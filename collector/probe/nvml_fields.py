"""The NVML fields the agent reads each time in one batched call per device, and how an answer becomes a number.

It holds the table and the decoding; which device supports what is :mod:`collector.probe.nvml_ask`'s business.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import pynvml

ALL_LINKS: Final = 0xFFFFFFFF
"""The scope of a link field that asks for the sum over all links."""


class Field(NamedTuple):
    """One NVML field: its number, its scope, and the device column it (or its sum with others) becomes."""

    number: int
    scope: int
    column: str


FIELDS: Final = (
    Field(pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, 0, "energy_mj"),
    Field(pynvml.NVML_FI_DEV_POWER_AVERAGE, 0, "power_average_mw"),
    Field(pynvml.NVML_FI_DEV_POWER_INSTANT, 0, "power_instant_mw"),
    Field(pynvml.NVML_FI_DEV_MEMORY_TEMP, 0, "memory_temp_c"),
    Field(pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP, 0, "throttle_power_cap_ns"),
    Field(pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN, 0, "throttle_sw_thermal_ns"),
    Field(pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN, 0, "throttle_hw_thermal_ns"),
    Field(pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN, 0, "throttle_power_brake_ns"),
    Field(pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SYNC_BOOST, 0, "throttle_sync_boost_ns"),
    # Not nvmlDeviceGetPcieThroughput: that one measures for 20 ms and blocks meanwhile.
    Field(pynvml.NVML_FI_DEV_PCIE_COUNT_TX_BYTES, 0, "pcie_tx_bytes"),
    Field(pynvml.NVML_FI_DEV_PCIE_COUNT_RX_BYTES, 0, "pcie_rx_bytes"),
    Field(pynvml.NVML_FI_DEV_PCIE_REPLAY_COUNTER, 0, "pcie_replays"),
    Field(pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, ALL_LINKS, "nvlink_tx_kib"),
    Field(pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, ALL_LINKS, "nvlink_rx_kib"),
    Field(pynvml.NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL, 0, "nvlink_errors"),
    Field(pynvml.NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL, 0, "nvlink_errors"),
    Field(pynvml.NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL, 0, "nvlink_errors"),
    Field(pynvml.NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL, 0, "nvlink_errors"),
    Field(pynvml.NVML_FI_DEV_ECC_SBE_VOL_TOTAL, 0, "ecc_corrected"),
    Field(pynvml.NVML_FI_DEV_ECC_DBE_VOL_TOTAL, 0, "ecc_uncorrected"),
)

# fieldId, scopeId, timestamp, latencyUsec, valueType, nvmlReturn, value: 40 bytes, no padding (nvml.h).
_FIELD_VALUE: Final = struct.Struct("=IIqqIiQ")
_DOUBLE, _UNSIGNED_INT, _UNSIGNED_LONG, _UNSIGNED_LONG_LONG, _SIGNED_LONG_LONG, _SIGNED_INT, _UNSIGNED_SHORT = range(7)
_MASKS: Final = {
    _UNSIGNED_LONG_LONG: 2**64 - 1,
    _UNSIGNED_INT: 2**32 - 1,
    _UNSIGNED_LONG: 2**64 - 1,
    _UNSIGNED_SHORT: 2**16 - 1,
}
_SIGNED_BITS: Final = {_SIGNED_LONG_LONG: 64, _SIGNED_INT: 32}


class FieldBatch:
    """A preallocated request for some fields; reading it costs one driver call and one pass over its memory."""

    def __init__(self, fields: Sequence[Field]) -> None:
        """Lay the request out once; the driver only writes the answers."""
        self.fields = tuple(fields)
        self._array: Any = (pynvml.c_nvmlFieldValue_t * len(self.fields))()
        for slot, entry in zip(self._array, self.fields, strict=True):
            slot.fieldId, slot.scopeId = entry.number, entry.scope
        self._reference = ctypes.byref(self._array)
        self._memory = memoryview(self._array).cast("B")

    def read(self, handle: Any) -> int:
        """Ask the driver; return its code for the call as a whole."""
        try:
            ask = pynvml.nvmlLib.nvmlDeviceGetFieldValues
        except AttributeError:
            return int(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        return int(ask(handle, len(self.fields), self._reference))

    def is_narrow(self, column: str) -> bool:
        """Say whether the last answer for this column was a 32-bit number."""
        return any(
            slot.valueType == _UNSIGNED_INT
            for slot, entry in zip(self._array, self.fields, strict=True)
            if entry.column == column
        )

    def answers(self) -> Iterator[tuple[Field, int, int | None]]:
        """Yield each field with its own return code and value; None where the code says failure or the type is new."""
        for entry, (_, _, _, _, kind, code, raw) in zip(
            self.fields, _FIELD_VALUE.iter_unpack(self._memory), strict=True
        ):
            yield entry, code, _number(kind, raw) if code == 0 else None


def _number(kind: int, raw: int) -> int | None:
    """Decode the union of a field value, which the driver fills from its low end."""
    mask = _MASKS.get(kind)
    if mask is not None:
        return raw & mask
    bits = _SIGNED_BITS.get(kind)
    if bits is not None:
        low = raw & (1 << bits) - 1
        return low - (1 << bits) if low >> bits - 1 else low
    if kind == _DOUBLE:
        value: float = struct.unpack("<d", raw.to_bytes(8, "little"))[0]
        return round(value) if math.isfinite(value) else None
    return None
