"""Reads the native wire: from the bytes of a request to checked streams, and from many bodies' streams to one frame.

:meth:`Reader.read` says whether the bytes are a batch of the contract; :func:`decode` turns streams of one schema into
columns in a single pass, because a frame per body of 80 rows would cost more than the rows. It decides nothing about
what the rows mean (:mod:`ingest.accept` does) and knows no database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import orjson
import polars as pl
import zstandard

from collector.wire import (
    COLUMNS,
    CONTENT_ENCODING,
    CONTENT_TYPE,
    MAX_BODY_BYTES,
    MAX_DECODED_BYTES,
    BatchMeta,
    CadenceError,
    DeviceRecall,
    Stream,
    UnknownWireVersionError,
    WireError,
)
from ingest.errors import BadBodyError, TooLargeError, UnsupportedError, malformed
from ingest.receivers.arrow_check import END_OF_STREAM, CheckedStream, Checker, Schema
from ingest.receivers.block import Block, stackable

_WORTH_STACKING: Final = 4
_ROWS_WORTH_STACKING: Final = 1_000
_POLARS_TYPES: Final = {"i16": pl.Int16, "i32": pl.Int32, "i64": pl.Int64, "f32": pl.Float32, "utf8": pl.String}


@dataclass(frozen=True, slots=True)
class Body:
    """One checked request: what it says of itself, and its streams, still encoded."""

    meta: BatchMeta
    streams: tuple[CheckedStream, ...]
    rows: int
    decoded_bytes: int
    unknown_columns: tuple[tuple[Stream, str], ...]


class Reader:
    """Checks bodies; one per thread, as it keeps a decompressor and what it learned of steady senders."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor()
        self._checker = Checker()
        self._recall: DeviceRecall = {}

    def read(self, body: bytes) -> Body:
        """Return the checked batch; raises BadBodyError with the reason, never anything else, on whatever bytes."""
        data = self._decompress(body)
        streams = self._checker.streams(data)
        meta_json = streams[0].meta_json
        if meta_json is None:
            raise malformed("the first stream carries no batch metadata")
        try:
            meta = BatchMeta.from_object(orjson.loads(meta_json), self._recall)
        except UnknownWireVersionError as error:
            raise BadBodyError("wire_version", str(error)) from error
        except CadenceError as error:
            raise BadBodyError("cadence", str(error)) from error
        except orjson.JSONDecodeError as error:
            raise malformed(f"batch metadata is not JSON: {error}") from error
        except WireError as error:
            raise malformed(str(error)) from error
        unknown = tuple((entry.schema.stream, name) for entry in streams for name in entry.schema.unknown)
        return Body(meta, tuple(streams), sum(entry.rows for entry in streams), len(data), unknown)

    def _decompress(self, body: bytes) -> bytes:
        if len(body) > MAX_BODY_BYTES:
            raise TooLargeError(f"{len(body)} bytes; at most {MAX_BODY_BYTES} are taken")
        try:
            claimed = zstandard.frame_content_size(body)
        except zstandard.ZstdError as error:
            raise malformed(f"not a zstd frame: {error}") from error
        # The size a frame claims is what would be allocated, so it is believed only up to the cap; a frame without it
        # is not one the contract's writer makes.
        if claimed < 0:
            raise malformed("the zstd frame does not state its content size")
        if claimed > MAX_DECODED_BYTES:
            raise TooLargeError(f"{claimed} bytes when decompressed; at most {MAX_DECODED_BYTES} are taken")
        try:
            return self._decompressor.decompress(body, max_output_size=MAX_DECODED_BYTES, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise malformed(f"truncated or damaged: {error}") from error


def check_media_type(content_type: str | None, content_encoding: str | None) -> None:
    """Raise UnsupportedError for any other content than the contract's."""
    if (content_type or "").partition(";")[0].strip().lower() != CONTENT_TYPE:
        raise UnsupportedError(f"content type {content_type!r:.80}; send {CONTENT_TYPE}")
    if (content_encoding or "").strip().lower() != CONTENT_ENCODING:
        raise UnsupportedError(f"content encoding {content_encoding!r:.80}; send {CONTENT_ENCODING}")


def alike(streams: Sequence[CheckedStream]) -> list[list[int]]:
    """Group streams, by position, so that :func:`decode` takes each group in one pass."""
    by_layout: dict[tuple[int, ...], list[int]] = {}
    for position, entry in enumerate(streams):
        by_layout.setdefault((id(entry.schema), *map(id, entry.layouts)), []).append(position)
    groups: list[list[int]] = []
    rest: dict[int, list[int]] = {}
    for positions in by_layout.values():
        first = streams[positions[0]]
        if stackable(first) and (len(positions) >= _WORTH_STACKING or first.rows >= _ROWS_WORTH_STACKING):
            groups.append(positions)
        else:
            rest.setdefault(id(first.schema), []).extend(positions)
    return groups + list(rest.values())


def decode(streams: Sequence[CheckedStream]) -> pl.DataFrame:
    """Return the rows of streams that share one schema object, in order, with exactly the contract's columns.

    Columns the sender left out are null, unknown ones are dropped. Raises BadBodyError if the decoder refuses, or panics
    on, what the check let through.
    """
    if stackable(streams[0]) and all(entry.layouts == streams[0].layouts for entry in streams):
        return frame_of(Block.of(streams))
    return _frame(streams[0].schema, sum(entry.rows for entry in streams), _through_ipc(streams))


def frame_of(block: Block) -> pl.DataFrame:
    """Return the rows of a block as :func:`decode` does."""
    return _frame(block.schema, block.bodies * block.layout.rows, _stacked(block))


def _frame(schema: Schema, rows: int, found: Mapping[str, pl.Series]) -> pl.DataFrame:
    columns = []
    for column in COLUMNS[schema.stream]:
        values = found.get(column.name)
        if values is None:
            values = pl.Series(column.name, [None], _POLARS_TYPES[column.type]).new_from_index(0, rows)
        if len(values) != rows:
            raise malformed(f"{schema.stream}: {rows} rows claimed, {len(values)} decoded")
        # A header may claim fewer nulls than its bitmap has; nobody behind this line may meet a null it does not expect.
        if not column.nullable and values.null_count():
            raise BadBodyError("null_value", f"{schema.stream}.{column.name} must have a value in every row")
        columns.append(values)
    return pl.DataFrame(columns)


def _stacked(block: Block) -> dict[str, pl.Series]:
    """Read batches of numbers with one layout: a third of what the Arrow reader costs, which takes them apart one by one."""
    found: dict[str, pl.Series] = {}
    for column, (nulls, validity_at, _) in zip(block.schema.columns, block.layout.columns, strict=True):
        if column.name not in block.names:
            continue
        values = pl.Series(column.name, np.ascontiguousarray(block.column(column.name)).reshape(-1))
        if nulls:
            empty = pl.Series(column.name, [None], values.dtype).new_from_index(0, len(values))
            values = values.zip_with(pl.Series(block.bitmap(validity_at).reshape(-1)), empty)
        found[column.name] = values
    return found


def _through_ipc(streams: Sequence[CheckedStream]) -> dict[str, pl.Series]:
    schema = streams[0].schema
    data = streams[0].whole if len(streams) == 1 else None
    if data is None:
        data = b"".join((schema.message, *(message for entry in streams for message in entry.messages), END_OF_STREAM))
    frame = _read_ipc(data)
    return {column.name: frame[column.name].rechunk() for column in schema.columns if column.name not in schema.unknown}


def _read_ipc(data: bytes) -> pl.DataFrame:
    try:
        return pl.read_ipc_stream(data)
    except pl.exceptions.PolarsError as error:
        raise malformed(f"the Arrow decoder refuses it: {error}") from error
    except OSError as error:
        raise malformed(f"the Arrow decoder refuses it: {error}") from error
    except BaseException as error:
        # A Rust panic is a BaseException of a module that cannot be imported; everything else of that kind is not ours.
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise malformed("the Arrow decoder gave up on it") from error
