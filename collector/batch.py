"""Turns the rows of one batch into the body that travels: Arrow streams back to back in one zstd frame.

It holds rows by column, checks them against :data:`collector.wire.COLUMNS` and encodes them. It gives out no batch ids
(:mod:`collector.spool` does), opens nothing and sends nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import zstandard

from collector import arrow, wire
from collector.arrow import ColumnData
from collector.wire import BatchMeta, Stream


class RowError(ValueError):
    """A row or column does not fit its stream: a bug of whoever made it, never worth a retry."""


class Rows:
    """Rows of one stream gathered one by one; the agent's way, made for tens of rows, not for millions."""

    def __init__(self, stream: Stream) -> None:
        """Start with no rows."""
        self.stream = stream
        self._values: dict[str, list[Any]] = {entry.name: [] for entry in wire.COLUMNS[stream]}
        self._count = 0

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._count

    def append(self, row: Mapping[str, int | float | str | None]) -> None:
        """Add a row; columns it does not name are null. Raises RowError for unknown names and missing values."""
        unknown = row.keys() - self._values.keys()
        if unknown:
            raise RowError(f"{self.stream} has no column {', '.join(sorted(unknown))}")
        for entry in wire.COLUMNS[self.stream]:
            if not entry.nullable and row.get(entry.name) is None:
                raise RowError(f"{self.stream}.{entry.name} must have a value in every row")
        for name, values in self._values.items():
            values.append(row.get(name))
        self._count += 1

    def columns(self) -> Columns:
        """Lay the rows out as Arrow columns, texts cleaned. Raises RowError where a value does not fit its column's type."""
        data: dict[str, ColumnData] = {}
        for entry in wire.COLUMNS[self.stream]:
            values = self._values[entry.name]
            try:
                if entry.type == "utf8":
                    values = [None if text is None else wire.cleaned(text) for text in values]
                data[entry.name] = arrow.column(entry.type, values)
            except (OverflowError, TypeError, AttributeError) as error:
                raise RowError(f"{self.stream}.{entry.name} holds a value that is no {entry.type}: {error}") from error
        return Columns(self._count, data)


@dataclass(frozen=True, slots=True)
class Columns:
    """Rows of one stream as buffers that already have Arrow's layout: the fast way, for senders of millions of rows.

    ``data`` maps column names to anything with the buffer protocol (``array.array``, numpy, pyarrow buffers); values
    must be contiguous and of the wire's type. Nullable columns that are left out are sent as null.
    """

    rows: int
    data: Mapping[str, ColumnData] = field(default_factory=dict)


def encode_body(meta: BatchMeta, streams: Mapping[Stream, Rows | Columns]) -> bytes:
    """Return the compressed body of one batch; streams without rows are left out, unless all are.

    Raises RowError where rows do not fit the contract. Whether the whole stays below the contract's size limits is the
    caller's business: an agent's batch is thousands of times smaller.
    """
    if not streams:
        raise RowError("a batch needs at least one stream")
    parts: list[bytes] = []
    for stream, given in streams.items():
        if isinstance(given, Rows) and given.stream is not stream:
            raise RowError(f"rows of {given.stream} given as {stream}")
        columns = given.columns() if isinstance(given, Rows) else given
        if columns.rows:
            parts += _stream_parts(stream, columns, None if parts else meta.to_json())
    if not parts:
        stream = next(iter(streams))
        parts += _stream_parts(stream, Columns(0), meta.to_json())
    return _compress(b"".join(parts))


def _stream_parts(stream: Stream, rows: Columns, meta_json: str | None) -> list[bytes]:
    unknown = rows.data.keys() - {entry.name for entry in wire.COLUMNS[stream]}
    if unknown:
        raise RowError(f"{stream} has no column {', '.join(sorted(unknown))}")
    columns = [_checked(stream, entry, rows) for entry in wire.COLUMNS[stream]]
    schema = _schema(stream, with_meta=meta_json is not None).message(meta_json)
    return [schema, arrow.record_batch(rows.rows, columns), arrow.END_OF_STREAM]


def _checked(stream: Stream, entry: wire.Column, rows: Columns) -> ColumnData:
    found = rows.data.get(entry.name)
    if found is None:
        if not entry.nullable and rows.rows:
            raise RowError(f"{stream}.{entry.name} must have a value in every row")
        return arrow.null_column(entry.type, rows.rows)
    if found.null_count and not entry.nullable:
        raise RowError(f"{stream}.{entry.name} must have a value in every row; {found.null_count} are null")
    if found.null_count and found.validity is None:
        raise RowError(f"{stream}.{entry.name} has {found.null_count} nulls but no validity bitmap")
    if (found.offsets is None) == (entry.type == "utf8"):
        raise RowError(f"{stream}.{entry.name} is {entry.type}: offsets are for utf8 and utf8 only")
    measured = found.data if found.offsets is None else found.offsets
    needed = arrow.VALUE_BYTES[entry.type] * rows.rows if found.offsets is None else 4 * (rows.rows + 1)
    actual = memoryview(measured).nbytes
    if actual != needed:
        raise RowError(f"{stream}.{entry.name}: {rows.rows} rows of {entry.type} take {needed} bytes, got {actual}")
    return found


@cache
def _schema(stream: Stream, *, with_meta: bool) -> arrow.SchemaTemplate:
    key: Final = wire.META_KEY if with_meta else None
    return arrow.SchemaTemplate(wire.COLUMNS[stream], {wire.STREAM_KEY: stream.value}, key)


def _compress(data: bytes) -> bytes:
    # A compressor per call: zstandard's objects must not be shared between threads and cost 20 µs to make.
    compressor = zstandard.ZstdCompressor(level=wire.ZSTD_LEVEL, write_checksum=True, write_content_size=True)
    return compressor.compress(data)
