"""What an AMD device tells, whichever way it was asked, in the device stream's columns; and when its counter is to be believed.

Pure. 0xFFFF and its like mean "not available" with AMD; partitions of one board repeat the board's counter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Final

from collector.clock import US_PER_S, Instant
from collector.probe import Row, Values
from collector.wire import DeviceRef

FROZEN_US: Final = 5 * US_PER_S
"""An accumulator of 15 µJ steps moves each millisecond even at idle: one that stands this long under power is broken (MI100
and MI210, ROCm/amdsmi#38)."""
_NOT_AVAILABLE: Final = frozenset({0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF})
_KERNEL_STEP_MJ: Final = Fraction(1_000, 2**16)
_UJ_PER_MJ: Final = 1_000


@dataclass(frozen=True, slots=True)
class AmdReading:
    """One device at one instant: its columns without the counter, and the counter as the hardware has it."""

    ref: DeviceRef
    values: Values
    accumulator: int | None
    step_mj: Fraction
    """What one count of the accumulator is, in millijoules."""
    health: Row = field(default_factory=dict)
    at: Instant | None = None
    """When the counter was read; None where only the whole answer can be dated."""


def number(value: object) -> int | float | None:
    """Return a finite number for what a library or a JSON text gave; None for N/A in its many forms."""
    if isinstance(value, str):
        try:
            value = float(value) if not value.strip().lstrip("-").isdecimal() else int(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return None if value in _NOT_AVAILABLE else value


def whole(value: object) -> int | None:
    """Return the number rounded; None where there is none."""
    told = number(value)
    return None if told is None else round(told)


def scaled(value: object, factor: int) -> int | None:
    """Return the number times a factor, rounded; None where there is none."""
    told = number(value)
    return None if told is None else round(told * factor)


def device_uuid(unique_id: object, pci_bus_id: str | None) -> str | None:
    """Return the UUID as ROCm's runtime writes it, GPU- and 16 hex digits; by the bus where the card has no number."""
    text = str(unique_id).strip().lower().removeprefix("0x")
    if 0 < len(text) <= 16 and set(text) <= set("0123456789abcdef") and int(text, 16):
        return f"GPU-{int(text, 16):016x}"
    return None if pci_bus_id is None else f"GPU-pci-{pci_bus_id.lower()}"


def step_mj(resolution_uj: object) -> Fraction:
    """Return one count of the energy accumulator, exactly.

    The kernel counts in 2**-16 J = 15.259 µJ (gpu_metrics in kgd_pp_interface.h); the libraries say 15.3, which is that number
    rounded and would bill 0.27 % too much. Any other resolution is taken as told.
    """
    told = number(resolution_uj)
    if told is None or told < 0.001 or abs(told - 15.3) < 0.05:
        return _KERNEL_STEP_MJ
    return Fraction(str(round(told, 4))) / _UJ_PER_MJ


class Accumulator:
    """One device's energy counter: believed once it was seen to move, and not while it stands still under power."""

    def __init__(self) -> None:
        """Begin with nothing read."""
        self._last: int | None = None
        self._moved = False
        self._moved_at_us = 0
        self.frozen = False

    def take(
        self, raw: int | None, step: Fraction, power_mw: float | None, now_us: int
    ) -> tuple[int | None, str | None]:
        """Return the counter in millijoules, or None while it cannot be believed, and what happened: frozen, reset or None."""
        if raw is None or raw <= 0:
            return None, None
        before, self._last = self._last, raw
        if before is None:
            self._moved_at_us = now_us
            return None, None
        happened = None
        if raw != before:
            happened = "reset" if raw < before else None
            self._moved, self.frozen, self._moved_at_us = True, False, now_us
        elif not self.frozen and now_us - self._moved_at_us >= FROZEN_US and power_mw != 0:
            self.frozen, happened = True, "frozen"
        if self.frozen or not self._moved:
            return None, happened
        return raw * step.numerator // step.denominator, happened


def without_repeats(readings: Sequence[AmdReading]) -> tuple[list[AmdReading], int]:
    """Return the readings with each board's counter and power once, and how many repeats were taken out.

    Partitions of one board (CPX, DPX) and the second die of an MI200 carry the board's figures: a counter that equals
    another's to the last count is that other's, and functions of one PCI device share its power.
    """
    boards: set[str] = set()
    counters: set[int] = set()
    kept, repeats = [], 0
    for reading in readings:
        board = (reading.ref.pci_bus_id or reading.ref.uuid).rpartition(".")[0] or reading.ref.uuid
        same_counter = bool(reading.accumulator) and reading.accumulator in counters
        if board in boards or same_counter:
            repeats += 1
            values = {name: value for name, value in reading.values.items() if not name.startswith("power_")}
            kept.append(replace(reading, values=values, accumulator=None))
            continue
        if reading.accumulator:
            counters.add(reading.accumulator)
        boards.add(board)
        kept.append(reading)
    return kept, repeats
