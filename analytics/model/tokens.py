"""Prices API calls: each token part of each model by the price of its conditions; one line per tenant, key, part and price.

A part without a price is a line without cost, and calls whose usage was not reported are a line that counts them: both
are visible, neither is 0. Reasoning tokens bill at the output price where they have none of their own. What is billed by the use, not
by the token, is :mod:`analytics.model.api_fees`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import polars as pl

from analytics.frames import INSTANT
from analytics.model.api_prices import HOUR_TTL_S, STANDARD, Asked, Book, Priced
from analytics.model.money import Rates, round_and_spread
from analytics.units import US_PER_HOUR, from_us

METERS: Final[dict[str, tuple[str, ...]]] = {
    "input_uncached_tokens": ("input_tokens",),
    "cache_read_tokens": ("cache_read_tokens",),
    "cache_write_tokens": ("cache_write_tokens",),
    "output_text_tokens": ("output_tokens",),
    "reasoning_tokens": ("reasoning_tokens", "output_tokens"),
    "audio_tokens": ("audio_tokens",),
    "image_tokens": ("image_output_tokens", "image_tokens"),
    "audio_input_tokens": ("audio_tokens",),
    "audio_output_tokens": ("audio_output_tokens",),
    "cache_write_1h_tokens": ("cache_write_tokens",),
}
"""Token part -> the meters of the price book that may price it, first found wins. ``audio_tokens`` are priced as heard."""
TTL_S: Final = {"cache_write_1h_tokens": HOUR_TTL_S}
PROMPT: Final = (
    *("input_uncached_tokens", "cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens"),
    "audio_input_tokens",
)
"""Parts that a threshold of the prompt counts."""
_ONE: Final[Mapping[str, int]] = MappingProxyType({})
UNKNOWN: Final = "usage_unknown"
WHO: Final = ["hour_us", "tenant_id", "api_key", "provider", "model"]
TERMS: Final = ["slot_at", "tier", "prompt_tokens"]
"""What a price may depend on beside whose it is: when, which tier, and the highest threshold its prompt is above, plus one."""


def book_of(
    calls: pl.DataFrame,
    prices: pl.DataFrame,
    aliases: pl.DataFrame | None = None,
    policies: pl.DataFrame | None = None,
) -> Book:
    """Return the prices that calls of these models may have: of the models, and of what aliases and estimates may take."""
    told = [] if aliases is None else aliases.to_dicts()
    rules = [] if policies is None else policies.to_dicts()
    called = calls.select("provider", "model").unique()
    if rules:
        book = prices.join(called.select("provider").unique(), on="provider", how="semi")
    else:
        named = [(alias["provider"], alias["model"]) for alias in told]
        wanted = pl.concat([called, pl.DataFrame(named, schema=called.schema, orient="row")]).unique()
        book = prices.join(wanted, on=["provider", "model"], how="semi")
    return Book(book.to_dicts(), told, rules)


def token_lines(
    calls: pl.DataFrame,
    prices: pl.DataFrame,
    tenants: pl.DataFrame,
    currency: str,
    aliases: pl.DataFrame | None = None,
    policies: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Return ``api_tokens`` lines. ``calls``: ApiCalls with tenant_id; ``prices``: Prices, any providers."""
    book = book_of(calls, prices, aliases, policies)
    used = with_terms(calls.filter(pl.col("usage_known")), book)
    by_part = (
        used.group_by(*WHO, *TERMS)
        .agg(*(pl.col(part).cast(pl.Int64).sum() for part in METERS), pl.col("origin").max())
        .unpivot(list(METERS), index=[*WHO, *TERMS, "origin"], variable_name="part", value_name="quantity")
        .filter(pl.col("quantity") > 0)
    )
    lines, rates = with_prices(by_part.with_columns(pl.lit("token").alias("quantity_unit")), book, prices, currency)
    return as_lines(pl.concat([lines, _unknown(calls)]), rates, tenants, "api_tokens")


def as_lines(lines: pl.DataFrame, rates: Rates, tenants: pl.DataFrame, category: str) -> pl.DataFrame:
    """Return lines of a category of what was used by who, part and price, its cost rounded once by hour and price."""
    lines = lines.join(tenants, on="tenant_id", how="left", maintain_order="left")
    lines = lines.with_columns(
        pl.concat_str(
            pl.col("tenant_id").cast(pl.String).fill_null("-"),
            pl.lit("api:") + pl.col("api_key").fill_null("-"),
            pl.col("provider") + "/" + pl.col("model") + "/" + pl.col("part"),
            pl.lit(category),
            pl.col("price_id").cast(pl.String).fill_null("-"),
            # A price says its conditions itself; what has none, or an estimate, may stand beside one that has.
            pl.when(pl.col("price_id").is_null() | pl.col("estimated")).then(pl.col("terms")),
            separator="|",
            ignore_nulls=True,
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
        pl.lit(category).alias("charge_category"),
        "price_id",
        pl.lit(None, dtype=pl.Int32).alias("tariff_id"),
        "quantity",
        "quantity_unit",
        *(pl.lit(None, dtype=pl.Int64).alias(name) for name in ("energy_mj", "energy_low_mj", "energy_high_mj")),
        pl.lit(None, dtype=pl.String).alias("method"),
        "billed_cost",
        pl.col("billed_cost").alias("effective_cost"),
        pl.when(pl.col("estimated")).then(pl.lit("estimated")).otherwise(pl.lit("measured")).alias("source"),
        (pl.col("part") != UNKNOWN).cast(pl.Float64).alias("coverage"),
        "origin",
        "terms",
    )


def with_terms(calls: pl.DataFrame, book: Book) -> pl.DataFrame:
    """Return calls with their hour and what their price may depend on, so coarse that calls alike have it alike."""
    called_at = calls["called_at"].sort().to_list() or [from_us(0)]
    changes = pl.Series(book.changes(called_at[0], called_at[-1]), dtype=INSTANT)
    starts = pl.concat([pl.Series([from_us(0)], dtype=INSTANT), changes])
    thresholds = pl.Series(book.thresholds(), dtype=pl.Int64)
    prompt = calls.select(pl.sum_horizontal(pl.col(part).cast(pl.Int64) for part in PROMPT)).to_series()
    reached = pl.concat([pl.Series([0], dtype=pl.Int64), thresholds + 1])
    return calls.with_columns(
        _hour("called_at"),
        starts.gather(changes.search_sorted(calls["called_at"], side="right")).alias("slot_at"),
        tier().alias("tier"),
        reached.gather(thresholds.search_sorted(prompt, side="left")).alias("prompt_tokens"),
    )


def tier() -> pl.Expr:
    """Return which tier a call is priced by: of a batch that of batches, else the one it was told of, else the standard one."""
    return pl.when(pl.col("is_batch")).then(pl.lit("batch")).otherwise(pl.col("service_tier").fill_null(STANDARD))


def price_of(call: dict[str, Any], part: str, book: Book) -> tuple[int | None, str | None]:
    """Return the price of one part of one call, a row of ApiCalls, null = it has none; and its terms, as on its line."""
    of_tier = "batch" if call["is_batch"] else call["service_tier"] or STANDARD
    chosen = book.choose(
        Asked(
            call["provider"],
            call["model"],
            METERS[part],
            call["called_at"],
            of_tier,
            sum(call[name] or 0 for name in PROMPT),
            TTL_S.get(part),
        )
    )
    if isinstance(chosen, Priced):
        return chosen.price_id, chosen.terms
    return None, None if of_tier == STANDARD else of_tier


def _hour(at: str) -> pl.Expr:
    return (pl.col(at).dt.epoch("us") // US_PER_HOUR * US_PER_HOUR).alias("hour_us")


def with_prices(
    by_part: pl.DataFrame,
    book: Book,
    prices: pl.DataFrame,
    currency: str,
    *,
    meters: Mapping[str, tuple[str, ...]] = METERS,
    per: Mapping[str, int] = _ONE,
) -> tuple[pl.DataFrame, Rates]:
    """Return what was used by who, part and price, and the prices. ``per``: how many of a part's quantity one unit is."""
    rates: Rates = {}
    chosen: list[tuple[object, ...]] = []
    keys = ["hour_us", "provider", "model", "part", *TERMS]
    wanted = by_part.select(keys).unique().sort(keys)
    money = dict(prices.select("price_id", "currency").iter_rows())
    for hour, provider, model, part, slot_at, of_tier, prompt in wanted.iter_rows():
        at = max(slot_at, from_us(hour))
        asked = Asked(provider, model, meters[part], at, of_tier, prompt, TTL_S.get(part))
        found = book.choose(asked)
        told: tuple[int | None, str | None, bool]
        if isinstance(found, Priced):
            if money[found.price_id] == currency:  # never converted unasked: the line names its price and is unpriced
                rates[hour, found.price_id] = ((found.amount,), per.get(part, 1))
            told = found.price_id, found.terms, found.estimated
        else:
            told = None, None if of_tier == STANDARD else of_tier, False
        chosen.append((hour, provider, model, part, slot_at, of_tier, prompt, *told))
    schema = {name: wanted.schema[name] for name in keys}
    ids = pl.DataFrame(
        chosen, schema={**schema, "price_id": pl.Int32, "terms": pl.String, "estimated": pl.Boolean}, orient="row"
    )
    lines = (
        by_part.join(ids, on=keys, how="left")
        .group_by(*WHO, "part", "price_id", "terms", "estimated", "quantity_unit")
        .agg(pl.col("quantity").sum(), pl.col("origin").max())
        .sort(*WHO, "part", "price_id", "terms")
        .select(*WHO, "part", "price_id", "terms", "estimated", "quantity", "origin", "quantity_unit")
    )
    return lines, rates


def _unknown(calls: pl.DataFrame) -> pl.DataFrame:
    return (
        calls.filter(~pl.col("usage_known"))
        .with_columns(_hour("called_at"))
        .group_by(WHO)
        .agg(pl.len().cast(pl.Int64).alias("quantity"), pl.col("origin").max())
        .select(
            *WHO,
            pl.lit(UNKNOWN).alias("part"),
            pl.lit(None, dtype=pl.Int32).alias("price_id"),
            pl.lit(None, dtype=pl.String).alias("terms"),
            pl.lit(False).alias("estimated"),
            "quantity",
            "origin",
            pl.lit("request").alias("quantity_unit"),
        )
        .sort(WHO)
    )
