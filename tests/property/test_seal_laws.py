"""Laws of merging: parts of a row in any order, cut and repetition make the same row; late rows come in where they belong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from collector.wire import Stream
from ingest.store.merge import LateMerge, merge_parts, order, whole_rows

pytestmark = pytest.mark.property
BASE = datetime(2026, 11, 1, tzinfo=UTC)
PARTS, NATIVE = 3, 1
SCHEMA: dict[str, Any] = {
    "device_id": pl.Int32,
    "at": pl.Datetime("us", "UTC"),
    "epoch_id": pl.Int32,
    "energy_mj": pl.Int64,
    "temp_c": pl.Int16,
}
value = st.none() | st.integers(0, 9)
row = st.tuples(st.integers(1, 3), st.integers(0, 3), st.sampled_from([NATIVE, PARTS]), value, value)
BY = list(order(Stream.DEVICE))


def frame(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    placed = [(device, BASE + timedelta(seconds=second), *rest) for device, second, *rest in rows]
    return pl.DataFrame(placed, schema=SCHEMA, orient="row")


def by_hand(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    """Rows of the native feed as they are; of parts the largest value of each column."""
    whole: dict[tuple[int, int], list[Any]] = {}
    kept = []
    for device, second, epoch, *values in rows:
        if epoch == NATIVE:
            kept.append((device, second, epoch, *values))
            continue
        known = whole.setdefault((device, second), [None, None])
        for index, found in enumerate(values):
            if found is not None and (known[index] is None or found > known[index]):
                known[index] = found
    kept += [(device, second, PARTS, *values) for (device, second), values in whole.items()]
    return ordered(frame(kept))


def ordered(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.sort(*BY, "energy_mj", "temp_c", nulls_last=True)


def once(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows equal in every column are one."""
    return ordered(rows.unique())


@given(st.lists(row, max_size=30), st.randoms(use_true_random=False))
def test_parts_make_one_row_in_any_order_and_however_often_they_are_sent(rows: list[Any], random: Any) -> None:
    sent = rows + [each for each in rows if each[2] == PARTS and random.random() < 0.5]
    random.shuffle(sent)
    found = merge_parts(Stream.DEVICE, frame(sent).lazy(), {PARTS}).collect()
    assert_frame_equal(ordered(found), by_hand(rows))
    again = merge_parts(Stream.DEVICE, found.lazy(), {PARTS}).collect()
    assert_frame_equal(ordered(again), ordered(found))


@given(st.lists(row, max_size=30), st.lists(st.integers(0, 30), max_size=5))
def test_parts_are_made_whole_across_the_cuts_between_frames(rows: list[Any], cuts: list[int]) -> None:
    sent = frame(rows).sort(BY)
    found = list(whole_rows(Stream.DEVICE, _cut(sent, cuts), {PARTS}))
    joined = pl.concat([frame([]), *found])
    assert_frame_equal(ordered(joined), once(by_hand(rows)))
    assert_frame_equal(joined.select(BY), joined.select(BY).sort(BY))


cut = st.lists(st.integers(0, 30), max_size=5)


@given(st.lists(row, max_size=30), st.lists(row, max_size=30), cut, cut)
def test_late_rows_come_in_where_they_belong(
    rows: list[Any], late: list[Any], cuts: list[int], late_cuts: list[int]
) -> None:
    merging = LateMerge(Stream.DEVICE, set())
    found = list(merging.frames(_cut(frame(rows).sort(BY), cuts), _cut(frame(late).sort(BY), late_cuts)))
    if not late:
        assert (found, merging.new_rows) == ([], 0)
        return
    joined = pl.concat([frame([]), *found])
    assert_frame_equal(joined.select(BY), joined.select(BY).sort(BY))
    # A late row that is there already stays away; one that is late twice is told of twice, and made one when it is written.
    news = [each for each in late if each not in rows]
    assert_frame_equal(ordered(joined), ordered(frame(rows + news)))
    assert merging.new_rows == len(news)


@given(st.lists(st.tuples(st.lists(row, max_size=12), st.booleans()), max_size=6))
def test_whatever_is_merged_in_which_generation_the_rows_read_are_the_same(
    batches: list[tuple[list[Any], bool]],
) -> None:
    """Batches come late; after some of them the hour's next generation is made. Readers see segment and late rows together."""
    segment, waiting = frame([]), frame([])
    arrived: list[Any] = []
    for batch, merged in batches:
        arrived += batch
        waiting = pl.concat([waiting, frame(batch)])
        if merged:
            merging = LateMerge(Stream.DEVICE, {PARTS})
            both = merging.frames(_cut(segment, [3, 5]), _cut(waiting.sort(BY), [2, 4]))
            made = pl.concat([frame([]), *whole_rows(Stream.DEVICE, both, {PARTS})])
            segment, waiting = made if merging.new_rows else segment, frame([])
        read = merge_parts(Stream.DEVICE, pl.concat([segment, waiting]).lazy(), {PARTS}).collect()
        assert_frame_equal(once(read), once(by_hand(arrived)))  # repeats are there until their rows are merged


def _cut(rows: pl.DataFrame, cuts: list[int]) -> list[pl.DataFrame]:
    edges = sorted({0, rows.height, *(min(cut, rows.height) for cut in cuts)})
    return [rows.slice(start, end - start) for start, end in pairwise(edges)]
