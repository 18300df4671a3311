"""The one table of what named series mean here: DCGM exporter, vLLM, SGLang, node exporter, OpenTelemetry's hardware names.

A name that is not in it is counted and not stored. A series is in it only where its value alone fills a column: what is
the sum of several series (errors of four kinds, requests by how they ended) cannot be made of requests that carry some of
them, so a single series that says the same stands in, or none does. :mod:`ingest.series.places` reads the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from collector.wire import Stream

Unit = Literal[
    "count",
    "mj",
    "j",
    "w",
    "mib",
    "bytes",
    "percent",
    "ratio",
    "ratio_percent",
    "whole_ratio",
    "violation",
    "bytes_per_s",
    "celsius",
]
"""What the value counts; :mod:`ingest.series.units` brings it to the column's own unit."""


class Meaning(NamedTuple):
    """The column one metric fills."""

    stream: Stream
    column: str
    unit: Unit
    board: bool = True
    """Of a MIG instance: whether the value is the board's all the same. Power, energy, clocks and temperatures are."""
    part: str = ""
    """Of a stream whose rows are named: how the row is named."""


def _dcgm(column: str, unit: Unit, *names: str, board: bool = True) -> dict[str, Meaning]:
    return {f"DCGM_FI_{name}": Meaning(Stream.DEVICE, column, unit, board) for name in names}


DCGM: Final[Mapping[str, Meaning]] = {
    # The name before DCGM 4.6 and the one since.
    **_dcgm("energy_mj", "mj", "DEV_TOTAL_ENERGY_CONSUMPTION"),
    **_dcgm("power_average_mw", "w", "DEV_POWER_USAGE", "DEV_BOARD_POWER_WATTS"),
    **_dcgm("power_instant_mw", "w", "DEV_POWER_USAGE_INSTANT", "DEV_BOARD_POWER_RAW_WATTS"),
    **_dcgm("power_limit_mw", "w", "DEV_ENFORCED_POWER_LIMIT", "DEV_BOARD_POWER_LIMIT_ENFORCED_WATTS"),
    **_dcgm("gpu_util_percent", "percent", "DEV_GPU_UTIL", board=False),
    **_dcgm("gpu_util_percent", "ratio_percent", "DEV_GPU_UTIL_RATIO", board=False),
    **_dcgm("memory_util_percent", "percent", "DEV_MEM_COPY_UTIL", board=False),
    **_dcgm("memory_util_percent", "ratio_percent", "DEV_MEM_COPY_UTIL_RATIO", board=False),
    **_dcgm("encoder_util_percent", "percent", "DEV_ENC_UTIL", board=False),
    **_dcgm("encoder_util_percent", "ratio_percent", "DEV_ENC_UTIL_RATIO", board=False),
    **_dcgm("decoder_util_percent", "percent", "DEV_DEC_UTIL", board=False),
    **_dcgm("decoder_util_percent", "ratio_percent", "DEV_DEC_UTIL_RATIO", board=False),
    **_dcgm("sm_active_ratio", "ratio", "PROF_SM_ACTIVE", "PROF_SM_UTIL_RATIO", board=False),
    **_dcgm("tensor_active_ratio", "ratio", "PROF_PIPE_TENSOR_ACTIVE", "PROF_TENSOR_UTIL_RATIO", board=False),
    **_dcgm("dram_active_ratio", "ratio", "PROF_DRAM_ACTIVE", "PROF_DRAM_UTIL_RATIO", board=False),
    **_dcgm("memory_used_bytes", "mib", "DEV_FB_USED", board=False),
    **_dcgm("temp_c", "celsius", "DEV_GPU_TEMP", "DEV_GPU_TEMP_CELSIUS"),
    **_dcgm("memory_temp_c", "celsius", "DEV_MEMORY_TEMP", "DEV_MEMORY_TEMP_CELSIUS"),
    **_dcgm("sm_clock_mhz", "count", "DEV_SM_CLOCK"),
    **_dcgm("memory_clock_mhz", "count", "DEV_MEM_CLOCK"),
    **_dcgm("pstate", "count", "DEV_PSTATE"),
    **_dcgm("clocks_event_reasons", "count", "DEV_CLOCK_THROTTLE_REASONS", "DEV_CLOCKS_EVENT_REASONS"),
    **_dcgm("throttle_power_cap_ns", "count", "DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP_NS"),
    **_dcgm("throttle_sw_thermal_ns", "count", "DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN_NS"),
    **_dcgm("throttle_hw_thermal_ns", "count", "DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN_NS"),
    **_dcgm("throttle_power_brake_ns", "count", "DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN_NS"),
    **_dcgm("throttle_sync_boost_ns", "count", "DEV_CLOCKS_EVENT_REASON_SYNC_BOOST_NS"),
    **_dcgm("throttle_power_cap_ns", "violation", "DEV_POWER_VIOLATION"),
    # One counter for both thermal causes.
    **_dcgm("throttle_sw_thermal_ns", "violation", "DEV_THERMAL_VIOLATION"),
    **_dcgm("throttle_sync_boost_ns", "violation", "DEV_SYNC_BOOST_VIOLATION"),
    # DCGM_FI_PROF_PCIE_{TX,RX}_BYTES are rates, not counters. NVLINK_*_ERROR_COUNT_TOTAL are four series of one sum.
    **_dcgm("pcie_replays", "count", "DEV_PCIE_REPLAY_COUNTER", "DEV_PCIE_REPLAY_TOTAL"),
    **_dcgm("ecc_corrected", "count", "DEV_ECC_SBE_VOL_TOTAL"),
    **_dcgm("ecc_uncorrected", "count", "DEV_ECC_DBE_VOL_TOTAL"),
}
"""Series of a device, which the label ``UUID`` names; with ``GPU_I_ID``, of its MIG instance. Every board reports energy in mJ."""


def _health(column: str, unit: Unit, *names: str) -> dict[str, Meaning]:
    return {f"DCGM_FI_DEV_{name}": Meaning(Stream.DEVICE_HEALTH, column, unit) for name in names}


DCGM_HEALTH: Final[Mapping[str, Meaning]] = {
    **_health("memory_total_bytes", "mib", "FB_TOTAL"),
    **_health("memory_reserved_bytes", "mib", "FB_RESERVED"),
    **_health("slowdown_temp_c", "celsius", "SLOWDOWN_TEMP", "GPU_TEMP_SLOWDOWN_CELSIUS"),
    **_health("shutdown_temp_c", "celsius", "SHUTDOWN_TEMP", "GPU_TEMP_SHUTDOWN_CELSIUS"),
    **_health("memory_max_temp_c", "celsius", "MEM_MAX_OP_TEMP", "MEMORY_MAX_OP_TEMP_CELSIUS"),
    **_health("sm_clock_max_mhz", "count", "MAX_SM_CLOCK"),
    **_health("memory_clock_max_mhz", "count", "MAX_MEM_CLOCK"),
    **_health("power_limit_min_mw", "w", "POWER_MGMT_LIMIT_MIN"),
    **_health("power_limit_max_mw", "w", "POWER_MGMT_LIMIT_MAX"),
    **_health("power_limit_default_mw", "w", "POWER_MGMT_LIMIT_DEF"),
    **_health("pcie_generation", "count", "PCIE_LINK_GEN"),
    **_health("pcie_generation_max", "count", "PCIE_MAX_LINK_GEN"),
    **_health("pcie_width", "count", "PCIE_LINK_WIDTH"),
    **_health("pcie_width_max", "count", "PCIE_MAX_LINK_WIDTH"),
    **_health("ecc_corrected_aggregate", "count", "ECC_SBE_AGG_TOTAL"),
    **_health("ecc_uncorrected_aggregate", "count", "ECC_DBE_AGG_TOTAL"),
    **_health("remapped_rows_corrected", "count", "CORRECTABLE_REMAPPED_ROWS"),
    **_health("remapped_rows_uncorrected", "count", "UNCORRECTABLE_REMAPPED_ROWS"),
    **_health("remapping_pending", "count", "ROW_REMAP_PENDING"),
    **_health("remapping_failed", "count", "ROW_REMAP_FAILURE"),
    **_health("retired_pages_corrected", "count", "RETIRED_SBE"),
    **_health("retired_pages_uncorrected", "count", "RETIRED_DBE"),
    **_health("mig_enabled", "count", "MIG_MODE"),
}
"""What changes rarely about a board: of what is scraped, a row a minute is kept."""


def _engine(column: str, unit: Unit, *names: str) -> dict[str, Meaning]:
    return {name: Meaning(Stream.ENGINE, column, unit) for name in names}


ENGINES: Final[Mapping[str, Meaning]] = {
    **_engine("requests_running", "count", "vllm:num_requests_running", "sglang:num_running_reqs"),
    **_engine("requests_waiting", "count", "vllm:num_requests_waiting", "sglang:num_queue_reqs"),
    **_engine("prompt_tokens", "count", "vllm:prompt_tokens_total", "sglang:prompt_tokens_total"),
    **_engine("generation_tokens", "count", "vllm:generation_tokens_total", "sglang:generation_tokens_total"),
    **_engine("prefix_cache_hits", "count", "vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
    **_engine("prefix_cache_hits", "count", "sglang:cached_tokens_total"),
    **_engine(
        "prefix_cache_queries", "count", "vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"
    ),
    **_engine("kv_cache_usage_ratio", "ratio", "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    **_engine("kv_cache_usage_ratio", "ratio", "sglang:token_usage"),
    # request_success_total is a series for each way to end; this one counts the same requests in one.
    **_engine("requests_finished", "count", "vllm:e2e_request_latency_seconds_count"),
    **_engine("requests_finished", "count", "sglang:num_requests_total"),
    **_engine("preemptions", "count", "vllm:num_preemptions_total", "sglang:num_retracted_requests_total"),
}
"""Series of a serving engine, which ``instance`` and ``engine`` name, of the model in ``model_name``."""


def _port(column: str, *names: str, unit: Unit = "count") -> dict[str, Meaning]:
    return {f"node_infiniband_{name}": Meaning(Stream.FABRIC, column, unit, part="port") for name in names}


NODES: Final[Mapping[str, Meaning]] = {
    # Of the host: one row named "host", which carries no power.
    "node_memory_MemTotal_bytes": Meaning(Stream.NODE, "memory_total_bytes", "bytes", part="host"),
    "node_memory_MemAvailable_bytes": Meaning(Stream.NODE, "memory_available_bytes", "bytes", part="host"),
    "node_cpu_seconds_total": Meaning(Stream.NODE, "cpu_idle_s", "count", part="host"),
    "instance:node_cpu_utilisation:rate1m": Meaning(Stream.NODE, "cpu_util_ratio", "ratio", part="host"),
    "instance:node_cpu_utilisation:rate5m": Meaning(Stream.NODE, "cpu_util_ratio", "ratio", part="host"),
    # A meter for each zone and sensor: none of them bills.
    "node_rapl_package_joules_total": Meaning(Stream.NODE, "energy_mj", "j", part="rapl"),
    "node_rapl_dram_joules_total": Meaning(Stream.NODE, "energy_mj", "j", part="rapl-dram"),
    "node_rapl_psys_joules_total": Meaning(Stream.NODE, "energy_mj", "j", part="rapl-psys"),
    "node_hwmon_power_average_watt": Meaning(Stream.NODE, "power_mw", "w", part="hwmon"),
    "node_hwmon_power_input_watt": Meaning(Stream.NODE, "power_mw", "w", part="hwmon"),
    "node_hwmon_energy_joule_total": Meaning(Stream.NODE, "energy_mj", "j", part="hwmon"),
    **_port("tx_bytes", "port_data_transmitted_bytes_total"),
    **_port("rx_bytes", "port_data_received_bytes_total"),
    **_port("tx_wait_ticks", "port_transmit_wait_total"),
    **_port("symbol_errors", "symbol_error_total"),
    **_port("link_downed", "link_downed_total"),
    **_port("link_recoveries", "link_error_recovery_total"),
    **_port("receive_errors", "port_errors_received_total"),
    **_port("remote_errors", "port_receive_remote_physical_errors_total"),
    **_port("discards", "port_discards_transmitted_total"),
    **_port("integrity_errors", "local_link_integrity_errors_total"),
    **_port("buffer_overruns", "excessive_buffer_overrun_errors_total"),
    **_port("state", "state_id"),
    **_port("rate_mbps", "rate_bytes_per_second", unit="bytes_per_s"),
}
"""Node exporter's series, of a node."""


class Hardware(NamedTuple):
    """What a metric of OpenTelemetry's hardware conventions means for each ``hw.type`` it is told of."""

    device: Meaning | None = None
    """For ``hw.type`` gpu."""
    node: Meaning | None = None
    """For a host, an enclosure or a power supply: a meter of the node named by the component."""
    where: tuple[str, tuple[str, ...]] = ("", ())
    """An attribute and the values of it that are meant ("" = absent)."""


def _device(column: str, unit: Unit) -> Meaning:
    return Meaning(Stream.DEVICE, column, unit)


def _meter(column: str, unit: Unit) -> Meaning:
    return Meaning(Stream.NODE, column, unit, part="hw")


HARDWARE: Final[Mapping[str, tuple[Hardware, ...]]] = {
    "hw.energy": (Hardware(_device("energy_mj", "j"), _meter("energy_mj", "j")),),
    "hw.power": (Hardware(_device("power_average_mw", "w"), _meter("power_mw", "w")),),
    "hw.host.energy": (Hardware(None, _meter("energy_mj", "j")),),
    "hw.host.power": (Hardware(None, _meter("power_mw", "w")),),
    "hw.temperature": (Hardware(_device("temp_c", "celsius"), None),),
    "hw.gpu.utilization": (
        Hardware(_device("gpu_util_percent", "whole_ratio"), None, ("hw.gpu.task", ("", "general"))),
        Hardware(_device("encoder_util_percent", "whole_ratio"), None, ("hw.gpu.task", ("encoder",))),
        Hardware(_device("decoder_util_percent", "whole_ratio"), None, ("hw.gpu.task", ("decoder",))),
    ),
    "hw.gpu.memory.usage": (Hardware(_device("memory_used_bytes", "bytes"), None),),
    "hw.gpu.io": (
        Hardware(_device("pcie_tx_bytes", "bytes"), None, ("network.io.direction", ("transmit",))),
        Hardware(_device("pcie_rx_bytes", "bytes"), None, ("network.io.direction", ("receive",))),
        Hardware(_device("pcie_tx_bytes", "bytes"), None, ("direction", ("transmit",))),
        Hardware(_device("pcie_rx_bytes", "bytes"), None, ("direction", ("receive",))),
    ),
    "hw.errors": (
        Hardware(_device("ecc_corrected", "count"), None, ("error.type", ("corrected",))),
        Hardware(_device("ecc_uncorrected", "count"), None, ("error.type", ("uncorrected",))),
    ),
}
"""OpenTelemetry's hardware metrics; ``hw.id`` names the component."""

COUNTED_ELSEWHERE: Final = ("gen_ai.client.", "gen_ai_client_")
"""Histograms a client keeps of its calls: the same calls come as spans, so they are never counted here."""

KNOWN: Final = frozenset({*DCGM, *DCGM_HEALTH, *ENGINES, *NODES})
"""Every name that is looked up as it stands; hardware names are told by their beginning."""
