"""Finds the errors of devices in ``DCGM_FI_DEV_XID_ERRORS``, a gauge of the last one: what changed is an event, what stands is none.

Which code stood before is the store's to say (:mod:`ingest.store.series_xids`), so that of several servers one tells of an
error, once. Here only what is known to stand is left out. What the gauge cannot show stays unseen: the same error again, and
when one happened that stood there at the first look. Bounded; used by one thread, but for :meth:`XidMemory.kept`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from collector.wire import MAX_CLOCK_SKEW_US, Origin
from ingest.accept import EARLIEST_AT_US
from ingest.series.labels import Skip, label, origin_of
from ingest.series.samples import Samples

XIDS: Final = frozenset({"DCGM_FI_DEV_XID_ERRORS", "DCGM_FI_DEV_XID_ERROR"})
"""The name before DCGM 4.6 and the one since. Told for a MIG instance it is its board's."""
_MOST: Final = 1_000_000
"""Codes have three digits; DCGM's blanks and nonsense lie above."""
_DEVICES: Final = 200_000


@dataclass(frozen=True, slots=True)
class XidPiece:
    """One device's gauge. ``node``: null where no label names it."""

    uuid: str
    node: str | None
    origin: Origin


class Stood(NamedTuple):
    """The code that stood at an instant (µs); 0 = none."""

    at_us: int
    code: int
    uuid: str
    node: str
    origin: Origin


@dataclass(slots=True)
class XidsTold:
    """Codes in order of time, without those that stood before as far as this process knows."""

    stood: list[Stood] = field(default_factory=list)
    samples: int = 0
    unusable: int = 0


def xid_piece(name: str, labels: Mapping[str, str], node: str | None) -> XidPiece | Skip:
    """Return whose gauge a series named in :data:`XIDS` is."""
    uuid = label(labels, "UUID", "gpu_uuid", "uuid")
    return Skip(name, "bad_labels") if uuid is None else XidPiece(uuid, node, origin_of(labels))


class XidMemory:
    """Codes that the store is known to know."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._codes: dict[tuple[int, str], int] = {}

    def news(
        self, site_id: int, samples: Samples, entries: Sequence[object], own_node: str | None, now_us: int
    ) -> tuple[XidsTold, Samples]:
        """Return what changed, and the samples that say other things."""
        told = XidsTold()
        ours = [number for number in np.unique(samples.series).tolist() if isinstance(entries[number], XidPiece)]
        if not ours:
            return told, samples
        is_ours = np.isin(samples.series, ours)
        mine, rest = samples.only(is_ours), samples.only(~is_ours)
        cells = zip(mine.at_us.tolist(), mine.series.tolist(), mine.values.tolist(), strict=True)
        with self._lock:
            codes: dict[str, int | None] = {}
            for at_us, number, value in sorted(cells, key=lambda cell: cell[:2]):
                piece = entries[number]
                assert isinstance(piece, XidPiece)  # noqa: S101 - chosen above
                node = piece.node or own_node
                is_now = EARLIEST_AT_US <= at_us <= now_us + MAX_CLOCK_SKEW_US
                if node is None or not is_now or math.isnan(value) or not 0 <= value < _MOST:
                    told.unusable += 1
                    continue
                told.samples += 1
                code = int(value)
                if codes.get(piece.uuid, self._codes.get((site_id, piece.uuid))) != code:
                    told.stood.append(Stood(at_us, code, piece.uuid, node, piece.origin))
                codes[piece.uuid] = code
        return told, rest

    def kept(self, site_id: int, stood: Sequence[Stood]) -> None:
        """Note that these are committed."""
        with self._lock:
            if len(self._codes) > _DEVICES:
                self._codes.clear()
            self._codes.update(((site_id, one.uuid), one.code) for one in stood)
