"""Prices usage hours: the published standard rate of owned accelerators and electricity at its metering point.

Every group site x hour x category x price id is rounded once and spread over its lines (``money``). Idle and
unattributed time stay lines of the platform; nothing is spread to tenants. A price that nobody told us is null, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import polars as pl

from analytics.frames import ELECTRICITY, GPU_OWNED, HOLDER_IDLE, MONEY, PLATFORM_PREFIX, SOURCES
from analytics.model.dated import Dated
from analytics.model.facility import IT_ONLY, HourFactor
from analytics.model.methods import category, least_exact
from analytics.model.money import Rates, round_and_spread
from analytics.units import MJ_PER_KWH, US_PER_HOUR, from_us

OWNED: Final = "owned"
ACCELERATOR_HOUR: Final = "accelerator_hour"
_WHO: Final = ["hour_us", "tenant_id", "holder", "job_id", "device_model"]
_RANK: Final = {source: rank for rank, source in enumerate(SOURCES)}


def gather(usage: pl.DataFrame, *, by_category: bool) -> pl.DataFrame:
    """Return usage hours summed to tenant x holder x device model and hour: what the priced lines have in common.

    ``by_category``: apart by the charge category that their energy rides on, which ``charge_category`` says then.
    """
    carrier = category(pl.col("method"), pl.lit(GPU_OWNED)).alias("charge_category")
    who = [*_WHO, "charge_category"] if by_category else _WHO
    return (
        (usage.with_columns(carrier) if by_category else usage)
        .group_by(who)
        .agg(
            pl.col("holder_key").first(),
            (pl.col("held_us") * pl.col("accelerators")).sum().alias("accelerator_us"),
            _sum_or_null("energy_mj"),
            _bound("energy_low_mj"),
            _bound("energy_high_mj"),
            pl.col("held_us").sum(),
            pl.col("covered_us").sum(),
            least_exact(pl.col("method")).alias("method"),
            least_sure(pl.col("source")).alias("source"),
            pl.col("origin").max(),
            pl.col("coverage").min().alias("told"),
        )
        .with_columns(
            pl.when(pl.col("job_id").is_not_null())
            .then(pl.lit("job"))
            .when(pl.col("holder") == HOLDER_IDLE)
            .then(pl.lit("idle"))
            .when(pl.col("holder").str.starts_with(PLATFORM_PREFIX))
            .then(pl.lit("platform"))
            .otherwise(pl.lit("unattributed"))
            .alias("pool"),
            # What holds no time (overhead, shared IT) says itself how much of its hour is known.
            pl.when(pl.col("held_us") > 0).then(coverage("covered_us", "held_us")).otherwise("told").alias("coverage"),
        )
        .drop("told")
        .sort(who)
    )


def gpu_lines(gathered: pl.DataFrame, prices: pl.DataFrame, currency: str) -> pl.DataFrame:
    """Return one ``gpu_owned`` line per row that was gathered by category and is of accelerators."""
    rates: Rates = {}
    chosen: list[tuple[int, str, int]] = []
    owned = prices.filter((pl.col("provider") == OWNED) & (pl.col("meter") == ACCELERATOR_HOUR))
    of_model = {model: Dated(rows, "price_id") for (model,), rows in owned.partition_by("model", as_dict=True).items()}
    for hour, model in gathered.select("hour_us", "device_model").unique().sort("hour_us", "device_model").iter_rows():
        row = of_model[model].at(from_us(hour)) if model in of_model else None
        if row is not None:
            chosen.append((hour, model, row["price_id"]))
            if in_books(row, currency):
                rates[(hour, row["price_id"])] = ((row["amount"],), US_PER_HOUR)
    ids = pl.DataFrame(
        chosen, schema={"hour_us": pl.Int64, "device_model": pl.String, "price_id": pl.Int32}, orient="row"
    )
    ours = gathered.filter(pl.col("charge_category") == GPU_OWNED)
    lines = ours.join(ids, on=["hour_us", "device_model"], how="left", maintain_order="left").with_columns(
        pl.lit(None, dtype=pl.Int32).alias("tariff_id"),
        pl.col("accelerator_us").alias("quantity"),
        pl.lit("accelerator-us").alias("quantity_unit"),
    )
    return _priced(lines, "price_id", rates)


def carrier_lines(gathered: pl.DataFrame) -> pl.DataFrame:
    """Return one line per row of overhead or shared IT: it carries energy and carbon, and costs what its electricity does."""
    others = gathered.filter(pl.col("charge_category") != GPU_OWNED).with_columns(
        pl.lit(None, dtype=pl.Int32).alias("price_id"),
        pl.lit(None, dtype=pl.Int32).alias("tariff_id"),
        pl.col("energy_mj").fill_null(0).alias("quantity"),
        pl.lit("mJ").alias("quantity_unit"),
        pl.lit(Decimal(0), dtype=MONEY).alias("billed_cost"),
        pl.lit(Decimal(0), dtype=MONEY).alias("effective_cost"),
        pl.lit(None, dtype=pl.String).alias("api_key"),
    )
    return others.with_columns(line_key("price_id"))


def electricity_lines(
    gathered: pl.DataFrame, tariffs: pl.DataFrame, factors: Mapping[int, HourFactor], currency: str
) -> pl.DataFrame:
    """Return one ``electricity`` line per row, not gathered by category, with known energy; none in hours where the rent includes it."""
    rates: Rates = {}
    ids: list[tuple[int, int | None]] = []
    dated = Dated(tariffs, "tariff_id")
    for hour in sorted(gathered["hour_us"].unique().to_list()):
        row = dated.at(from_us(hour))
        if row is None:
            ids.append((hour, None))
        elif row["metering_point"] != "included":
            ids.append((hour, row["tariff_id"]))
            if in_books(row, currency):
                factor = metered_factor(row, hour, factors)
                rates[(hour, row["tariff_id"])] = ((row["amount_per_kwh"], factor), MJ_PER_KWH)
    charged = pl.DataFrame(ids, schema={"hour_us": pl.Int64, "tariff_id": pl.Int32}, orient="row")
    lines = (
        gathered.filter(pl.col("energy_mj").is_not_null())
        .join(charged, on="hour_us", how="inner", maintain_order="left")
        .with_columns(
            pl.lit(ELECTRICITY).alias("charge_category"),
            pl.lit(None, dtype=pl.Int32).alias("price_id"),
            pl.col("energy_mj").alias("quantity"),
            pl.lit("mJ").alias("quantity_unit"),
            *(pl.lit(None, dtype=pl.Int64).alias(name) for name in ("energy_mj", "energy_low_mj", "energy_high_mj")),
        )
    )
    return _priced(lines, "tariff_id", rates)


def metered_factor(tariff: dict[str, Any], hour_us: int, factors: Mapping[int, HourFactor]) -> Fraction:
    """Return what turns IT energy into the energy this tariff bills; without a facility factor, IT energy only."""
    return factors[hour_us].factor if tariff["metering_point"] == "facility" and hour_us in factors else IT_ONLY


def in_books(row: Mapping[str, Any], currency: str) -> bool:
    """Say whether a price or tariff is in the currency of the books. A line of one that is not names it, and is unpriced: never converted unasked."""
    return bool(row["currency"] == currency)


def coverage(covered: str, held: str) -> pl.Expr:
    """Return covered / held as a ratio, 0 where nothing is held. The only float of the books; no money meets it."""
    ratio = pl.col(covered).cast(pl.Float64) / pl.col(held).cast(pl.Float64)
    return pl.when(pl.col(held) > 0).then(ratio).otherwise(0.0).alias("coverage")


def least_sure(source: pl.Expr) -> pl.Expr:
    """Return the least sure of a group's sources."""
    rank = source.replace_strict(_RANK, return_dtype=pl.Int64).max()
    return rank.replace_strict(dict(enumerate(SOURCES)), return_dtype=pl.String)


def line_key(price: str) -> pl.Expr:
    """Return tenant|holder|model|category|price: the identity of a line in this database."""
    parts = [
        pl.col(name).cast(pl.String).fill_null("-")
        for name in ("tenant_id", "holder", "device_model", "charge_category", price)
    ]
    return pl.concat_str(parts, separator="|").alias("line_key")


def _priced(lines: pl.DataFrame, price: str, rates: Rates) -> pl.DataFrame:
    keyed = lines.with_columns(line_key(price))
    return round_and_spread(
        keyed,
        group=["hour_us", price],
        quantity="quantity",
        ties=["holder_key", "device_model"],  # a job has one tenant in an hour
        rates=rates,
        into="billed_cost",
    ).with_columns(pl.col("billed_cost").alias("effective_cost"), pl.lit(None, dtype=pl.String).alias("api_key"))


def _bound(name: str) -> pl.Expr:
    """Sum one end of intervals; what has none is exact. Null where nothing has one."""
    parts = pl.coalesce(name, "energy_mj").sum()
    return pl.when(pl.col(name).is_not_null().any()).then(parts).alias(name)


def _sum_or_null(name: str) -> pl.Expr:
    return pl.when(pl.col(name).is_not_null().any()).then(pl.col(name).sum()).alias(name)
