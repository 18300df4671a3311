"""Prices API calls: each token part of each model by the price in force at the call; one line per tenant, key and price.

A part without a price is a line without cost, and calls whose usage was not reported are a line that counts them: both
are visible, neither is 0. Reasoning tokens bill at the output price where they have none of their own.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from analytics.frames import INSTANT
from analytics.model.cost import check_currency
from analytics.model.dated import Dated
from analytics.model.money import Rates, round_and_spread
from analytics.units import US_PER_HOUR, from_us

METERS: Final[dict[str, tuple[str, ...]]] = {
    "input_uncached_tokens": ("input_tokens",),
    "cache_read_tokens": ("cache_read_tokens",),
    "cache_write_tokens": ("cache_write_tokens",),
    "output_text_tokens": ("output_tokens",),
    "reasoning_tokens": ("reasoning_tokens", "output_tokens"),
    "audio_tokens": ("audio_tokens",),
    "image_tokens": ("image_tokens",),
    "audio_input_tokens": ("audio_tokens",),
    "audio_output_tokens": ("audio_output_tokens",),
    "cache_write_1h_tokens": ("cache_write_1h_tokens",),
}
"""Token part -> the meters of the price book that may price it, first found wins."""
UNKNOWN: Final = "usage_unknown"
_WHO: Final = ["hour_us", "tenant_id", "api_key", "provider", "model"]


def token_lines(calls: pl.DataFrame, prices: pl.DataFrame, tenants: pl.DataFrame, currency: str) -> pl.DataFrame:
    """Return ``api_tokens`` lines. ``calls``: ApiCalls with tenant_id; ``prices``: Prices, any providers."""
    book = prices.join(calls.select("provider", "model").unique(), on=["provider", "model"], how="semi")
    known = _known(calls, book)
    lines, rates = _with_prices(known, book, currency)
    lines = pl.concat([lines, _unknown(calls)]).join(tenants, on="tenant_id", how="left", maintain_order="left")
    lines = lines.with_columns(
        pl.concat_str(
            pl.col("tenant_id").cast(pl.String).fill_null("-"),
            pl.lit("api:") + pl.col("api_key").fill_null("-"),
            pl.col("provider") + "/" + pl.col("model") + "/" + pl.col("part"),
            pl.lit("api_tokens"),
            pl.col("price_id").cast(pl.String).fill_null("-"),
            separator="|",
        ).alias("line_key")
    )
    return round_and_spread(
        lines,
        group=["hour_us", "price_id"],
        quantity="quantity",
        ties=["path", "api_key", "provider", "model", "part", "line_key"],
        rates=rates,
        into="billed_cost",
    ).select(
        "hour_us",
        "line_key",
        "tenant_id",
        pl.lit(None, dtype=pl.Int64).alias("job_id"),
        "api_key",
        (pl.lit("api:") + pl.col("provider") + "/" + pl.col("model") + "/" + pl.col("part")).alias("holder_key"),
        pl.lit("api").alias("pool"),
        pl.lit(None, dtype=pl.String).alias("device_model"),
        pl.lit("api_tokens").alias("charge_category"),
        "price_id",
        pl.lit(None, dtype=pl.Int32).alias("tariff_id"),
        "quantity",
        "quantity_unit",
        *(pl.lit(None, dtype=pl.Int64).alias(name) for name in ("energy_mj", "energy_low_mj", "energy_high_mj")),
        pl.lit(None, dtype=pl.String).alias("method"),
        "billed_cost",
        pl.col("billed_cost").alias("effective_cost"),
        pl.lit("measured").alias("source"),
        (pl.col("part") != UNKNOWN).cast(pl.Float64).alias("coverage"),
        "origin",
    )


def _hour(at: str) -> pl.Expr:
    return (pl.col(at).dt.epoch("us") // US_PER_HOUR * US_PER_HOUR).alias("hour_us")


def _known(calls: pl.DataFrame, book: pl.DataFrame) -> pl.DataFrame:
    """Sum tokens by who, part, and slot: a slot begins where an hour or any price of the book does."""
    changes = pl.concat([book["valid_from"], book["valid_to"].drop_nulls()]).unique().sort()
    starts = pl.concat([pl.Series([from_us(0)], dtype=INSTANT), changes])
    reported = calls.filter(pl.col("usage_known"))
    slot = starts.gather(changes.search_sorted(reported["called_at"], side="right"))
    return (
        reported.with_columns(_hour("called_at"), slot.alias("slot_at"))
        .group_by(*_WHO, "slot_at")
        .agg(*(pl.col(part).cast(pl.Int64).sum() for part in METERS), pl.col("origin").max())
        .unpivot(list(METERS), index=[*_WHO, "slot_at", "origin"], variable_name="part", value_name="quantity")
        .filter(pl.col("quantity") > 0)
    )


def _with_prices(known: pl.DataFrame, book: pl.DataFrame, currency: str) -> tuple[pl.DataFrame, Rates]:
    rates: Rates = {}
    chosen: list[tuple[object, ...]] = []
    wanted = known.select("hour_us", "provider", "model", "part", "slot_at").unique()
    rows_of = {
        key: Dated(rows, "price_id")
        for key, rows in book.partition_by("provider", "model", "meter", as_dict=True).items()
    }
    for hour, provider, model, part, slot_at in wanted.sort(wanted.columns).iter_rows():
        at = max(slot_at, from_us(hour))
        for meter in METERS[part]:
            rows = rows_of.get((provider, model, meter))
            row = None if rows is None else rows.at(at)
            if row is not None:
                check_currency(row, "price", row["price_id"], currency)
                chosen.append((hour, provider, model, part, slot_at, row["price_id"]))
                rates[(hour, row["price_id"])] = ((row["amount"],), 1)
                break
    keys = {name: wanted.schema[name] for name in ("hour_us", "provider", "model", "part", "slot_at")}
    ids = pl.DataFrame(chosen, schema={**keys, "price_id": pl.Int32}, orient="row")
    lines = (
        known.join(ids, on=list(keys), how="left")
        .group_by(*_WHO, "part", "price_id")
        .agg(pl.col("quantity").sum(), pl.col("origin").max())
        .with_columns(pl.lit("token").alias("quantity_unit"))
        .sort(*_WHO, "part", "price_id")
    )
    return lines, rates


def _unknown(calls: pl.DataFrame) -> pl.DataFrame:
    return (
        calls.filter(~pl.col("usage_known"))
        .with_columns(_hour("called_at"))
        .group_by(_WHO)
        .agg(pl.len().cast(pl.Int64).alias("quantity"), pl.col("origin").max())
        .select(
            *_WHO,
            pl.lit(UNKNOWN).alias("part"),
            pl.lit(None, dtype=pl.Int32).alias("price_id"),
            "quantity",
            "origin",
            pl.lit("request").alias("quantity_unit"),
        )
        .sort(_WHO)
    )
