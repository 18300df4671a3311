"""Which days of a table have a place, remembered; the others are made over a connection that nobody else waits for.

Making a day takes longer the more days there are, and stops those who write to the table meanwhile: it must not hold up
those who only look names up. How many days there may be is decided by who calls.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from datetime import date, timedelta
from typing import Final

import sqlalchemy as sa

from ingest.store import partitions

_FIRST_DAY: Final = date(1970, 1, 1)


class Days:
    """For several threads; one of them makes what is missing."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._there: set[tuple[str, int]] = set()

    def ensure(self, table: str, days: Iterable[int]) -> None:
        """Make the partitions for these days (since the Unix epoch) where they are missing."""
        if not self._missing(table, days):
            return
        with self._lock:
            missing = self._missing(table, days)  # another thread may have been quicker
            if not missing:
                return
            with self._engine.begin() as conn:
                partitions.ensure_days(conn, table, [_FIRST_DAY + timedelta(days=day) for day in missing])
            self._there |= {(table, day) for day in missing}

    def forget(self) -> None:
        """Ask again which there are: one was dropped meanwhile."""
        self._there.clear()

    def _missing(self, table: str, days: Iterable[int]) -> set[int]:
        return {day for day in days if (table, day) not in self._there}
