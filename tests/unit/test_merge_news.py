"""Which late rows say something that a sealed hour does not hold already."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from collector.wire import Stream
from ingest.store.merge import news

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
