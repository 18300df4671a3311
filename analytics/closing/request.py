"""What is asked of a process that closes hours, and what it tells while it does: frozen values that travel through a pipe.

It does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, Protocol

from analytics.io.due_minutes import DueHour
from analytics.io.hours import AT_HAND, Batch
from analytics.io.runs import HourState, Saved
from analytics.policy import Policy
from ingest.store.engine import Database
from ingest.store.segments import Segments

PATIENCE: Final = (
    "SELECT set_config('idle_in_transaction_session_timeout', %s, false), set_config('lock_timeout', %s, false)"
)
"""Of a worker's session, with ``standstill_s`` and ``row_wait_s`` of its settings."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker may be told; values come from the composition root."""

    code_version: str
    session: str = "wattledger-worker"
    """Application name of its database sessions, by which a successor finds them."""
    currency: str = "USD"
    policy: Policy = field(default_factory=Policy)
    interval_s: float = 10.0
    standstill_s: int = 20
    """A worker that stands still inside a transaction (stopped, swapped out, its machine gone) holds the row of its hour:
    after this long the server ends its session. Shorter than the lease, so that whoever takes over finds the row free."""
    row_wait_s: int = 10
    """How long to wait for a row another worker holds; then its hour is left for the next round."""
    hours_per_pass: int = 24
    """At most so many hours of one site are computed together: each sealed file is read once, and not three times."""
    device_hours_per_load: int = 65_536
    """Hours of at most so many devices x hours are loaded together, but always one: who held what, meters of nodes and what becomes of
    it all grow with both (40 MiB an hour of 10,000 GPUs), and are saved before the next are loaded."""
    device_hours_per_pass: int = 5_120
    """Readings of at most so many devices x hours are in memory together (these at 10 s take about 0.3 GiB), but always one node's."""
    devices_per_look: int = 4_096
    """Readings of at most so many devices of an open hour are in memory together, beside the rows that are kept of all of them."""
    devices_to_share: int = 2_000
    """An hour of so many devices, MIG instances and nodes included, is divided between two processes where there are two."""


@dataclass(frozen=True, slots=True)
class Task:
    """Hours of one site to be closed, or priced while they are open, or rated where no more than that is due."""

    database: Database
    segments: Segments | None
    settings: WorkerSettings
    batch: Batch
    now: datetime
    closed_before_at: datetime
    """Hours that end by then are closed, later ones are the open window."""
    horizon_xid: str
    """Of a snapshot from before any of them was looked at: what was written before it is seen by then."""
    devices_at_once: int
    """Readings of so many devices are in memory together."""
    is_shared: bool = False
    """Whether another process can be asked for a half of it."""

    @property
    def is_open(self) -> bool:
        """Whether all of its hours are of the open window, and none is to be closed."""
        return self.batch.from_at + timedelta(hours=1) > self.closed_before_at

    @property
    def is_at_hand(self) -> bool:
        """Whether it is an open hour that is looked at every few seconds."""
        return self.is_open and len(self.batch.hours) == 1 and self.batch.to_at > self.now - AT_HAND

    @property
    def devices_together(self) -> int:
        """Readings of so many devices are read together: of an hour at hand always as many, by which the rows of them that are kept are known."""
        return min(self.devices_at_once, self.settings.devices_per_look) if self.is_at_hand else self.devices_at_once

    def reading(self, segments: Segments) -> Task:
        """Return the same with sealed hours read from ``segments``."""
        return replace(self, segments=segments)


@dataclass(frozen=True, slots=True)
class MinutesTask:
    """An hour whose minutes by device and by tenant are to be made."""

    database: Database
    segments: Segments | None
    settings: WorkerSettings
    hour: DueHour
    now: datetime
    devices_at_once: int
    is_shared: bool = False
    """As of a task."""

    @property
    def is_open(self) -> bool:
        """Whether its books are those of the open window."""
        return self.hour.status != "closed"

    @property
    def is_at_hand(self) -> bool:
        """As of a task."""
        return self.is_open and self.hour.hour_at + timedelta(hours=1) > self.now - AT_HAND

    @property
    def devices_together(self) -> int:
        """Readings of so many devices are read together: of an hour at hand always as many, by which the rows of them that are kept are known."""
        return min(self.devices_at_once, self.settings.devices_per_look) if self.is_at_hand else self.devices_at_once

    def reading(self, segments: Segments) -> MinutesTask:
        """Return the same with sealed hours read from ``segments``."""
        return replace(self, segments=segments)


@dataclass(frozen=True, slots=True)
class Share:
    """Asks another process for a half of an hour. What it says is opened by that process, and by nobody on the way."""

    number: int
    """By which the answer is known, among those of one child."""
    pickled: bytes


@dataclass(frozen=True, slots=True)
class Shared:
    """The answer; ``pickled`` null = it did not come to one, and who asked does that half too."""

    number: int
    pickled: bytes | None


@dataclass(frozen=True, slots=True)
class Keep:
    """Books were written of the open hour of which a half was done last: what was read of it may be kept."""


@dataclass(frozen=True, slots=True)
class Computed:
    """The hours' books were computed, or their ratings; nothing is written by that."""

    hours: tuple[HourState, ...]
    began_ns: int
    """As ``ended_ns`` nanoseconds since 1970."""
    ended_ns: int
    is_rating: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one hour, for good: whatever ends the process later does not take it back."""

    hour: HourState
    saved: Saved | None
    """Null = it failed, and is left due, or was refused."""
    began_ns: int
    ended_ns: int
    is_closed: bool = False
    is_rating: bool = False
    is_refused: bool = False
    """Its samples are past retention, so its books stay as they are."""
    is_read_whole: bool = False
    """Of an open hour: rows of it were read from their beginning on, since none were kept of the look before."""

    @property
    def is_kept(self) -> bool:
        """Whether what was read of it may be kept.

        It had provisional books before, and has none by somebody else now: what changes of it is remembered until it is closed.
        """
        return self.hour.status == "provisional" and self.saved in {Saved.WRITTEN, Saved.UNCHANGED}


@dataclass(frozen=True, slots=True)
class Died:
    """An hour's process ended before it was done, more than once, also with few devices at a time; it is left due."""

    hour: HourState
    reason: str


Told = Computed | Done | Died


class Closing(Protocol):
    """Whoever closes hours: this process, or others it has."""

    def close(self, task: Task) -> Iterator[Told]:
        """Tell of each hour of a task what became of it, once; raises psycopg.OperationalError where the database is gone."""

    def make_minutes(self, task: MinutesTask) -> bool:
        """Write an hour's minutes; False, logged, where they cannot be made for now, or other books came. Raises as above."""
