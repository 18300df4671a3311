"""Budget periods: which half-open span of UTC time the period around an instant is, in a time zone of the policy."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo


class Period(StrEnum):
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    QUARTER = "quarter"
    YEAR = "year"


def bounds(period: Period, time_zone: str, now: datetime) -> tuple[datetime, datetime]:
    """Return [start, end) in UTC of the period that holds ``now``; it begins at local midnight, a week on Monday.

    A ledger hour belongs to the period its start lies in, so that in zones off by half an hour no hour is counted twice.
    """
    if now.tzinfo is None:
        raise ValueError(f"{now!r} has no time zone; pass an aware datetime")
    zone = ZoneInfo(time_zone)
    first = _first_day(period, now.astimezone(zone).date())
    return _midnight(first, zone), _midnight(_next_first_day(period, first), zone)


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)


def _first_day(period: Period, day: date) -> date:
    match period:
        case Period.DAY:
            return day
        case Period.WEEK:
            return day - timedelta(days=day.weekday())
        case Period.MONTH:
            return day.replace(day=1)
        case Period.QUARTER:
            return day.replace(month=3 * ((day.month - 1) // 3) + 1, day=1)
        case Period.YEAR:
            return day.replace(month=1, day=1)


def _next_first_day(period: Period, first: date) -> date:
    match period:
        case Period.DAY:
            return first + timedelta(days=1)
        case Period.WEEK:
            return first + timedelta(days=7)
        case Period.MONTH:
            return _first_day(period, first + timedelta(days=31))
        case Period.QUARTER:
            return _first_day(period, first + timedelta(days=93))
        case Period.YEAR:
            return first.replace(year=first.year + 1)
