"""Reads AMD devices from the JSON of ``rocm-smi``, the fallback where amdsmi cannot be used.

A Python program of its own that takes a good part of a second of a core, so it is asked seldom and beside the sampling loop.
What the command does not know it leaves out or calls N/A: null here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from collector.probe import Row, Values
from collector.probe.amd_readings import AmdReading, device_uuid, scaled, step_mj, whole
from collector.wire import DeviceRef, cleaned

COMMAND: Final = (
    "rocm-smi",
    "--showuniqueid",
    "--showproductname",
    "--showbus",
    "--showuse",
    "--showmemuse",
    "--showmeminfo",
    "vram",
    "--showpower",
    "--showmaxpower",
    "--showenergycounter",
    "--showtemp",
    "--showclocks",
    "--showreplaycount",
    "--json",
)
_MW_PER_W: Final = 1_000
_CARD: Final = re.compile(r"card\d+")
_MHZ: Final = re.compile(r"\(?(\d{1,6})Mhz\)?", re.IGNORECASE)
_MAX_CARDS: Final = 256


class RocmSmiError(Exception):
    """The text is not what rocm-smi writes."""


def parse(text: str) -> list[AmdReading]:
    """Return a reading for each card, in order of their numbers. Raises RocmSmiError."""
    # Warnings of the driver come before the JSON on the same stream.
    start = text.find("{")
    try:
        told, _ = json.JSONDecoder().raw_decode(text[start:]) if start >= 0 else (None, 0)
    except (ValueError, RecursionError) as error:
        raise RocmSmiError(f"rocm-smi wrote no JSON: {error}") from error
    if not isinstance(told, dict):
        raise RocmSmiError("rocm-smi wrote no JSON object")
    cards = [(name, card) for name, card in told.items() if _CARD.fullmatch(name) and isinstance(card, dict)]
    cards.sort(key=lambda entry: int(entry[0].removeprefix("card")))
    readings = [_reading(card) for _, card in cards[:_MAX_CARDS]]
    return [reading for reading in readings if reading is not None]


def _reading(card: Mapping[str, Any]) -> AmdReading | None:
    # ROCm 6 writes "Card Series" where 5 wrote "Card series", and so on: compare without case and colons.
    fields = {key.lower().rstrip(":").strip(): value for key, value in card.items()}

    def field(*names: str) -> Any:
        return next((fields[name] for name in names if name in fields and fields[name] != "N/A"), None)

    bus = field("pci bus")
    bus = cleaned(str(bus))[:64] if bus is not None else None
    uuid = device_uuid(field("unique id"), bus)
    if uuid is None:
        return None
    memory_bytes = whole(field("vram total memory (b)"))
    model = cleaned(str(field("card series", "card model") or "unknown"))[:255]
    ref = DeviceRef(uuid, model, vendor="amd", pci_bus_id=bus, memory_bytes=memory_bytes)
    values: Values = {
        "power_average_mw": scaled(field("average graphics package power (w)"), _MW_PER_W),
        "power_instant_mw": scaled(field("current socket graphics package power (w)"), _MW_PER_W),
        "power_limit_mw": scaled(field("max graphics package power (w)"), _MW_PER_W),
        "gpu_util_percent": whole(field("gpu use (%)")),
        # How busy the memory is; "GPU Memory Allocated (VRAM%)" is how full.
        "memory_util_percent": whole(field("gpu memory read/write activity (%)", "gpu memory use (%)")),
        "memory_used_bytes": whole(field("vram total used memory (b)")),
        "temp_c": whole(field("temperature (sensor edge) (c)", "temperature (sensor junction) (c)")),
        "memory_temp_c": whole(field("temperature (sensor memory) (c)")),
        "sm_clock_mhz": _mhz(field("sclk clock speed")),
        "memory_clock_mhz": _mhz(field("mclk clock speed")),
        "pcie_replays": whole(field("pcie replay count")),
    }
    health: Row = {"memory_total_bytes": memory_bytes}
    # The command multiplies by 15.3 µJ itself; the counter beside it is exact.
    return AmdReading(ref, values, whole(field("energy counter")), step_mj(None), health)


def _mhz(text: object) -> int | None:
    match = _MHZ.fullmatch(text.strip()) if isinstance(text, str) else None
    return None if match is None else int(match[1])
