"""Exact money: one rounding per group, half-even to nine places, spread over its lines by largest remainder.

Integers throughout: totals are computed as Python fractions (there are few groups), the spread over many lines runs in
polars on 128-bit integers, in which the product of any two 64-bit integers is exact. It knows no prices and no categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

import polars as pl

from analytics.errors import AmountError, BooksError
from analytics.frames import MONEY
from analytics.units import NANO

Factor = Decimal | Fraction
Rates = dict[tuple[object, ...], tuple[Sequence[Factor], int]]
"""Key of a rounding group -> factors and divisor of its total; a group that is missing is unpriced."""


def exact_nano(quantity: int, *factors: Factor, per: int = 1) -> int:
    """Return quantity x factors / per in billionths, rounded once, half to even (DESIGN §7.9)."""
    value = Fraction(quantity * NANO, per)
    for factor in factors:
        value *= Fraction(factor)
    return round(value)


def spread(
    frame: pl.DataFrame, *, group: Sequence[str], weight: str, ties: Sequence[str], total: str, into: str
) -> pl.DataFrame:
    """Return ``frame`` with ``into`` (Int64): each group's ``total`` split in proportion to ``weight``.

    The parts of a group sum to its total exactly: every part is rounded down, and what is left goes one by one to the
    largest remainders, ties by ``ties`` ascending. A negative total is split like its absolute value. Weights are >= 0;
    a group whose weights are all 0 gives its total to its first line. A null total gives null parts. Row order is kept;
    ``into`` may be ``total`` itself.
    """
    if frame.is_empty():
        return frame.with_columns(pl.lit(None, dtype=pl.Int64).alias(into))
    if frame[weight].null_count() or frame.select((pl.col(weight) < 0).any()).item():
        raise BooksError(f"weights in {weight!r} must be known and >= 0 to split a total by them")
    groups = list(group)
    size, weights = pl.col(total).abs().cast(pl.Int128), pl.col(weight).cast(pl.Int128)
    split = (
        frame.with_row_index("_row")
        .with_columns(weights.sum().over(groups).alias("_weights"))
        .with_columns(
            pl.when(pl.col("_weights") > 0).then(size * weights // pl.col("_weights")).otherwise(0).alias("_part")
        )
        .with_columns((size * weights - pl.col("_part") * pl.col("_weights")).alias("_rest"))
        .sort(*groups, "_rest", *ties, descending=[*[False] * len(groups), True, *[False] * len(ties)])
        .with_columns(
            pl.int_range(pl.len(), dtype=pl.Int128).over(groups).alias("_rank"),
            (size - pl.col("_part").sum().over(groups)).alias("_left"),
        )
        .with_columns(
            pl.when(pl.col("_weights") > 0)
            .then(pl.col("_part") + (pl.col("_rank") < pl.col("_left")).cast(pl.Int128))
            .otherwise(pl.when(pl.col("_rank") == 0).then(size).otherwise(0))
            .alias("_part")
        )
        .sort("_row")
    )
    sign = pl.when(pl.col(total) < 0).then(-1).otherwise(1)
    part = pl.when(pl.col(total).is_not_null()).then(pl.col("_part") * sign).cast(pl.Int64)
    return split.with_columns(part.alias(into)).select(*[name for name in frame.columns if name != into], into)


def round_and_spread(
    frame: pl.DataFrame,
    *,
    group: Sequence[str],
    quantity: str,
    ties: Sequence[str],
    rates: Rates,
    into: str,
) -> pl.DataFrame:
    """Return ``frame`` with money ``into``: per group, the exact total rounded once and spread over its rows.

    ``rates`` gives for each group's key the factors and the divisor; a group without an entry is unpriced: null, not 0.
    """
    groups = list(group)
    sums = frame.group_by(groups).agg(pl.col(quantity).cast(pl.Int128).sum().alias("_quantity"))
    totals = [
        exact_nano(row[-1], *rates[row[:-1]][0], per=rates[row[:-1]][1]) if row[:-1] in rates else None
        for row in sums.iter_rows()
    ]
    if any(abs(total or 0) >= 2**63 for total in totals):
        raise AmountError(f"a total of a group {groups} passes {2**63} billionths")
    with_totals = frame.join(
        sums.select(*groups, pl.Series("_total", totals, dtype=pl.Int64)),
        on=groups,
        how="left",
        nulls_equal=True,
        maintain_order="left",
    )
    parts = spread(with_totals, group=groups, weight=quantity, ties=ties, total="_total", into="_nano")
    return parts.drop("_total").with_columns(from_nano(pl.col("_nano")).alias(into)).drop("_nano")


def from_nano(nano: pl.Expr) -> pl.Expr:
    """Return billionths as money, Decimal(38, 9), without a rounding step."""
    return (nano.cast(pl.Decimal(38, 0)) * pl.lit(Decimal("0.000000001"), dtype=MONEY)).cast(MONEY)
