"""The one reader of tables from outside: CSV of any common delimiter, ``sacct -P``, gzip of them, and Parquet.

Gives raw text cells in chunks of bounded size with the line each row ended on. Knows nothing of what columns mean
(:mod:`.columns` does) and refuses what could not be a table: empty, cut-off, binary or unbounded input.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingest.importers.errors import OptionError, TabularError
from ingest.importers.report import Progress, ProgressCallback, RowLog

CHUNK_ROWS: Final = 20_000
MAX_LINE_CHARACTERS: Final = 1 << 20
MAX_FIELDS: Final = 1_024
DELIMITERS: Final = ",;\t|"
_DELIMITER_NAMES: Final = {"tab": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_WIDE_BOMS: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)

Cells = Sequence[str | None]


@dataclass(frozen=True, slots=True)
class RawChunk:
    """Rows as columns of text: ``columns[i]`` belongs to the i-th wanted header; ``lines`` says where each row ended."""

    lines: list[int]
    columns: list[Cells]


def sha256_of(path: Path) -> bytes:
    """Return the hash of the file as it lies on disk."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError as error:
        raise TabularError(f"cannot read {path}: {error.strerror}") from error


class Table(Protocol):
    """A table of text cells: ``header``, and rows in chunks of the wanted columns."""

    header: list[str]

    def chunks(
        self, wanted: Sequence[int], log: RowLog, progress: ProgressCallback | None = None
    ) -> Iterator[RawChunk]: ...


def open_table(path: Path, delimiter: str | None = None) -> Table:
    """Look at the first bytes and return the table; the header is read already."""
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise TabularError(f"cannot read {path}: {error.strerror}") from error
    if not magic:
        raise TabularError(f"{path.name} is empty")
    if magic == _PARQUET:
        return ParquetTable(path)
    if any(magic.startswith(bom) for bom in _WIDE_BOMS):
        raise TabularError(f"{path.name} is UTF-16 or UTF-32 text; save it as UTF-8")
    if magic.lstrip()[:1] in {b"[", b"{"}:
        from ingest.importers.json_table import JsonTable  # noqa: PLC0415 - it is made of what is declared here

        return JsonTable(path)
    return CsvTable(path, delimiter, gzipped=magic.startswith(_GZIP))


class CsvTable:
    """A delimited text file, read once from front to back."""

    def __init__(self, path: Path, delimiter: str | None, *, gzipped: bool) -> None:
        self.path = path
        self._gzipped = gzipped
        self._delimiter = _DELIMITER_NAMES.get(delimiter, delimiter) if delimiter else None
        if self._delimiter is not None and len(self._delimiter) != 1:
            raise OptionError(f"--delimiter must be one character or {', '.join(_DELIMITER_NAMES)}, not {delimiter!r}")
        self.header = self._read_header()

    def chunks(
        self, wanted: Sequence[int], log: RowLog, progress: ProgressCallback | None = None
    ) -> Iterator[RawChunk]:
        """Yield the wanted columns (by position); rows of another width, with NUL or not in UTF-8 go to ``log``."""
        total = self.path.stat().st_size
        taken = 0
        with self.path.open("rb") as raw, self._text(raw) as text:
            lines: list[int] = []
            rows: list[list[str]] = []
            for line, row in self._records(text, log):
                lines.append(line)
                rows.append(row)
                if len(lines) == CHUNK_ROWS:
                    taken += len(lines)
                    yield _as_columns(lines, rows, wanted)
                    lines, rows = [], []
                    if progress:
                        progress(Progress(raw.tell(), total, taken))
            if lines:
                yield _as_columns(lines, rows, wanted)
            if progress:
                progress(Progress(total, total, taken + len(lines)))

    def _records(self, text: io.TextIOWrapper, log: RowLog) -> Iterator[tuple[int, list[str]]]:
        width = len(self.header)
        source = _Lines(text, self.path.name)
        reader = self._reader(source)
        before = 0
        try:
            for row in reader:
                after = reader.line_num
                if after == before + 1:
                    damage = source.damaged.pop(after, None)
                else:
                    damages = [source.damaged.pop(line, None) for line in range(before + 1, after + 1)]
                    damage = next((found for found in damages if found), None)
                first, before = before == 0, after
                if first and row and [cell.strip() for cell in row] == self.header:
                    continue
                if not row:
                    continue  # a blank line
                if damage:
                    log.reject(after, damage)
                elif len(row) != width:
                    log.reject(after, "wrong number of fields", f"{len(row)} fields, the header has {width}")
                else:
                    yield after, row
        except csv.Error as error:
            raise TabularError(f"{self.path.name}, line {reader.line_num}: {error}") from error
        except EOFError as error:
            raise TabularError(
                f"{self.path.name} is cut off after line {reader.line_num} (gzip stream without its end); copy it again"
            ) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise TabularError(f"{self.path.name} is damaged after line {reader.line_num}: {error}") from error

    def _read_header(self) -> list[str]:
        try:
            with self.path.open("rb") as raw, self._text(raw) as text:
                first = text.readline(MAX_LINE_CHARACTERS + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise TabularError(f"{self.path.name} is a damaged or cut-off gzip file: {error}") from error
        if len(first) > MAX_LINE_CHARACTERS:
            raise TabularError(f"{self.path.name}: the first line is longer than {MAX_LINE_CHARACTERS} characters")
        if "\0" in first or (not first.isascii() and _undecodable(first)):
            raise TabularError(f"{self.path.name} is not text in UTF-8: binary bytes in its first line")
        if not first.strip():
            raise TabularError(f"{self.path.name}: the first line must name the columns; it is blank")
        if self._delimiter is None:
            self._delimiter = max(DELIMITERS, key=lambda mark: _unquoted(first).count(mark))
        header = [cell.strip() for cell in next(self._reader(iter([first])))]
        if len(header) > MAX_FIELDS:
            raise TabularError(f"{self.path.name} has {len(header)} columns; at most {MAX_FIELDS} are read")
        return header

    def _reader(self, lines: Iterator[str]) -> csv._reader:  # type: ignore[name-defined] # the stub keeps it private
        mark = self._delimiter or ","
        # sacct -P knows no quotes: one in a job name is just a character.
        if mark == "|":
            return csv.reader(lines, delimiter=mark, quoting=csv.QUOTE_NONE)
        return csv.reader(lines, delimiter=mark, skipinitialspace=mark != "\t")

    def _text(self, raw: IO[bytes]) -> io.TextIOWrapper:
        stream = gzip.GzipFile(fileobj=raw) if self._gzipped else raw
        return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


class _Lines(Iterator[str]):
    """Physical lines, bounded, noting the damaged ones so that only their records are refused."""

    def __init__(self, stream: io.TextIOWrapper, name: str) -> None:
        self._stream = stream
        self._name = name
        self._number = 0
        self.damaged: dict[int, str] = {}

    def __next__(self) -> str:
        line = self._stream.readline(MAX_LINE_CHARACTERS + 1)
        if not line:
            raise StopIteration
        self._number += 1
        if len(line) > MAX_LINE_CHARACTERS:
            raise TabularError(f"{self._name}, line {self._number} is longer than {MAX_LINE_CHARACTERS} characters")
        if "\0" in line:
            self.damaged[self._number] = "NUL byte"
        elif not line.isascii() and _undecodable(line):
            self.damaged[self._number] = "not UTF-8"
        return line


class ParquetTable:
    """A Parquet file; cells come as text like any other table's, so that one set of rules reads them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise TabularError(f"{path.name} is not a readable Parquet file (cut off?): {error}") from error
        self.header = [str(name) for name in self._file.schema_arrow.names]
        if len(self.header) > MAX_FIELDS:
            raise TabularError(f"{path.name} has {len(self.header)} columns; at most {MAX_FIELDS} are read")

    def chunks(
        self, wanted: Sequence[int], log: RowLog, progress: ProgressCallback | None = None
    ) -> Iterator[RawChunk]:
        """Yield the wanted columns; ``line`` is the row's number from 1."""
        del log  # a Parquet row cannot have the wrong width
        names = [self.header[position] for position in wanted]
        total = self._file.metadata.num_rows
        done = 0
        try:
            for batch in self._file.iter_batches(batch_size=CHUNK_ROWS, columns=names):
                lines = list(range(done + 1, done + batch.num_rows + 1))
                yield RawChunk(lines, [_as_text(batch.column(name)) for name in names])
                done += batch.num_rows
                if progress:
                    progress(Progress(done, total, done))
        except (pa.ArrowException, OSError) as error:
            raise TabularError(f"{self.path.name} is damaged after row {done}: {error}") from error
        except UnicodeDecodeError as error:
            raise TabularError(f"{self.path.name} holds a text after row {done} that is not UTF-8") from error


def _as_text(column: pa.Array) -> Cells:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_floating(kind):
        # repr is the shortest text that reads back as the same float; Arrow's own text is not promised to be.
        return [None if value is None else repr(value) for value in column.to_pylist()]
    if pa.types.is_integer(kind):
        return [None if value is None else str(value) for value in column.to_pylist()]
    if pa.types.is_map(kind) or pa.types.is_struct(kind):
        # Tags come as a map from some clouds and as JSON from others.
        return [None if value is None else json.dumps(dict(value), default=str) for value in column.to_pylist()]
    if _is_list(kind) and pa.types.is_struct(kind.value_type):
        # From others as a list of key and value.
        return [None if value is None else json.dumps(value, default=str) for value in column.to_pylist()]
    try:
        if pa.types.is_timestamp(kind) and kind.tz is not None:
            column = pc.cast(column, pa.timestamp(kind.unit, "UTC"))
        cells: list[str | None] = pc.cast(column, pa.string()).to_pylist()
    except pa.ArrowNotImplementedError as error:
        raise TabularError(f"a column of type {kind} cannot be read as text: {error}") from error
    return cells


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _as_columns(lines: list[int], rows: list[list[str]], wanted: Sequence[int]) -> RawChunk:
    turned = list(zip(*rows, strict=True))
    return RawChunk(lines, [turned[position] for position in wanted])


def _undecodable(text: str) -> bool:
    # surrogateescape put lone surrogates where bytes were no UTF-8.
    return any("\udc80" <= character <= "\udcff" for character in text)


def _unquoted(line: str) -> str:
    return "".join(line.split('"')[::2])
