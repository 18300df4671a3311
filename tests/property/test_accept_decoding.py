"""The two ways to decode rows agree, and COPY's bytes read back as the rows they were made of."""

from __future__ import annotations

import struct
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.wire import COLUMNS, Stream
from ingest.receivers.block import Block
from ingest.receivers.native import Reader, _stacked, _through_ipc, alike, decode
from ingest.store.copy import SIGNATURE, TRAILER, encode
from tests.db.ingest_harness import batch_meta, body_of, device_row

pytestmark = pytest.mark.property
NULLABLE = {"temp_c": (-50, 200), "power_max_mw": (0, 2**31 - 1), "energy_mj": (0, 2**63 - 1), "processes": (0, 99)}
VALUES = st.fixed_dictionaries(
    {name: st.none() | st.integers(low, high) for name, (low, high) in NULLABLE.items()}
    | {"sm_active_ratio": st.none() | st.floats(0, 1, width=32)}
)
BODIES = st.lists(st.lists(VALUES, min_size=1, max_size=20), min_size=1, max_size=6)


def encoded(bodies: list[list[dict[str, Any]]]) -> list[bytes]:
    return [
        body_of(batch_meta(), *(device_row(100 + number, **row) for number, row in enumerate(rows))) for rows in bodies
    ]


@settings(max_examples=120, deadline=None)
@given(BODIES)
def test_stacked_batches_are_what_the_arrow_reader_reads(bodies: list[list[dict[str, Any]]]) -> None:
    reader = Reader()
    streams = [reader.read(body).streams[0] for body in encoded(bodies)]
    for entry in streams:
        stacked, read = _stacked(Block.of([entry, entry])), _through_ipc([entry, entry])
        for name, values in read.items():
            if values.null_count() < len(values):
                assert stacked[name].equals(values, null_equal=True)
            else:
                assert name not in stacked
    groups = alike(streams)
    assert sorted(position for group in groups for position in group) == list(range(len(streams)))
    for group in groups:
        together = decode([streams[position] for position in group])
        assert together.equals(pl.concat([decode([streams[position]]) for position in group]))
        assert together.columns == [column.name for column in COLUMNS[Stream.DEVICE]]


def read_back(data: bytes, kinds: list[str]) -> list[tuple[Any, ...]]:
    """Parse PostgreSQL's binary COPY format, written from its documentation."""
    assert data.startswith(SIGNATURE)
    at, rows = len(SIGNATURE), []
    while data[at : at + 2] != TRAILER:
        (count,) = struct.unpack_from(">h", data, at)
        assert count == len(kinds)
        at += 2
        row: list[Any] = []
        for kind in kinds:
            (length,) = struct.unpack_from(">i", data, at)
            at += 4
            if length < 0:
                row.append(None)
                continue
            assert length == struct.calcsize(kind)
            row.append(struct.unpack_from(kind, data, at)[0])
            at += length
        rows.append(tuple(row))
    assert data[at:] == TRAILER
    return rows


COPY_ROWS = st.lists(
    st.tuples(
        st.none() | st.integers(-(2**15), 2**15 - 1),
        st.none() | st.integers(-(2**31), 2**31 - 1),
        st.none() | st.integers(-(2**63), 2**63 - 1),
        st.none() | st.floats(width=32, allow_nan=False),
        *(st.none() | st.integers(0, 9) for _ in range(4)),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(COPY_ROWS)
def test_copy_bytes_read_back_as_the_rows(given_rows: list[tuple[Any, ...]]) -> None:
    # 2000-01-01 00:00:01 is one second after PostgreSQL's epoch.
    at = pl.Series("at", [946_684_801_000_000] * len(given_rows)).cast(pl.Datetime("us", "UTC"))
    kinds = [pl.Int16, pl.Int32, pl.Int64, pl.Float32, *[pl.Int16] * 4]
    columns = zip(*given_rows, strict=True)
    frame = pl.DataFrame(
        [at, *(pl.Series(f"c{n}", list(v), k) for n, (v, k) in enumerate(zip(columns, kinds, strict=True)))]
    )
    data = b"".join(bytes(piece) for piece in encode(frame))
    found = read_back(data, [">q", ">h", ">i", ">q", ">f", *[">h"] * 4])
    expected = [(1_000_000, *row) for row in given_rows]
    key = repr  # rows that miss the same columns travel together: the order is not the frame's
    assert sorted(found, key=key) == sorted(expected, key=key)
