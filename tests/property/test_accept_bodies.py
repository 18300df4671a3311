"""Whatever happens to the bytes of a body, ingest answers with a refusal or with rows it may keep; it never falls over."""

from __future__ import annotations

import random
import struct

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.wire import COLUMNS, Stream
from ingest.accept import BodyFacts, accept, with_body
from ingest.errors import BadBodyError
from ingest.receivers.arrow_check import Checker
from ingest.receivers.native import Body, Reader, decode
from tests.db.ingest_harness import batch_meta, body_of, device_row, rows

pytestmark = pytest.mark.property
AT = 1_790_000_000_000_000
META = batch_meta(spool="2b1f8c2e-1111-4222-8333-444455556666", created_at_us=AT)
GOOD = body_of(
    META,
    device_row(AT, temp_c=60, sm_active_ratio=0.5),
    device_row(AT, 1),
    node=rows(
        Stream.NODE,
        {"at_us": AT, "meter": "ac", "span_us": 10, "power_mw": 9},
        {"at_us": AT, "meter": "", "span_us": 1},
    ),
)
RAW = zstandard.ZstdDecompressor().decompress(GOOD)


def compressed(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(raw)


def taken(body: bytes) -> Body | None:
    """Read, decode and accept a body as ingest does; None when it is refused."""
    try:
        read = Reader().read(body)
        for entry in read.streams:
            frame = with_body([decode([entry])], [[(0, entry.rows)]])
            assert frame.height == entry.rows
            assert [name for name in frame.columns if name != "body"] == [
                column.name for column in COLUMNS[entry.schema.stream]
            ]
            facts = [BodyFacts(1, tuple(range(1, len(read.meta.devices) + 1)))]
            kept = accept(entry.schema.stream, frame, facts, AT)
            assert kept.rows.height <= entry.rows
            if "device_id" in kept.rows.columns and kept.rows.height:
                assert kept.rows["device_id"].is_between(1, len(read.meta.devices)).all()
    except BadBodyError:
        return None
    return read


def test_the_body_itself_is_taken() -> None:
    read = taken(GOOD)
    assert read is not None
    assert read.meta == META
    assert read.rows == 4


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_byte_changed_on_the_way_is_noticed(position: int, change: int) -> None:
    damaged = bytearray(GOOD)
    damaged[position] ^= change
    read = taken(bytes(damaged))
    # A frame whose header bits change without changing its content is the same body; anything else is refused.
    assert read is None or zstandard.ZstdDecompressor().decompress(bytes(damaged)) == RAW


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(GOOD)))
def test_a_body_cut_short_is_refused(length: int) -> None:
    assert taken(GOOD[:length]) is None or length == len(GOOD)


@settings(max_examples=1_500, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(RAW) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_damage_before_compression_never_falls_over(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(RAW)
    for position, value in changes:
        damaged[position] = value
    taken(compressed(bytes(damaged)))


@settings(max_examples=600, deadline=None)
@given(st.integers(0, len(RAW) // 4 - 1), st.sampled_from([0, 1, -1, 7, 2**31 - 1, -(2**31), 8, 64, 4096, 10**6]))
def test_wild_lengths_and_offsets_never_fall_over(word: int, value: int) -> None:
    damaged = bytearray(RAW)
    struct.pack_into("<i", damaged, 4 * word, value)
    taken(compressed(bytes(damaged)))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(RAW)), st.integers(0, len(RAW)), st.integers(0, 2**32))
def test_pieces_swapped_cut_or_repeated_never_fall_over(first: int, second: int, seed: int) -> None:
    low, high = sorted((first, second))
    pieces = [RAW[:low], RAW[low:high], RAW[high:]]
    generator = random.Random(seed)
    generator.shuffle(pieces)
    taken(compressed(b"".join(pieces[: generator.randrange(1, 4)])))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_refused(data: bytes) -> None:
    assert taken(data) is None
    assert taken(compressed(data)) is None


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(RAW) - 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_what_was_learned_of_a_good_sender_hides_no_damage(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(RAW)
    for position, value in changes:
        damaged[position] = value
    taught = Checker()
    taught.streams(RAW)
    outcomes = []
    for checker in (Checker(), taught):
        try:
            outcomes.append(
                [
                    (entry.schema.stream, entry.schema.columns, entry.rows, entry.meta_json)
                    for entry in checker.streams(bytes(damaged))
                ]
            )
        except BadBodyError:
            outcomes.append([])
    assert outcomes[0] == outcomes[1]
