"""Says what a frozen hour would come to by now, line by line, as differences to what was posted before. Exact, and without any I/O.

A line is followed by who, what and which charge, not by its price: a corrected price is one difference and not two lines. It refuses to say
where the difference is counted.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from analytics.frames import SOURCES
from analytics.model.later import LATER_AMOUNTS, LATER_WORDS
from analytics.model.methods import least_exact

WHO: Final = (
    "tenant_id",
    "job_id",
    "api_key",
    "pool",
    "device_model",
    "charge_category",
    "holder_key",
    "quantity_unit",
    "currency",
)
AMOUNTS: Final = (
    "quantity",
    "energy_mj",
    "energy_low_mj",
    "energy_high_mj",
    "facility_mj",
    "carbon_gco2e",
    "billed_cost",
    "effective_cost",
    *LATER_AMOUNTS,
)
_TOLD: Final = ("facility_category", "method", *LATER_WORDS)


def differences(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Return after - before by line, only where some amount differs, sorted by who: WHO, AMOUNTS, source, coverage, origin and what is told.

    Both have the columns of LedgerLines. A null amount counts nothing; null in both stays null. What is said beside the amounts is the newer
    line's; of two sources and origins the less certain one.
    """
    old, new = _gathered(before), _gathered(after)
    both = new.join(old, on=list(WHO), how="full", nulls_equal=True, coalesce=True, suffix="_before")
    moved = both.with_columns(
        *(_less(name) for name in AMOUNTS),
        *(pl.coalesce(name, f"{name}_before") for name in (*_TOLD, "coverage")),
        *(pl.max_horizontal(name, f"{name}_before") for name in ("doubt", "origin")),
    )
    differs = pl.any_horizontal((pl.col(name).is_not_null() & (pl.col(name) != 0)) for name in AMOUNTS)
    worded = pl.col("doubt").replace_strict(dict(enumerate(SOURCES)), return_dtype=pl.String).alias("source")
    return (
        moved.filter(differs)
        .with_columns(worded)
        .select(*WHO, *AMOUNTS, *_TOLD, "source", "coverage", "origin")
        .sort(*WHO, nulls_last=True)
    )


def _gathered(lines: pl.DataFrame) -> pl.DataFrame:
    doubt = pl.col("source").replace_strict({word: n for n, word in enumerate(SOURCES)}, return_dtype=pl.Int64)
    return lines.group_by(*WHO).agg(
        *(pl.when(pl.col(name).is_not_null().any()).then(pl.col(name).sum()).alias(name) for name in AMOUNTS),
        pl.col("facility_category").min(),
        least_exact(pl.col("method")).alias("method"),
        *(pl.col(name).min() for name in LATER_WORDS),
        pl.col("coverage").min(),
        doubt.max().alias("doubt"),
        pl.col("origin").max(),
    )


def _less(name: str) -> pl.Expr:
    new, old = pl.col(name), pl.col(f"{name}_before")
    return pl.when(new.is_not_null() | old.is_not_null()).then(new.fill_null(0) - old.fill_null(0)).alias(name)
