"""What NVML's return codes mean to the probe, and the bits of a clocks-event reason."""

from __future__ import annotations

from typing import Final

import pynvml

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
"""This device or driver, or our rights, do not give it: not asked again for an hour."""
OLD_DRIVER_CODES: Final = frozenset(
    {
        pynvml.NVML_ERROR_INVALID_ARGUMENT,
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
NO_DRIVER_CODES: Final = DRIVER_CODES | {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
    pynvml.NVML_ERROR_UNKNOWN,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
}
FATAL_CODES: Final = LOST_CODES | DRIVER_CODES
"""Of a device or the whole driver, and so not the business of who asked for one column."""
WRAPS: Final = -1
"""Not NVML's: the counter is 32 bits wide and nothing tells how often it went round between two readings."""

REASONS: Final[dict[int, str]] = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
    0x100: "display clocks",
    0x200: "board limit",
    0x400: "reliability",
}
"""Clocks-event reasons by nvml.h. Our own table: the binding's ``EventReasonAll`` ends at 0x100."""


def reason_names(bits: int) -> tuple[str, ...]:
    """Return the names of the reasons set, lowest bit first; a bit this table does not know keeps its number."""
    return tuple(
        REASONS.get(1 << position, f"unknown {1 << position:#x}")
        for position in range(bits.bit_length())
        if bits >> position & 1
    )
