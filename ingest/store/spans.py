"""Writes the steps of traces, each once: what is sent again is known by trace, span and start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import orjson
import polars as pl
import psycopg

from ingest.spans import KeptSpan
from ingest.store.copy import copy_statement, encode_text_frame
from ingest.store.hours import DAY_US

_SCHEMA: Final[dict[str, Any]] = {
    "site_id": pl.Int32,
    "started_at": pl.Datetime("us", "UTC"),
    "trace_id": pl.String,
    "span_id": pl.String,
    "parent_span_id": pl.String,
    "name": pl.String,
    "kind": pl.String,
    "duration_us": pl.Int64,
    "model": pl.String,
    "status": pl.String,
    "attributes": pl.String,
    "origin": pl.Int16,
}
_SQL: Final = {
    pl.Int32: "integer",
    pl.Int64: "bigint",
    pl.Int16: "smallint",
    pl.String: "text",
    pl.Datetime("us", "UTC"): "timestamptz",
}
_CREATE: Final = (
    "CREATE TEMPORARY TABLE IF NOT EXISTS span_stage ("
    + ", ".join(f"{name} {_SQL[kind]}" for name, kind in _SCHEMA.items())
    + ") ON COMMIT DELETE ROWS"
)
_COPY: Final = copy_statement("span_stage", list(_SCHEMA))
_INSERT: Final = (
    f"INSERT INTO spans ({', '.join(_SCHEMA)}) SELECT "  # noqa: S608 (our own names)
    + ", ".join("attributes::jsonb" if name == "attributes" else name for name in _SCHEMA)
    + " FROM span_stage ON CONFLICT (trace_id, span_id, started_at) DO NOTHING"
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
    columns = {
        name: pl.Series(values, dtype=pl.Int64 if name == "started_at" else kind)
        for (name, kind), values in zip(_SCHEMA.items(), zip(*rows, strict=True), strict=True)
    }
    frame = pl.DataFrame(columns).with_columns(pl.col("started_at").cast(_SCHEMA["started_at"]))
    driver.execute(_CREATE)
    with driver.cursor() as cursor, cursor.copy(_COPY.encode()) as copy:
        copy.write(encode_text_frame(frame))
    return driver.execute(_INSERT).rowcount
