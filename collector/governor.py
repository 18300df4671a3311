"""Keeps the agent's own processor time under a cap by reading less often: a measurement must not cost a job its time.

Once a minute it compares what was used with the cap. Above it something else gives way first, where it can (a backlog that is
being sent); else the cadence goes one step down its ladder, at least halving
the readings, at most to one a row; once it would fit again at the faster step, it goes back up, the more slowly the
oftener that failed. It measures and applies nothing: it is told the time and the processor time and answers with a period.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from collector.clock import US_PER_S

WINDOW_US: Final = 60 * US_PER_S
_MARGIN: Final = 0.8
"""Share of the cap that a faster step may be expected to take: going up to come down again disturbs more than it measures."""
_QUIET_WINDOWS: Final = 3
_MOST_QUIET_WINDOWS: Final = 60


class Governor:
    """The ladder of periods and the place on it."""

    def __init__(
        self, *, cap_ratio: float, sample_us: int, row_us: int, give_way: Callable[[], bool] = lambda: False
    ) -> None:
        """Allow ``cap_ratio`` of one core; 0 is no cap. The steps are divisors of the row, so that a row's end is always read.

        ``give_way`` makes something use less that matters less than readings, and says whether it could.
        """
        self._give_way = give_way
        self.cap_ratio = cap_ratio
        self._ladder = _ladder(sample_us, row_us)
        self._step = 0
        self._from: tuple[int, float] | None = None
        self._quiet = 0
        self._quiet_needed = _QUIET_WINDOWS
        self._just_rose = False
        self.last_ratio: float | None = None
        """What was used in the last full window, of one core."""

    @property
    def period_us(self) -> int:
        """Microseconds between readings now."""
        return self._ladder[self._step]

    @property
    def lowered(self) -> bool:
        """Whether the cadence is slower than configured."""
        return self._step > 0

    def note(self, monotonic_us: int, cpu_s: float) -> bool:
        """Take note of the processor time used so far; return whether the period is another one now."""
        if self._from is None:
            self._from = (monotonic_us, cpu_s)
            return False
        began_us, began_s = self._from
        if monotonic_us - began_us < WINDOW_US:
            return False
        self.last_ratio = (cpu_s - began_s) * US_PER_S / (monotonic_us - began_us)
        self._from = (monotonic_us, cpu_s)
        if not self.cap_ratio:
            return False
        return self._judge(self.last_ratio)

    def _judge(self, ratio: float) -> bool:
        if ratio > self.cap_ratio:
            self._quiet = 0
            if self._just_rose:
                self._quiet_needed = min(2 * self._quiet_needed, _MOST_QUIET_WINDOWS)
            self._just_rose = False
            if self._give_way():
                return False
            if self._step + 1 == len(self._ladder):
                return False
            self._step += 1
            return True
        self._just_rose = False
        if not self._step:
            return False
        # At most all of it is the readings' doing, so at a faster step it takes at most this.
        faster = ratio * self._ladder[self._step] / self._ladder[self._step - 1]
        self._quiet = self._quiet + 1 if faster <= _MARGIN * self.cap_ratio else 0
        if self._quiet < self._quiet_needed:
            return False
        self._quiet = 0
        self._step -= 1
        self._just_rose = True
        return True


def _ladder(sample_us: int, row_us: int) -> tuple[int, ...]:
    steps = [sample_us]
    while steps[-1] < row_us:
        lowest = 2 * steps[-1]
        multiples = range(-(-lowest // sample_us) * sample_us, row_us, sample_us)
        steps.append(next((period for period in multiples if row_us % period == 0), row_us))
    return tuple(steps)
