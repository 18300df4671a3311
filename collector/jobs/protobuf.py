"""Walks a protobuf message field by field: the few dozen lines of the wire format that replace a library of megabytes.

It knows no schema and builds no objects. Everything is bounded by the message's own length; what does not follow the format is
a :class:`ProtobufError`, never an endless loop or an IndexError.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES: Final = 10


class ProtobufError(ValueError):
    """The bytes are not a protobuf message."""


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) in the order of the message: an int for numbers, the bytes of all else.

    Fixed-width values come as their bytes. Groups, which nobody writes any more, are an error.
    """
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise ProtobufError("a field has the number 0")
        if kind == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if kind == _BYTES:
            length, position = _varint(message, position)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ProtobufError(f"field {number} is of the unknown kind {kind}")
        if length > len(message) - position:
            raise ProtobufError(f"field {number} is longer than its message")
        yield number, message[position : position + length]
        position += length


def children(message: bytes, wanted: int) -> Iterator[bytes]:
    """Yield the contents of each field ``wanted`` that holds bytes."""
    for number, value in fields(message):
        if number == wanted and isinstance(value, bytes):
            yield value


def text(message: bytes, wanted: int) -> str:
    """Return the last text of a field, as protobuf has it; empty where there is none. Broken UTF-8 is replaced."""
    found = b""
    for value in children(message, wanted):
        found = value
    return found.decode(errors="replace")


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        if position + index >= len(message):
            raise ProtobufError("the message ends inside a number")
        byte = message[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise ProtobufError("a number is longer than ten bytes")
