"""What our own Arrow writer writes, pyarrow and polars read, with full validation."""

from __future__ import annotations

import io
from array import array
from collections.abc import Mapping

import polars as pl
import pyarrow as pa
import pyarrow.ipc
import pytest
import zstandard

from collector import wire
from collector.arrow import ColumnData
from collector.batch import Columns, RowError, Rows, encode_body
from collector.wire import BatchMeta, DeviceRef, Feed, Origin, Stream

pytestmark = pytest.mark.contract

META = BatchMeta(
    spool="2b1f8c2e-1111-4222-8333-444455556666",
    sequence=7,
    node="node-ü1",
    boot_id="b",
    driver_epoch=0,
    feed=Feed.NATIVE,
    origin=Origin.SIMULATED,
    cadence_us=10_000_000,
    agent_version="0.1.0",
    created_at_us=1,
    monotonic_us=2,
    clock_offset_us=None,
    devices=(DeviceRef("GPU-1", "H100", memory_bytes=80 << 30),),
    labels={"rack": "r12"},
)
ARROW_TYPES = {"i16": pa.int16(), "i32": pa.int32(), "i64": pa.int64(), "f32": pa.float32(), "utf8": pa.utf8()}
DEVICE_ROW: dict[str, int | float | str | None] = {
    "at_us": 1_800_000_000_000_000,
    "device": 0,
    "reading": 0,
    "span_us": 10_000_000,
    "samples": 10,
    "samples_missed": 0,
}
EVENT_ROW: dict[str, int | float | str | None] = {"at_us": 1, "device": 0, "kind": "xid"}


def tables_of(body: bytes) -> list[pa.Table]:
    """Read every stream of a body with pyarrow, validating each buffer."""
    raw = io.BytesIO(zstandard.decompress(body))
    end = len(raw.getvalue())
    tables = []
    while raw.tell() < end:
        table = pyarrow.ipc.open_stream(raw).read_all()
        table.validate(full=True)
        tables.append(table)
    return tables


def rows_of(stream: Stream, *rows: Mapping[str, int | float | str | None]) -> Rows:
    gathered = Rows(stream)
    for row in rows:
        gathered.append(row)
    return gathered


@pytest.mark.parametrize("stream", list(Stream))
def test_every_stream_has_the_columns_types_and_nullability_of_the_contract(stream: Stream) -> None:
    row = {entry.name: "x" if entry.type == "utf8" else 1 for entry in wire.COLUMNS[stream]}
    (table,) = tables_of(encode_body(META, {stream: rows_of(stream, row)}))
    found = [(entry.name, entry.type, entry.nullable) for entry in table.schema]
    assert found == [(entry.name, ARROW_TYPES[entry.type], entry.nullable) for entry in wire.COLUMNS[stream]]
    assert table.to_pylist() == [row]
    assert table.schema.metadata[wire.STREAM_KEY.encode()].decode() == stream.value


def test_the_first_stream_carries_the_batch_and_only_the_first() -> None:
    device, event = tables_of(
        encode_body(
            META,
            {
                Stream.DEVICE: rows_of(Stream.DEVICE, DEVICE_ROW),
                Stream.DEVICE_EVENT: rows_of(Stream.DEVICE_EVENT, EVENT_ROW),
            },
        )
    )
    assert BatchMeta.from_json(device.schema.metadata[wire.META_KEY.encode()]) == META
    assert wire.META_KEY.encode() not in event.schema.metadata


@pytest.mark.parametrize("length", range(17))
def test_metadata_of_any_length_leaves_the_schema_intact(length: int) -> None:
    meta = BatchMeta.from_json(META.to_json().replace('"node":"node-\\u00fc1"', f'"node":"n{"x" * length}"'))
    (table,) = tables_of(encode_body(meta, {Stream.DEVICE: rows_of(Stream.DEVICE, DEVICE_ROW)}))
    assert BatchMeta.from_json(table.schema.metadata[wire.META_KEY.encode()]).node == "n" + "x" * length
    assert table.num_rows == 1


def test_nulls_unicode_and_extremes_survive() -> None:
    rows = rows_of(
        Stream.DEVICE_EVENT,
        EVENT_ROW | {"code": 2**63 - 1, "detail": "überhitzt ✓ 🜂"},
        EVENT_ROW | {"code": None, "detail": None},
        EVENT_ROW | {"code": -(2**63), "detail": ""},
    )
    (table,) = tables_of(encode_body(META, {Stream.DEVICE_EVENT: rows}))
    assert table.column("code").to_pylist() == [2**63 - 1, None, -(2**63)]
    assert table.column("detail").to_pylist() == ["überhitzt ✓ 🜂", None, ""]
    assert table.column("energy_mj").null_count == 3


def test_a_batch_without_rows_is_still_a_batch() -> None:
    (table,) = tables_of(encode_body(META, {Stream.DEVICE: Rows(Stream.DEVICE), Stream.NODE: Rows(Stream.NODE)}))
    assert table.num_rows == 0
    assert BatchMeta.from_json(table.schema.metadata[wire.META_KEY.encode()]) == META


def test_polars_reads_the_same_rows() -> None:
    rows = rows_of(Stream.DEVICE, DEVICE_ROW | {"energy_mj": 123}, DEVICE_ROW | {"sm_active_ratio": 0.5})
    frame = pl.read_ipc_stream(io.BytesIO(zstandard.decompress(encode_body(META, {Stream.DEVICE: rows}))))
    assert frame["energy_mj"].to_list() == [123, None]
    assert frame["sm_active_ratio"].to_list() == [None, 0.5]
    assert frame.schema["at_us"] == pl.Int64
    assert frame.schema["samples"] == pl.Int16


def test_ready_buffers_travel_as_they_are() -> None:
    # 3 rows; energy: row 1 is null, so the validity bits are 1, 0, 1 from the least significant: 0b101.
    ready = Columns(
        3,
        {
            **{name: ColumnData(array("q", [1, 2, 3])) for name in ("at_us", "span_us")},
            **{name: ColumnData(array("h", [0, 0, 0])) for name in ("reading", "samples", "samples_missed")},
            "device": ColumnData(pa.array([0, 1, 2], pa.int32()).buffers()[1].slice(0, 12)),
            "energy_mj": ColumnData(array("q", [10, 0, 30]), bytes([0b101]), 1),
        },
    )
    (table,) = tables_of(encode_body(META, {Stream.DEVICE: ready}))
    assert table.column("device").to_pylist() == [0, 1, 2]
    assert table.column("energy_mj").to_pylist() == [10, None, 30]
    assert table.column("temp_c").null_count == 3


def test_the_frame_says_its_size_and_checks_its_content() -> None:
    body = encode_body(META, {Stream.DEVICE: rows_of(Stream.DEVICE, DEVICE_ROW)})
    parameters = zstandard.get_frame_parameters(body)
    assert parameters.has_checksum
    assert parameters.content_size == len(zstandard.decompress(body))


def test_rows_that_do_not_fit_are_refused_before_anything_is_written() -> None:
    with pytest.raises(RowError, match="has no column colour"):
        rows_of(Stream.DEVICE, DEVICE_ROW | {"colour": 1})
    with pytest.raises(RowError, match=r"device_events\.kind must have a value"):
        rows_of(Stream.DEVICE_EVENT, EVENT_ROW | {"kind": None})
    with pytest.raises(RowError, match="temp_c holds a value that is no i16"):
        encode_body(META, {Stream.DEVICE: rows_of(Stream.DEVICE, DEVICE_ROW | {"temp_c": 40_000})})
    with pytest.raises(RowError, match="3 rows of i64 take 24 bytes, got 16"):
        encode_body(META, {Stream.DEVICE: Columns(3, {"at_us": ColumnData(array("q", [1, 2]))})})
    with pytest.raises(RowError, match="must have a value in every row"):
        encode_body(META, {Stream.DEVICE: Columns(1, {"at_us": ColumnData(array("q", [1]))})})
