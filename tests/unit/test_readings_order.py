"""In which order readings reach the model: by device and time, whatever the order in which they were stored."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest

from analytics.frames import DeviceReadings
from analytics.io.readings import _in_order

AT = datetime(2026, 11, 19, 8, tzinfo=UTC)


def readings(*rows: tuple[int, int, int]) -> pl.DataFrame:
    """(device, second, millijoules), of one epoch."""
    named = pl.DataFrame(rows, schema=["device_id", "second", "energy_mj"], orient="row").with_columns(
        (pl.lit(AT) + pl.duration(seconds="second")).alias("at"), pl.lit(1).alias("epoch_id")
    )
    schema = DeviceReadings.create_empty().schema
    return named.select(
        (pl.col(name) if name in named.columns else pl.lit(None)).cast(kind).alias(name)
        for name, kind in schema.items()
    )


def told(rows: pl.DataFrame) -> list[tuple[int, int, int]]:
    return rows.select("device_id", (pl.col("at") - AT).dt.total_seconds(), "energy_mj").rows()


def test_hours_that_are_sorted_each_are_merged() -> None:
    stored = readings((1, 0, 10), (1, 10, 11), (2, 0, 20), (2, 10, 21), (1, 20, 12), (2, 20, 22))
    assert told(_in_order(stored)) == [(1, 0, 10), (1, 10, 11), (1, 20, 12), (2, 0, 20), (2, 10, 21), (2, 20, 22)]


def test_rows_of_one_instant_come_in_the_order_of_their_values() -> None:
    one, other = readings((1, 0, 7), (1, 0, 3), (1, 5, 9)), readings((1, 5, 9), (1, 0, 3), (1, 0, 7))
    assert told(_in_order(one)) == told(_in_order(other)) == [(1, 0, 3), (1, 0, 7), (1, 5, 9)]


@pytest.mark.parametrize("device", [2**31 - 1, 1])
def test_any_device_id_is_sorted_over_any_span(device: int) -> None:
    # 4.6e18 / 2**31: beyond 2,147 s the key of the highest id would not fit 64 bits.
    stored = readings((device, 9_000, 5), (device, 0, 4), (0, 0, 1))
    assert told(_in_order(stored)) == [(0, 0, 1), (device, 0, 4), (device, 9_000, 5)]


def test_nothing_stays_nothing() -> None:
    assert _in_order(readings((1, 0, 1)).clear()).is_empty()


def test_runs_of_one_device_that_overlap_are_sorted_row_by_row() -> None:
    one_feed, other = ((1, 0, 1), (1, 10, 2), (1, 20, 3), (2, 0, 8)), ((1, 5, 4), (1, 15, 5), (2, 5, 9))
    expected = [(1, 0, 1), (1, 5, 4), (1, 10, 2), (1, 15, 5), (1, 20, 3), (2, 0, 8), (2, 5, 9)]
    assert told(_in_order(readings(*one_feed, *other))) == told(_in_order(readings(*other, *one_feed))) == expected


def test_a_run_that_begins_when_another_ends_has_that_instant_in_the_order_of_values() -> None:
    assert told(_in_order(readings((1, 0, 7), (1, 10, 9), (1, 10, 3), (1, 20, 1)))) == [
        (1, 0, 7),
        (1, 10, 3),
        (1, 10, 9),
        (1, 20, 1),
    ]
