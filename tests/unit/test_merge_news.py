"""Which late rows say something that a sealed hour does not hold already."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from collector.wire import Stream
from ingest.store.merge import LateMerge, news

pytestmark = pytest.mark.unit
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
IN_PARTS, WHOLE = 7, 8
SCHEMA: dict[str, pl.DataType] = {
    "device_id": pl.Int32(),
    "at": pl.Datetime("us", "UTC"),
    "epoch_id": pl.Int32(),
    "energy_mj": pl.Int64(),
    "temp_c": pl.Int32(),
}


def rows(*values: tuple[int, int, int | None, int | None]) -> pl.DataFrame:
    """Rows of device 1: (second, epoch, energy, temperature)."""
    return pl.DataFrame([(1, NOON + timedelta(seconds=s), *rest) for s, *rest in values], SCHEMA, orient="row")


def told(sealed: pl.DataFrame, late: pl.DataFrame) -> list[tuple[int, int | None, int | None]]:
    found = news(Stream.DEVICE, [sealed.head(1), sealed.tail(-1)], late, [IN_PARTS])
    assert found.columns == late.columns
    return found.select("epoch_id", "energy_mj", "temp_c").rows()


def test_a_repeat_says_nothing_new_and_another_reading_of_its_instant_does() -> None:
    sealed = rows((0, WHOLE, 9, None), (10, WHOLE, 10, 40))
    assert told(sealed, rows((0, WHOLE, 9, None), (10, WHOLE, 10, 40))) == []
    assert told(sealed, rows((0, WHOLE, 8, None), (10, WHOLE, 10, None), (20, WHOLE, 10, 40))) == [
        (WHOLE, 8, None),
        (WHOLE, 10, None),
        (WHOLE, 10, 40),
    ]


def test_a_part_that_is_in_the_row_already_says_nothing_new() -> None:
    sealed = rows((0, IN_PARTS, 9, 40), (10, IN_PARTS, 10, None))
    assert told(sealed, rows((0, IN_PARTS, None, 40), (0, IN_PARTS, 9, None), (10, IN_PARTS, None, None))) == []
    assert told(sealed, rows((0, IN_PARTS, 10, None), (10, IN_PARTS, None, 41))) == [
        (IN_PARTS, 10, None),
        (IN_PARTS, None, 41),
    ]


def test_an_hour_is_merged_with_some_frames_of_each_side_in_hand() -> None:
    """Two hundred frames of fifty rows on each side, every second instant told late: at most six are ahead of what came out."""
    taken = {"sealed": 0, "late": 0}

    def side(name: str, first_s: int) -> Iterator[pl.DataFrame]:
        for start in range(0, 200 * 100, 100):
            taken[name] += 50
            yield rows(*((start + second, WHOLE, 1, None) for second in range(first_s, 100, 2)))

    merging, made = LateMerge(Stream.DEVICE, [IN_PARTS]), 0
    for frame in merging.frames(side("sealed", 0), side("late", 1)):
        made += frame.height
        assert taken["sealed"] + taken["late"] - made <= 6 * 50
    assert (made, merging.new_rows) == (20_000, 10_000)


def test_late_rows_of_one_instant_may_be_more_than_a_frame() -> None:
    same = [rows(*((0, WHOLE, number, None) for number in range(start, start + 3))) for start in (0, 3, 6)]
    merging = LateMerge(Stream.DEVICE, [IN_PARTS])
    made = pl.concat(merging.frames([rows((0, WHOLE, 4, None))], same))
    assert sorted(made["energy_mj"]) == list(range(9))
    assert merging.new_rows == 8


def test_of_a_sealed_hour_nothing_is_read_where_nothing_is_late() -> None:
    asked = []

    def sealed() -> Iterator[pl.DataFrame]:
        asked.append(True)
        yield rows((0, WHOLE, 1, None))

    assert list(LateMerge(Stream.DEVICE, []).frames(sealed(), [])) == []
    assert asked == []
