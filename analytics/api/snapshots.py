"""Long answers in pages: built once, kept packed for a while, so that every page is of the same answer and costs no query.

A cursor names the answer by the hash of its content and the number of the next row. An answer that is no longer kept (too
old, pushed out, another process) may be built again: it goes on if it is the same to the byte, and is refused if not. It
decides nothing about who may see what: whoever asks looks under a key made of what he may see.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from analytics.api.cursors import cursor_of, position_of
from analytics.api.problems import ApiError

_BLOCK_ROWS: Final = 250
_CURSOR: Final = re.compile(r"([0-9a-f]{32}):(\d{1,12})")
KEPT_S: Final = 600.0
KEPT_BYTES: Final = 64 * 1024 * 1024
"""Packed: a row of a bill takes about 100 bytes, so this is some 600,000 rows."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One answer as it was built: ``head`` is what every page carries."""

    fingerprint: str
    head: Mapping[str, Any]
    rows: int
    blocks: tuple[bytes, ...]

    @classmethod
    def of(cls, head: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Snapshot:
        """Pack an answer. Both must be ready for JSON."""
        digest = hashlib.sha256(orjson.dumps(head))
        blocks = []
        for start in range(0, len(rows), _BLOCK_ROWS):
            text = orjson.dumps(rows[start : start + _BLOCK_ROWS])
            digest.update(text)
            blocks.append(zlib.compress(text, 1))
        return cls(digest.hexdigest()[:32], head, len(rows), tuple(blocks))

    @property
    def packed_bytes(self) -> int:
        return sum(map(len, self.blocks))

    def page(self, start: int, limit: int) -> tuple[list[Any], str | None]:
        """Return up to ``limit`` rows from number ``start``, and the cursor of what follows."""
        first, last = start // _BLOCK_ROWS, (start + limit - 1) // _BLOCK_ROWS
        rows = [row for block in self.blocks[first : last + 1] for row in orjson.loads(zlib.decompress(block))]
        offset, following = start - first * _BLOCK_ROWS, start + limit
        return rows[offset : offset + limit], (
            cursor_of(f"{self.fingerprint}:{following}") if following < self.rows else None
        )


class Snapshots:
    """The answers kept, by what was asked and by whom; the least recently used go first. Safe for threads."""

    def __init__(
        self, kept_s: float = KEPT_S, kept_bytes: int = KEPT_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._kept_s = kept_s
        self._kept_bytes = kept_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Hashable, str], tuple[float, Snapshot]] = OrderedDict()

    def page(
        self, key: Hashable, build: Callable[[], Snapshot], cursor: str | None, limit: int
    ) -> tuple[Snapshot, int, list[Any], str | None]:
        """Return the answer, the number of the page's first row, its rows and the next cursor.

        ``build`` is called for a first page, and for an answer that is no longer kept. Raises ApiError: 400 for a cursor
        that is none of ours, 409 where the answer is not what its first page belonged to.
        """
        fingerprint, start = _read(cursor)
        snapshot = None if fingerprint is None else self._recall(key, fingerprint)
        if snapshot is None:
            snapshot = build()
            if fingerprint is not None and snapshot.fingerprint != fingerprint:
                raise ApiError(409, "books_changed", "the books changed since the first page; begin without cursor")
        if start > snapshot.rows:
            raise ApiError(400, "invalid_cursor", "this cursor is not one this API gave; start without it")
        rows, following = snapshot.page(start, limit)
        if following is not None:
            self._keep(key, snapshot)
        return snapshot, start, rows, following

    def _recall(self, key: Hashable, fingerprint: str) -> Snapshot | None:
        with self._lock:
            self._drop_old()
            found = self._kept.get((key, fingerprint))
            if found is None:
                return None
            self._kept.move_to_end((key, fingerprint))
            return found[1]

    def _keep(self, key: Hashable, snapshot: Snapshot) -> None:
        if snapshot.packed_bytes > self._kept_bytes:
            return  # each of its pages is built again, and is right all the same
        with self._lock:
            self._drop_old()
            self._kept.setdefault((key, snapshot.fingerprint), (self._clock(), snapshot))
            self._kept.move_to_end((key, snapshot.fingerprint))
            while sum(kept.packed_bytes for _, kept in self._kept.values()) > self._kept_bytes:
                self._kept.popitem(last=False)

    def _drop_old(self) -> None:
        oldest = self._clock() - self._kept_s
        for name in [name for name, (at, _) in self._kept.items() if at < oldest]:
            del self._kept[name]


def _read(cursor: str | None) -> tuple[str | None, int]:
    position = position_of(cursor)
    if position is None:
        return None, 0
    match = _CURSOR.fullmatch(position)
    if match is None:
        raise ApiError(400, "invalid_cursor", "this cursor is not one this API gave; start without it")
    return match[1], int(match[2])
