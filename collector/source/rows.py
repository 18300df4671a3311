"""Makes rows fit the wire: one number a driver or file invents must not cost the rows beside it.

A value its column cannot hold becomes null and is counted; texts are cleaned. It knows no column's meaning.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

from collector.probe import Row
from collector.wire import COLUMNS, Stream, cleaned

_BITS: Final = {"i16": 15, "i32": 31, "i64": 63}
_HIGHEST_F32: Final = 3.4e38
_HIGHEST: Final = {
    stream: {column.name: 2 ** _BITS[column.type] - 1 for column in columns if column.type in _BITS}
    for stream, columns in COLUMNS.items()
}


def fitted(stream: Stream, row: Row, errors: Counter[str], source: str) -> Row:
    """Return the row as the stream can carry it; what does not fit is counted as ``source:out_of_range:column``."""
    highest = _HIGHEST[stream]
    fits: Row = {}
    for name, value in row.items():
        if isinstance(value, str):
            fits[name] = cleaned(value)
        elif value is not None and not _fits(value, highest.get(name)):
            errors[f"{source}:out_of_range:{name}"] += 1
            fits[name] = None
        else:
            fits[name] = value
    return fits


def _fits(value: float, highest: int | None) -> bool:
    """Say whether a column of whole numbers up to ``highest``, or of 32-bit floats where that is None, can hold a value."""
    if highest is not None:
        return isinstance(value, int) and abs(value) <= highest
    return math.isfinite(value) and abs(value) <= _HIGHEST_F32
