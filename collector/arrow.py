"""Writes Arrow IPC streams of flat columns with nothing but the standard library.

One stream is a schema message, one record batch and an end marker (Arrow columnar format 1.x, metadata V5, little
endian, buffers padded to 8 bytes). Column types are those of the wire: int16/32/64, float32 and utf8, each with an
optional validity bitmap. It knows nothing of batches, devices or compression, reads nothing back, and does not check
that values fit the column: :mod:`collector.batch` does.

Why not pyarrow: it costs 28 MB of memory on every GPU node for what is two small flatbuffers (ADR 0003).
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from collector.wire import Column, ColumnType

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("collector.arrow writes native byte order as little endian; this machine is big endian")

END_OF_STREAM: Final = struct.pack("<Ii", 0xFFFFFFFF, 0)
VALUE_BYTES: Final[dict[ColumnType, int]] = {"i16": 2, "i32": 4, "i64": 8, "f32": 4}
TYPECODES: Final[dict[ColumnType, str]] = {"i16": "h", "i32": "i", "i64": "q", "f32": "f"}
"""The ``array`` typecode of each fixed-width type; on every platform CPython supports, i is 4 and q is 8 bytes."""

# Numbers of Schema.fbs and Message.fbs (github.com/apache/arrow/tree/main/format).
_METADATA_V5: Final = 4
_HEADER_SCHEMA: Final = 1
_HEADER_RECORD_BATCH: Final = 3
_TYPE_INT: Final = 2
_TYPE_FLOAT: Final = 3
_TYPE_UTF8: Final = 5
_FLOAT_SINGLE: Final = 1
_BITS: Final[dict[ColumnType, int]] = {"i16": 16, "i32": 32, "i64": 64}


@dataclass(frozen=True, slots=True)
class ColumnData:
    """The buffers of one column, as Arrow lays them out; any object with the buffer protocol will do, uncopied.

    ``data`` holds the values in native little endian (utf8: the texts back to back). ``validity`` has one bit per row,
    least significant first, 1 = present; it may be absent where ``null_count`` is 0. ``offsets`` is for utf8 only:
    rows + 1 int32 positions into ``data``, the first of them 0.
    """

    data: ReadableBuffer
    validity: ReadableBuffer | None = None
    null_count: int = 0
    offsets: ReadableBuffer | None = None


class SchemaTemplate:
    """A schema message whose last metadata value may differ from stream to stream.

    Building the flatbuffer of 40 columns takes a millisecond, so it is done once. That works because a flatbuffer only
    points forward: the changing value is laid down last in memory and everything before it stays the same.
    """

    def __init__(self, columns: Sequence[Column], metadata: Mapping[str, str], last_key: str | None = None) -> None:
        """Prepare the message; with ``last_key``, :meth:`message` must be given that key's value."""
        self._has_last = last_key is not None
        self._prefix = _schema_flatbuffer(columns, metadata, last_key)
        if self._has_last:
            self._prefix = self._prefix[:-8]  # the empty placeholder: its length, its NUL, its padding

    def message(self, last_value: str | None = None) -> bytes:
        """Return the encapsulated schema message."""
        if (last_value is not None) != self._has_last:
            raise ValueError("a last value is given exactly when the template has a last key")
        if last_value is None:
            return _encapsulated(self._prefix)
        text = last_value.encode()
        tail = struct.pack("<I", len(text)) + text
        return _encapsulated(self._prefix + tail + bytes(8 - len(tail) % 8))


def record_batch(rows: int, columns: Sequence[ColumnData]) -> bytes:
    """Return the encapsulated record batch of the columns' buffers, in order."""
    nodes: list[tuple[int, int]] = []
    places: list[tuple[int, int]] = []
    parts: list[ReadableBuffer] = []
    position = 0
    for column in columns:
        nodes.append((rows, column.null_count))
        buffers = (
            (column.validity, column.data)
            if column.offsets is None
            else (
                column.validity,
                column.offsets,
                column.data,
            )
        )
        for buffer in buffers:
            size = 0 if buffer is None else memoryview(buffer).nbytes
            places.append((position, size))
            if buffer is None or not size:
                continue
            parts.append(buffer)
            padding = -size % 8
            if padding:
                parts.append(bytes(padding))
            position += size + padding
    builder = _FlatBuffer()
    buffers_at = builder.struct_pairs(places)
    nodes_at = builder.struct_pairs(nodes)
    header = builder.table([(0, "q", rows), (1, "offset", nodes_at), (2, "offset", buffers_at)])
    return _encapsulated(_message(builder, _HEADER_RECORD_BATCH, header, position)) + b"".join(parts)


def column(kind: ColumnType, values: Sequence[Any]) -> ColumnData:
    """Lay out Python values as one column; None is null. Raises OverflowError or TypeError where a value does not fit."""
    null_count = sum(value is None for value in values)
    if null_count and null_count == len(values):
        return null_column(kind, len(values))
    validity = _bitmap(values) if null_count else None
    if kind == "utf8":
        texts = [b"" if value is None else value.encode() for value in values]
        offsets = array("i", [0])
        end = 0
        for text in texts:
            end += len(text)
            offsets.append(end)
        return ColumnData(b"".join(texts), validity, null_count, offsets)
    if null_count:
        values = [0 if value is None else value for value in values]
    return ColumnData(array(TYPECODES[kind], values), validity, null_count)


def null_column(kind: ColumnType, rows: int) -> ColumnData:
    """Return a column of nothing but nulls."""
    validity = bytes((rows + 7) // 8)
    if kind == "utf8":
        return ColumnData(b"", validity, rows, bytes(4 * (rows + 1)))
    return ColumnData(bytes(VALUE_BYTES[kind] * rows), validity, rows)


def _bitmap(values: Sequence[Any]) -> bytes:
    bits = bytearray((len(values) + 7) // 8)
    for row, value in enumerate(values):
        if value is not None:
            bits[row >> 3] |= 1 << (row & 7)
    return bytes(bits)


def _encapsulated(flatbuffer: bytes) -> bytes:
    """Prefix a message with the continuation marker and its length; the flatbuffer is already a multiple of 8 long."""
    return struct.pack("<Ii", 0xFFFFFFFF, len(flatbuffer)) + flatbuffer


def _message(builder: _FlatBuffer, header_type: int, header: int, body_bytes: int) -> bytes:
    return builder.finish(
        builder.table(
            [(0, "h", _METADATA_V5), (1, "B", header_type), (2, "offset", header), (3, "q", body_bytes)],
        )
    )


def _schema_flatbuffer(columns: Sequence[Column], metadata: Mapping[str, str], last_key: str | None) -> bytes:
    builder = _FlatBuffer()
    pairs: list[int] = []
    if last_key is not None:
        builder.pad_to(8, 5)  # so that the placeholder's 4 + 1 bytes and 3 of padding are the last 8 of the buffer
        value_at = builder.string("")
        pairs.append(builder.table([(0, "offset", builder.string(last_key)), (1, "offset", value_at)]))
    for key, value in metadata.items():
        key_at, value_at = builder.string(key), builder.string(value)
        pairs.append(builder.table([(0, "offset", key_at), (1, "offset", value_at)]))
    fields = [_field(builder, entry) for entry in columns]
    header_slots = [(1, "offset", builder.offsets(fields))]
    if pairs:
        header_slots.append((2, "offset", builder.offsets(pairs)))
    return _message(builder, _HEADER_SCHEMA, builder.table(header_slots), 0)


def _field(builder: _FlatBuffer, entry: Column) -> int:
    name = builder.string(entry.name)
    if entry.type == "utf8":
        type_number, type_table = _TYPE_UTF8, builder.table([])
    elif entry.type == "f32":
        type_number, type_table = _TYPE_FLOAT, builder.table([(0, "h", _FLOAT_SINGLE)])
    else:
        type_number, type_table = _TYPE_INT, builder.table([(0, "i", _BITS[entry.type]), (1, "B", 1)])
    children = builder.offsets([])
    return builder.table(
        [
            (0, "offset", name),
            (1, "B", int(entry.nullable)),
            (2, "B", type_number),
            (3, "offset", type_table),
            (5, "offset", children),
        ]
    )


class _FlatBuffer:
    """The part of a flatbuffer builder that Arrow messages need; it grows from the end, as references point forward.

    Positions are distances from the end of the finished buffer.
    """

    def __init__(self) -> None:
        self._bytes = bytearray()

    def pad_to(self, alignment: int, upcoming: int) -> None:
        """Pad so that, once ``upcoming`` more bytes are put, the position is a multiple of ``alignment``."""
        self._put(bytes(-(len(self._bytes) + upcoming) % alignment))

    def string(self, text: str) -> int:
        data = text.encode() + b"\0"
        self.pad_to(4, len(data))
        self._put(struct.pack("<I", len(data) - 1) + data)
        return len(self._bytes)

    def offsets(self, targets: Sequence[int]) -> int:
        """Put a vector of references."""
        self.pad_to(4, 0)
        for target in reversed(targets):
            self._put_offset(target)
        self._put(struct.pack("<I", len(targets)))
        return len(self._bytes)

    def struct_pairs(self, pairs: Sequence[tuple[int, int]]) -> int:
        """Put a vector of structs of two int64 (FieldNode and Buffer both are)."""
        self.pad_to(8, 0)
        self._put(b"".join(struct.pack("<qq", *pair) for pair in pairs))
        self._put(struct.pack("<I", len(pairs)))
        return len(self._bytes)

    def table(self, slots: Sequence[tuple[int, str, int]]) -> int:
        """Put a table of (slot, struct code or ``offset``, value), widest first so that none needs padding inside."""
        end = len(self._bytes)
        at: dict[int, int] = {}
        for slot, code, value in sorted(slots, key=lambda entry: -_slot_bytes(entry[1])):
            self.pad_to(_slot_bytes(code), 0)
            if code == "offset":
                self._put_offset(value)
            else:
                self._put(struct.pack("<" + code, value))
            at[slot] = len(self._bytes)
        self.pad_to(4, 0)
        self._put(bytes(4))  # the distance to the vtable, known below
        table = len(self._bytes)
        slot_count = max(at) + 1 if at else 0
        vtable = [4 + 2 * slot_count, table - end]
        vtable += [table - at[slot] if slot in at else 0 for slot in range(slot_count)]
        self._put(struct.pack(f"<{len(vtable)}H", *vtable))
        struct.pack_into("<i", self._bytes, len(self._bytes) - table, len(self._bytes) - table)
        return table

    def finish(self, root: int) -> bytes:
        """Put the reference to the root table; the result is a multiple of 8 bytes long."""
        self.pad_to(8, 4)
        self._put_offset(root)
        return bytes(self._bytes)

    def _put_offset(self, target: int) -> None:
        self._put(struct.pack("<I", len(self._bytes) + 4 - target))

    def _put(self, data: bytes) -> None:
        self._bytes[:0] = data


def _slot_bytes(code: str) -> int:
    return 4 if code == "offset" else struct.calcsize("<" + code)
