"""The columns of a row that no single series holds: a host's load and used memory, and throttle times of unknown unit.

Load comes from how long each processor was idle between two instants: processors whose series are in another request are
left out of the mean, which is a mean of fewer processors then and nothing worse.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ingest.series.memory import Known

_MOST_PROCESSORS: Final = 4_096
_LONGEST_S: Final = 900.0
"""Idle time over a longer silence says little of the load at its end."""
_NS_PER_US: Final = 1_000
_CERTAINLY_NS: Final = 5 * 365 * 86_400 * 1_000_000
"""As microseconds, five years of throttling."""
_FASTER_THAN_TIME: Final = 1.5


def load_ratio(known: Known, idle: Iterable[tuple[str, int, float]]) -> dict[int, float]:
    """Return the mean load by instant, from (processor, instant in µs, seconds idle); null where nothing came before."""
    found: dict[int, list[float]] = {}
    for processor, at_us, idle_s in sorted(idle, key=lambda told: told[1]):
        before = known.processors.get(processor)
        if before is None or at_us > before[0]:
            if before is None and len(known.processors) >= _MOST_PROCESSORS:
                continue
            known.processors[processor] = (at_us, idle_s)
        if before is None or not 0 < (at_us - before[0]) / 1e6 <= _LONGEST_S or idle_s < before[1]:
            continue
        ratio = 1 - (idle_s - before[1]) * 1e6 / (at_us - before[0])
        found.setdefault(at_us, []).append(min(1.0, max(0.0, ratio)))
    return {at_us: sum(ratios) / len(ratios) for at_us, ratios in found.items()}


def used_bytes(known: Known, total: float | None, available: float) -> float | None:
    """Return used memory; the total may have come in an earlier request, it never changes while a host is up."""
    if total is not None:
        known.memory_total_bytes = total
    total = known.memory_total_bytes
    return None if total is None or available > total else total - available


def throttled_ns(known: Known, uuid: str, column: str, at_us: int, value: float) -> float | None:
    """Return a ``*_VIOLATION`` counter in nanoseconds; None while it could be microseconds.

    NVML counts nanoseconds, DCGM's help text says microseconds, and a column must not be wrong a thousandfold. What proves
    it: as microseconds it would be longer than any machine is up, or grow faster than time. 0 is 0 in either.
    """
    key = (uuid, column)
    before = known.violations.get(key)
    if before is None or at_us > before[0]:
        if len(known.violations) > _MOST_PROCESSORS:
            known.violations.clear()
        known.violations[key] = (at_us, value)
    if value > _CERTAINLY_NS or (
        before is not None and at_us > before[0] and value - before[1] > _FASTER_THAN_TIME * (at_us - before[0])
    ):
        known.counts_ns = True
    return value if known.counts_ns or value == 0 else None
