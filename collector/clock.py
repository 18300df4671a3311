"""The one source of time of the agent, so that tests can bring their own.

Wall time dates the readings, monotonic time paces them. It measures the distance between the two and judges nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

US_PER_S: Final = 1_000_000
_NS_PER_US: Final = 1_000


@dataclass(frozen=True, slots=True)
class Instant:
    """The same moment on both clocks, in microseconds: since the Unix epoch, and since some fixed moment."""

    wall_us: int
    monotonic_us: int

    @property
    def offset_us(self) -> int:
        """Wall minus monotonic: constant but for clock steps and slewing."""
        return self.wall_us - self.monotonic_us


class Clock(Protocol):
    """What the agent asks of time."""

    def now(self) -> Instant:
        """Return the present moment."""
        ...

    def wait(self, duration_s: float) -> None:
        """Return after that time, or earlier if the agent is asked to stop."""
        ...


class SystemClock:
    """The machine's clocks; waiting ends early once ``stop`` is set."""

    def __init__(self, stop: threading.Event, wait: Callable[[float], object] | None = None) -> None:
        """Wait on ``stop``, or by what is given instead (:meth:`collector.doorbell.Doorbell.wait`)."""
        self._stop = stop
        self._wait = wait or stop.wait

    def now(self) -> Instant:
        """Return the present moment."""
        return Instant(time.time_ns() // _NS_PER_US, time.monotonic_ns() // _NS_PER_US)

    def wait(self, duration_s: float) -> None:
        """Return after that time, or when asked to stop."""
        if not self._stop.is_set():
            self._wait(max(0.0, duration_s))
