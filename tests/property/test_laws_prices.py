"""Laws of prices of calls: order is irrelevant, parts add up, conditions that nobody meets move nothing."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics.frames import ApiCalls, Prices, Tenants
from analytics.model.api_prices import Asked, Book, Priced
from analytics.model.tokens import METERS, TTL_S, price_of, token_lines
from tests.fakes.site import at, call, price, table

pytestmark = pytest.mark.property
TIERS = st.sampled_from([None, "standard", "batch", "flex"])
TOKENS = st.none() | st.integers(0, 300)


@st.composite
def calls(draw: st.DrawFn) -> list[dict[str, Any]]:
    def one(n: int) -> dict[str, Any]:
        told = {part: draw(TOKENS) for part in draw(st.sets(st.sampled_from(sorted(METERS)), max_size=4))}
        more = {"service_tier": draw(TIERS), "is_batch": draw(st.none() | st.booleans()), **told}
        model = draw(st.sampled_from(["gpt", "gpt-1", "x"]))
        return call(draw(st.sampled_from(["a", "b"])), n * 7 % 3_500 + n / 100, model=model, **more)

    return [one(n) for n in range(draw(st.integers(0, 8)))]


@st.composite
def prices(draw: st.DrawFn) -> list[dict[str, Any]]:
    def one(n: int) -> dict[str, Any]:
        return price(
            n,
            str(draw(st.integers(0, 999)) * Decimal("0.0000000001")),
            provider="openai",
            model=draw(st.sampled_from(["gpt", "gpt-1"])),
            meter=draw(
                st.sampled_from(["input_tokens", "output_tokens", "cache_write_tokens", "input_tokens/batches"])
            ),
            service_tier=draw(TIERS),
            above_tokens=draw(st.none() | st.integers(1, 500)),
            cache_ttl_s=draw(st.sampled_from([None, 300, 3_600])),
            valid_from=at(draw(st.integers(0, 3_000))),
            valid_to=None,
        )

    return [one(n) for n in range(1, draw(st.integers(1, 12)))]


def lines_of(made: list[dict[str, Any]], book: list[dict[str, Any]]) -> pl.DataFrame:
    frame = table(ApiCalls, made).with_columns(pl.lit(None, pl.Int32).alias("tenant_id"))
    lines = token_lines(frame, table(Prices, book), Tenants.create_empty(), "USD").sort("hour_us", "line_key")
    assert lines["line_key"].n_unique() == lines.height
    return lines


@given(calls(), prices(), st.randoms())
@settings(max_examples=60, deadline=None)
def test_neither_the_order_of_calls_nor_that_of_prices_moves_a_line(
    made: list[dict[str, Any]], book: list[dict[str, Any]], chance: Any
) -> None:
    shuffled, other = list(made), list(book)
    chance.shuffle(shuffled)
    chance.shuffle(other)
    assert lines_of(made, book).equals(lines_of(shuffled, other))


@given(calls(), prices())
@settings(max_examples=60, deadline=None)
def test_each_token_is_in_one_line_and_lines_cost_what_their_calls_do_one_by_one(
    made: list[dict[str, Any]], book: list[dict[str, Any]]
) -> None:
    lines, known = lines_of(made, book), Book([row | {"valid_to": row.get("valid_to")} for row in book])
    rows = table(ApiCalls, made).to_dicts()
    assert lines["quantity"].sum() == sum(row[part] or 0 for row in rows for part in METERS)
    alone: dict[int | None, int] = {}
    for row in rows:
        for part in METERS:
            price_id, _ = price_of(row, part, known)
            alone[price_id] = alone.get(price_id, 0) + (row[part] or 0)
    by_price = dict(lines.group_by("price_id").agg(pl.col("quantity").sum()).iter_rows())
    assert by_price == {price_id: count for price_id, count in alone.items() if count}


@given(calls(), prices(), st.integers(10_000, 20_000))
@settings(max_examples=40, deadline=None)
def test_prices_of_conditions_that_no_call_meets_move_nothing(
    made: list[dict[str, Any]], book: list[dict[str, Any]], above: int
) -> None:
    more = [row | {"price_id": row["price_id"] + 100, "above_tokens": above} for row in book]
    more += [row | {"price_id": row["price_id"] + 200, "region": "eu"} for row in book]
    more += [row | {"price_id": row["price_id"] + 300, "purchase": "spot"} for row in book]
    assert lines_of(made, book).equals(lines_of(made, [*book, *more]))


@given(prices(), TIERS, st.integers(0, 600), st.sampled_from(sorted(METERS)))
def test_what_is_chosen_meets_every_condition(
    book: list[dict[str, Any]], tier: str | None, prompt: int, part: str
) -> None:
    asked = Asked("openai", "gpt", METERS[part], at(3_100), tier or "standard", prompt, TTL_S.get(part))
    found = Book(book).choose(asked)
    if isinstance(found, Priced):
        row = next(row for row in book if row["price_id"] == found.price_id)
        of_meter = "batch" if row["meter"].endswith("/batches") else "standard"
        assert (row["service_tier"] or of_meter) == asked.tier
        assert (row["above_tokens"] or 0) < prompt or row["above_tokens"] is None
        assert (row["cache_ttl_s"] or 300) == (asked.ttl_s or 300)
        assert row["amount"] == found.amount
