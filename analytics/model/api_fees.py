"""Prices what a call is billed for beside its tokens: uses of the provider's tools, images, seconds, characters, pages, the call itself.

A tool that was used and has no price is a line without cost: what it cost is not known, and its tokens are priced all the same. Images,
seconds, characters and pages are lines where the book sells this model by them, or where the call tells of no token: else what is
billed is the tokens. A call itself is one only where the book says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import polars as pl

from analytics.model.api_prices import Book
from analytics.model.tokens import METERS as TOKENS
from analytics.model.tokens import TERMS, WHO, as_lines, book_of, with_prices, with_terms
from analytics.units import from_us

FEES: Final = "api_fees"
TOOL: Final = "tool:"
"""Before a tool's name in its meter, its part and its unit."""
US_PER_MS: Final = 1_000
_US_PER_S: Final = 1_000_000
COUNTED: Final[dict[str, tuple[str, str, int]]] = {
    "images": ("image", "image", 1),
    "media_ms": ("second", "us", US_PER_MS),
    "characters": ("character", "character", 1),
    "pages": ("page", "page", 1),
}
"""What a call tells -> its meter, the unit of its lines, and how many of that one of it is."""
REQUEST: Final = "request"
_PER: Final = {"second": _US_PER_S}
"""A second is priced, and counted in microseconds."""


def fee_lines(
    calls: pl.DataFrame,
    prices: pl.DataFrame,
    tenants: pl.DataFrame,
    currency: str,
    aliases: pl.DataFrame | None = None,
    policies: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Return ``api_fees`` lines, as :func:`analytics.model.tokens.token_lines` returns those of tokens."""
    book = book_of(calls, prices, aliases, policies)
    used = with_terms(calls.filter(pl.col("usage_known")), book)
    told = ["tool_calls", *COUNTED]
    has_tokens = pl.sum_horizontal(pl.col(part).cast(pl.Int64) for part in TOKENS) > 0
    groups = used.group_by(*WHO, *TERMS, "tool_calls", has_tokens.alias("has_tokens")).agg(
        pl.len().cast(pl.Int64).alias("calls"),
        *(pl.col(name).cast(pl.Int64).sum() for name in COUNTED),
        pl.col("origin").max(),
    )
    names = [*WHO, *TERMS, "origin", "part", "quantity", "quantity_unit"]
    schema = {name: groups.schema[name] for name in names if name in groups.schema}
    schema |= {"part": pl.String(), "quantity": pl.Int64(), "quantity_unit": pl.String()}
    rows = [
        {**row, "part": part, "quantity": quantity, "quantity_unit": unit}
        for row in groups.select(*WHO, *TERMS, "origin", *told, "has_tokens", "calls").to_dicts()
        for part, quantity, unit in _fees(row, book)
    ]
    by_part = pl.DataFrame(rows, schema={name: schema[name] for name in names})
    parts = {part: (part,) for part in by_part["part"].unique()}
    lines, rates = with_prices(by_part, book, prices, currency, meters=parts, per=_PER)
    return as_lines(lines, rates, tenants, FEES)


def _fees(row: dict[str, Any], book: Book) -> Iterator[tuple[str, int, str]]:
    """Yield meter, quantity and unit of what calls alike are billed for."""
    at = max(row["slot_at"], from_us(row["hour_us"]))
    for name, uses in sorted(json.loads(row["tool_calls"] or "{}").items()):
        yield f"{TOOL}{name}", uses * row["calls"], REQUEST
    for told, (meter, unit, times) in COUNTED.items():
        if row[told] and (not row["has_tokens"] or book.prices_meter(row["provider"], row["model"], meter, at)):
            yield meter, row[told] * times, unit
    if book.prices_meter(row["provider"], row["model"], REQUEST, at):
        yield REQUEST, row["calls"], REQUEST
