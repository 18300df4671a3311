"""Streams as pyarrow writes them: what the check lets through, and what it names when it does not."""

import io
import struct
from typing import Any

import pyarrow as pa
import pytest

from collector.wire import COLUMNS, MAX_ROWS_PER_STREAM, Stream
from ingest.errors import BadBodyError, TooLargeError
from ingest.receivers.arrow_check import CheckedStream, Checker
from ingest.receivers.native import decode

pytestmark = pytest.mark.unit
KINDS: dict[str, Any] = {
    "i16": pa.int16(),
    "i32": pa.int32(),
    "i64": pa.int64(),
    "f32": pa.float32(),
    "utf8": pa.utf8(),
}
META = {"wattledger.stream": "node_samples", "wattledger.batch": "{}"}


def table(rows: int = 3, **changes: Any) -> pa.Table:
    """Node samples with required columns filled; a change replaces, adds or (None) leaves out a column."""
    columns: dict[str, Any] = {}
    for column in COLUMNS[Stream.NODE]:
        fill: Any = None if column.nullable else ("ac" if column.type == "utf8" else 1)
        columns[column.name] = pa.array([fill] * rows, KINDS[column.type])
    columns |= changes
    return pa.table({name: values for name, values in columns.items() if values is not None}).replace_schema_metadata(
        META
    )


def written(given: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, given.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(given)
    return sink.getvalue()


def checked(data: bytes) -> CheckedStream:
    (stream,) = Checker().streams(data)
    return stream


def reason(data: bytes) -> str:
    with pytest.raises(BadBodyError) as caught:
        Checker().streams(data)
    return caught.value.reason


def refusal(data: bytes) -> str:
    with pytest.raises(BadBodyError) as caught:
        Checker().streams(data)
    return f"{caught.value.reason}: {caught.value.detail}"


def test_what_pyarrow_writes_is_taken() -> None:
    stream = checked(written(table(power_mw=pa.array([1, None, 3], pa.int64()))))
    assert (stream.schema.stream, stream.rows, stream.meta_json) == (Stream.NODE, 3, b"{}")
    assert decode([stream])["power_mw"].to_list() == [1, None, 3]


def test_several_batches_and_none_are_taken() -> None:
    given = pa.concat_tables([table(2), table(3)])
    assert checked(written(given)).rows == 5
    assert checked(written(table(0))).rows == 0


def test_columns_left_out_are_null_and_unknown_ones_are_ignored_and_named() -> None:
    stream = checked(written(table(power_mw=None, novelty=pa.array([1, 2, 3], pa.int32()))))
    assert stream.schema.unknown == ("novelty",)
    frame = decode([stream])
    assert frame["power_mw"].to_list() == [None] * 3
    assert "novelty" not in frame.columns


def test_a_known_name_of_another_type_is_refused() -> None:
    assert reason(written(table(power_mw=pa.array([1, 2, 3], pa.int32())))) == "wrong_type"
    assert reason(written(table(power_mw=pa.array([1, 2, 3], pa.uint64())))) == "wrong_type"
    assert reason(written(table(novelty=pa.array([[1], [2], [3]])))) in ("wrong_type", "malformed")
    assert reason(written(table(meter=pa.array(["a", "b", "c"]).dictionary_encode()))) in ("wrong_type", "malformed")


def test_a_required_column_must_be_there_and_full() -> None:
    assert reason(written(table(span_us=None))) == "missing_column"
    assert reason(written(table(span_us=pa.array([1, None, 3], pa.int64())))) == "null_value"


def test_compression_inside_is_refused() -> None:
    assert reason(written(table(), compression="zstd")) == "malformed"


def test_an_unknown_stream_is_refused() -> None:
    other = table().replace_schema_metadata({"wattledger.stream": "novelties"})
    assert reason(written(other)) == "unknown_stream"
    assert reason(written(table().replace_schema_metadata(None))) == "unknown_stream"


def test_too_many_rows_and_too_long_texts_are_refused() -> None:
    column = pa.array([1] * (MAX_ROWS_PER_STREAM + 1), pa.int64())
    many = pa.table(
        {"at_us": column, "span_us": column, "meter": pa.array(["a"] * len(column))}
    ).replace_schema_metadata(META)
    with pytest.raises(TooLargeError):
        Checker().streams(written(many))
    assert refusal(written(table(meter=pa.array(["a", "b" * 1_025, "c"])))) == (
        "bad_text: column node_samples.meter: the text of row 1 of its batch is 1025 bytes long; at most 1024 are taken"
    )


@pytest.mark.parametrize("control", ["\0", "\n", "\x1b", "\x7f"])
def test_a_control_character_is_refused_by_column_row_and_code(control: str) -> None:
    given = written(table(meter=pa.array(["ac", None, f"d{control}c"]).fill_null("")))
    assert refusal(given) == (
        f"bad_text: column node_samples.meter: the text of row 2 of its batch is holding the control character "
        f"U+{ord(control):04X}; replace it before sending"
    )
    given = written(table(novelty=pa.array(["ä", f"{control}", "c"])))
    assert "column node_samples.novelty: the text of row 1" in refusal(given)


@pytest.mark.parametrize(
    ("texts", "row"),
    [
        ([b"a", b"\xff", b"c"], 1),
        ([b"a", b"b", b"\xed\xa0\x80"], 2),  # a lone surrogate
        ([b"a", b"b", b"\xc3"], 2),
        ([b"a\xc3", b"\xa4", b"c"], 1),  # UTF-8 only back to back
    ],
)
def test_bytes_that_are_no_utf8_are_refused_by_column_and_row(texts: list[bytes], row: int) -> None:
    meter = pa.array(texts, pa.binary())
    meter = pa.Array.from_buffers(pa.utf8(), 3, meter.buffers())
    assert refusal(written(table(meter=meter))) == (
        f"bad_text: column node_samples.meter: the text of row {row} of its batch is not UTF-8"
    )


def test_texts_of_any_script_are_taken() -> None:
    names = ["Zähler", "電力計", "𝄞"]
    assert decode([checked(written(table(meter=pa.array(names))))])["meter"].to_list() == names


def test_a_header_that_claims_no_nulls_does_not_get_nulls_past_the_check() -> None:
    data = written(table(span_us=pa.array([1, None, 3], pa.int64())))
    # The null count of span_us, the only node with (3 values, 1 null), is forged to none.
    forged = data.replace(struct.pack("<qq", 3, 1), struct.pack("<qq", 3, 0), 1)
    assert forged != data
    stream = checked(forged)
    assert decode([stream])["span_us"].null_count() == 0
