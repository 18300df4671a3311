"""Billing months: local midnights as full UTC hours."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from analytics.errors import CloseError
from analytics.model.month import month

pytestmark = pytest.mark.unit


def utc(year: int, month_: int, day: int, hour: int = 0) -> datetime:
    return datetime(year, month_, day, hour, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "zone", "from_at", "to_at"),
    [
        ("2026-10", "UTC", utc(2026, 10, 1), utc(2026, 11, 1)),
        ("2026-12", "UTC", utc(2026, 12, 1), utc(2027, 1, 1)),
        # Winter time begins on 25 October: the month has an hour more.
        ("2026-10", "Europe/Berlin", utc(2026, 9, 30, 22), utc(2026, 10, 31, 23)),
        ("2026-02", "America/Los_Angeles", utc(2026, 2, 1, 8), utc(2026, 3, 1, 8)),
    ],
)
def test_a_month_goes_from_local_midnight_to_local_midnight(
    name: str, zone: str, from_at: datetime, to_at: datetime
) -> None:
    found = month(name, zone)
    assert (found.name, found.from_at, found.to_at) == (name, from_at, to_at)


@pytest.mark.parametrize("name", ["2026-13", "2026-0", "26-10", "2026-10-01", "", "2026-00"])
def test_what_is_no_month_is_refused(name: str) -> None:
    with pytest.raises(CloseError, match="is no month; write it like 2026-10"):
        month(name)


@pytest.mark.parametrize(
    ("zone", "says"),
    [("Asia/Kolkata", "inside an hour"), ("Nowhere", "no such time zone"), ("../etc", "no such time zone")],
)
def test_a_zone_that_cuts_hours_or_is_none_is_refused(zone: str, says: str) -> None:
    with pytest.raises(CloseError, match=says):
        month("2026-10", zone)
