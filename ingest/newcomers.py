"""How many nodes, spools, epochs, devices, jobs, runs and outcomes one token may name for the first time in an hour.

Each becomes a row for good, most a place in memory, so one token, stolen or of a program gone wrong, must not make them
without end. A name heard this hour costs nothing again. A refused sender is told to come again in the next hour and keeps its
data; of a body whose parts stand alone the others are kept. Names that series bring are bounded where those are read
(``ingest.series.memory``), those of meters, ports and engines in the registry.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from collector.wire import BatchMeta, DeviceRef
from ingest.errors import TooManyError

_HOUR_S: Final = 3_600
_REMEMBERED: Final = 2_000_000
"""Names of all tokens together, some 60 bytes each; beyond it all counts begin again."""
_MEMOS: Final = 131_072
TOO_MANY: Final = "too_many_new"
_Known = tuple[tuple[DeviceRef, ...], str, int]


@dataclass(frozen=True, slots=True)
class Quota:
    """How many things of a kind a token may tell for the first time in an hour; ``most`` 0 = no limit.

    ``what`` is the kind in words, plural; ``setting`` what raises the limit.
    """

    what: str
    most: int
    setting: str

    def refusal(self, now_s: float) -> TooManyError:
        """Return why something is not taken, and when it may be."""
        wait_s = _HOUR_S - int(now_s) % _HOUR_S
        return TooManyError(
            TOO_MANY,
            f"this token may tell of {self.most} new {self.what} in an hour ({self.setting}); send it again in {wait_s} s",
            wait_s,
        )


class Newcomers:
    """Names heard this hour, by token. For several threads."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._hour = 0
        self._names: dict[tuple[int, str], set[int]] = {}
        self._size = 0
        self._counts: Counter[tuple[int, str]] = Counter()
        self._memos: dict[tuple[int, str, str], _Known] = {}

    def admit(self, token_id: int, limit: int, meta: BatchMeta) -> None:
        """Take in what a batch names; raises TooManyError, taking nothing in, where the hour has no room. ``limit`` 0 = none."""
        key, said = (token_id, meta.node, meta.spool), (meta.devices, meta.boot_id, meta.driver_epoch)
        if not limit or self._memos.get(key) == said:
            return
        now = self._clock()
        named = {hash(name) for name in _names(meta)}
        with self._lock:
            self._turn(now)
            names = self._names.setdefault((token_id, ""), set())
            new = named - names
            if len(names) + len(new) > limit:
                raise TooManyError(
                    TOO_MANY,
                    f"this token has named {len(names)} nodes, spools, epochs and devices this hour; {limit} may be new to "
                    "the server in an hour",
                    _HOUR_S - int(now) % _HOUR_S,
                )
            names |= new
            self._size += len(new)
            if len(self._memos) >= _MEMOS:
                self._memos.clear()
            self._memos[key] = said

    def room(self, token_id: int, quota: Quota, parts: Iterable[Iterable[Hashable]]) -> list[TooManyError | None]:
        """Take in what each part of a body names, in order; return for each None, or why there is no room for it.

        A part is taken in whole or not at all; one that names nothing new always is.
        """
        if not quota.most:
            return [None for _ in parts]
        named = [{hash(name) for name in part} for part in parts]
        now = self._clock()
        refusal = quota.refusal(now)
        found: list[TooManyError | None] = []
        with self._lock:
            self._turn(now)
            heard = self._names.setdefault((token_id, quota.what), set())
            for names in named:
                new = names - heard
                fits = len(heard) + len(new) <= quota.most
                if fits:
                    heard |= new
                    self._size += len(new)
                found.append(None if fits else refusal)
        return found

    def count(self, token_id: int, quota: Quota, wanted: int) -> tuple[int, TooManyError | None]:
        """Count things too many to remember; return how many fit, and why the rest does not."""
        if not quota.most:
            return wanted, None
        now = self._clock()
        with self._lock:
            self._turn(now)
            told = self._counts[token_id, quota.what]
            fits = max(0, min(wanted, quota.most - told))
            self._counts[token_id, quota.what] = told + fits
        return fits, None if fits == wanted else quota.refusal(now)

    def _turn(self, now_s: float) -> None:
        hour = int(now_s) // _HOUR_S
        if hour != self._hour or self._size > _REMEMBERED:
            self._hour, self._names, self._size = hour, {}, 0
            self._counts.clear()


def _names(meta: BatchMeta) -> Iterator[Hashable]:
    yield "node", meta.node
    yield "spool", meta.spool
    yield "epoch", meta.node, meta.boot_id, meta.driver_epoch
    for device in meta.devices:
        yield "device", device.uuid
