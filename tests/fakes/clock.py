"""A clock that moves only when told, or by as much as somebody waits."""

from __future__ import annotations

from collector.clock import US_PER_S, Instant


class FixedClock:
    """Wall and monotonic time under the test's control; :meth:`wait` returns at once and time has passed."""

    def __init__(self, wall_us: int = 1_800_000_000 * US_PER_S, monotonic_us: int = 5_000 * US_PER_S) -> None:
        """Start at 2027-01-15 08:00:00 UTC, a full hour."""
        self.wall_us = wall_us
        self.monotonic_us = monotonic_us
        self.waits_s: list[float] = []

    def now(self) -> Instant:
        """Return the present."""
        return Instant(self.wall_us, self.monotonic_us)

    def wait(self, duration_s: float) -> None:
        """Let that much time pass."""
        self.waits_s.append(duration_s)
        self.advance(duration_s)

    def advance(self, duration_s: float) -> None:
        """Let time pass on both clocks."""
        self.wall_us += round(duration_s * US_PER_S)
        self.monotonic_us += round(duration_s * US_PER_S)

    def step(self, duration_s: float) -> None:
        """Set the wall clock forward or back, as NTP or an operator does."""
        self.wall_us += round(duration_s * US_PER_S)
