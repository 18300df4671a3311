"""The file format of a sealed hour: Parquet, one file a stream, rows by key and time, its identities inside.

A file can be read without the database: its footer holds what every id in it means (:data:`META_KEY`, JSON). Each column is
written in the encoding that came out smallest on the file's own first rows (docs/storage.md has the measurements). Columns
without any value are left out of files of one row group; they read as null. It decides nothing about where files lie.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

META_KEY: Final = b"wattledger.segment"
FORMAT_VERSION: Final = 1
ROW_GROUP_ROWS: Final = 131_072
"""Some 4 MB compressed: small enough to skip by device, large enough that footers are a thousandth."""
ZSTD_LEVEL: Final = 15
"""A twentieth smaller than 9 for five times the work: 3 µs a row, once, for files that stay a year."""
_TRIAL_ROWS: Final = 65_536

_DELTA: Final = "DELTA_BINARY_PACKED"
_SPLIT: Final = "BYTE_STREAM_SPLIT"


class SegmentFormatError(ValueError):
    """The file is no segment, or not the one it should be."""


@dataclass(frozen=True, slots=True)
class SegmentMeta:
    """What a segment says of itself. ``keys`` and ``epochs`` are columns: equally long lists by name, ``id`` first."""

    site: str
    hour: str
    """RFC 3339, UTC."""
    stream: str
    generation: int
    keys: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Of the devices (meters, ports, engines) of the file: id, uuid, model, node, ..."""
    epochs: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Of the epochs of the file: id, node, boot_id, driver_epoch, feed, origin, cadence_us."""
    format_version: int = FORMAT_VERSION
    rows: int = 0
    null_columns: Sequence[str] = ()

    def encode(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def decode(cls, text: bytes) -> SegmentMeta:
        return cls(**json.loads(text))


class SegmentWriter:
    """Writes one file from frames that come sorted; :meth:`close` returns its rows. Not for several threads."""

    def __init__(self, path: Path, schema: Mapping[str, Any], *, statistics: Sequence[str]) -> None:
        self._path = path
        self._schema = schema
        self._statistics = list(statistics)
        self._waiting: list[pl.DataFrame] = []
        self._waiting_rows = 0
        self._writer: pq.ParquetWriter | None = None
        self._null_columns: list[str] = []
        self.rows = 0

    def write(self, frame: pl.DataFrame) -> None:
        """Add rows that follow those before."""
        if frame.is_empty():
            return
        self._waiting.append(frame.select(self._schema.keys()))
        self._waiting_rows += frame.height
        self.rows += frame.height
        while self._waiting_rows >= ROW_GROUP_ROWS:
            joined = pl.concat(self._waiting)
            self._flush(joined.head(ROW_GROUP_ROWS), is_all=False)
            self._waiting = [joined.slice(ROW_GROUP_ROWS)]
            self._waiting_rows = joined.height - ROW_GROUP_ROWS

    def close(self, meta: SegmentMeta) -> int:
        """Write what waits, and ``meta`` with the count of rows; the file is complete, but not synced."""
        if self._waiting_rows or self._writer is None:
            rest = pl.concat(self._waiting) if self._waiting else pl.DataFrame(schema=dict(self._schema))
            self._flush(rest, is_all=self._writer is None)
        if self._writer is None:
            raise SegmentFormatError(f"{self._path} was never begun")
        complete = {**asdict(meta), "rows": self.rows, "null_columns": self._null_columns}
        self._writer.add_key_value_metadata({META_KEY: SegmentMeta(**complete).encode()})
        self._writer.close()
        return self.rows

    def abandon(self) -> None:
        """Let go of the file, whatever is in it."""
        if self._writer is not None:
            self._writer.close()

    def _flush(self, frame: pl.DataFrame, *, is_all: bool) -> None:
        if self._writer is None:
            self._null_columns = [name for name in frame.columns if frame[name].null_count() == frame.height]
            if not is_all:
                self._null_columns = []
            table = _arrow(frame.drop(self._null_columns))
            encodings = choose_encodings(table)
            self._writer = pq.ParquetWriter(
                self._path,
                table.schema,
                compression="zstd",
                compression_level=ZSTD_LEVEL,
                use_dictionary=[name for name in table.column_names if name not in encodings],
                column_encoding=encodings,
                # Of all columns they would be a tenth of a small file, and nobody looks for a temperature.
                write_statistics=[name for name in self._statistics if name in table.column_names],
                write_page_checksum=True,
                store_schema=False,
            )
        else:
            table = _arrow(frame.drop(self._null_columns))
        self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)


def choose_encodings(table: pa.Table) -> dict[str, str]:
    """Return the encoding of each column that is smaller without a dictionary, tried on the table's first rows.

    Counters come out as differences, gauges of four bytes split by byte, and what repeats as a dictionary: which of a
    column is which depends on the fleet, so it is tried and not decreed.
    """
    head = table.slice(0, _TRIAL_ROWS)
    chosen = {}
    for name in head.column_names:
        sizes = {encoding: _size(head.select([name]), name, encoding) for encoding in _candidates(head.schema, name)}
        best = min(sizes, key=lambda encoding: sizes[encoding])
        if best:
            chosen[name] = best
    return chosen


def _candidates(schema: pa.Schema, name: str) -> tuple[str, ...]:
    """Return what may suit a type; empty = dictionary, which comes first so that it wins a draw."""
    kind = schema.field(name).type
    if pa.types.is_floating(kind):
        return ("", _SPLIT)
    if pa.types.is_integer(kind) or pa.types.is_timestamp(kind):
        return ("", _DELTA, _SPLIT)
    return ("",)


def _size(column: pa.Table, name: str, encoding: str) -> int:
    sink = pa.BufferOutputStream()
    pq.write_table(
        column,
        sink,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        use_dictionary=not encoding,
        column_encoding={name: encoding} if encoding else None,
        write_statistics=False,
        store_schema=False,
    )
    size: int = sink.tell()
    return size


def read_meta(path: Path) -> SegmentMeta:
    """Return what a segment says of itself; raises SegmentFormatError for anything else."""
    try:
        footer = pq.read_metadata(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SegmentFormatError(f"{path} is not a readable Parquet file: {error}") from error
    text = (footer.metadata or {}).get(META_KEY)
    if text is None:
        raise SegmentFormatError(f"{path} is a Parquet file, but not one of Wattledger's segments")
    try:
        meta = SegmentMeta.decode(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise SegmentFormatError(
            f"{path} does not say what it is: its description is damaged ({str(error)[:200]})"
        ) from error
    if meta.format_version != FORMAT_VERSION:
        raise SegmentFormatError(f"{path} has format {meta.format_version}; this version reads {FORMAT_VERSION}")
    if footer.num_rows != meta.rows:
        raise SegmentFormatError(f"{path} holds {footer.num_rows} rows and says {meta.rows}")
    return meta


def check_pages(path: Path) -> int:
    """Read every page with its checksum; return the rows. Raises SegmentFormatError naming the first bad one."""
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        return sum(file.read_row_group(number).num_rows for number in range(file.num_row_groups))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SegmentFormatError(f"{path} is damaged: {error}") from error


def scan(paths: Sequence[Path], schema: Mapping[str, Any]) -> pl.LazyFrame:
    """Return the files' rows lazily with exactly these columns; row groups are skipped by their key and time."""
    return pl.scan_parquet(
        [str(path) for path in paths],
        schema=dict(schema),
        missing_columns="insert",
        extra_columns="ignore",
        glob=False,
        hive_partitioning=False,
    )


def _arrow(frame: pl.DataFrame) -> pa.Table:
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())
