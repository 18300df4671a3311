"""Writes the steps of traces, each once: what is sent again is known by trace, span and start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson
import psycopg
import pyarrow as pa

from ingest.rows import Rows
from ingest.spans import KeptSpan
from ingest.store.copy import SQL_TYPES, copy_statement, encode_batches
from ingest.store.hours import DAY_US

_SCHEMA: Final = pa.schema(
    {
        "site_id": pa.int32(),
        "started_at": pa.timestamp("us", "UTC"),
        "trace_id": pa.string(),
        "span_id": pa.string(),
        "parent_span_id": pa.string(),
        "name": pa.string(),
        "kind": pa.string(),
        "duration_us": pa.int64(),
        "model": pa.string(),
        "status": pa.string(),
        "attributes": pa.string(),
        "origin": pa.int16(),
    }
)
_CREATE: Final = (
    "CREATE TEMPORARY TABLE IF NOT EXISTS span_stage ("
    + ", ".join(f"{column.name} {SQL_TYPES[column.type]}" for column in _SCHEMA)
    + ") ON COMMIT DELETE ROWS"
)
_COPY: Final = copy_statement("span_stage", _SCHEMA.names)
_INSERT_NEW: Final = (
    f"INSERT INTO spans ({', '.join(_SCHEMA.names)}) SELECT "  # noqa: S608 (our own names)
    + ", ".join("attributes::jsonb" if name == "attributes" else name for name in _SCHEMA.names)
    + " FROM span_stage ORDER BY trace_id, span_id"
)
_INSERT: Final = f"{_INSERT_NEW} ON CONFLICT (trace_id, span_id, started_at) DO NOTHING"


def days_of(spans: Rows[KeptSpan]) -> set[int]:
    """Return the days since the Unix epoch whose partitions these spans need."""
    return {at_us // DAY_US for at_us in spans.columns["started_at_us"]}


def keep_spans(
    driver: psycopg.Connection[Any], site_ids: Sequence[int], spans: Rows[KeptSpan], *, seem_new: bool = False
) -> int:
    """Keep spans, each with its site, in the caller's transaction; return how many were not known. Days are there.

    ``seem_new``: nothing else of the same bodies was known, so that all may be tried without looking for each first.
    """
    if not spans:
        return 0
    told = spans.columns
    columns = {
        **told,
        "site_id": site_ids,
        "started_at": told["started_at_us"],
        "attributes": [orjson.dumps(named).decode() if named else "{}" for named in told["attributes"]],
    }
    arrays = [pa.array(columns[column.name], column.type) for column in _SCHEMA]
    driver.execute(_CREATE)
    with driver.cursor() as cursor, cursor.copy(_COPY.encode()) as copy:
        copy.write(encode_batches([pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)]))
    if seem_new:
        driver.execute("SAVEPOINT spans")
        try:
            kept = driver.execute(_INSERT_NEW).rowcount
        except psycopg.errors.UniqueViolation:
            driver.execute("ROLLBACK TO spans")
        else:
            driver.execute("RELEASE spans")
            return kept
    return driver.execute(_INSERT).rowcount
