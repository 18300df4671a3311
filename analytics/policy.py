"""Frozen policies: every threshold the model uses, with its unit and the reason for its default.

Values only. Prices, tariffs and bindings are dated reference data and come as frames; what is here is chosen by the
deployment and recorded with each ledger run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from analytics.errors import InputError
from analytics.units import MW_PER_W, US_PER_HOUR, US_PER_MINUTE, US_PER_SECOND

THROTTLE_BITS: Final = 0x4 | 0x8 | 0x20 | 0x40 | 0x80
"""NVML clocksEventReasons: SW power cap, HW slowdown, SW thermal, HW thermal, HW power brake."""
THERMAL_BITS: Final = 0x20 | 0x40


@dataclass(frozen=True, slots=True)
class GapPolicy:
    """When two readings are too far apart to say when the energy between them was used."""

    max_gap_us: int = 60 * US_PER_SECOND
    max_gap_cadences: int = 3
    """A gap is longer than the larger of ``max_gap_us`` and this many cadences of its feed."""
    reach_us: int = 48 * US_PER_HOUR
    """Readings further apart are not joined at all. Two days, as long as rows stay hot: within it a silence is energy of
    known size and unknown timing, and the hours it spans are closed again once it ends."""
    max_power_mw: int = 20_000 * MW_PER_W
    """Per accelerator. A counter step that implies more is a broken counter, not energy."""


@dataclass(frozen=True, slots=True)
class IdlePolicy:
    """What counts as held without work: two signals, utilization and power."""

    default_idle_power_mw: int = 100 * MW_PER_W
    """Per accelerator, for devices whose floor is not known (A100 about 50 W, H100 70 W, B200 140 W)."""
    near_floor_percent: int = 130
    """Power up to this percentage of the floor counts as near it."""
    min_episode_us: int = 10 * US_PER_MINUTE


@dataclass(frozen=True, slots=True)
class ThrottlePolicy:
    """When slowed clocks become a finding."""

    min_throttled_us: int = US_PER_MINUTE
    min_throttled_percent: int = 5
    """Of the time held in the hour."""
    loss_percent: int = 20
    """Work lost while throttled: assumed, since clocks alone do not say what the job would have done."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything a close may choose."""

    gaps: GapPolicy = field(default_factory=GapPolicy)
    idle: IdlePolicy = field(default_factory=IdlePolicy)
    throttle: ThrottlePolicy = field(default_factory=ThrottlePolicy)
    lateness_us: int = 15 * US_PER_MINUTE
    """How long after its end an hour waits for late data before it closes."""

    def __post_init__(self) -> None:
        if not 0 < self.gaps.max_gap_us <= self.gaps.reach_us:
            raise InputError(f"max_gap_us {self.gaps.max_gap_us} must lie in (0, reach_us={self.gaps.reach_us}]")
        if self.idle.min_episode_us > self.gaps.reach_us:
            raise InputError(
                f"min_episode_us {self.idle.min_episode_us} must not exceed reach_us {self.gaps.reach_us}: "
                "an hour sees no further"
            )

    @property
    def margin_us(self) -> int:
        """How far around a window all readings are needed; beyond it only the nearest usable one, up to the reach."""
        return self.idle.min_episode_us


def policy_of(kept: Mapping[str, Any]) -> Policy:
    """Return the policy that was kept as JSON with a run; raises InputError where it has choices that this version does not know."""
    parts: dict[str, type[Any]] = {"gaps": GapPolicy, "idle": IdlePolicy, "throttle": ThrottlePolicy}
    try:
        return Policy(**{name: parts[name](**value) if name in parts else value for name, value in kept.items()})
    except TypeError as error:
        raise InputError(f"the policy it was computed with is not one of this version: {error}") from error
