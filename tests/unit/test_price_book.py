"""A price book is valid as a whole or refused with every fault by line; amounts of a million are exact prices of one."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from analytics.io.price_book import PriceBook, PriceBookError, check

pytestmark = pytest.mark.unit
BOOK = """\
book: list-2026-11
currency: USD
prices:
  - {provider: openai, model: gpt-5, from: 2026-10-01, source: "https://example.com/prices", published: 2026-09-30, per: 1000000,
     input: "2.50", cache_read: "1.25", output: "10.00", batch: {input: "1.25", output: "5.00"},
     above: {tokens: 200000, input: "5.00"}, tools: {web_search: {per: 1000, amount: "10"}}}
  - {provider: anthropic, model: opus, from: 2026-10-01, per: 1000000, cache_write: "3.75", cache_write_1h: "6"}
  - {provider: deepseek, model: chat, from: 2026-10-01, input: "0.000002"}
  - {provider: deepseek, model: chat, from: 2026-10-01, input: "0.000001",
     hours: {zone: UTC, from: "16:30", to: "00:30", days: [mon, sun]}}
  - {provider: lambda, region: us-east-1, instance: 8x-h100, purchase: spot, hour: "12.00", from: 2026-10-01, currency: EUR}
  - {provider: owned, model: H100, hour: "2.5", from: 2026-10-01}
aliases:
  - {provider: openai, prefix: gpt-5-2, model: gpt-5}
  - {provider: openai, regex: 'gpt-5-\\d{4}', model: gpt-5, from: 2026-11-01}
unknown:
  - {provider: "*", policy: estimate_high}
"""


def faults(text: str) -> list[str]:
    with pytest.raises(PriceBookError) as found:
        check(text)
    return [str(fault) for fault in found.value.faults]


def told(book: PriceBook) -> list[tuple[str, str, Decimal, str, str]]:
    return [(price.model, price.meter, price.amount, price.unit, price.terms.text()) for price in book.prices]


def test_amounts_of_a_million_are_prices_of_one_under_their_conditions() -> None:
    book = check(BOOK)
    assert told(book) == [
        ("gpt-5", "input_tokens", Decimal("0.0000025"), "token", ""),
        ("gpt-5", "cache_read_tokens", Decimal("0.00000125"), "token", ""),
        ("gpt-5", "output_tokens", Decimal("0.00001"), "token", ""),
        ("gpt-5", "input_tokens", Decimal("0.00000125"), "token", "service_tier=batch"),
        ("gpt-5", "output_tokens", Decimal("0.000005"), "token", "service_tier=batch"),
        ("gpt-5", "input_tokens", Decimal("0.000005"), "token", "above_tokens=200000"),
        ("gpt-5", "tool:web_search", Decimal("0.01"), "request", ""),
        ("opus", "cache_write_tokens", Decimal("0.00000375"), "token", ""),
        ("opus", "cache_write_tokens", Decimal("0.000006"), "token", "cache_ttl_s=3600"),
        ("chat", "input_tokens", Decimal("0.000002"), "token", ""),
        (
            "chat",
            "input_tokens",
            Decimal("0.000001"),
            "token",
            "time_zone=UTC from_local=16:30:00 to_local=00:30:00 weekdays=65",
        ),
        ("8x-h100", "instance_hour", Decimal(12), "hour", "region=us-east-1 purchase=spot"),
        ("H100", "accelerator_hour", Decimal("2.5"), "hour", ""),
    ]
    assert book.prices[-2].currency == "EUR"
    assert [(alias.kind, alias.pattern) for alias in book.aliases or ()] == [
        ("prefix", "gpt-5-2"),
        ("regex", r"gpt-5-\d{4}"),
    ]
    assert [(policy.provider, policy.model, policy.unknown) for policy in book.policies or ()] == [
        ("*", "*", "estimate_high")
    ]


def test_every_fault_is_told_at_once_with_its_line() -> None:
    found = faults(
        """\
book: b
currency: dollars
prices:
  - {provider: p, model: m, from: 2026-10-01, input: "-1"}
  - {provider: p, model: m, from: yesterday, per: 7, input: "1"}
  - {provider: p, from: 2026-10-01, input: "1"}
  - {provider: p, model: n, currency: USD, from: 2026-10-01, graduated: [], input: "1"}
  - {provider: p, model: n, currency: USD, from: 2026-10-01, per: 1000000000, output: "0.0000000001"}
  - {provider: p, model: o, currency: USD, from: 2026-10-01, colour: red}
  - {provider: p, model: q, currency: USD, from: 2026-10-01, input: "1", hours: {zone: Mars/Base, from: "25:00", to: "06:00"}}
aliases:
  - {provider: p, regex: "(?=a)b", model: m}
  - {provider: p, model: m}
unknown:
  - {provider: p, policy: zero}
"""
    )
    starts = [
        "line 4: prices[0].currency: 'dollars' is no currency code like USD",
        "line 4: prices[0].input: must be an amount like 2.50, 0 or more, of at most 18 decimals",
        "line 5: prices[1].currency: 'dollars' is no currency code like USD",
        "line 5: prices[1].from: must be a day or an instant, like 2026-11-01 or 2026-11-01T06:00Z",
        "line 5: prices[1].per: must be 1, 10, 100",
        "line 6: prices[2]: one of `model` and `instance` is needed",
        "line 7: prices[3].graduated: prices by a month's volume are no prices of calls",
        "line 8: prices[4].output: 0.0000000001 of 1000000000 is not exact in 18 decimals",
        "line 9: prices[5]: no amount in it",
        "line 9: prices[5].colour: unknown key",
        "line 10: prices[6].hours.from: `from` must be a wall clock like 08:00",
        "line 10: prices[6].hours.zone: 'Mars/Base' is no IANA time zone",
        "line 12: aliases[0].regex: no pattern that can be matched in bounded time: look-around",
        "line 13: aliases[1]: one of exact, prefix, regex is needed",
        "line 15: unknown[0].policy: must be one of deny, estimate_high, allow",
    ]
    assert len(found) == len(starts)
    assert [start for start, fault in zip(starts, found, strict=True) if not fault.startswith(start)] == []


def test_two_prices_of_one_time_and_a_threshold_with_nothing_below_are_faults() -> None:
    text = """\
book: b
currency: USD
prices:
  - {provider: p, model: m, from: 2026-10-01, to: 2026-12-01, input: "1"}
  - {provider: p, model: m, from: 2026-11-01, input: "2"}
  - {provider: p, model: n, from: 2026-10-01, input: "1", above: {tokens: 200000, output: "2"}}
"""
    assert faults(text) == [
        "line 5: p m input_tokens: another price of the same time and conditions is on line 4",
        "line 6: p n output_tokens: there is a price above 200000 tokens and none up to there",
    ]
    # An open price ends where the next begins.
    assert len(check(text.replace(", to: 2026-12-01", "").split("  - {provider: p, model: n")[0]).prices) == 2


def test_what_is_no_yaml_and_what_is_no_mapping_is_one_fault() -> None:
    (fault,) = faults("book: [")
    assert fault.startswith("line 1: not YAML: ")
    assert faults("- 1") == ["line 1: must be a mapping with `book`, `prices`, `aliases`, `unknown`"]


def test_the_book_of_the_documentation_is_valid() -> None:
    text = (Path(__file__).parents[2] / "docs" / "prices.md").read_text(encoding="utf-8")
    book = check(text.split("```yaml\n")[1].split("```")[0])
    assert len(book.prices) == 12
