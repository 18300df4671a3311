"""Checks single rows against the contract before they meet the others of a batch: one bad row must not cost its neighbours.

It knows columns and their types, not what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from collector import wire
from collector.wire import Stream

_INTEGER_BITS: Final = {"i16": 15, "i32": 31, "i64": 63}
_BOUNDS: Final = {kind: 2**bits for kind, bits in _INTEGER_BITS.items()}
_F32_MAX: Final = 3.4028234e38
_TYPES: Final = {stream: {entry.name: entry for entry in columns} for stream, columns in wire.COLUMNS.items()}
_REQUIRED: Final = {
    stream: tuple(entry.name for entry in columns if not entry.nullable) for stream, columns in wire.COLUMNS.items()
}


def fault_of(stream: Stream, row: Mapping[str, int | float | str | None]) -> str | None:
    """Return why a row cannot travel in a stream, or None."""
    columns = _TYPES[stream]
    for name in _REQUIRED[stream]:
        if row.get(name) is None:
            return f"{name} is missing"
    for name, value in row.items():
        entry = columns.get(name)
        if entry is None:
            return f"there is no column {name}"
        if value is not None and not _fits(entry.type, value):
            return f"{name} cannot hold {value!r:.60}"
    return None


def _fits(kind: wire.ColumnType, value: object) -> bool:
    if kind == "utf8":
        return isinstance(value, str)
    if kind == "f32":
        return isinstance(value, int | float) and math.isfinite(value) and abs(value) <= _F32_MAX
    bound = _BOUNDS[kind]
    return isinstance(value, int) and -bound <= value < bound
