"""Checks Arrow IPC bytes before any decoder sees them: message lengths, columns, buffer bounds, row counts.

A decoder written for trusted files may read past its buffers, allocate what a header claims, or panic. What passes here
holds only flat columns of the wire's five types whose buffers lie inside the message and are long enough for the rows
claimed, and texts the store takes (:mod:`ingest.receivers.texts`). It decodes no values, and refuses compression, dictionaries, nesting and big-endian data. Numbers are those of
Schema.fbs and Message.fbs (github.com/apache/arrow/tree/main/format).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np

from collector.wire import (
    COLUMNS,
    MAX_ROWS_PER_STREAM,
    META_KEY,
    STREAM_KEY,
    Column,
    ColumnType,
    Stream,
)
from ingest.errors import BadBodyError, TooLargeError, malformed
from ingest.receivers.texts import check_texts

END_OF_STREAM: Final = struct.pack("<Ii", 0xFFFFFFFF, 0)
MAX_SCHEMA_BYTES: Final = 4 * 1024 * 1024
"""4,096 devices of about 300 bytes of JSON each, and room."""
MAX_HEADER_BYTES: Final = 64 * 1024
MAX_FIELDS: Final = 256
MAX_BATCHES_PER_STREAM: Final = 64
_CACHE_ENTRIES: Final = 1_024
_CONTINUATION: Final = 0xFFFFFFFF
_METADATA_V5: Final = 4
_HEADER_SCHEMA: Final = 1
_HEADER_RECORD_BATCH: Final = 3
_TYPE_INT, _TYPE_FLOAT, _TYPE_UTF8 = 2, 3, 5
_WIDTH: Final[dict[ColumnType, int]] = {"i16": 2, "i32": 4, "i64": 8, "f32": 4}
_INT_OF_BITS: Final[dict[int, ColumnType]] = {16: "i16", 32: "i32", 64: "i64"}


@dataclass(frozen=True, slots=True, eq=False)
class Schema:
    """A checked schema message. ``columns`` are all fields in order; ``unknown`` names those the contract lacks."""

    stream: Stream
    columns: tuple[Column, ...]
    unknown: tuple[str, ...]
    message: bytes
    """An encapsulated schema message of exactly these columns, for the decoder."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where a record batch keeps its columns; the same object for all batches with byte-identical headers."""

    rows: int
    body_bytes: int
    columns: tuple[tuple[int, int, int], ...]
    """Per column: nulls, where its validity bitmap starts, where its values (of a text: its offsets) start."""
    texts: tuple[tuple[int, int, int, int], ...]
    """Per text column: where its offsets start, its position among the columns, where its data start and their length."""


@dataclass(frozen=True, slots=True)
class CheckedStream:
    """One stream whose every byte is accounted for; ``messages`` are encapsulated record batches with their bodies.

    They are views into the decompressed body; ``whole`` is that body where it holds this one stream and nothing else.
    """

    schema: Schema
    meta_json: bytes | None
    rows: int
    messages: tuple[memoryview, ...]
    layouts: tuple[Layout, ...]
    whole: bytes | None


class Checker:
    """Checks streams; remembers schemas and batch headers it has already taken apart, as a steady sender repeats them.

    One per thread: it holds no lock.
    """

    def __init__(self) -> None:
        self._schemas: dict[bytes, Schema] = {}
        self._prefix_lengths: list[int] = []
        self._headers: dict[tuple[int, bytes], Layout] = {}

    def streams(self, data: bytes) -> list[CheckedStream]:
        """Take apart streams back to back; raises BadBodyError at the first thing that is not as it must be."""
        streams: list[CheckedStream] = []
        at = 0
        while at < len(data):
            if len(streams) == 2 * len(Stream):
                raise malformed(f"more than {len(streams)} streams in one body")
            stream, at = self._stream(data, at)
            streams.append(stream)
        if not streams:
            raise malformed("the body holds no stream")
        return streams

    def _stream(self, data: bytes, at: int) -> tuple[CheckedStream, int]:
        view = memoryview(data)
        begin = at
        start, size = _message_bounds(data, at, MAX_SCHEMA_BYTES)
        if size == 0:
            raise malformed(f"end marker where a schema should be, at byte {at}")
        schema, meta_json = self._schema(data[start : start + size])
        at = start + size
        messages: list[memoryview] = []
        layouts: list[Layout] = []
        rows = 0
        while True:
            start, size = _message_bounds(data, at, MAX_HEADER_BYTES)
            if size == 0:
                break
            if len(messages) == MAX_BATCHES_PER_STREAM:
                raise malformed(f"{schema.stream}: more than {MAX_BATCHES_PER_STREAM} record batches")
            layout = self._header(schema, data[start : start + size])
            body_at = start + size
            end = body_at + layout.body_bytes
            if end > len(data):
                raise malformed(
                    f"{schema.stream}: a record batch claims {layout.body_bytes} bytes, {len(data) - body_at} are there"
                )
            for offsets_at, column, texts_at, texts_bytes in layout.texts:
                where = f"{schema.stream}.{schema.columns[column].name}"
                offsets = np.frombuffer(data, "<i4", layout.rows + 1, body_at + offsets_at)
                check_texts(where, offsets, data[body_at + texts_at : body_at + texts_at + texts_bytes])
            rows += layout.rows
            if rows > MAX_ROWS_PER_STREAM:
                raise TooLargeError(f"{schema.stream}: more than {MAX_ROWS_PER_STREAM} rows")
            messages.append(view[at:end])
            layouts.append(layout)
            at = end
        whole = data if begin == 0 and start == len(data) else None
        return CheckedStream(schema, meta_json, rows, tuple(messages), tuple(layouts), whole), start

    def _schema(self, flatbuffer: bytes) -> tuple[Schema, bytes | None]:
        for length in self._prefix_lengths:
            if length > len(flatbuffer):
                continue
            known = self._schemas.get(flatbuffer[:length])
            if known is not None:
                if length == len(flatbuffer):
                    return known, None
                text, end = _string_at(flatbuffer, length)
                if end <= len(flatbuffer) <= end + 8:
                    return known, text
        schema, meta_json, prefix = _read_schema(flatbuffer)
        if prefix is not None:
            self._remember_schema(flatbuffer[:prefix], schema)
        return schema, meta_json

    def _remember_schema(self, prefix: bytes, schema: Schema) -> None:
        # A handful of agent versions exist at once. Whoever sends more shapes than that only slows down himself.
        if len(self._schemas) >= 64:
            self._schemas.clear()
            self._prefix_lengths.clear()
            self._headers.clear()
        self._schemas[prefix] = schema
        if len(prefix) not in self._prefix_lengths:
            self._prefix_lengths.append(len(prefix))

    def _header(self, schema: Schema, flatbuffer: bytes) -> Layout:
        key = (id(schema), flatbuffer)
        known = self._headers.get(key)
        if known is None:
            known = _read_header(schema, flatbuffer)
            if schema not in self._schemas.values():  # its id may be given to another object once it is gone
                return known
            if len(self._headers) >= _CACHE_ENTRIES:
                self._headers.clear()
            self._headers[key] = known
        return known


def _message_bounds(data: bytes, at: int, limit: int) -> tuple[int, int]:
    """Return where a message's flatbuffer starts and its length, 0 for the end marker."""
    if at + 8 > len(data):
        raise malformed(f"truncated: a message should start at byte {at}, the body ends at {len(data)}")
    marker, size = struct.unpack_from("<Ii", data, at)
    if marker != _CONTINUATION:
        raise malformed(f"no message marker at byte {at}")
    if size < 0 or size % 8 or size > limit:
        raise malformed(
            f"a message at byte {at} claims {size} bytes of metadata; it must be a multiple of 8 up to {limit}"
        )
    if at + 8 + size > len(data):
        raise malformed(
            f"truncated: a message at byte {at} claims {size} bytes of metadata, the body ends at {len(data)}"
        )
    return at + 8, size


class _Reader:
    """Reads tables of one flatbuffer within its bounds, and how far into it anything was read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.high = 0

    def unpack(self, code: str, at: int) -> int:
        size = struct.calcsize(code)
        if at < 0 or at + size > len(self.data):
            raise malformed("a message's metadata points outside itself")
        self.high = max(self.high, at + size)
        value: int = struct.unpack_from(code, self.data, at)[0]
        return value

    def root(self) -> int:
        return self.unpack("<I", 0)

    def slot(self, table: int, slot: int) -> int | None:
        """Return where a table keeps a field, None where it has the default."""
        vtable = table - self.unpack("<i", table)
        size = self.unpack("<H", vtable)
        if 4 + 2 * slot + 2 > size:
            return None
        offset = self.unpack("<H", vtable + 4 + 2 * slot)
        return table + offset if offset else None

    def number(self, table: int, slot: int, code: str, default: int = 0) -> int:
        at = self.slot(table, slot)
        return default if at is None else self.unpack(code, at)

    def target(self, table: int, slot: int) -> int | None:
        at = self.slot(table, slot)
        return None if at is None else at + self.unpack("<I", at)

    def vector(self, table: int, slot: int, item_bytes: int, limit: int) -> tuple[int, int]:
        """Return where a vector's items start and their number; an absent vector is empty."""
        at = self.target(table, slot)
        if at is None:
            return 0, 0
        count = self.unpack("<I", at)
        if count > limit or at + 4 + count * item_bytes > len(self.data):
            raise malformed(f"a list of {count} entries in a message's metadata; it is outside it or above {limit}")
        self.high = max(self.high, at + 4 + count * item_bytes)
        return at + 4, count

    def tables(self, table: int, slot: int, limit: int) -> list[int]:
        at, count = self.vector(table, slot, 4, limit)
        return [at + 4 * index + self.unpack("<I", at + 4 * index) for index in range(count)]

    def text(self, table: int, slot: int) -> bytes:
        at = self.target(table, slot)
        if at is None:
            return b""
        text, end = _string_at(self.data, at)
        self.high = max(self.high, end)
        return text


def _string_at(data: bytes, at: int) -> tuple[bytes, int]:
    if at < 0 or at + 4 > len(data):
        raise malformed("a message's metadata points outside itself")
    (length,) = struct.unpack_from("<I", data, at)
    if at + 4 + length > len(data):
        raise malformed(f"a text of {length} bytes in a message's metadata ends outside it")
    return data[at + 4 : at + 4 + length], at + 4 + length


def _message_header(reader: _Reader, wanted: int, what: str) -> tuple[int, int]:
    """Return the header table and the body length of a message of the wanted kind."""
    message = reader.root()
    version, kind = reader.number(message, 0, "<h"), reader.number(message, 1, "<B")
    if version != _METADATA_V5:
        raise malformed(f"Arrow metadata version {version + 1}; only version 5 is taken")
    if kind != wanted:
        raise malformed(f"a message of kind {kind} where a {what} should be; dictionaries and tensors are not taken")
    header = reader.target(message, 2)
    if header is None:
        raise malformed(f"a {what} message without its header")
    return header, reader.number(message, 3, "<q")


def _read_schema(flatbuffer: bytes) -> tuple[Schema, bytes | None, int | None]:
    """Return the schema, the batch metadata, and how long the part is that identifies the schema (None: uncacheable)."""
    reader = _Reader(flatbuffer)
    header, body_bytes = _message_header(reader, _HEADER_SCHEMA, "schema")
    if body_bytes:
        raise malformed("a schema message with a body")
    if reader.number(header, 0, "<h"):
        raise malformed("big-endian data is not taken")
    fields = tuple(_read_field(reader, table) for table in reader.tables(header, 1, MAX_FIELDS))
    meta_json: bytes | None = None
    meta_at: int | None = None
    stream_name = b""
    for pair in reader.tables(header, 2, 64):
        key = reader.text(pair, 0)
        if key == META_KEY.encode():
            meta_at = reader.target(pair, 1)
            if meta_at is not None:
                meta_json, _ = _string_at(flatbuffer, meta_at)
        elif key == STREAM_KEY.encode():
            stream_name = reader.text(pair, 1)
    try:
        stream = Stream(stream_name.decode(errors="replace"))
    except ValueError:
        known = ", ".join(Stream)
        raise BadBodyError("unknown_stream", f"stream {stream_name[:80]!r} is not known; known are {known}") from None
    unknown = _check_columns(stream, fields)
    message = struct.pack("<Ii", _CONTINUATION, len(flatbuffer)) + flatbuffer
    prefix: int | None = len(flatbuffer)
    if meta_at is not None:
        # What identifies the schema is everything before the batch metadata, if nothing but that text lies behind.
        prefix = meta_at if reader.high <= meta_at else None
    return Schema(stream, fields, unknown, message), meta_json, prefix


def _read_field(reader: _Reader, field: int) -> Column:
    raw_name = reader.text(field, 0)
    try:
        name = raw_name.decode()
    except UnicodeDecodeError:
        raise malformed(f"a column name that is not UTF-8: {raw_name[:80]!r}") from None
    if reader.slot(field, 4) is not None:
        raise malformed(f"column {name:.80}: dictionary encoding is not taken")
    if reader.vector(field, 5, 4, MAX_FIELDS)[1]:
        raise malformed(f"column {name:.80}: nested types are not taken")
    kind, table = reader.number(field, 2, "<B"), reader.target(field, 3)
    if table is not None:
        if kind == _TYPE_UTF8:
            return Column(name, "utf8")
        if kind == _TYPE_FLOAT and reader.number(table, 0, "<h") == 1:
            return Column(name, "f32")
        bits = reader.number(table, 0, "<i")
        if kind == _TYPE_INT and reader.number(table, 1, "<B") and bits in _INT_OF_BITS:
            return Column(name, _INT_OF_BITS[bits])
    raise BadBodyError(
        "wrong_type", f"column {name:.80}: Arrow type {kind} is none of the wire's int16/32/64, float32, utf8"
    )


def _check_columns(stream: Stream, fields: tuple[Column, ...]) -> tuple[str, ...]:
    declared = {column.name: column for column in COLUMNS[stream]}
    names = [field.name for field in fields]
    if len(set(names)) != len(names):
        raise malformed(f"{stream}: a column name appears twice")
    for field in fields:
        known = declared.get(field.name)
        if known is not None and known.type != field.type:
            raise BadBodyError("wrong_type", f"{stream}.{field.name} must be {known.type}, got {field.type}")
    missing = [column.name for column in COLUMNS[stream] if not column.nullable and column.name not in names]
    if missing:
        raise BadBodyError("missing_column", f"{stream}: column {', '.join(missing)} is missing")
    return tuple(name for name in names if name not in declared)


def _read_header(schema: Schema, flatbuffer: bytes) -> Layout:
    reader = _Reader(flatbuffer)
    header, body_bytes = _message_header(reader, _HEADER_RECORD_BATCH, "record batch")
    rows = reader.number(header, 0, "<q")
    if not 0 <= rows <= MAX_ROWS_PER_STREAM:
        raise TooLargeError(f"{schema.stream}: a record batch of {rows} rows; at most {MAX_ROWS_PER_STREAM} are taken")
    if body_bytes < 0 or body_bytes % 8:
        raise malformed(f"{schema.stream}: a record batch of {body_bytes} bytes; it must be a multiple of 8")
    if reader.slot(header, 3) is not None or reader.vector(header, 4, 8, MAX_FIELDS)[1]:
        raise malformed(f"{schema.stream}: compressed or view buffers are not taken; compress the body as a whole")
    nodes = _pairs(reader, header, 1)
    buffers = _pairs(reader, header, 2)
    expected = sum(3 if column.type == "utf8" else 2 for column in schema.columns)
    if len(nodes) != len(schema.columns) or len(buffers) != expected:
        raise malformed(
            f"{schema.stream}: {len(nodes)} columns and {len(buffers)} buffers, the schema has {len(schema.columns)} and {expected}"
        )
    for offset, length in buffers:
        if offset < 0 or length < 0 or offset % 8 or offset + length > body_bytes:
            raise malformed(f"{schema.stream}: a buffer at {offset} of {length} bytes in a body of {body_bytes}")
    return Layout(rows, body_bytes, *_check_buffers(schema, rows, nodes, buffers))


def _check_buffers(
    schema: Schema, rows: int, nodes: list[tuple[int, int]], buffers: list[tuple[int, int]]
) -> tuple[tuple[tuple[int, int, int], ...], tuple[tuple[int, int, int, int], ...]]:
    """Check that each column's buffers are long enough for its rows; return Layout's columns and texts."""
    required = {column.name for column in COLUMNS[schema.stream] if not column.nullable}
    columns: list[tuple[int, int, int]] = []
    texts: list[tuple[int, int, int, int]] = []
    at = 0
    for position, (column, (length, nulls)) in enumerate(zip(schema.columns, nodes, strict=True)):
        where = f"{schema.stream}.{column.name}"
        if length != rows or not 0 <= nulls <= rows:
            raise malformed(f"{where}: {length} values and {nulls} nulls in a batch of {rows} rows")
        if nulls and column.name in required:
            raise BadBodyError("null_value", f"{where} must have a value in every row; {nulls} are null")
        if nulls and buffers[at][1] * 8 < rows:
            raise malformed(f"{where}: its validity bitmap is shorter than its {rows} rows")
        needed = _WIDTH[column.type] * rows if column.type != "utf8" else 4 * (rows + 1) if rows else 0
        if buffers[at + 1][1] < needed:
            raise malformed(f"{where}: {rows} rows need {needed} bytes, got {buffers[at + 1][1]}")
        columns.append((nulls, buffers[at][0], buffers[at + 1][0]))
        if column.type == "utf8":
            if rows:
                texts.append((buffers[at + 1][0], position, *buffers[at + 2]))
            at += 1
        at += 2
    return tuple(columns), tuple(texts)


def _pairs(reader: _Reader, table: int, slot: int) -> list[tuple[int, int]]:
    at, count = reader.vector(table, slot, 16, 3 * MAX_FIELDS)
    numbers = struct.unpack_from(f"<{2 * count}q", reader.data, at) if count else ()
    return list(zip(numbers[::2], numbers[1::2], strict=True))
