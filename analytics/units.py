"""Exact constants between units; it converts nothing that could round and knows no prices.

Names say ``<small>_PER_<large>``. Everything is an integer, so that the ledger path never meets a float (STYLE 11, 12).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

US_PER_SECOND: Final = 1_000_000
US_PER_MINUTE: Final = 60 * US_PER_SECOND
US_PER_HOUR: Final = 3_600 * US_PER_SECOND
NS_PER_US: Final = 1_000
MW_PER_W: Final = 1_000
"""Milliwatts, as in ``power_mw``."""
MJ_PER_J: Final = 1_000
"""Millijoules, as in ``energy_mj``."""
J_PER_KWH: Final = 3_600_000
MJ_PER_KWH: Final = MJ_PER_J * J_PER_KWH
PPM: Final = 1_000_000
"""Parts per million: ``share_ppm`` of a whole device."""
NANO: Final = 10**9
"""Billionths of a currency unit or gram: the places of the ledger, NUMERIC(38, 9)."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_US: Final = timedelta(microseconds=1)


def to_us(instant: datetime) -> int:
    """Return microseconds since the Unix epoch, exactly; a naive datetime is an error."""
    if instant.tzinfo is None:
        raise ValueError(f"instant {instant!r} has no time zone; give an aware datetime")
    return (instant - _EPOCH) // _US


def from_us(instant_us: int) -> datetime:
    """Return the UTC instant of microseconds since the Unix epoch."""
    return _EPOCH + instant_us * _US
