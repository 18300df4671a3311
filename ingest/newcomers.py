"""How many nodes, spools, epochs and devices one token may name for the first time in an hour.

Each becomes a row for good and a place in memory, so one token, stolen or of a program gone wrong, must not make them without
end. Known names cost nothing. A refused sender is told to come again in the next hour and keeps its data. Names that series
bring are bounded where those are read (``ingest.series.memory``), those of meters, ports and engines in the registry.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from typing import Final

from collector.wire import BatchMeta, DeviceRef
from ingest.errors import TooManyError

_HOUR_S: Final = 3_600
_REMEMBERED: Final = 2_000_000
"""Names of all tokens together, some 60 bytes each; beyond it all counts begin again."""
_MEMOS: Final = 131_072
_Known = tuple[tuple[DeviceRef, ...], str, int]


class Newcomers:
    """Names heard this hour, by token. Not for several threads."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._hour = 0
        self._names: dict[int, set[int]] = {}
        self._size = 0
        self._memos: dict[tuple[int, str, str], _Known] = {}

    def admit(self, token_id: int, limit: int, meta: BatchMeta) -> None:
        """Take in what a batch names; raises TooManyError, taking nothing in, where the hour has no room. ``limit`` 0 = none."""
        key, said = (token_id, meta.node, meta.spool), (meta.devices, meta.boot_id, meta.driver_epoch)
        if not limit or self._memos.get(key) == said:
            return
        now = self._clock()
        hour = int(now) // _HOUR_S
        if hour != self._hour or self._size > _REMEMBERED:
            self._hour, self._names, self._size = hour, {}, 0
        names = self._names.setdefault(token_id, set())
        new = {hash(name) for name in _names(meta)} - names
        if len(names) + len(new) > limit:
            raise TooManyError(
                "too_many_new",
                f"this token has named {len(names)} nodes, spools, epochs and devices this hour; {limit} may be new to the "
                "server in an hour",
                _HOUR_S - int(now) % _HOUR_S,
            )
        names |= new
        self._size += len(new)
        if len(self._memos) >= _MEMOS:
            self._memos.clear()
        self._memos[key] = said


def _names(meta: BatchMeta) -> Iterator[Hashable]:
    yield "node", meta.node
    yield "spool", meta.spool
    yield "epoch", meta.node, meta.boot_id, meta.driver_epoch
    for device in meta.devices:
        yield "device", device.uuid
