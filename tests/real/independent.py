"""What the books are compared with, computed without them: float trapezoids of published readings, and exact money.

Uses none of the product's modules, so that an error cannot be on both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction
from typing import Final

import polars as pl

J_PER_KWH: Final = 3_600_000
US_PER_HOUR: Final = 3_600_000_000
LONGEST_STEP_US: Final = 60_000_000
"""Between two readings further apart a power gauge says nothing about the energy."""


def intervals(readings: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """Return the usable steps between readings: ``by``, from_us, to_us, power_w (mean of its two ends).

    ``readings``: ``by``, at_us, watts, in the order of the file. Readings that are not positive are left out, and of two with
    one instant the later one.
    """
    good = readings.filter(pl.col("watts") > 0).unique([*by, "at_us"], keep="first", maintain_order=True)
    following = pl.col("at_us").shift(-1).over(by)
    return (
        good.sort(*by, "at_us")
        .with_columns(following.alias("to_us"), pl.col("watts").shift(-1).over(by).alias("next_w"))
        .filter(pl.col("to_us") - pl.col("at_us") <= LONGEST_STEP_US)
        .select(
            *by, pl.col("at_us").alias("from_us"), "to_us", ((pl.col("watts") + pl.col("next_w")) / 2).alias("power_w")
        )
    )


def energy(steps: pl.DataFrame, windows: pl.DataFrame, by: Sequence[str]) -> pl.DataFrame:
    """Return per window the energy_j inside it and the covered_us, a step across an edge in proportion.

    ``windows``: ``by``, window, start_us, stop_us.
    """
    width = pl.min_horizontal("to_us", "stop_us") - pl.max_horizontal("from_us", "start_us")
    return (
        steps.join(windows, on=list(by))
        .with_columns(width.alias("inside_us"))
        .filter(pl.col("inside_us") > 0)
        .group_by("window")
        .agg(
            (pl.col("power_w") * pl.col("inside_us")).sum() / 1e6,
            pl.col("inside_us").sum().alias("covered_us"),
        )
        .rename({"power_w": "energy_j"})
    )


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a rounding group: what it is of, its quantity, and the names that break ties."""

    owner: str
    quantity: int
    tie: tuple[str, ...]


def billed(lines: Iterable[Line], rate: Decimal, per: int) -> list[tuple[Line, int]]:
    """Return each line's part, in billionths: quantity x rate / per summed, rounded half-even once, then spread.

    Largest remainder: each line gets its part of the rounded total rounded down, and what is left goes one billionth each
    to the largest fractions, ties by names.
    """
    group = list(lines)
    whole = sum(line.quantity for line in group)
    total = round(Fraction(rate) * whole / per * 10**9)
    exact = [Fraction(total * line.quantity, whole) for line in group]
    parts = [int(part) for part in exact]
    order = sorted(range(len(group)), key=lambda at: (parts[at] - exact[at], group[at].tie))
    for at in order[: total - sum(parts)]:
        parts[at] += 1
    return list(zip(group, parts, strict=True))


def kept_rate(text: str) -> Decimal:
    """Return a published rate as a store of 18 decimals keeps it."""
    with localcontext(prec=60):
        return Decimal(text).quantize(Decimal("1E-18"), ROUND_HALF_EVEN)


def money(nano: int) -> Decimal:
    return Decimal(nano).scaleb(-9)
