"""A trace-driven fleet's rows as the bodies that carry them: native ones of agents, and remote write of the same samples.

Each body is one node's, of so many instants of its eight devices, in the order of time. It sends nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Any, Final

import cramjam
import numpy as np
import polars as pl

from bench.bodies import DEVICES, Node
from bench.trace_fleet import CADENCE_S, METRICS, Traces, fleet_rows
from collector.arrow import TYPECODES, ColumnData
from collector.batch import Columns
from collector.wire import COLUMNS, ColumnType, Stream

_DTYPES: Final = {"i16": "<i2", "i32": "<i4", "i64": "<i8", "f32": "<f4"}
_SAMPLE: Final = np.dtype(
    [("head", "<u2"), ("value_tag", "u1"), ("value", "<f8"), ("at_tag", "u1"), ("at_ms", "u1", 6)]
)
"""A sample of remote write as it travels: 16 bytes behind tag and length. Six bytes hold the milliseconds of this century."""
_BLOCK: Final = 8
_SAMPLE_HEAD: Final = 16 << 8 | 2 << 3 | 2
Rows = dict[str, np.ndarray[Any, Any]]


def node_rows(traces: Traces, nodes: int, instants: int, first_at_us: int) -> Iterator[Rows]:
    """Yield the rows of one node after the other, by time and device, columns as in ``device_samples``.

    The first instant is ``first_at_us``. Made eight nodes at a time, which is the mix of ``trace_fleet``.
    """
    for block in range(0, nodes, _BLOCK):
        frame = fleet_rows(
            traces, _BLOCK * DEVICES, instants, first_at_us - CADENCE_S * 1_000_000, seed=block + 1
        ).with_columns(pl.col("at").cast(pl.Int64))
        for number in range(min(_BLOCK, nodes - block)):
            rows = DEVICES * instants
            ordered = frame.slice(number * rows, rows).sort("at", "device_id")
            yield {name: ordered[name].to_numpy() for name in ordered.columns if ordered[name].null_count() == 0}


def native(node: Node, rows: Rows, instants: int) -> Iterator[bytes]:
    """Make the bodies of an agent: ``instants`` of eight devices each."""
    named = rows | {"at_us": rows["at"], "device": (rows["device_id"] - 1) % DEVICES}
    for part in _parts(rows, instants):
        data = {
            column.name: ColumnData(_packed(column.type, named[column.name][part]))
            for column in COLUMNS[Stream.DEVICE]
            if column.name in named
        }
        yield node.body(Columns(len(named["at"][part]), data))


def remote_write(node: Node, rows: Rows, instants: int) -> Iterator[bytes]:
    """Make the same as remote write: a series for each device and metric, in it the samples of these instants."""
    labels = [
        [_labels({"__name__": name, "gpu": device.uuid, "node": node.name}) for name in METRICS]
        for device in node.devices
    ]
    for part in _parts(rows, instants):
        at_ms = _varints(rows["at"][part][::DEVICES] // 1_000)
        samples = np.empty(len(at_ms), _SAMPLE)
        samples["head"], samples["value_tag"], samples["at_tag"], samples["at_ms"] = _SAMPLE_HEAD, 0x09, 0x10, at_ms
        series = []
        for device in range(DEVICES):
            for position, name in enumerate(METRICS):
                samples["value"] = rows[name][part][device::DEVICES]
                series.append(_chunk(1, labels[device][position] + samples.tobytes()))
        yield bytes(cramjam.snappy.compress_raw(b"".join(series)))


def _parts(rows: Rows, instants: int) -> Iterator[slice]:
    step = instants * DEVICES
    return (slice(at, at + step) for at in range(0, len(rows["at"]), step))


def _packed(kind: ColumnType, values: np.ndarray[Any, Any]) -> array[Any]:
    packed = array(TYPECODES[kind])
    packed.frombytes(values.astype(_DTYPES[kind]).tobytes())
    return packed


def _varints(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return six bytes a value, of values from 2**35 to 2**42."""
    shifted = values[:, None] >> np.arange(0, 42, 7)
    return np.asarray((shifted & 0x7F) | np.array([0x80] * 5 + [0])).astype(np.uint8)


def _labels(labels: dict[str, str]) -> bytes:
    return b"".join(_chunk(1, _chunk(1, name.encode()) + _chunk(2, labels[name].encode())) for name in sorted(labels))


def _chunk(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
