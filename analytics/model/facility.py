"""Facility energy: IT energy times the facility factor of its hour, with the category that says how well the factor is known.

DESIGN §7.3. The factor is a time series: of an hour in which it changes the mean by time counts. Where no factor is known for some of
an hour, that part counts as IT energy alone and the hour has no category, so that nobody reads a partly unknown figure as a
measured one. It knows no money.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import polars as pl

from analytics.model.money import spread
from analytics.model.series import Series
from analytics.units import US_PER_HOUR

IT_ONLY: Final = Fraction(1)


@dataclass(frozen=True, slots=True)
class HourFactor:
    """Facility energy / IT energy of an hour, exactly, and the least PUE measurement category of what it is made of."""

    factor: Fraction
    category: int | None
    """0 to 3 (ISO/IEC 30134-2); null = some of the hour has no factor and counts as IT energy."""


def factors_of(
    hours_us: Sequence[int], facility_factors: pl.DataFrame, until_us: int | None = None
) -> dict[int, HourFactor]:
    """Return the factor of each hour in which one is known at any time; ``until_us`` ends an hour that is still open."""
    series = Series(facility_factors, "factor_id")
    found = {}
    for hour in hours_us:
        end = hour + US_PER_HOUR if until_us is None else min(hour + US_PER_HOUR, max(until_us, hour + 1))
        pieces = series.pieces(hour, end)
        if not any(row for row, _ in pieces):
            continue
        weighted = [(IT_ONLY if row is None else Fraction(row["factor"])) * length for row, length in pieces]
        categories = [None if row is None else int(row["category"]) for row, _ in pieces]
        worst = None if None in categories else min(category for category in categories if category is not None)
        found[hour] = HourFactor(sum(weighted, Fraction(0)) / (end - hour), worst)
    return found


def with_facility(
    lines: pl.DataFrame, factors: Mapping[int, HourFactor], *, group: Sequence[str], ties: Sequence[str]
) -> pl.DataFrame:
    """Return ``lines`` (hour_us, energy_mj, ...) with facility_mj (Int64) and facility_category (Int16).

    Both are null in hours without any factor and on lines without energy. Each group (hour_us among it) is rounded once, half to
    even, and spread over its lines by largest remainder, leftovers by ``ties``.
    """
    known = pl.DataFrame(
        [(hour, found.category) for hour, found in factors.items()],
        schema={"hour_us": pl.Int64, "facility_category": pl.Int16},
        orient="row",
    ).with_columns(pl.lit(value=True).alias("_known"))
    sums = lines.group_by(group).agg(pl.col("energy_mj").sum().alias("_energy"))
    totals = [
        round(Fraction(energy) * factors[hour].factor) if hour in factors else None
        for hour, energy in sums.select("hour_us", "_energy").iter_rows()
    ]
    with_totals = (
        lines.with_columns(pl.col("energy_mj").fill_null(0).alias("_weight"))
        .join(
            sums.select(*group, pl.Series("_total", totals, dtype=pl.Int64)),
            on=list(group),
            how="left",
            nulls_equal=True,
            maintain_order="left",
        )
        .join(known, on="hour_us", how="left", maintain_order="left")
    )
    parts = spread(with_totals, group=group, weight="_weight", ties=ties, total="_total", into="facility_mj")
    has = pl.col("energy_mj").is_not_null()
    return parts.with_columns(
        pl.when(has).then(pl.col("facility_mj")).alias("facility_mj"),
        pl.when(has & pl.col("_known")).then(pl.col("facility_category")).alias("facility_category"),
    ).drop("_total", "_weight", "_known")
