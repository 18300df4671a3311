"""A block accepted as a whole is what accept keeps row by row, and its COPY bytes are those of the same rows as a frame."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.wire import Stream
from ingest.accept import BODY, BodyFacts, accept, with_body
from ingest.receivers.block import Block
from ingest.receivers.native import Reader, alike, decode
from ingest.store.copy import SIGNATURE, TRAILER, encode
from ingest.store.copy_block import BlockEncoder
from ingest.store.sample_tables import TARGETS
from ingest.whole import Whole, accept_whole
from tests.db.ingest_harness import batch_meta, body_of, device_row

pytestmark = pytest.mark.property
NOW_US = 1_790_000_000_000_000
TARGET = TARGETS[Stream.DEVICE]
# Mostly measurements; now and then one that accept refuses, or repairs to null.
VALUES = st.fixed_dictionaries(
    {
        "temp_c": st.integers(-50, 200),
        "energy_mj": st.integers(-1, 2**63 - 1),
        "gpu_util_percent": st.integers(0, 101),
        "sm_active_ratio": st.sampled_from([0.0, 0.5, 1.0, float("inf"), float("nan")]),
    }
)
GOOD = st.fixed_dictionaries(
    {
        "temp_c": st.integers(-50, 200),
        "energy_mj": st.integers(0, 2**63 - 1),
        "gpu_util_percent": st.integers(0, 100),
        "sm_active_ratio": st.floats(0, 1, width=32),
    }
)
FACTS = st.lists(st.sampled_from([(11, 12, 13), (21, None, 23), (31,)]), min_size=6, max_size=6)
ROWS = st.tuples(st.integers(0, 2), st.sampled_from([NOW_US - 5, NOW_US, NOW_US + 300_000_001]), st.integers(0, 1))


@st.composite
def groups(draw: st.DrawFn) -> tuple[list[list[dict[str, Any]]], list[BodyFacts]]:
    """Return up to six bodies of equally many rows, and what is known of their senders; half the groups are faultless."""
    count, faultless = draw(st.integers(1, 5)), draw(st.booleans())
    bodies = []
    for _ in range(draw(st.integers(1, 6))):
        rows = []
        for _ in range(count):
            device, at_us, reading = draw(ROWS)
            place = {"device": 0, "at_us": NOW_US} if faultless else {"device": device, "at_us": at_us}
            rows.append({**place, "reading": reading, **draw(GOOD if faultless else VALUES)})
        bodies.append(rows)
    known = [(11, 12, 13)] * 6 if faultless else draw(FACTS)
    return bodies, [BodyFacts(100 + number, ids) for number, ids in enumerate(known)]


def streams_of(bodies: list[list[dict[str, Any]]]) -> list[Any]:
    reader = Reader()
    encoded = [
        body_of(batch_meta(), *(device_row(row.pop("at_us"), row.pop("device"), **row) for row in rows))
        for rows in bodies
    ]
    return [reader.read(body).streams[0] for body in encoded]


@settings(max_examples=60, deadline=None)
@given(groups())
def test_a_block_is_accepted_exactly_when_accept_keeps_every_row_as_it_came(
    group: tuple[list[list[dict[str, Any]]], list[BodyFacts]],
) -> None:
    bodies, facts = group
    streams = streams_of(bodies)
    block, order = Block.of(streams), list(range(len(streams)))
    whole = accept_whole(Stream.DEVICE, block, order, facts, NOW_US)
    frame = with_body([decode(streams)], [[(body, streams[body].rows) for body in order]])
    taken = accept(Stream.DEVICE, frame, facts, NOW_US)
    if whole is None:
        # A refused device that no row speaks of is looked at row by row as well, and then nothing is refused.
        assert taken.refusals or any(None in facts[body].device_ids for body in order)
        return
    assert taken.refusals == ()
    assert whole.rows.equals(taken.rows, null_equal=True)
    data = b"".join((SIGNATURE, *map(bytes, BlockEncoder(TARGET.schema).encode(whole)), TRAILER))
    assert data == b"".join(map(bytes, encode(TARGET.rows(taken.rows))))


def test_a_block_of_which_some_rows_lack_a_value_is_looked_at_row_by_row() -> None:
    streams = streams_of([[{"device": 0, "at_us": NOW_US, "temp_c": 60}, {"device": 0, "at_us": NOW_US}]])
    assert not Block.of(streams).is_dense
    assert accept_whole(Stream.DEVICE, Block.of(streams), [0], [BodyFacts(1, (11,))], NOW_US) is None


def test_a_block_larger_than_the_buffer_is_encoded_in_pieces_and_the_buffer_used_again() -> None:
    encoder = BlockEncoder(TARGET.schema)
    for rows, bodies in ((11_000, 1), (3, 2), (2_000, 9), (5, 1)):
        kept = whole_of(rows, bodies)
        data = b"".join((SIGNATURE, *map(bytes, encoder.encode(kept)), TRAILER))
        expected = b"".join(map(bytes, encode(TARGET.rows(kept.rows))))
        assert data == expected, (rows, bodies)


def test_rows_of_a_block_say_which_body_they_came_with() -> None:
    kept = whole_of(2, 3)
    assert kept.rows[BODY].to_list() == [0, 0, 1, 1, 2, 2]
    assert kept.rows["epoch_id"].to_list() == [70, 70, 71, 71, 72, 72]
    assert kept.rows["device_id"].unique().to_list() == [11]
    assert kept.rows["temp_c"].dtype == pl.Int16


def whole_of(rows: int, bodies: int) -> Whole:
    body = [{"device": 0, "at_us": NOW_US - row, "temp_c": row % 90} for row in range(rows)]
    streams = streams_of([[dict(row) for row in body]]) * bodies
    assert len(alike(streams)) == 1
    facts = [BodyFacts(70 + number, (11,)) for number in range(bodies)]
    kept = accept_whole(Stream.DEVICE, Block.of(streams), range(bodies), facts, NOW_US)
    assert kept is not None
    return kept
