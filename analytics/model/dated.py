"""Picks the row of a dated table that is in force at an instant; it reads one date pair, ``as_of`` was applied at load."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import polars as pl


def in_force(facts: pl.DataFrame, at: datetime) -> pl.DataFrame:
    """Return the rows with valid_from <= at < valid_to; an open end is null."""
    return facts.filter(
        (pl.col("valid_from") <= at) & (pl.col("valid_to").is_null() | (pl.col("valid_to") > at)),
    )


def fact_at(facts: pl.DataFrame, at: datetime, key: str) -> dict[str, Any] | None:
    """Return the one row in force at ``at``, or None. Of several, the one that began last, then the highest ``key``."""
    rows = in_force(facts, at).sort("valid_from", key)
    return rows.row(-1, named=True) if rows.height else None
