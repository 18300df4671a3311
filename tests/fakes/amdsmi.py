"""Stands in for ROCm's amdsmi module: the calls the agent makes, with the answers and refusals of the real binding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

NOT_SUPPORTED = 2


class AmdSmiException(Exception):  # noqa: N818  the library's own name
    """What every failed call raises."""

    def __init__(self, err_code: int) -> None:
        super().__init__(err_code)
        self.err_code = err_code


class _Names:
    """Any attribute is its own name, as an enum's member would be."""

    def __getattr__(self, name: str) -> str:
        return name


@dataclass
class Card:
    """One device: what it answers by call, and which calls it refuses with which code."""

    serial: str = "0x79CCD55167A2124A"
    bus: str = "0000:83:00.0"
    accumulator: int = 1_000_000
    resolution_uj: float = 15.300000190734863
    power_w: int | str = 300
    temperatures: dict[str, int] = field(default_factory=lambda: {"HOTSPOT": 60, "VRAM": 53})
    refuses: dict[str, int] = field(default_factory=dict)


class FakeAmdSmi:
    """The module; ``cards`` may be changed between readings."""

    AmdSmiException = AmdSmiException
    AmdSmiMemoryType = AmdSmiTemperatureType = AmdSmiTemperatureMetric = AmdSmiClkType = _Names()

    def __init__(self, *cards: Card) -> None:
        self.cards = cards
        self.open = 0
        self.fails_to_start = False
        self.calls = 0
        self.on_call: Callable[[str], None] = lambda _what: None

    def amdsmi_init(self) -> None:
        if self.fails_to_start:
            raise AmdSmiException(34)
        self.open += 1

    def amdsmi_shut_down(self) -> None:
        self.open -= 1

    def amdsmi_get_processor_handles(self) -> list[Card]:
        return list(self.cards)

    def _ask(self, card: Card, what: str) -> None:
        self.calls += 1
        self.on_call(what)
        code = card.refuses.get(what, card.refuses.get("*"))
        if code is not None:
            raise AmdSmiException(code)

    def amdsmi_get_gpu_device_bdf(self, card: Card) -> str:
        return card.bus

    def amdsmi_get_gpu_asic_info(self, card: Card) -> dict[str, Any]:
        return {"asic_serial": card.serial, "market_name": "AMD Instinct MI300X"}

    def amdsmi_get_gpu_memory_total(self, _card: Card, _kind: str) -> int:
        return 206_141_652_992

    def amdsmi_get_energy_count(self, card: Card) -> dict[str, Any]:
        self._ask(card, "energy")
        return {"energy_accumulator": card.accumulator, "counter_resolution": card.resolution_uj, "timestamp": 1}

    def amdsmi_get_power_info(self, card: Card) -> dict[str, Any]:
        self._ask(card, "power")
        return {"current_socket_power": card.power_w, "average_socket_power": "N/A", "power_limit": 750_000_000}

    def amdsmi_get_gpu_activity(self, card: Card) -> dict[str, Any]:
        self._ask(card, "activity")
        return {"gfx_activity": 93, "umc_activity": 40, "mm_activity": "N/A"}

    def amdsmi_get_gpu_memory_usage(self, card: Card, _kind: str) -> int:
        self._ask(card, "memory")
        return 296_747_008

    def amdsmi_get_temp_metric(self, card: Card, sensor: str, _metric: str) -> int:
        self._ask(card, "temperature")
        if sensor not in card.temperatures:
            raise AmdSmiException(NOT_SUPPORTED)
        return card.temperatures[sensor]

    def amdsmi_get_clock_info(self, card: Card, kind: str) -> dict[str, Any]:
        self._ask(card, "clock")
        return {"clk": 2_100 if kind == "GFX" else 0xFFFFFFFF, "max_clk": 2_100, "min_clk": 132}

    def amdsmi_get_power_cap_info(self, card: Card) -> dict[str, Any]:
        self._ask(card, "cap")
        return {
            "power_cap": 750_000_000,
            "default_power_cap": 750_000_000,
            "min_power_cap": 0,
            "max_power_cap": 750_000_000,
        }

    def amdsmi_get_pcie_info(self, card: Card) -> dict[str, Any]:
        self._ask(card, "pcie")
        return {"pcie_static": {}, "pcie_metric": {"pcie_replay_count": 7}}

    def amdsmi_get_gpu_total_ecc_count(self, card: Card) -> dict[str, Any]:
        self._ask(card, "ecc")
        return {"correctable_count": 3, "uncorrectable_count": 0, "deferred_count": 0}
