"""Batches of numbers that share one layout, read where they lie: a matrix with a batch per row, each column a view of it.

A group of steady senders is nearly always this. Nothing is decoded or copied but the bodies themselves, once, where
there are several. It knows nothing of texts, nor of columns of which some rows are null: those go through
:func:`ingest.receivers.native.decode`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

from ingest.receivers.arrow_check import CheckedStream, Layout, Schema

_NUMPY_TYPES: Final = {"i16": "<i2", "i32": "<i4", "i64": "<i8", "f32": "<f4"}


@dataclass(frozen=True, slots=True)
class Block:
    """Batches of one schema and layout, back to back in ``data``."""

    schema: Schema
    layout: Layout
    bodies: int
    data: bytes | memoryview

    @classmethod
    def of(cls, streams: Sequence[CheckedStream]) -> Block:
        """Stack streams that are :func:`stackable` and have one layout."""
        layout = streams[0].layouts[0]
        bodies = [entry.messages[0][-layout.body_bytes :] for entry in streams]
        data = bodies[0] if len(bodies) == 1 else b"".join(bodies)
        return cls(streams[0].schema, layout, len(bodies), data)

    @property
    def is_dense(self) -> bool:
        """Whether each column has a value in every row or in none."""
        return all(nulls in (0, self.layout.rows) for nulls, _, _ in self.layout.columns)

    @property
    def names(self) -> Mapping[str, tuple[np.dtype[Any], int]]:
        """The known columns that have values, with their type and where the first batch has them."""
        return _present(self.schema, self.layout)

    def column(self, name: str) -> np.ndarray[Any, Any]:
        """Return a column's values as (bodies, rows), a view; where a row is null the value is arbitrary."""
        kind, values_at = self.names[name]
        strides = (self.layout.body_bytes, kind.itemsize)
        return np.ndarray((self.bodies, self.layout.rows), kind, self.data, values_at, strides)

    def bitmap(self, validity_at: int) -> np.ndarray[Any, Any]:
        """Return which rows of a partly null column have a value, as (bodies, rows) of bool."""
        rows = self.layout.rows
        shape, strides = (self.bodies, (rows + 7) // 8), (self.layout.body_bytes, 1)
        packed = np.ndarray(shape, np.uint8, self.data, validity_at, strides)
        return np.unpackbits(packed, axis=1, count=rows, bitorder="little").astype(bool)


def stackable(stream: CheckedStream) -> bool:
    """Whether a stream is a single batch of numbers with at least one row."""
    return (
        len(stream.layouts) == 1 and stream.rows > 0 and all(column.type != "utf8" for column in stream.schema.columns)
    )


@lru_cache(maxsize=256)
def _present(schema: Schema, layout: Layout) -> Mapping[str, tuple[np.dtype[Any], int]]:
    return {
        column.name: (np.dtype(_NUMPY_TYPES[column.type]), values_at)
        for column, (nulls, _, values_at) in zip(schema.columns, layout.columns, strict=True)
        if column.name not in schema.unknown and nulls != layout.rows
    }
