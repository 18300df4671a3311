"""Accepts a block of batches as a whole, without taking it apart: what nearly every group of steady senders is.

It asks the same questions as :mod:`ingest.accept`, of whole columns: a minimum and a maximum each. Where every answer is
good the rows go from the sender's bytes to COPY's without ever being a table. Where any is not it says so and decides
nothing: row by row is accept's business. Pure, like accept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import polars as pl

from collector.wire import Stream
from ingest.accept import BODY, BodyFacts, Refusal, row_bounds, value_bounds
from ingest.receivers.block import Block
from ingest.receivers.native import frame_of


@dataclass(frozen=True, slots=True)
class Whole:
    """Batches of which every row is kept as it came."""

    stream: Stream
    block: Block
    bodies: tuple[int, ...]
    """Which body of the group each batch came with."""
    epoch_ids: np.ndarray[Any, Any]
    """Of each batch, int32."""
    device_ids: np.ndarray[Any, Any] | None
    """Of each batch and row, int32; None for streams of nodes."""
    refusals: ClassVar[tuple[Refusal, ...]] = ()

    @property
    def rows(self) -> pl.DataFrame:
        """The rows as accept would return them, for whoever keeps only some of them."""
        counts = self.block.layout.rows
        added = [
            pl.Series(BODY, np.repeat(np.array(self.bodies, dtype=np.int32), counts)),
            pl.Series("epoch_id", np.repeat(self.epoch_ids, counts)),
        ]
        if self.device_ids is not None:
            added.append(pl.Series("device_id", self.device_ids.reshape(-1)))
        return frame_of(self.block).hstack(added)


def accept_whole(
    stream: Stream, block: Block, bodies: Sequence[int], facts: Sequence[BodyFacts], now_us: int
) -> Whole | None:
    """Return the block as it is kept, None if any row or value of it is not kept as it came.

    ``bodies`` are indices into ``facts``, one a batch.
    """
    if not block.is_dense:
        return None
    names = block.names
    for bounds in (*row_bounds(stream, now_us), *value_bounds(stream)):
        if bounds.column in names and not bounds.hold(block.column(bounds.column)):
            return None
    device_ids = None
    if "device" in names:
        device_ids = _device_ids(block.column("device"), [facts[body] for body in bodies])
        if device_ids is None:
            return None
    epoch_ids = np.array([facts[body].epoch_id for body in bodies], dtype=np.int32)
    return Whole(stream, block, tuple(bodies), epoch_ids, device_ids)


def _device_ids(index: np.ndarray[Any, Any], facts: Sequence[BodyFacts]) -> np.ndarray[Any, Any] | None:
    """Return the ids of the devices rows speak of, None if one is outside its body's table, refused on this node or of another epoch."""
    counts = np.array([len(fact.device_ids) for fact in facts], dtype=np.int64)
    if int(index.min()) < 0 or bool((index.max(axis=1) >= counts).any()):
        return None
    if any(None in fact.device_ids or fact.second for fact in facts):
        return None
    ids = np.array([identity for fact in facts for identity in fact.device_ids], dtype=np.int32)
    starts = np.cumsum(counts) - counts
    found: np.ndarray[Any, Any] = ids[starts[:, None] + index]
    return found
