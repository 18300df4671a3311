"""Walks protobuf messages by their lengths, without making objects of them: to count, to bound and to skip before parsing.

A parser makes an object of every two bytes of a hostile body. This walk finds where the parts are, so that what is not
wanted (message content above all) is never parsed, and what is wanted is parsed one part at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ingest.errors import BadBodyError

_FIXED_WIDTH: Final = {1: 8, 5: 4}
_LENGTH_DELIMITED: Final = 2
_MAX_VARINT_BITS: Final = 63


def messages(data: bytes, start: int, end: int, number: int) -> Iterator[tuple[int, int]]:
    """Yield where the length-delimited fields of this number are in data[start:end]; raises BadBodyError."""
    for found, at, begin, stop in fields(data, start, end):
        if found == number and data[at] & 7 == _LENGTH_DELIMITED:
            yield begin, stop


def fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, where the field begins, where its value begins, and where it ends, in their order."""
    at = start
    try:
        while at < end:
            begin = at
            tag = data[at]
            at += 1
            if tag >= 0x80:
                tag, at = _varint(data, begin)
            wire = tag & 7
            if wire == _LENGTH_DELIMITED:
                length = data[at]
                at += 1
                if length >= 0x80:
                    length, at = _varint(data, at - 1)
                stop = at + length
            elif wire == 0:
                _, stop = _varint(data, at)
            elif wire in _FIXED_WIDTH:
                stop = at + _FIXED_WIDTH[wire]
            else:
                raise BadBodyError("malformed", f"wire type {wire} at byte {begin}")
            if stop > end:
                raise BadBodyError("malformed", f"a field at byte {begin} is longer than what holds it")
            yield tag >> 3, begin, at, stop
            at = stop
    except IndexError:
        raise BadBodyError("malformed", "the body ends within a field") from None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > _MAX_VARINT_BITS:
            raise BadBodyError("malformed", f"an endless number at byte {at}")
