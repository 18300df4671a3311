"""Billing months: the span of a month in the deployment's billing zone, in full UTC hours. No clock, no database."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from analytics.errors import CloseError

_NAME: Final = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")
_HOUR: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Month:
    """A calendar month ``name`` (2026-10) from local midnight to local midnight, as UTC instants; half-open."""

    name: str
    from_at: datetime
    to_at: datetime


def month(name: str, zone: str = "UTC") -> Month:
    """Return a month of a billing zone.

    Raises CloseError for what is no month, an unknown zone, or one whose month begins inside an hour: an hour is the grain of the books.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise CloseError(f"{name!r} is no month; write it like 2026-10")
    try:
        local = ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError):
        raise CloseError(
            f"WATTLEDGER_BILLING_ZONE={zone}: there is no such time zone; write it like Europe/Berlin"
        ) from None
    first = date(int(found[1]), int(found[2]), 1)
    following = (first + timedelta(days=31)).replace(day=1)
    from_at, to_at = (
        datetime(day.year, day.month, day.day, tzinfo=local).astimezone(UTC) for day in (first, following)
    )
    for at in (from_at, to_at):
        if at - datetime.min.replace(tzinfo=UTC) != (at - datetime.min.replace(tzinfo=UTC)) // _HOUR * _HOUR:
            raise CloseError(
                f"WATTLEDGER_BILLING_ZONE={zone}: its month {name} begins or ends inside an hour ({at:%H:%M} UTC), and books are kept by "
                "full UTC hours; name a zone that is whole hours off UTC"
            )
    return Month(name, from_at, to_at)
