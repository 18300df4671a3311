"""From the value of a series to the number of its column: units, blanks, ranges. Arrays in, arrays out; NaN = not taken.

A value that cannot be that quantity is left out and counted by the caller, never bent to fit.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from collector.wire import COLUMNS, Stream
from ingest.series.names import Unit

Values = np.ndarray[Any, Any]

_SCALES: Final[dict[Unit, float]] = {
    "count": 1,
    "mj": 1,
    "j": 1_000,
    "w": 1_000,
    "mib": 2**20,
    "bytes": 1,
    "celsius": 1,
    "violation": 1,
    "bytes_per_s": 8 / 1_000_000,
}
_COUNTERS: Final = frozenset(("mj", "j", "violation"))
_PERCENT: Final = 100.0
_ROUNDING: Final = 1.01
"""How far above 1 a ratio may lie before it is taken for percent."""
_INT64_BLANK: Final = float(0x7FFF_FFFF_FFFF_FFF0)
_INT32_BLANKS: Final = (float(0x7FFF_FFF0), float(0x7FFF_FFFF))
_FLOAT_BLANKS: Final = (float(2**47), float(2**47 + 15))
_RANGES: Final = {
    "i16": (-(2.0**15), 2.0**15 - 1),
    "i32": (-(2.0**31), 2.0**31 - 1),
    # The largest doubles inside: 2**63 itself does not fit.
    "i64": (-(2.0**63), 2.0**63 - 1024),
    "f32": (-3.4e38, 3.4e38),
}


def converted(values: Values, unit: Unit, kind: str) -> Values:
    """Return the values of one unit as numbers of a column of wire type ``kind``; NaN where one cannot be taken."""
    with np.errstate(invalid="ignore", over="ignore"):
        values = np.where(_is_blank(values, unit), np.nan, values)
        if unit == "percent":
            values = np.where((values >= 0) & (values <= _PERCENT), values, np.nan)
        elif unit == "ratio":
            values = _ratio(values)
        elif unit == "ratio_percent":
            values = _ratio_percent(values)
        elif unit == "whole_ratio":
            values = np.where((values >= 0) & (values <= _ROUNDING), np.minimum(values, 1.0) * _PERCENT, np.nan)
        else:
            values = values * _SCALES[unit]
        if kind != "f32":
            values = np.rint(values)
        low, high = _RANGES[kind]
        converted: Values = np.where((values >= low) & (values <= high), values, np.nan)
    return converted


def _is_blank(values: Values, unit: Unit) -> Values:
    """Tell DCGM's "no value": its 32-bit and floating-point blanks are ordinary values for a counter on its way up."""
    blank = values >= _INT64_BLANK
    if unit not in _COUNTERS:
        for low, high in (_INT32_BLANKS, _FLOAT_BLANKS):
            blank |= (values >= low) & (values <= high) & (unit in ("count", "w", "celsius", "mib", "percent"))
    result: Values = blank
    return result


def _ratio(values: Values) -> Values:
    """Return 0-1. One above 1 (and rounding) was made percent on the way."""
    bent = np.where(values > _ROUNDING, values / _PERCENT, np.minimum(values, 1.0))
    return np.where((values >= 0) & (values <= _PERCENT), bent, np.nan)


def _ratio_percent(values: Values) -> Values:
    """Return 0-100 of a value named a ratio that some exporters count 0-100: exactly 1 could be either and is not taken."""
    percent = np.where(values < 1, values * _PERCENT, values)
    whole = (values < 1) | (values == np.rint(values))
    return np.where((values >= 0) & (values <= _PERCENT) & (values != 1) & whole, percent, np.nan)


TYPES: Final = {stream: {column.name: column.type for column in columns} for stream, columns in COLUMNS.items()}
"""Wire types by stream and column."""
DERIVED: Final = frozenset(("memory_available_bytes", "cpu_idle_s"))
"""Columns that no table has: :mod:`ingest.series.host` makes others of them."""


def type_of(stream: Stream, column: str) -> str:
    """Return the wire type a converted value has to fit."""
    if column in DERIVED:
        return "i64" if column == "memory_available_bytes" else "f32"
    return TYPES[stream][column]
