"""What the metrics of dcgm-exporter mean: names before and after DCGM 4.6, blanks, units.

Pure functions and tables; which device and when is :mod:`collector.probe.dcgm`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from collector.probe.prometheus_text import Sample

Unit = Literal["count", "mj", "j", "w", "mib", "percent", "ratio", "ns", "violation"]


class Meaning(NamedTuple):
    """What one metric gives. Of several metrics of one column the first of :data:`MEANINGS` that is there wins."""

    column: str
    unit: Unit
    board: bool = True
    """Whether the value is the board's even where it is told for a MIG instance: power, energy, clocks are."""
    summed: bool = False
    """Whether metrics of this column add up."""


def _both(old: str, new: str, meaning: Meaning) -> dict[str, Meaning]:
    return {f"DCGM_FI_{new}": meaning, f"DCGM_FI_{old}": meaning}


MEANINGS: Final[dict[str, Meaning]] = {
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": Meaning("energy_mj", "mj"),
    "DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL": Meaning("energy_mj", "j"),
    # Field 155 is the average over a second, 157 the instant (NVIDIA/DCGM#157).
    **_both("DEV_POWER_USAGE", "DEV_BOARD_POWER_WATTS", Meaning("power_average_mw", "w")),
    **_both("DEV_POWER_USAGE_INSTANT", "DEV_BOARD_POWER_RAW_WATTS", Meaning("power_instant_mw", "w")),
    **_both("DEV_ENFORCED_POWER_LIMIT", "DEV_BOARD_POWER_LIMIT_ENFORCED_WATTS", Meaning("power_limit_mw", "w")),
    **_both("DEV_GPU_UTIL", "DEV_GPU_UTIL_RATIO", Meaning("gpu_util_percent", "percent", board=False)),
    **_both("DEV_MEM_COPY_UTIL", "DEV_MEM_COPY_UTIL_RATIO", Meaning("memory_util_percent", "percent", board=False)),
    **_both("DEV_ENC_UTIL", "DEV_ENC_UTIL_RATIO", Meaning("encoder_util_percent", "percent", board=False)),
    **_both("DEV_DEC_UTIL", "DEV_DEC_UTIL_RATIO", Meaning("decoder_util_percent", "percent", board=False)),
    **_both("PROF_SM_ACTIVE", "PROF_SM_UTIL_RATIO", Meaning("sm_active_ratio", "ratio", board=False)),
    **_both("PROF_PIPE_TENSOR_ACTIVE", "PROF_TENSOR_UTIL_RATIO", Meaning("tensor_active_ratio", "ratio", board=False)),
    **_both("PROF_DRAM_ACTIVE", "PROF_DRAM_UTIL_RATIO", Meaning("dram_active_ratio", "ratio", board=False)),
    # A MIG instance has no NVML utilization; how long its engine was busy is the nearest there is.
    **_both("PROF_GR_ENGINE_ACTIVE", "PROF_GR_ENGINE_UTIL_RATIO", Meaning("engine_active_ratio", "ratio", board=False)),
    "DCGM_FI_DEV_FB_USED": Meaning("memory_used_bytes", "mib", board=False),
    **_both("DEV_GPU_TEMP", "DEV_GPU_TEMP_CELSIUS", Meaning("temp_c", "count")),
    **_both("DEV_MEMORY_TEMP", "DEV_MEMORY_TEMP_CELSIUS", Meaning("memory_temp_c", "count")),
    "DCGM_FI_DEV_SM_CLOCK": Meaning("sm_clock_mhz", "count"),
    "DCGM_FI_DEV_MEM_CLOCK": Meaning("memory_clock_mhz", "count"),
    "DCGM_FI_DEV_PSTATE": Meaning("pstate", "count"),
    **_both("DEV_CLOCK_THROTTLE_REASONS", "DEV_CLOCKS_EVENT_REASONS", Meaning("clocks_event_reasons", "count")),
    "DCGM_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP_NS": Meaning("throttle_power_cap_ns", "ns"),
    "DCGM_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN_NS": Meaning("throttle_sw_thermal_ns", "ns"),
    "DCGM_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN_NS": Meaning("throttle_hw_thermal_ns", "ns"),
    "DCGM_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN_NS": Meaning("throttle_power_brake_ns", "ns"),
    "DCGM_FI_DEV_CLOCKS_EVENT_REASON_SYNC_BOOST_NS": Meaning("throttle_sync_boost_ns", "ns"),
    "DCGM_FI_DEV_POWER_VIOLATION": Meaning("throttle_power_cap_ns", "violation"),
    # One counter for both thermal causes; it stands where the two are not told apart.
    "DCGM_FI_DEV_THERMAL_VIOLATION": Meaning("throttle_sw_thermal_ns", "violation"),
    "DCGM_FI_DEV_SYNC_BOOST_VIOLATION": Meaning("throttle_sync_boost_ns", "violation"),
    # DCGM_FI_PROF_PCIE_{TX,RX}_BYTES and NVLINK_{TX,RX}_BYTES are rates, not counters: not ours to take for one.
    **_both("DEV_PCIE_REPLAY_COUNTER", "DEV_PCIE_REPLAY_TOTAL", Meaning("pcie_replays", "count")),
    "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL": Meaning("nvlink_errors", "count", summed=True),
    "DCGM_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL": Meaning("nvlink_errors", "count", summed=True),
    "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL": Meaning("nvlink_errors", "count", summed=True),
    "DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL": Meaning("nvlink_errors", "count", summed=True),
    "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL": Meaning("ecc_corrected", "count"),
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": Meaning("ecc_uncorrected", "count"),
    **_both("DEV_XID_ERRORS", "DEV_XID_ERROR", Meaning("xid", "count")),
}
"""Metrics that become columns of the device stream; ``xid`` and ``engine_active_ratio`` are the probe's own."""

HEALTH_MEANINGS: Final[dict[str, Meaning]] = {
    "DCGM_FI_DEV_FB_TOTAL": Meaning("memory_total_bytes", "mib"),
    "DCGM_FI_DEV_FB_RESERVED": Meaning("memory_reserved_bytes", "mib"),
    **_both("DEV_SLOWDOWN_TEMP", "DEV_GPU_TEMP_SLOWDOWN_CELSIUS", Meaning("slowdown_temp_c", "count")),
    **_both("DEV_SHUTDOWN_TEMP", "DEV_GPU_TEMP_SHUTDOWN_CELSIUS", Meaning("shutdown_temp_c", "count")),
    **_both("DEV_MEM_MAX_OP_TEMP", "DEV_MEMORY_MAX_OP_TEMP_CELSIUS", Meaning("memory_max_temp_c", "count")),
    "DCGM_FI_DEV_MAX_SM_CLOCK": Meaning("sm_clock_max_mhz", "count"),
    "DCGM_FI_DEV_MAX_MEM_CLOCK": Meaning("memory_clock_max_mhz", "count"),
    "DCGM_FI_DEV_POWER_MGMT_LIMIT_MIN": Meaning("power_limit_min_mw", "w"),
    "DCGM_FI_DEV_POWER_MGMT_LIMIT_MAX": Meaning("power_limit_max_mw", "w"),
    "DCGM_FI_DEV_POWER_MGMT_LIMIT_DEF": Meaning("power_limit_default_mw", "w"),
    "DCGM_FI_DEV_PCIE_LINK_GEN": Meaning("pcie_generation", "count"),
    "DCGM_FI_DEV_PCIE_MAX_LINK_GEN": Meaning("pcie_generation_max", "count"),
    "DCGM_FI_DEV_PCIE_LINK_WIDTH": Meaning("pcie_width", "count"),
    "DCGM_FI_DEV_PCIE_MAX_LINK_WIDTH": Meaning("pcie_width_max", "count"),
    "DCGM_FI_DEV_ECC_SBE_AGG_TOTAL": Meaning("ecc_corrected_aggregate", "count"),
    "DCGM_FI_DEV_ECC_DBE_AGG_TOTAL": Meaning("ecc_uncorrected_aggregate", "count"),
    "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS": Meaning("remapped_rows_corrected", "count"),
    "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": Meaning("remapped_rows_uncorrected", "count"),
    "DCGM_FI_DEV_ROW_REMAP_PENDING": Meaning("remapping_pending", "count"),
    "DCGM_FI_DEV_ROW_REMAP_FAILURE": Meaning("remapping_failed", "count"),
    "DCGM_FI_DEV_RETIRED_SBE": Meaning("retired_pages_corrected", "count"),
    "DCGM_FI_DEV_RETIRED_DBE": Meaning("retired_pages_uncorrected", "count"),
    "DCGM_FI_DEV_MIG_MODE": Meaning("mig_enabled", "count"),
}
"""Metrics that become columns of the device health stream."""

_INT64_BLANK: Final = 0x7FFF_FFFF_FFFF_FFF0
_INT32_BLANKS: Final = range(0x7FFF_FFF0, 0x8000_0000)
_FLOAT_BLANKS: Final = range(2**47, 2**47 + 16)
_SCALES: Final[Mapping[Unit, int]] = {"j": 1_000, "w": 1_000, "mib": 2**20}
_ALL_PERCENT: Final = 100
_SIGNS_OF_US: Final = 3


def is_blank(sample: Sample, unit: Unit) -> bool:
    """Say whether DCGM means "no value": blank, not found, not supported, no permission (dcgm_structs.h).

    The 32-bit and floating-point blanks are ordinary values for a 64-bit counter on its way up.
    """
    if not math.isfinite(sample.value) or sample.value >= _INT64_BLANK:
        return True
    counter = unit in ("mj", "j", "ns", "violation")
    return not counter and (sample.value in _INT32_BLANKS or sample.value in _FLOAT_BLANKS)


def scaled(sample: Sample, unit: Unit) -> int | float | None:
    """Return the value in the unit of its column, whole numbers exactly; None where it cannot be that quantity."""
    if unit in _SCALES:
        whole = sample.integer()
        number: int | float | None = sample.value * _SCALES[unit] if whole is None else whole * _SCALES[unit]
        return None if number is None else round(number)
    if unit == "percent":
        percent = _percent(sample)
        return None if percent is None else round(percent)
    if unit == "ratio":
        return _ratio(sample)
    return sample.integer() if unit in ("mj", "ns", "violation") else round(sample.value)


def _percent(sample: Sample) -> float | None:
    """Return 0-100. The name does not tell: field 203 counts 0-100 under both its names, field 1613 is 0-1 under the second.

    The type does: an exporter writes the integer field without and the floating-point one with a decimal point. Where a
    ``_RATIO`` came through something that rewrites numbers, "1" could be either: that one value is not taken.
    """
    if not sample.name.endswith("_RATIO"):
        return sample.value if 0 <= sample.value <= _ALL_PERCENT else None
    if "." in sample.text:
        return sample.value * _ALL_PERCENT if 0 <= sample.value <= 1 else None
    if sample.value == 1:
        return None
    return sample.value if 0 <= sample.value <= _ALL_PERCENT else None


def _ratio(sample: Sample) -> float | None:
    """Return 0-1. Profiling fields are ratios; one above 1 (and rounding) was made percent on the way."""
    value = sample.value
    if value < 0 or value > _ALL_PERCENT:
        return None
    return value / _ALL_PERCENT if value > 1.01 else min(value, 1.0)


class ViolationUnit:
    """Finds out whether an exporter's ``*_VIOLATION`` counters count nanoseconds or microseconds.

    NVML counts nanoseconds; DCGM's help text said microseconds for years (NVIDIA/DCGM#266) and exporters repeat it, so the text
    proves nothing and a column must not be wrong a thousandfold. What proves it: as microseconds a counter would exceed
    the time the node is up, or grow faster than time. It was microseconds where a reason bit stood in two scrapes in a row and
    the counter grew by much of the time between in microseconds. Until then only 0 is known, in either unit.
    """

    def __init__(self, fixed: Literal["auto", "ns", "us"] = "auto") -> None:
        """Begin undecided unless told."""
        self.per_count_ns: int | None = {"auto": None, "ns": 1, "us": 1_000}[fixed]
        self._signs_of_us = 0

    def learn(self, value: int, *, uptime_us: int | None, grown: int | None, elapsed_us: int, throttled: bool) -> None:
        """Take in one reading: the counter, its growth since the last, and whether a reason bit said so all along."""
        if self.per_count_ns is not None:
            return
        if uptime_us is not None and value > uptime_us:
            self.per_count_ns = 1
        elif grown is None or elapsed_us <= 0:  # the first reading, or the wall clock was set back
            return
        elif grown > 1.5 * elapsed_us:
            self.per_count_ns = 1
        elif throttled and 0.2 * elapsed_us <= grown <= 1.05 * elapsed_us:
            self._signs_of_us += 1
            if self._signs_of_us >= _SIGNS_OF_US:
                self.per_count_ns = 1_000

    def to_ns(self, value: int) -> int | None:
        """Return nanoseconds; None while the unit is not known."""
        if value == 0:
            return 0
        return None if self.per_count_ns is None else value * self.per_count_ns
