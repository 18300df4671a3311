"""Silences over edges of hours, found among readings: all that an hour knows beyond the margin after it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl

from analytics.frames import DeviceReadings, Epochs
from analytics.inputs import Window
from analytics.io.crossings import Crossing, crossings
from analytics.policy import Policy
from analytics.units import US_PER_MINUTE, to_us

NINE = datetime(2026, 11, 1, 9, tzinfo=UTC)
HOUR = timedelta(hours=1)
NOBODY_ELSE = pl.DataFrame(schema={"device_id": pl.Int32, "feed": pl.Int16, "origin": pl.Int16})


def readings(*minutes: float, device: int = 1, epoch: int = 1, power_mw: int | None = 100) -> pl.DataFrame:
    """Readings so many minutes after nine."""
    kinds = DeviceReadings.create_empty().schema
    rows = [
        {"device_id": device, "at": NINE + timedelta(minutes=minute), "epoch_id": epoch, "power_mw": power_mw}
        for minute in minutes
    ]
    return pl.DataFrame([{name: row.get(name) for name in kinds} for row in rows], schema=kinds)


def found(
    rows: pl.DataFrame, *, hours: int = 1, told: pl.DataFrame = NOBODY_ELSE
) -> list[tuple[int, int | None, float, float]]:
    """Device, feed, and minutes after nine of both ends, of windows that begin at nine."""
    epochs = pl.DataFrame(
        {"epoch_id": [1, 2], "feed": [1, 2], "origin": [1, 1]},
        schema={"epoch_id": pl.Int32, "feed": pl.Int16, "origin": pl.Int16},
    )
    kinds = Epochs.create_empty().schema
    epochs = epochs.with_columns(
        pl.lit(None, dtype=kind).alias(name) for name, kind in kinds.items() if name not in epochs.columns
    )
    seen = crossings(rows, epochs, told, Window(NINE, NINE + hours * HOUR, NINE), Policy())
    nine_us = to_us(NINE)
    return [
        (each.device_id, each.feed, (each.from_us - nine_us) / US_PER_MINUTE, (each.to_us - nine_us) / US_PER_MINUTE)
        for each in seen
    ]


def test_a_silence_over_an_edge_counts_from_the_margin_after_it_on() -> None:
    assert found(readings(-5, 9.9)) == []
    assert found(readings(-5, 10)) == [(1, None, -5, 10)]
    assert found(readings(0, 30)) == []  # nine itself was heard


def test_both_edges_of_the_window_and_those_between_hours_that_are_read_together_are_looked_at() -> None:
    assert found(readings(-5, 50, 65, 80)) == [(1, None, -5, 50)]
    assert found(readings(50, 75)) == [(1, None, 50, 75)]
    assert found(readings(50, 75), hours=2) == [(1, None, 50, 75)]
    assert found(readings(110, 135)) == []  # of the hour after


def test_readings_without_a_value_end_no_silence_and_none_is_longer_than_the_reach() -> None:
    rows = pl.concat([readings(-5), readings(2, power_mw=None), readings(20)])
    assert found(rows) == [(1, None, -5, 20)]
    assert found(readings(-5, 48 * 60)) == []


def test_devices_are_apart_and_so_are_feeds_of_one_that_several_tell_of() -> None:
    both = pl.concat([readings(-5, 20), readings(-5, 0, 5, 20, epoch=2)]).sort("device_id", "at")
    assert found(pl.concat([readings(-5), readings(20, device=2)])) == []
    assert found(both) == []
    told = pl.DataFrame({"device_id": [1, 1], "feed": [1, 2], "origin": [1, 1]}, schema=NOBODY_ELSE.schema)
    assert found(both, told=told) == [(1, 1, -5, 20)]


def test_an_edge_lies_in_a_silence_with_the_margin_after_it() -> None:
    nine_us = to_us(NINE)
    silence = Crossing(1, None, None, nine_us - 1, nine_us + 20 * US_PER_MINUTE, nine_us + 10 * US_PER_MINUTE, None, 1)
    assert silence.is_over(nine_us)
    assert not silence.is_over(nine_us - 1)
    assert not silence.is_over(nine_us + 60 * US_PER_MINUTE)
