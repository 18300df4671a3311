"""Says whether energy counters went on while nobody looked: after a release the driver may have been reloaded or a GPU reset. Pure.

No call tells when a driver was loaded or a GPU was reset, and a counter that is not lower proves nothing: one that started over may have
overtaken where it stood. What does prove it is that nothing could have counted so far in so short a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

_MOST_W: Final = 5_000
"""More than any board draws, overshoots of a counter included (1,400 W in 2026)."""
_US_PER_MS: Final = 1_000


class Counted(NamedTuple):
    """A device's energy counter and when it was read, on the monotonic clock."""

    energy_mj: int
    at_us: int


def went_on(before: Mapping[str, Counted], now: Mapping[str, Counted]) -> bool:
    """Claim that no counter of ``before``, by device, can have started over since it was read.

    A counter that starts over does so at zero, so what it stands at now is at most what a board can draw since the last reading: higher
    than that, and not lower than it was, it is the same one. A device that is not there now proves nothing. Then, and at every doubt,
    False: a new epoch costs the seconds between, a wrong one is a wrong bill.
    """
    return all(is_same(counted, now.get(device)) for device, counted in before.items())


def is_same(before: Counted, now: Counted | None) -> bool:
    """Claim that one counter cannot have started over."""
    if now is None:
        return False
    most_mj = _MOST_W * (now.at_us - before.at_us) // _US_PER_MS
    return now.energy_mj >= before.energy_mj and now.energy_mj > most_mj
