"""Who may send now: not too much by one token, and nothing while the disk that has to keep it is nearly full.

Asked before a body is read any further. A sender that is refused here keeps its data and is told when to come again.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ingest.errors import TooManyError, UnavailableError
from ingest.store.database_room import DatabaseRoom

_BURST_S: Final = 10.0
"""How far ahead of its rate a sender may run: a backlog arrives in bursts."""
_SENDERS: Final = 262_144
_LOOK_AGAIN_S: Final = 1.0
_FULL_RETRY_S: Final = 60
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Rate:
    """What one token may send on average; 0 = as much as it likes."""

    bodies_per_s: float = 0.0
    bytes_per_s: float = 0.0

    def worth_s(self, size: int) -> float:
        """Return how long a body of ``size`` bytes uses up the rate, in seconds."""
        of_bodies = 1 / self.bodies_per_s if self.bodies_per_s else 0.0
        return max(of_bodies, size / self.bytes_per_s if self.bytes_per_s else 0.0)


class RateLimits:
    """One number per token: the time until which what it sent has used up its rate. Not for several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used_until: dict[int, float] = {}

    def take(self, token_id: int, rate: Rate, size: int) -> None:
        """Count a body of ``size`` bytes as sent; raises TooManyError, counting nothing, if it comes too early."""
        worth_s = rate.worth_s(size)
        if not worth_s:
            return
        now = self._clock()
        used_until = max(now, self._used_until.get(token_id, now))
        # A single body worth more than the burst is still taken from a sender that owes nothing.
        if used_until > now and used_until + worth_s - now > _BURST_S:
            wait_s = math.ceil(min(used_until - now, used_until + worth_s - now - _BURST_S))
            raise TooManyError(
                "rate_limited", f"this token sends faster than it may; send again in {wait_s} s", max(1, wait_s)
            )
        if len(self._used_until) >= _SENDERS:
            self._used_until = {token: until for token, until in self._used_until.items() if until > now}
        self._used_until[token_id] = used_until + worth_s


class DiskGuard:
    """Refuses data while a file system it needs, or what the database may have, has less than ``min_free_bytes`` left.

    A database whose disk is full stops for everybody, and takes people to start again; senders keep what they have. Once
    refused, data is taken again when a tenth more than that is free, so that it does not flap.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        min_free_bytes: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        free_bytes: Callable[[Path], int] | None = None,
        room: DatabaseRoom | None = None,
    ) -> None:
        self._paths = paths
        self._room = room
        self._min_free_bytes = min_free_bytes
        self._clock = clock
        self._free_bytes = free_bytes or _free_bytes
        self._looked_at = -math.inf
        self._fault: str | None = None

    @property
    def is_watching(self) -> bool:
        """Whether there is anything it could notice."""
        return bool(self._min_free_bytes and (self._paths or (self._room is not None and self._room.max_bytes)))

    def left_bytes(self) -> int | None:
        """Return the least that is free or left of what it watches; None where it watches nothing or cannot tell."""
        left = [] if self._room is None or self._room.left_bytes is None else [self._room.left_bytes]
        try:
            return min([*left, *(self._free_bytes(path) for path in self._paths)], default=None)
        except OSError:
            return None

    def fault(self) -> str | None:
        """Return what is short, None if nothing is; looks at most once a second."""
        now = self._clock()
        if now - self._looked_at >= _LOOK_AGAIN_S:
            self._looked_at = now
            self._fault = self._look()
        return self._fault

    def check(self) -> None:
        """Raise UnavailableError while data must not be taken."""
        fault = self.fault()
        if fault is not None:
            raise UnavailableError("disk_nearly_full", f"{fault}; send it again later", _FULL_RETRY_S)

    def _look(self) -> str | None:
        wanted = self._min_free_bytes if self._fault is None else self._min_free_bytes * 11 // 10
        for path in self._paths:
            try:
                free = self._free_bytes(path)
            except OSError as error:
                return f"the free space of {path.name or path} cannot be told: {error.strerror}"
            if free < wanted:
                return (
                    f"{free // _MIB} MiB are free where the database keeps its files, {wanted // _MIB} MiB are needed"
                )
        if self._room is not None and self._room.left_bytes is not None and self._room.left_bytes < wanted:
            return (
                f"the database has {(self._room.size_bytes or 0) // _MIB} MiB of the {self._room.max_bytes // _MIB} MiB it may have, and "
                f"{wanted // _MIB} MiB have to be left"
            )
        return None


def _free_bytes(path: Path) -> int:
    state = os.statvfs(path)
    return state.f_bavail * state.f_frsize
