"""Reads a JSON export as a table: an array of objects, an object with one under ``data``, or one object per line.

Cells come as text like any other table's, so that one set of rules reads them; nested values as JSON. The columns are those
of all rows. A file is held in memory as a whole, hence the cap; larger exports are made as CSV or Parquet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import orjson

from ingest.importers.errors import TabularError
from ingest.importers.report import Progress, ProgressCallback, RowLog
from ingest.importers.tabular import CHUNK_ROWS, MAX_FIELDS, RawChunk

MAX_FILE_BYTES: Final = 1 << 28
_ROWS_UNDER: Final = ("data", "logs", "results")


class JsonTable:
    """A JSON file; ``line`` is the row's number from 1, in a file of one object per line the line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise TabularError(
                f"{path.name} has {size} bytes; of JSON at most {MAX_FILE_BYTES} are read: export CSV or Parquet"
            )
        self._rows = _rows(path.name, path.read_bytes())
        names = dict.fromkeys(name for _, row in self._rows if isinstance(row, dict) for name in row)
        if not names:
            raise TabularError(f"{path.name} holds no rows")
        if len(names) > MAX_FIELDS:
            raise TabularError(f"{path.name} has {len(names)} columns; at most {MAX_FIELDS} are read")
        self.header = list(names)

    def chunks(
        self, wanted: Sequence[int], log: RowLog, progress: ProgressCallback | None = None
    ) -> Iterator[RawChunk]:
        """Yield the wanted columns (by position); a row that is no object goes to ``log``."""
        names = [self.header[position] for position in wanted]
        for start in range(0, len(self._rows), CHUNK_ROWS):
            lines: list[int] = []
            cells: list[list[str | None]] = [[] for _ in names]
            for line, row in self._rows[start : start + CHUNK_ROWS]:
                if not isinstance(row, dict):
                    log.reject(line, "not a JSON object")
                    continue
                lines.append(line)
                for column, name in zip(cells, names, strict=True):
                    column.append(_cell(row.get(name)))
            yield RawChunk(lines, [list(column) for column in cells])
            if progress:
                done = min(start + CHUNK_ROWS, len(self._rows))
                progress(Progress(done, len(self._rows), done))


def _rows(name: str, data: bytes) -> list[tuple[int, Any]]:
    try:
        whole = _loaded(data)
    except ValueError as error:
        lines = [(number, line) for number, line in enumerate(data.splitlines(), start=1) if line.strip()]
        if len(lines) < 2:
            raise TabularError(f"{name} is no JSON (cut off?): {error}") from error
        return [(number, _or_none(line)) for number, line in lines]
    if isinstance(whole, dict):
        whole = next((whole[key] for key in _ROWS_UNDER if isinstance(whole.get(key), list)), [whole])
    return list(enumerate(whole, start=1))


def _or_none(line: bytes) -> Any:
    try:
        return _loaded(line)
    except ValueError:
        return None


def _loaded(data: bytes) -> Any:
    # orjson first checks quickly and strictly; amounts are then read without a float in between.
    orjson.loads(data)
    return json.loads(data, parse_float=Decimal)


def _cell(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return json.dumps(value, default=str)
    return str(value)
