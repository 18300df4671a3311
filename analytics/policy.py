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


@dataclass(frozen=True, slots=True)
class GapPolicy:
    """When two readings are too far apart to say when the energy between them was used."""

    max_gap_us: int = 60 * US_PER_SECOND
    max_gap_cadences: int = 3
    """A gap is longer than the larger of ``max_gap_us`` and this many cadences of its feed."""
    node_max_gap_us: int = 3 * US_PER_MINUTE
    """The same of meters of nodes: controllers are asked each half minute or minute, and now and then do not answer."""
    reach_us: int = 48 * US_PER_HOUR
    """Readings further apart are not joined at all. Two days, as long as rows stay hot: within it a silence is energy of
    known size and unknown timing, and the hours it spans are closed again once it ends."""
    max_power_mw: int = 20_000 * MW_PER_W
    """Per accelerator. A counter step that implies more is a broken counter, not energy."""
    refresh_us: int = US_PER_SECOND
    """How old a counter's value may be when it is read: a step may hold what was drawn in that time before it. Devices refresh
    every 20 to 100 ms, some gateways and node meters once a second."""


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


EVIDENCE: Final[Mapping[str, int]] = {
    "cgroup": 3,
    "slurmstepd": 3,
    "slurmctld": 3,
    "hook": 3,
    "pod-resources": 3,
    "simulated": 3,
    "job-mapping": 2,
    "kubernetes": 1,
    "kube-state-metrics": 1,
    "api": 1,
    "sacct": 1,
    "import": 1,
    "environ": 0,
}
"""Who is believed where two say different things of one device; in the order of the agent's own weighing (docs/jobs.md). What
is told of a count on a node never ranks above 1, whoever tells it."""
OTHER_EVIDENCE: Final = 1
"""Of an instrument that is not in the table: told by somebody, as an import is."""
HINT: Final = 0
"""What a process says of itself alone: nobody is billed for it."""


@dataclass(frozen=True, slots=True)
class HoldingPolicy:
    """How contradicting words about who held a device are weighed."""

    handover_us: int = 5 * US_PER_SECOND
    """Two holdings that overlap by less are one after the other: the later one has the overlap. Hooks, schedulers and agents
    tell one instant up to about two seconds apart (docs/jobs.md)."""


@dataclass(frozen=True, slots=True)
class SharingError:
    """How far a holder's part of a shared board is off, 90 %: parts per million of the board's active energy while it held.

    By method; written down by calibration on simulated boards, seeds 0 to 199 (docs/methodology.md §3), judged on others.
    """

    process_utilization: int = 51_000
    slice_activity: int = 68_000
    mps_threads: int = 60_000
    slice: int = 214_000
    share: int = 172_000
    shards: int = 172_000
    """Assumed to be as far off as ``share``; ``equal`` likewise."""
    equal: int = 172_000
    count: int = 500_000
    """Assumed: which of a node's boards a count means nobody tells."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything a close may choose."""

    gaps: GapPolicy = field(default_factory=GapPolicy)
    idle: IdlePolicy = field(default_factory=IdlePolicy)
    throttle: ThrottlePolicy = field(default_factory=ThrottlePolicy)
    holding: HoldingPolicy = field(default_factory=HoldingPolicy)
    sharing: SharingError = field(default_factory=SharingError)
    lateness_us: int = 15 * US_PER_MINUTE
    """How long after its end an hour waits for late data before it closes."""
    longest_wait_us: int = 2 * US_PER_HOUR
    """And at most so long for the next reading of a device that speaks seldom, from which on its last interval is a gap."""

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
    parts: dict[str, type[Any]] = {
        "gaps": GapPolicy,
        "idle": IdlePolicy,
        "throttle": ThrottlePolicy,
        "holding": HoldingPolicy,
        "sharing": SharingError,
    }
    try:
        return Policy(**{name: parts[name](**value) if name in parts else value for name, value in kept.items()})
    except TypeError as error:
        raise InputError(f"the policy it was computed with is not one of this version: {error}") from error
