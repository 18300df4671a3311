"""Which columns lines were given after lines had been hashed and chained; a line that says nothing in them is the line it was.

It refuses to say what the columns mean: that is the frame's (``LedgerLines``).
"""

from __future__ import annotations

from typing import Final

import polars as pl

LATER_AMOUNTS: Final = (
    "carbon_market_gco2e",
    "carbon_marginal_gco2e",
    "embodied_gco2e",
    "water_ml",
    "list_cost",
)
"""Those that add up."""
LATER_WORDS: Final = ("ghg_scope", "basis", "terms")
LATER_IDS: Final = ("intensity_id", "market_factor_id", "charge_id", "fx_rate_id")
LATER_SOURCES: Final = (*LATER_IDS, "source_currency", "source_cost")
"""Of lines alone: a correction is of no single price, charge or rate."""
LATER: Final = (*LATER_AMOUNTS, *LATER_WORDS, *LATER_SOURCES)
"""All of them, in the order in which they are chained."""
_OF_LINES: Final = "line_key"
"""Frames of lines have it, and no other frame."""


def said(rows: pl.DataFrame) -> pl.DataFrame:
    """Return lines without the later columns in which none of them says anything; other frames as they are."""
    if _OF_LINES not in rows.columns:
        return rows
    return rows.drop([name for name in LATER if name in rows.columns and rows[name].null_count() == rows.height])


def chain_version(lines: pl.DataFrame) -> int:
    """Return how the lines of an hour are chained: 1 where none says anything in a later column, else 2."""
    return 2 if any(name in LATER for name in said(lines).columns) else 1
