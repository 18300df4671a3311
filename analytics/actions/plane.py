"""What the executor needs of a control plane: read a run of a job, act on it, undo it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from analytics.model.budget import Step


class RunState(StrEnum):
    """A job's state as far as acting on it goes."""

    PENDING = "pending"
    RUNNING = "running"
    SUSPENDED = "suspended"
    ENDED = "ended"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Identity:
    """One run of one job: the native id alone is reused after a requeue."""

    cluster: str
    native_id: str
    started_at: datetime
    user_name: str | None
    account: str | None


@dataclass(frozen=True, slots=True)
class RunReading:
    """What a plane said about a job a moment ago; ``native_state`` in its own word."""

    cluster: str
    native_id: str
    started_at: datetime | None
    user_name: str
    account: str
    state: RunState
    native_state: str


class Plane(Protocol):
    """One cluster's scheduler. Every call returns or raises a PlaneError within a few seconds."""

    def read(self, native_id: str) -> RunReading | None:
        """Return the job as it is now, or None if the plane knows no such job (any more)."""

    def act(self, step: Step, native_id: str) -> None:
        """Ask for ``suspend`` or ``cancel``; returning means accepted, not finished."""

    def undo(self, step: Step, native_id: str) -> None:
        """Take back what can be taken back; a cancelled job cannot."""


def mismatch(wanted: Identity, found: RunReading, tolerance: timedelta) -> str | None:
    """Say how a reading is not the run that was meant, or None if it is.

    What we do not know of the run that was meant counts as a mismatch: nobody is stopped on a guess.
    """
    if found.cluster != wanted.cluster:
        return f"cluster is {found.cluster!r}, meant {wanted.cluster!r}"
    if found.native_id != wanted.native_id:
        return f"job id is {found.native_id!r}, meant {wanted.native_id!r}"
    if found.started_at is None or abs(found.started_at - wanted.started_at) > tolerance:
        began = found.started_at.isoformat() if found.started_at else "not started"
        return f"start is {began}, meant {wanted.started_at.isoformat()}: another run of the same id"
    if wanted.user_name is None or found.user_name != wanted.user_name:
        return f"owner is {found.user_name!r}, meant {wanted.user_name!r}"
    if wanted.account is None or found.account != wanted.account:
        return f"account is {found.account!r}, meant {wanted.account!r}"
    return None
