"""Picks the row of a dated table that is in force at an instant; it reads one date pair, ``as_of`` was applied at load."""

from __future__ import annotations

from bisect import bisect_right
from datetime import datetime
from typing import Any

import polars as pl


class Dated:
    """The rows of one dated table, ready to be asked for many instants: a filter per question costs a millisecond."""

    def __init__(self, facts: pl.DataFrame, key: str) -> None:
        """Take rows with valid_from and valid_to (null = open end); ``key`` decides between two that began together."""
        self._rows: list[dict[str, Any]] = facts.sort("valid_from", key).to_dicts()
        self._starts: list[datetime] = [row["valid_from"] for row in self._rows]

    def at(self, instant: datetime) -> dict[str, Any] | None:
        """Return the one row with valid_from <= instant < valid_to, or None.

        Of several, the one that began last, then the highest key.
        """
        begun = reversed(self._rows[: bisect_right(self._starts, instant)])
        return next((row for row in begun if row["valid_to"] is None or row["valid_to"] > instant), None)
