"""What one visit to a device brings, and when what is read rarely is due.

Shared by boards and MIG instances; it asks no driver.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from collector.clock import US_PER_S, Instant
from collector.probe import ProcessReading, Row, Values, out_of_range
from collector.wire import Stream

if TYPE_CHECKING:
    from collector.probe.nvml_mig import InstanceFound

SLOW_US: Final = 5 * US_PER_S
"""What changes slowly or is read for orientation (limit, P-state, processes)."""
PROCESSES_US: Final = SLOW_US
LINKS_US: Final = 10 * US_PER_S
INSTANCES_US: Final = 10 * US_PER_S
HEALTH_US: Final = 60 * US_PER_S
RETRY_UNSUPPORTED_US: Final = 3_600 * US_PER_S


@dataclass(slots=True)
class Visit:
    """Everything one device said at ``at``; what was not due or failed is absent."""

    at: Instant
    values: Values = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    rows: list[tuple[Stream, Row]] = field(default_factory=list)
    processes: tuple[ProcessReading, ...] | None = None
    instances: tuple[InstanceFound, ...] | None = None
    """The MIG instances of a board that was looked through for them."""
    newly_unsupported: list[str] = field(default_factory=list)

    def drop_out_of_range(self) -> None:
        """Make null and count what the wire cannot hold."""
        for column in out_of_range(self.values):
            self.errors[f"out_of_range:{column}"] += 1
            self.values[column] = None


class Pace:
    """Says when something is due: at once, and then each period, the first one cut short so that devices take turns."""

    def __init__(self, period_us: int, share: float) -> None:
        """Let the first period last ``share`` of the others, in (0, 1]."""
        self._period_us = period_us
        self._first_us = round(period_us * share)
        self._next_us: int | None = None

    def hurry(self) -> None:
        """Be due at once."""
        self._next_us = None

    def due(self, monotonic_us: int) -> bool:
        """Say whether the time has come, and wait for the next one if so."""
        if self._next_us is None:
            self._next_us = monotonic_us + self._first_us
            return True
        if monotonic_us < self._next_us:
            return False
        missed = (monotonic_us - self._next_us) // self._period_us
        self._next_us += (missed + 1) * self._period_us
        return True


def share_of(position: int) -> float:
    """Return a share for each position, spread evenly however many there are; the first one's is a whole period."""
    golden_ratio = 0.6180339887498949
    return 1.0 - position * golden_ratio % 1.0
