"""Reads what ``nvidia-smi`` prints, as CSV (``--query-gpu``) or XML (``-q -x``, of drivers 470 to 595), into device columns.

Pure. N/A in its many words is null. A MIG board's utilization is N/A, and its instances are not told by UUID, so a board is one
device here. A reason bit is given as it is told, the power cap of an idle card (0x4 at 39 of 250 W) too: what it means is
judged where power and limit are at hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from collector.probe import Row, Values
from collector.wire import DeviceRef, cleaned

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MAX_TEXT_CHARACTERS: Final = 16 * 1024 * 1024
_MAX_DEVICES: Final = 256
_AMOUNT: Final = re.compile(r"(-?\d{1,18}(?:\.\d{1,6})?)(?:\s*(?:W|MHz|MiB|%|us|C|x))?")
_HEX: Final = re.compile(r"0x[0-9a-fA-F]{1,16}")
_HEADER_UNIT: Final = re.compile(r"\s*\[[^\]]*\]$")
_BYTES_PER_MIB: Final = 1_048_576
_MW_PER_W: Final = 1_000
_NS_PER_US: Final = 1_000
_FLAGS: Final = {"yes": 1, "enabled": 1, "no": 0, "disabled": 0}
_RECOVERY: Final = {
    "none": 0,
    "reset": 1,
    "gpu reset": 1,
    "reboot": 2,
    "node reboot": 2,
    "drain p2p": 3,
    "drain and reset": 4,
}


class SmiTextError(Exception):
    """The text is not what nvidia-smi prints."""


@dataclass(frozen=True, slots=True)
class SmiDevice:
    """One board: who it is, its columns of the device stream and of the device health stream."""

    ref: DeviceRef
    values: Values
    health: Row


def _amount(text: str, factor: int = 1) -> int | None:
    match = _AMOUNT.fullmatch(text.strip())
    return None if match is None else round(Decimal(match[1]) * factor)


def _milliwatts(text: str) -> int | None:
    return _amount(text, _MW_PER_W)


def _bytes(text: str) -> int | None:
    return _amount(text, _BYTES_PER_MIB)


def _nanoseconds(text: str) -> int | None:
    return _amount(text, _NS_PER_US)


def _pstate(text: str) -> int | None:
    return _amount(text.strip().removeprefix("P")) if text.strip().startswith("P") else None


def _bits(text: str) -> int | None:
    return int(text.strip(), 16) if _HEX.fullmatch(text.strip()) else None


def _flag(text: str) -> int | None:
    return _FLAGS.get(text.strip().lower())


def _recovery(text: str) -> int | None:
    return _RECOVERY.get(text.strip().lower())


_Read = Callable[[str], int | None]
# Column, how its text is read, names in CSV, paths in XML; of several the first that holds a value.
_TABLE: Final[tuple[tuple[str, _Read, tuple[str, ...], tuple[str, ...]], ...]] = (
    (
        # Before Ampere the driver tells no average of its own: power.draw is the one figure there is.
        "power_average_mw",
        _milliwatts,
        ("power.draw.average", "power.draw"),
        ("gpu_power_readings/average_power_draw", "gpu_power_readings/power_draw", "power_readings/power_draw"),
    ),
    ("power_instant_mw", _milliwatts, ("power.draw.instant",), ("gpu_power_readings/instant_power_draw",)),
    (
        "power_limit_mw",
        _milliwatts,
        ("enforced.power.limit",),
        ("gpu_power_readings/current_power_limit", "power_readings/enforced_power_limit"),
    ),
    ("gpu_util_percent", _amount, ("utilization.gpu",), ("utilization/gpu_util",)),
    ("memory_util_percent", _amount, ("utilization.memory",), ("utilization/memory_util",)),
    ("encoder_util_percent", _amount, ("utilization.encoder",), ("utilization/encoder_util",)),
    ("decoder_util_percent", _amount, ("utilization.decoder",), ("utilization/decoder_util",)),
    ("memory_used_bytes", _bytes, ("memory.used",), ("fb_memory_usage/used",)),
    ("temp_c", _amount, ("temperature.gpu",), ("temperature/gpu_temp",)),
    ("memory_temp_c", _amount, ("temperature.memory",), ("temperature/memory_temp",)),
    ("sm_clock_mhz", _amount, ("clocks.current.sm", "clocks.sm"), ("clocks/sm_clock",)),
    ("memory_clock_mhz", _amount, ("clocks.current.memory", "clocks.mem"), ("clocks/mem_clock",)),
    ("pstate", _pstate, ("pstate",), ("performance_state",)),
    ("clocks_event_reasons", _bits, ("clocks_event_reasons.active", "clocks_throttle_reasons.active"), ()),
    (
        "throttle_power_cap_ns",
        _nanoseconds,
        ("clocks_event_reasons_counters.sw_power_cap",),
        ("clocks_event_reasons_counters/clocks_event_reasons_counters_sw_power_cap",),
    ),
    (
        "throttle_sw_thermal_ns",
        _nanoseconds,
        ("clocks_event_reasons_counters.sw_thermal_slowdown",),
        ("clocks_event_reasons_counters/clocks_event_reasons_counters_sw_therm_slowdown",),
    ),
    (
        "throttle_hw_thermal_ns",
        _nanoseconds,
        ("clocks_event_reasons_counters.hw_thermal_slowdown",),
        ("clocks_event_reasons_counters/clocks_event_reasons_counters_hw_therm_slowdown",),
    ),
    (
        "throttle_power_brake_ns",
        _nanoseconds,
        ("clocks_event_reasons_counters.hw_power_brake_slowdown",),
        ("clocks_event_reasons_counters/clocks_event_reasons_counters_hw_power_brake",),
    ),
    (
        "throttle_sync_boost_ns",
        _nanoseconds,
        ("clocks_event_reasons_counters.sync_boost",),
        ("clocks_event_reasons_counters/clocks_event_reasons_counters_sync_boost",),
    ),
    ("pcie_replays", _amount, (), ("pci/replay_counter",)),
    ("ecc_corrected", _amount, ("ecc.errors.corrected.volatile.total",), ()),
    ("ecc_uncorrected", _amount, ("ecc.errors.uncorrected.volatile.total",), ()),
)
_HEALTH_TABLE: Final[tuple[tuple[str, _Read, tuple[str, ...], tuple[str, ...]], ...]] = (
    ("memory_total_bytes", _bytes, ("memory.total",), ("fb_memory_usage/total",)),
    ("memory_reserved_bytes", _bytes, ("memory.reserved",), ("fb_memory_usage/reserved",)),
    ("slowdown_temp_c", _amount, (), ("temperature/gpu_temp_slow_threshold",)),
    ("shutdown_temp_c", _amount, (), ("temperature/gpu_temp_max_threshold",)),
    ("memory_max_temp_c", _amount, (), ("temperature/gpu_temp_max_mem_threshold",)),
    ("sm_clock_max_mhz", _amount, ("clocks.max.sm",), ("max_clocks/sm_clock",)),
    ("memory_clock_max_mhz", _amount, ("clocks.max.memory",), ("max_clocks/mem_clock",)),
    (
        "power_limit_min_mw",
        _milliwatts,
        ("power.min_limit",),
        ("gpu_power_readings/min_power_limit", "power_readings/min_power_limit"),
    ),
    (
        "power_limit_max_mw",
        _milliwatts,
        ("power.max_limit",),
        ("gpu_power_readings/max_power_limit", "power_readings/max_power_limit"),
    ),
    (
        "power_limit_default_mw",
        _milliwatts,
        ("power.default_limit",),
        ("gpu_power_readings/default_power_limit", "power_readings/default_power_limit"),
    ),
    ("pcie_generation", _amount, ("pcie.link.gen.current",), ("pci/pci_gpu_link_info/pcie_gen/current_link_gen",)),
    ("pcie_generation_max", _amount, ("pcie.link.gen.max",), ("pci/pci_gpu_link_info/pcie_gen/max_link_gen",)),
    ("pcie_width", _amount, ("pcie.link.width.current",), ("pci/pci_gpu_link_info/link_widths/current_link_width",)),
    ("pcie_width_max", _amount, ("pcie.link.width.max",), ("pci/pci_gpu_link_info/link_widths/max_link_width",)),
    ("ecc_corrected_aggregate", _amount, ("ecc.errors.corrected.aggregate.total",), ()),
    ("ecc_uncorrected_aggregate", _amount, ("ecc.errors.uncorrected.aggregate.total",), ()),
    ("remapped_rows_corrected", _amount, ("remapped_rows.correctable",), ("remapped_rows/remapped_row_corr",)),
    ("remapped_rows_uncorrected", _amount, ("remapped_rows.uncorrectable",), ("remapped_rows/remapped_row_unc",)),
    ("remapping_pending", _flag, ("remapped_rows.pending",), ("remapped_rows/remapped_row_pending",)),
    ("remapping_failed", _flag, ("remapped_rows.failure",), ("remapped_rows/remapped_row_failure",)),
    (
        "retired_pages_corrected",
        _amount,
        ("retired_pages.single_bit_ecc.count",),
        ("retired_pages/multiple_single_bit_retirement/retired_count",),
    ),
    (
        "retired_pages_uncorrected",
        _amount,
        ("retired_pages.double_bit.count",),
        ("retired_pages/double_bit_retirement/retired_count",),
    ),
    ("recovery_action", _recovery, ("gpu_recovery_action",), ("gpu_recovery_action",)),
    ("mig_enabled", _flag, ("mig.mode.current",), ("mig_mode/current_mig",)),
)
_OLDER_NAMES: Final = frozenset({"clocks.sm", "clocks.mem", "clocks_throttle_reasons.active"})
QUERY: Final = (
    "uuid",
    "name",
    "pci.bus_id",
    *dict.fromkeys(name for _, _, names, _ in (*_TABLE, *_HEALTH_TABLE) for name in names if name not in _OLDER_NAMES),
)
"""Fields to ask for; a driver that does not know one refuses the whole question, and XML is asked for instead."""
_REASONS: Final = {
    "gpu_idle": 0x1,
    "applications_clocks_setting": 0x2,
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
    "display_clocks_setting": 0x100,
}


def parse_csv(text: str) -> list[SmiDevice]:
    """Return a device for each line below the header, with or without units. Raises SmiTextError."""
    lines = [line for line in text[:MAX_TEXT_CHARACTERS].splitlines() if line.strip()]
    names = [_HEADER_UNIT.sub("", name.strip()) for name in lines[0].split(",")] if lines else []
    if "uuid" not in names:
        raise SmiTextError("the CSV has no uuid column")
    devices = []
    for line in lines[1 : 1 + _MAX_DEVICES]:
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(names):
            raise SmiTextError(f"a line of the CSV has {len(cells)} cells, its header {len(names)}")
        told = dict(zip(names, cells, strict=True))
        devices.append(_device(told["uuid"], told.get("name"), told.get("pci.bus_id"), told, csv=True))
    return devices


def parse_xml(text: str) -> list[SmiDevice]:
    """Return a device for each ``gpu`` element. Raises SmiTextError."""
    from xml.etree import ElementTree as ET  # noqa: PLC0415  only where the fallback of the fallback is needed

    if len(text) > MAX_TEXT_CHARACTERS:
        raise SmiTextError(f"the XML is longer than {MAX_TEXT_CHARACTERS} characters")
    try:
        # From the driver's own tool; expat refuses entities that multiply.
        root = ET.fromstring(text)  # noqa: S314
    except ET.ParseError as error:
        raise SmiTextError(f"the XML cannot be read: {error}") from error
    devices = []
    for gpu in root.findall("gpu")[:_MAX_DEVICES]:
        told = {path: gpu.findtext(path) or "" for _, _, _, paths in (*_TABLE, *_HEALTH_TABLE) for path in paths}
        device = _device(
            gpu.findtext("uuid") or "", gpu.findtext("product_name"), gpu.findtext("pci/pci_bus_id"), told, csv=False
        )
        device.values["clocks_event_reasons"] = _reasons(gpu)
        for part, columns in (
            ("volatile", ("ecc_corrected", "ecc_uncorrected")),
            ("aggregate", ("ecc_corrected_aggregate", "ecc_uncorrected_aggregate")),
        ):
            target = device.values if part == "volatile" else device.health
            target[columns[0]], target[columns[1]] = _ecc(gpu.find(f"ecc_errors/{part}"))
        devices.append(device)
    return devices


def _device(uuid: str, name: str | None, bus: str | None, told: Mapping[str, str], *, csv: bool) -> SmiDevice:
    uuid = uuid.strip()
    if not 0 < len(uuid) <= 255 or not uuid.isprintable() or not uuid.startswith("GPU-"):
        raise SmiTextError(f"a device has no UUID: {uuid!r:.80}")
    values: Values = {}
    health: Row = {}
    for table, into in ((_TABLE, values), (_HEALTH_TABLE, health)):
        for column, read, names, paths in table:
            found = [read(told[key]) for key in (names if csv else paths) if key in told]
            if found:
                into[column] = next((value for value in found if value is not None), None)
    memory_bytes = health.get("memory_total_bytes")
    ref = DeviceRef(
        uuid,
        cleaned(name or "unknown")[:255],
        memory_bytes=memory_bytes if isinstance(memory_bytes, int) else None,
        pci_bus_id=cleaned(bus)[:255] if bus else None,
    )
    return SmiDevice(ref, values, health)


def _reasons(gpu: Element) -> int | None:
    bits, known = 0, False
    for group in ("event", "throttle"):  # the name before driver 535
        for reason, bit in _REASONS.items():
            state = gpu.findtext(f"clocks_{group}_reasons/clocks_{group}_reason_{reason}")
            if state in ("Active", "Not Active"):
                known = True
                bits |= bit if state == "Active" else 0
    return bits if known else None


def _ecc(counts: Element | None) -> tuple[int | None, int | None]:
    """Return corrected and uncorrected errors, summed over memories; older drivers tell fewer of them apart."""
    corrected: list[int] = []
    uncorrected: list[int] = []
    for element in counts if counts is not None else ():
        number = _amount(element.text or "")
        if number is not None and "correctable" in element.tag:
            (uncorrected if "uncorrectable" in element.tag else corrected).append(number)
    return (sum(corrected) if corrected else None), (sum(uncorrected) if uncorrected else None)
