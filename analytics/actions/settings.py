"""Limits of the executor. The defaults do nothing at all: ``enforced`` is off."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Final

# Production serving, system namespaces and Wattledger itself, whatever the policy says.
ALWAYS_PROTECTED: Final[dict[str, tuple[str, ...]]] = {
    "workload_kinds": ("inference",),
    "namespaces": ("kube-*", "*-system", "wattledger*"),
    "names": ("wattledger*",),
}


@dataclass(frozen=True, slots=True)
class ActionSettings:
    """``state_dir`` holds the pause flag; whoever shares the folder is paused by it."""

    state_dir: Path
    enforced: bool = False
    max_actions_per_hour: int = 1
    max_running_ratio: Decimal = Decimal("0.01")
    """Share of the accelerators of all running jobs one action may take; one job is always allowed."""
    start_tolerance: timedelta = timedelta(seconds=1)
    """Schedulers report whole seconds."""
    max_decision_age: timedelta = timedelta(minutes=30)
    """Older decisions are not acted on: the loop that makes them has stopped."""
    lease: timedelta = timedelta(minutes=2)
    """How long an executor may take from claim to record before another one may reconcile its action."""
    reconcile_within: timedelta = timedelta(minutes=2)
    """A job that still runs this long after it was cancelled was not cancelled (Slurm's KillWait is 30 s by default)."""
    max_attempts: int = 3

    def __post_init__(self) -> None:
        faults = []
        if self.max_actions_per_hour < 1:
            faults.append(f"max_actions_per_hour {self.max_actions_per_hour} must be at least 1; pause actions instead")
        if not 0 < self.max_running_ratio <= 1:
            faults.append(f"max_running_ratio {self.max_running_ratio} must lie in (0, 1]")
        if self.max_attempts < 1:
            faults.append(f"max_attempts {self.max_attempts} must be at least 1")
        if faults:
            raise ValueError("; ".join(faults))
