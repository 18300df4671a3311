"""What sealed hours leave of an interval to be read from the hot tables."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ingest.store.catalog import HOUR, SealedHour, open_spans

pytestmark = pytest.mark.unit
EIGHT = datetime(2026, 11, 1, 8, tzinfo=UTC)


def spans(sealed: list[int], from_minutes: int, to_minutes: int) -> list[tuple[int, int]]:
    """Open spans in minutes after eight; ``sealed`` are hours after eight."""
    hours = [SealedHour(1, EIGHT + number * HOUR, 1, None, frozenset()) for number in sealed]
    minute = timedelta(minutes=1)
    found = open_spans(hours, EIGHT + from_minutes * minute, EIGHT + to_minutes * minute)
    return [((start - EIGHT) // minute, (end - EIGHT) // minute) for start, end in found]


@pytest.mark.parametrize(
    ("sealed", "asked", "left"),
    [
        ([], (0, 120), [(0, 120)]),
        ([0, 1], (0, 120), []),
        ([0, 1], (30, 90), []),
        ([0], (30, 90), [(60, 90)]),
        ([1], (30, 200), [(30, 60), (120, 200)]),
        ([1], (30, 90), [(30, 60)]),
        ([2, 0], (0, 240), [(60, 120), (180, 240)]),
    ],
)
def test_what_is_not_sealed_is_read_hot(sealed: list[int], asked: tuple[int, int], left: list[tuple[int, int]]) -> None:
    assert spans(sealed, *asked) == left
