"""The price of each part of a call under its conditions, worked out by hand; what has no price of its own has none."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from datetime import time as clock
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from analytics.frames import ApiCalls, Prices, Tenants
from analytics.model.aliases import fault_of, matches
from analytics.model.api_fees import fee_lines
from analytics.model.api_prices import Asked, Book, Priced, Unknown
from analytics.model.tokens import price_of, token_lines
from tests.fakes.site import LONG_AGO, at, call, price, table

pytestmark = pytest.mark.unit
M = Decimal("0.000001")


def row(price_id: int, millionths: str, meter: str = "input_tokens", **more: Any) -> dict[str, Any]:
    usual = {"provider": "openai", "model": "gpt", "meter": meter, "valid_to": None}
    return price(price_id, str(Decimal(millionths) * M), **(usual | more))


def alias(alias_id: int, kind: str, pattern: str, model: str, **more: Any) -> dict[str, Any]:
    usual = {"provider": "openai", "position": alias_id, "valid_from": LONG_AGO, "valid_to": None}
    return {"alias_id": alias_id, "kind": kind, "pattern": pattern, "model": model, **usual, **more}


def policy(policy_id: int, unknown: str, provider: str = "*", model: str = "*") -> dict[str, Any]:
    dates = {"valid_from": LONG_AGO, "valid_to": None}
    return {"policy_id": policy_id, "provider": provider, "model": model, "unknown": unknown, **dates}


def billed(calls: list[dict[str, Any]], prices: list[dict[str, Any]], kind: Any = token_lines, **more: Any) -> Any:
    frame = table(ApiCalls, calls).with_columns(pl.lit(None, pl.Int32).alias("tenant_id"))
    tables = {name: pl.DataFrame(rows) for name, rows in more.items()}
    return kind(frame, table(Prices, prices), Tenants.create_empty(), "USD", **tables)


def cost(lines: pl.DataFrame) -> Decimal | None:
    return None if lines["billed_cost"].null_count() else sum(lines["billed_cost"], Decimal(0))


LONG = [row(1, "3"), row(2, "6", above_tokens=200_000)]


@pytest.mark.parametrize(("tokens", "expected"), [(199_999, "0.599997"), (200_000, "0.600000"), (200_001, "1.200006")])
def test_a_prompt_above_the_threshold_is_at_the_higher_price_as_a_whole(tokens: int, expected: str) -> None:
    assert cost(billed([call("k", 1, input_uncached_tokens=tokens)], LONG)) == Decimal(expected)


def test_the_threshold_counts_all_of_the_input_cached_or_not() -> None:
    prices = [*LONG, row(3, "0.3", "cache_read_tokens"), row(4, "0.6", "cache_read_tokens", above_tokens=200_000)]
    lines = billed([call("k", 1, input_uncached_tokens=1_000, cache_read_tokens=199_001)], prices)
    # 1,000 × 6 + 199,001 × 0.6 millionths
    assert cost(lines) == Decimal("0.006000") + Decimal("0.1194006")
    assert set(lines["terms"]) == {"above 200000 tokens"}


def test_a_batch_costs_what_its_own_price_says_and_nothing_is_guessed_where_it_has_none() -> None:
    calls = [call("k", 1, input_uncached_tokens=1_000, output_text_tokens=10, is_batch=True)]
    prices = [row(1, "2.5"), row(2, "1.25", service_tier="batch"), row(3, "10", "output_tokens")]
    lines = billed(calls, prices)
    assert lines.select("holder_key", "price_id", "billed_cost", "terms").rows() == [
        ("api:openai/gpt/input_uncached_tokens", 2, Decimal("0.001250000"), "batch"),
        ("api:openai/gpt/output_text_tokens", None, None, "batch"),
    ]


def test_prices_of_tiers_from_before_there_were_columns_for_them_are_used() -> None:
    prices = [row(1, "2.5"), row(2, "1.25", "input_tokens/batches"), row(3, "5", "input_tokens/priority")]
    calls = [
        call("k", n, input_uncached_tokens=1_000, service_tier=tier)
        for n, tier in enumerate((None, "batch", "priority"))
    ]
    # 2,500 + 1,250 + 5,000 millionths
    assert cost(billed(calls, prices)) == Decimal("0.008750000")


def test_a_cache_kept_for_an_hour_has_its_own_price() -> None:
    prices = [row(1, "3.75", "cache_write_tokens"), row(2, "6", "cache_write_tokens", cache_ttl_s=3_600)]
    calls = [call("k", 1, cache_write_tokens=1_000, cache_write_1h_tokens=100)]
    assert cost(billed(calls, prices)) == Decimal("0.003750") + Decimal("0.000600")
    assert cost(billed(calls, prices[:1])) is None  # never at the price of minutes


def test_audio_out_is_at_the_price_of_audio_out() -> None:
    prices = [row(1, "40", "audio_tokens"), row(2, "80", "audio_output_tokens")]
    assert cost(billed([call("k", 1, audio_input_tokens=100, audio_output_tokens=100)], prices)) == Decimal("0.012")
    assert cost(billed([call("k", 1, audio_tokens=200)], prices)) == Decimal("0.008")  # as before it was told apart


def test_three_searches_at_ten_a_thousand_are_three_cents_beside_the_tokens() -> None:
    calls = [call("k", 1, input_uncached_tokens=5, tool_calls='{"web_search": 3}')]
    prices = [row(1, "10000", "tool:web_search"), row(2, "1")]
    assert cost(billed(calls, prices, fee_lines)) == Decimal("0.03")
    assert cost(billed(calls, prices[1:], fee_lines)) is None  # a fee nobody told is not 0
    assert cost(billed(calls, prices)) == Decimal("0.000005")


def test_images_seconds_and_requests_are_priced_by_their_units() -> None:
    prices = [row(1, "40000", "image"), row(2, "100", "second"), row(3, "5000", "request")]
    calls = [call("k", 1, images=2, media_ms=61_500), call("k", 2, images=1)]
    lines = billed(calls, prices, fee_lines).sort("price_id")
    # 3 × 0.04, 61.5 × 0.0001, 2 × 0.005
    assert lines["billed_cost"].to_list() == [Decimal("0.12"), Decimal("0.00615"), Decimal("0.01")]
    assert lines["quantity_unit"].to_list() == ["image", "us", "request"]


def test_images_of_a_model_sold_by_tokens_are_no_line_of_their_own() -> None:
    assert billed([call("k", 1, images=2, image_tokens=500)], [row(1, "40", "image_tokens")], fee_lines).is_empty()


def test_hours_of_the_day_are_those_of_the_zone_also_past_midnight_and_when_clocks_are_put_back() -> None:
    night: dict[str, Any] = {
        "time_zone": "Europe/Berlin",
        "from_local": clock(22),
        "to_local": clock(6),
        "weekdays": 0b0011111,
    }
    book = Book([row(1, "2"), row(2, "1", **night)])

    def chosen(year: int, month: int, day: int, hour: int, minute: int) -> int:
        instant = datetime(year, month, day, hour, minute, tzinfo=UTC)
        found = book.choose(Asked("openai", "gpt", ("input_tokens",), instant))
        assert isinstance(found, Priced)
        return found.price_id

    assert chosen(2026, 7, 6, 19, 59) == 1  # Monday 21:59 in Berlin
    assert chosen(2026, 7, 6, 20, 0) == 2
    assert chosen(2026, 7, 11, 3, 59) == 2  # Saturday 05:59 is of Friday's night
    assert chosen(2026, 7, 11, 4, 0) == 1
    assert chosen(2026, 7, 12, 3, 0) == 1  # Sunday 05:00 is of Saturday's
    assert chosen(2026, 10, 26, 4, 59) == 1  # Monday 05:59, an hour later by UTC since the 25th: of Sunday's night
    assert chosen(2026, 10, 27, 4, 59) == 2


def test_calls_on_both_sides_of_a_wall_clock_in_one_hour_are_priced_apart() -> None:
    cheap: dict[str, Any] = {
        "time_zone": "Asia/Kolkata",
        "from_local": clock(0, 0),
        "to_local": clock(6, 0),
    }  # 18:30 to 00:30 UTC
    minutes = {"input_uncached_tokens": 1_000}
    day = datetime(2026, 7, 6, 18, tzinfo=UTC)
    calls = [{**call("k", minute, **minutes), "called_at": day.replace(minute=minute)} for minute in (29, 30, 59)]
    lines = billed(calls, [row(1, "2"), row(2, "1", **cheap)])
    assert lines.select("price_id", "quantity").rows() == [(1, 1_000), (2, 2_000)]
    assert lines["terms"].to_list() == [None, "00:00-06:00 Asia/Kolkata"]


def test_a_dated_name_has_the_prices_of_its_model_and_one_with_its_own_keeps_them() -> None:
    prices = [row(1, "2.5"), row(2, "9", model="gpt-2024")]
    aliases = [alias(1, "prefix", "GPT-", "gpt")]
    calls = [
        call("k", n, model=model, input_uncached_tokens=1_000) for n, model in enumerate(("gpt-2026", "gpt-2024", "x"))
    ]
    lines = billed(calls, prices, aliases=aliases).sort("holder_key")
    assert lines.select("holder_key", "price_id").rows() == [
        ("api:openai/gpt-2024/input_uncached_tokens", 2),
        ("api:openai/gpt-2026/input_uncached_tokens", 1),
        ("api:openai/x/input_uncached_tokens", None),
    ]


def test_an_unknown_price_is_estimated_by_the_dearest_only_where_a_policy_says_so() -> None:
    prices = [row(1, "2.5"), row(2, "9", model="dear"), row(3, "99", "output_tokens", model="dear")]
    calls = [call("k", 1, model="new", input_uncached_tokens=1_000)]
    assert cost(billed(calls, prices)) is None
    lines = billed(calls, prices, policies=[policy(1, "estimate_high"), policy(2, "allow", "anthropic")])
    assert cost(lines) == Decimal("0.009")
    assert lines.select("source", "terms").row(0) == ("estimated", "estimate_high")
    both = [policy(1, "estimate_high"), policy(2, "allow", "openai", "n*")]  # the one that names more
    assert cost(billed(calls, prices, policies=both)) is None


def test_an_unknown_price_says_why() -> None:
    book = Book([row(1, "2")])
    reasons = {
        Asked("openai", "gpt", ("input_tokens",), at(1), "flex"): "no flex price",
        Asked("openai", "gpt", ("output_tokens",), at(1)): "no price of this part",
        Asked("openai", "other", ("input_tokens",), at(1)): "no price of this model",
    }
    for asked, reason in reasons.items():
        assert book.choose(asked) == Unknown(reason)


def test_one_call_by_itself_has_the_price_its_line_has() -> None:
    told = table(ApiCalls, [call("k", 1, input_uncached_tokens=200_001, service_tier="standard")]).to_dicts()[0]
    assert price_of(told, "input_uncached_tokens", Book(LONG)) == (2, "above 200000 tokens")
    assert price_of(told | {"is_batch": True}, "input_uncached_tokens", Book(LONG)) == (None, "batch")


@pytest.mark.parametrize(
    "pattern", [r"(a+)+b", r"(a|a)*b", r"(\w+\s*)*\$", r"(x+x+)+y", r"([a-z]+)*!", r"a{0,200}b{0,200}c"]
)
def test_a_pattern_made_to_hang_a_matcher_does_not(pattern: str) -> None:
    began = time.process_time()
    assert fault_of("regex", pattern) is None
    assert not matches("regex", pattern, "a" * 250)
    assert not matches("regex", pattern, "x" * 250)
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        (r"(?=a)b", "look-around"),
        (r"(a)\1", "backreferences"),
        (r"((a{100}){100}){100}", "size limit"),
        (r"a)|(b", "unopened"),
        ("(", "unclosed"),
        ("a" * 256, "1 to 255"),
        ("", "1 to 255"),
    ],
)
def test_a_pattern_that_could_not_be_matched_in_bounded_time_is_refused(pattern: str, told: str) -> None:
    assert told in (fault_of("regex", pattern) or "")


def test_a_regex_is_of_the_whole_name_and_of_any_case() -> None:
    assert matches("regex", r"gpt-5-\d{4}", "GPT-5-2026")
    assert not matches("regex", r"gpt-5-\d{4}", "gpt-5-2026-mini")
    assert not matches("regex", r"a|b", "ab")
