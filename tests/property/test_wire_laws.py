"""Laws of the wire: whatever fits the contract comes back as it was, and rows account for every reading that was due."""

from __future__ import annotations

import io
import itertools

import numpy as np
import polars as pl
import pyarrow.ipc
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from collector import wire
from collector.batch import Rows, encode_body
from collector.probe import DeviceReading, Row
from collector.sampler import RowBuilder
from collector.wire import BatchMeta, Column, Feed, Origin, Stream, WireError, cleaned
from ingest.receivers.texts import check_texts

pytestmark = pytest.mark.property

META = BatchMeta("s", 1, "n", "b", 0, Feed.NATIVE, Origin.LIVE, 1, "v", 0, 0, None)
_VALUES: dict[str, st.SearchStrategy[int | float | str]] = {
    "i16": st.integers(-(2**15), 2**15 - 1),
    "i32": st.integers(-(2**31), 2**31 - 1),
    "i64": st.integers(-(2**63), 2**63 - 1),
    "f32": st.floats(width=32, allow_nan=False),
    "utf8": st.text(max_size=40),
}
S = 1_000_000


def _cell(entry: Column) -> st.SearchStrategy[int | float | str | None]:
    value = _VALUES[entry.type]
    return st.none() | value if entry.nullable else value


@pytest.mark.parametrize("stream", list(Stream))
@given(data=st.data())
def test_any_rows_come_back_as_they_were(stream: Stream, data: st.DataObject) -> None:
    row = st.fixed_dictionaries({entry.name: _cell(entry) for entry in wire.COLUMNS[stream]})
    expected = data.draw(st.lists(row, max_size=20))
    rows = Rows(stream)
    for entry in expected:
        rows.append(entry)
    raw = zstandard.decompress(encode_body(META, {stream: rows}))
    expected = [
        {name: cleaned(value) if isinstance(value, str) else value for name, value in row.items()} for row in expected
    ]
    table = pyarrow.ipc.open_stream(raw).read_all()
    table.validate(full=True)
    assert table.to_pylist() == expected
    assert pl.read_ipc_stream(io.BytesIO(raw)).to_dicts() == expected


@given(st.text(max_size=2_000))
def test_any_text_becomes_one_that_ingest_takes(text: str) -> None:
    made = cleaned(text)
    data = made.encode()
    check_texts("job_name", np.array([0, len(data)], np.int32), data)
    assert cleaned(made) == made


@given(st.text() | st.binary() | st.recursive(st.none() | st.integers(), st.lists).map(str))
def test_metadata_that_is_not_ours_is_a_wire_error_and_nothing_else(text: str | bytes) -> None:
    with pytest.raises(WireError):
        BatchMeta.from_json(text)


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(0, 9))
def test_rows_account_for_every_reading_that_was_due(answered: list[bool], phase: int) -> None:
    builder = RowBuilder(period_us=S, row_us=10 * S)
    rows: list[Row] = []
    for tick, answers in enumerate(answered):
        due_us = (1_000 + phase + tick) * S
        readings = (DeviceReading(0, due_us + 7, {"energy_mj": 300 * tick}),) if answers else ()
        rows += builder.add(due_us, readings)
    rows += builder.flush((1_000 + phase + len(answered) - 1) * S)
    assert sum(int(row["samples"] or 0) for row in rows) == sum(answered)
    assert all(0 < int(row["samples"] or 0) + int(row["samples_missed"] or 0) <= 10 for row in rows)
    instants = [int(row["at_us"] or 0) for row in rows]
    assert instants == sorted(set(instants))
    for earlier, later in itertools.pairwise(rows):
        # Spans never overlap: no moment is in two rows.
        assert int(later["at_us"] or 0) - int(later["span_us"] or 0) >= int(earlier["at_us"] or 0)
