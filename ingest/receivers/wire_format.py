"""Protobuf's wire format, as far as our own decoders need it: every length is checked against what is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from ingest.errors import malformed

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_MOST_SHIFT: Final = 63
_LAST: Final = 0x80
_UINT64: Final = 2**64 - 1


def varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return the unsigned number at a place and where the next thing begins; raises BadBodyError."""
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < _LAST:
            return value & _UINT64, at
        shift += 7
        if shift > _MOST_SHIFT:
            break
    raise malformed("a number is cut off or too long")


def signed(value: int) -> int:
    """Return what an int64 is whose varint was read as unsigned."""
    return value if value < 1 << 63 else value - (1 << 64)


def skipped(data: bytes, tag: int, at: int, end: int) -> int:
    """Return where the field after this one begins; raises BadBodyError."""
    wire = tag & 7
    if not 0 < tag >> 3 < 1 << 29:
        raise malformed(f"a field numbered {tag >> 3}")
    if wire == VARINT:
        _, at = varint(data, at, end)
    elif wire == FIXED64:
        at += 8
    elif wire == FIXED32:
        at += 4
    elif wire == LENGTH:
        size, at = varint(data, at, end)
        at += size
    else:
        raise malformed(f"wire type {wire}")
    if at > end:
        raise malformed("a field is cut off")
    return at


def fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield each field's number, wire type, and where its content begins and ends; raises BadBodyError."""
    while at < end:
        tag = data[at]
        if tag < _LAST:  # as nearly all tags and lengths are
            at += 1
        else:
            tag, at = varint(data, at, end)
        wire = tag & 7
        if wire == LENGTH and tag >> 3:
            if at < end and data[at] < _LAST:
                size = data[at]
                at += 1
            else:
                size, at = varint(data, at, end)
            if size > end - at:
                raise malformed(f"a field claims {size} bytes, {end - at} are there")
            yield tag >> 3, wire, at, at + size
            at += size
        else:
            start, at = at, skipped(data, tag, at, end)
            yield tag >> 3, wire, start, at


def gathered(octets: np.ndarray[Any, Any], where: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the eight bytes at each of these places as little-endian int64."""
    windows = np.lib.stride_tricks.sliding_window_view(octets, 8)
    found: np.ndarray[Any, Any] = np.ascontiguousarray(windows[where]).reshape(-1).view("<i8")
    return found
