"""Looks at shared boards are read for several boards together, and each board's are given to whoever asks for that board."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import polars as pl
import pytest

from analytics.frames import Devices
from analytics.inputs import Window
from analytics.io import shares
from analytics.io.shares import Looks
from collector.wire import Stream
from ingest.store.sample_tables import TARGETS
from ingest.store.samples import SampleSession

AT = datetime(2026, 11, 19, 8, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Told:
    """A session that has one look at each board, of nobody's processes, and notes which boards it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def rows(
        self, stream: Stream, columns: Sequence[str], *_: datetime, keys: Collection[int], **__: Any
    ) -> pl.LazyFrame:
        kinds = {name: TARGETS[stream].schema[name] for name in ("device_id", "at", "epoch_id", *columns)}
        self.asked.append(sorted(keys))
        told = [{"device_id": key, "at": AT, "epoch_id": 1, "span_us": 5, "sm_util_percent": key} for key in keys]
        return pl.DataFrame(
            [{name: row.get(name, "seen" if name == "method" else None) for name in kinds} for row in told],
            schema=kinds,
        ).lazy()


def of(session: Told, boards: Collection[int]) -> Looks:
    return Looks(
        cast("SampleSession", session), 1, Window(AT, AT + 2 * HOUR, AT + 2 * HOUR), boards, Devices.create_empty(), ()
    )


def told(looks: Looks, *devices: int) -> list[tuple[int, int]]:
    seen, activity = looks.of(pl.Series(devices))
    assert activity.is_empty()
    return seen.select("device_id", "sm_util_ppm").rows()


def test_looks_at_boards_that_follow_are_read_with_those_that_are_asked_for() -> None:
    session = Told()
    looks = of(session, [2, 3, 5, 9])
    assert told(looks, 1, 2, 3, 4) == [(2, 20_000), (3, 30_000)]
    assert told(looks, 5, 6) == [(5, 50_000)]
    assert told(looks, 7, 8) == []
    assert told(looks, 9) == [(9, 90_000)]
    assert session.asked == [[2, 3, 5, 9]]


def test_no_more_boards_are_read_ahead_than_may_be_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four board-hours: two boards of a window of two hours, or as many as are asked for."""
    monkeypatch.setattr(shares, "_BOARD_HOURS_AHEAD", 4)
    session = Told()
    looks = of(session, [1, 2, 3, 4, 5, 6])
    assert told(looks, 1) == [(1, 10_000)]
    assert told(looks, 2, 3, 4) == [(2, 20_000), (3, 30_000), (4, 40_000)]
    assert told(looks, 5, 6) == [(5, 50_000), (6, 60_000)]
    assert session.asked == [[1, 2], [3, 4], [5, 6]]
