"""Location-based carbon of lines: facility energy x intensity, rounded once per hour and intensity.

A missing intensity stays missing: null grams, never a smoothed or assumed figure. No facility factor means IT energy only. An
intensity that is estimated makes the line estimated, however well its energy was metered.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import polars as pl

from analytics.frames import MONEY
from analytics.model.dated import Dated
from analytics.model.facility import IT_ONLY, HourFactor
from analytics.model.money import Rates, round_and_spread
from analytics.units import MJ_PER_KWH, from_us


class Grid:
    """Intensities of a site's grid zone, asked for one hour at a time: which one counts depends on no other hour.

    Direct emissions are what an inventory wants; a life-cycle value stands in where no direct one is in force.
    """

    def __init__(self, intensity: pl.DataFrame) -> None:
        """Take rows of ``Intensity``."""
        kinds = intensity.partition_by("life_cycle", as_dict=True)
        self._kinds = [Dated(kinds[(kind,)], "intensity_id") for kind in (False, True) if (kind,) in kinds]

    def at(self, hour: datetime) -> dict[str, Any] | None:
        """Return the one in force at the beginning of an hour, or None."""
        return next((row for kind in self._kinds if (row := kind.at(hour)) is not None), None)


def emit(lines: pl.DataFrame, intensity: pl.DataFrame, factors: Mapping[int, HourFactor]) -> pl.DataFrame:
    """Return ``lines`` (hour_us, holder_key, device_model, charge_category, energy_mj, source, ...) with carbon_gco2e.

    Null where the energy of the line or the intensity of the hour is not known.
    """
    rates: Rates = {}
    found: list[tuple[int, int, bool]] = []
    grid = Grid(intensity)
    for hour in lines["hour_us"].unique().to_list():
        row = grid.at(from_us(hour))
        if row is not None:
            found.append((hour, row["intensity_id"], row["estimated"]))
            factor = factors[hour].factor if hour in factors else IT_ONLY
            rates[(hour, row["intensity_id"])] = ((row["gco2e_per_kwh"], factor), MJ_PER_KWH)
    known = pl.DataFrame(
        found, schema={"hour_us": pl.Int64, "_intensity_id": pl.Int32, "_estimated": pl.Boolean}, orient="row"
    )
    emitted = round_and_spread(
        lines.join(known, on="hour_us", how="left", maintain_order="left").with_columns(
            pl.col("energy_mj").fill_null(0).alias("_weight")
        ),
        group=["hour_us", "_intensity_id"],
        quantity="_weight",
        ties=["holder_key", "device_model", "charge_category"],
        rates=rates,
        into="carbon_gco2e",
    )
    grams = pl.when(pl.col("energy_mj").is_not_null()).then(pl.col("carbon_gco2e")).otherwise(pl.lit(None, dtype=MONEY))
    doubtful = pl.col("_estimated") & pl.col("energy_mj").is_not_null() & (pl.col("source") == "measured")
    return emitted.with_columns(
        grams.alias("carbon_gco2e"),
        pl.when(doubtful).then(pl.lit("estimated")).otherwise("source").alias("source"),
    ).drop("_weight", "_intensity_id", "_estimated")
