"""Rows of a node as a body like an agent's: so that all that is done with measurements is done with these, in one place.

The rows are written as Arrow and go through the same check as what comes from outside; nothing trusts them for being ours.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa

from collector.wire import COLUMNS, STREAM_KEY, BatchMeta, ColumnType, Feed, Reading, Stream
from ingest.receivers.arrow_check import CheckedStream, Checker
from ingest.receivers.native import Body
from ingest.series.memory import Known
from ingest.series.rows import Columns, NodeRows

BOOT_ID: Final = "series"
"""One for all series of a node: they do not tell of boots. A counter that falls starts anew by itself."""
AGENT_VERSION: Final = "series"
_ARROW: Final[dict[ColumnType, pa.DataType]] = {
    "i16": pa.int16(),
    "i32": pa.int32(),
    "i64": pa.int64(),
    "f32": pa.float32(),
    "utf8": pa.string(),
}
_NAMES: Final = {Stream.NODE: ("meter",), Stream.FABRIC: ("port",), Stream.ENGINE: ("engine", "model")}


def body_of(rows: NodeRows, checker: Checker, now_us: int, cadence_us: int | None = None) -> Body:
    """Return the checked body. ``cadence_us`` is what the sender says of its spacing; None = as it was seen to be."""
    known = rows.known
    streams: list[CheckedStream] = []
    size = 0
    for stream, (subjects, at_us, columns) in rows.streams.items():
        data = _encoded(stream, _fixed(stream, subjects, known), at_us, columns)
        size += len(data)
        streams += checker.streams(data)
    meta = BatchMeta(
        spool=known.spool,
        sequence=0,
        node=rows.node,
        boot_id=BOOT_ID,
        driver_epoch=0,
        feed=Feed.REMOTE_WRITE,
        origin=rows.origin,
        cadence_us=cadence_us or known.cadence.us,
        agent_version=AGENT_VERSION,
        created_at_us=now_us,
        monotonic_us=0,
        clock_offset_us=None,
        devices=known.devices,
    )
    return Body(meta, tuple(streams), sum(entry.rows for entry in streams), size, ())


def _fixed(stream: Stream, subjects: list[tuple[str, ...]], known: Known) -> dict[str, Any]:
    """Return the columns that every row has."""
    rows = len(subjects)
    if stream is Stream.DEVICE_HEALTH:
        return {"device": np.array([known.positions[subject[0]] for subject in subjects], dtype=np.int32)}
    # A reading of a gauge or counter at an instant speaks of no span before it.
    fixed: dict[str, Any] = {"span_us": np.zeros(rows, dtype=np.int64)}
    if stream is Stream.DEVICE:
        fixed["device"] = np.array([known.positions[subject[0]] for subject in subjects], dtype=np.int32)
        fixed["reading"] = np.full(rows, int(Reading.PERIODIC), dtype=np.int16)
        fixed["samples"] = np.ones(rows, dtype=np.int16)
        fixed["samples_missed"] = np.zeros(rows, dtype=np.int16)
        return fixed
    for position, name in enumerate(_NAMES[stream]):
        fixed[name] = [subject[position] for subject in subjects]
    return fixed


def _encoded(stream: Stream, fixed: dict[str, Any], at_us: np.ndarray[Any, Any], columns: Columns) -> bytes:
    given: dict[str, Any] = {"at_us": at_us, **fixed, **columns}
    arrays, fields = [], []
    for column in COLUMNS[stream]:
        if column.name not in given:
            continue
        kind = _ARROW[column.type]
        values = given[column.name]
        if column.name in columns:
            empty = np.isnan(values)
            filled = np.where(empty, 0, values).astype(kind.to_pandas_dtype())
            arrays.append(pa.array(filled, kind, mask=empty if empty.any() else None))
        else:
            arrays.append(pa.array(values, kind))
        fields.append(pa.field(column.name, kind, nullable=column.nullable))
    schema = pa.schema(fields, metadata={STREAM_KEY: stream.value})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
    data: bytes = sink.getvalue().to_pybytes()
    return data
