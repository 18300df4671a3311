"""Writes the steps of traces, each once: what is sent again is known by trace, span and start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import orjson
import psycopg
import pyarrow as pa

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
_INSERT: Final = (
    f"INSERT INTO spans ({', '.join(_SCHEMA.names)}) SELECT "  # noqa: S608 (our own names)
    + ", ".join("attributes::jsonb" if name == "attributes" else name for name in _SCHEMA.names)
    + " FROM span_stage ORDER BY trace_id, span_id ON CONFLICT (trace_id, span_id, started_at) DO NOTHING"
)


def days_of(spans: Iterable[KeptSpan]) -> set[int]:
    """Return the days since the Unix epoch whose partitions these spans need."""
    return {span.started_at_us // DAY_US for span in spans}


def keep_spans(driver: psycopg.Connection[Any], spans: Sequence[tuple[int, KeptSpan]]) -> int:
    """Keep spans, each with its site, in the caller's transaction; return how many were not known. Days are there."""
    if not spans:
        return 0
    rows = [
        (
            site_id,
            span.started_at_us,
            span.trace_id,
            span.span_id,
            span.parent_span_id,
            span.name,
            span.kind,
            span.duration_us,
            span.model,
            span.status,
            orjson.dumps(span.attributes).decode() if span.attributes else "{}",
            span.origin,
        )
        for site_id, span in spans
    ]
    arrays = [pa.array(values, kind) for values, kind in zip(zip(*rows, strict=True), _SCHEMA.types, strict=True)]
    driver.execute(_CREATE)
    with driver.cursor() as cursor, cursor.copy(_COPY.encode()) as copy:
        copy.write(encode_batches([pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)]))
    return driver.execute(_INSERT).rowcount
