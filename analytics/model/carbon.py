"""Location-based carbon of usage hours: energy x facility factor x intensity, rounded once per hour and intensity.

A missing intensity stays missing: null grams, never a smoothed or assumed figure. No facility factor means IT energy only.
"""

from __future__ import annotations

from decimal import Decimal

import polars as pl

from analytics.frames import MONEY
from analytics.model.dated import Dated
from analytics.model.money import Rates, round_and_spread
from analytics.units import MJ_PER_KWH, from_us


def factors_of(hours_us: list[int], facility_factors: pl.DataFrame) -> dict[int, Decimal]:
    """Return the facility factor of each hour that has one."""
    factors = Dated(facility_factors, "factor_id")
    found = {hour: factors.at(from_us(hour)) for hour in hours_us}
    return {hour: row["factor"] for hour, row in found.items() if row is not None}


def emit(usage: pl.DataFrame, intensity: pl.DataFrame, factors: dict[int, Decimal]) -> pl.DataFrame:
    """Return ``usage`` (hour_us, device_key, holder_key, energy_mj, ...) with intensity_id and carbon_gco2e.

    Null where the energy or the intensity of the hour is not known.
    """
    rates: Rates = {}
    ids: dict[int, int] = {}
    grid = Dated(intensity, "intensity_id")
    for hour in usage["hour_us"].unique().to_list():
        row = grid.at(from_us(hour))
        if row is not None:
            ids[hour] = row["intensity_id"]
            rates[(hour, row["intensity_id"])] = ((row["gco2e_per_kwh"], factors.get(hour, Decimal(1))), MJ_PER_KWH)
    known = pl.DataFrame(
        {"hour_us": list(ids), "intensity_id": list(ids.values())},
        schema={"hour_us": pl.Int64, "intensity_id": pl.Int32},
    )
    priced = round_and_spread(
        usage.join(known, on="hour_us", how="left", maintain_order="left").with_columns(
            pl.col("energy_mj").fill_null(0).alias("_weight")
        ),
        group=["hour_us", "intensity_id"],
        quantity="_weight",
        ties=["device_key", "holder_key"],
        rates=rates,
        into="carbon_gco2e",
    )
    grams = pl.when(pl.col("energy_mj").is_not_null()).then(pl.col("carbon_gco2e")).otherwise(pl.lit(None, dtype=MONEY))
    return priced.with_columns(grams.alias("carbon_gco2e")).drop("_weight")
