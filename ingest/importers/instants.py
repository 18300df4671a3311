"""Reads instants: numbers since the Unix epoch in a stated unit, or ISO text with a zone or in a stated one.

Refuses to guess: a bare number without a unit, a local time without a zone, and a local time that a clock change makes
happen twice or never. Instants are whole microseconds; finer digits (100 ns in some exports) are cut, not rounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ingest.importers.errors import OptionError, RowError, UnitError

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ONE_US: Final = timedelta(microseconds=1)
US_PER_TIME_UNIT: Final = {
    "s": Decimal(1_000_000),
    "ms": Decimal(1_000),
    "us": Decimal(1),
    "ns": Decimal("0.001"),
}
FIRST_US: Final = 946_684_800_000_000
"""2000-01-01. Together with LAST_US it catches a wrong unit: seconds read as milliseconds are 1970, the reverse is 55000."""
LAST_US: Final = 4_102_444_800_000_000
"""2100-01-01."""
_NUMBER = re.compile(r"[+-]?\d{1,20}(\.\d{0,12})?")
# What datetime.fromisoformat also takes, week dates and bare digits, is never meant in a log.
_ISO = re.compile(
    r"(\d{4})[-/](\d{2})[-/](\d{2})(?:[T ](\d{2}:\d{2}(?::\d{2}(?:[.,]\d{1,12})?)?)\s?(Z|[+-]\d{2}:?\d{2})?)?"
)


def zone(name: str) -> tzinfo:
    """Return the IANA zone; raise :class:`OptionError` for an unknown name."""
    if name.upper() in {"UTC", "Z"}:
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise OptionError(f"--tz {name!r} is not an IANA time zone; write e.g. Europe/Berlin or UTC") from error


def numeric_reader(unit: str, relative_to_us: int) -> Callable[[str], int]:
    """Return a reader of numbers of ``unit`` after ``relative_to_us`` (0: the Unix epoch)."""
    factor = US_PER_TIME_UNIT[unit]
    whole = int(factor) if factor >= 1 else 0

    def read(cell: str) -> int:
        if whole and cell.isdecimal() and len(cell) <= 18:
            return bounded(int(cell) * whole + relative_to_us, cell)
        if not _NUMBER.fullmatch(cell):
            raise RowError("not an instant", f"{cell!r} is not a number of {unit}")
        return bounded(int(Decimal(cell) * factor // 1) + relative_to_us, cell)

    return read


def iso_reader(column: str, tz: tzinfo | None) -> Callable[[str], int]:
    """Return a reader of ISO texts; ``tz`` is for those without a zone of their own."""

    def read(cell: str) -> int:
        match = _ISO.fullmatch(cell)
        if match is None:
            if _NUMBER.fullmatch(cell):
                raise UnitError(
                    f"column {column!r} holds bare numbers ({cell!r}); say what they count: --unit {column}=s, ms, us or ns"
                )
            raise RowError("not an instant", repr(cell))
        year, month, day, time, offset = match.groups()
        text = f"{year}-{month}-{day}T{(time or '00:00').replace(',', '.')}{offset or ''}"
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as error:
            raise RowError("not an instant", f"{cell!r}: {error}") from None
        if moment.tzinfo is None:
            moment = _localized(moment, tz, column, cell)
        return bounded((moment - EPOCH) // _ONE_US, cell)

    return read


def bounded(at_us: int, cell: str) -> int:
    if not FIRST_US <= at_us < LAST_US:
        raise RowError("instant out of range", f"{cell!r} is not between the years 2000 and 2100; is its unit right?")
    return at_us


def _localized(moment: datetime, tz: tzinfo | None, column: str, cell: str) -> datetime:
    if tz is None:
        raise OptionError(f"column {column!r} has times without a zone ({cell!r}); say which with --tz, e.g. --tz UTC")
    first = moment.replace(tzinfo=tz)
    if tz is UTC or first.utcoffset() == first.replace(fold=1).utcoffset():
        return first
    there_and_back = first.astimezone(UTC).astimezone(tz).replace(tzinfo=None)
    what = "happens twice" if there_and_back == moment else "does not exist"
    raise RowError("ambiguous local time", f"{cell} {what} in {tz}; export with an offset")
