"""What one FOCUS row is: which charge, and which tokens of which calls it covers."""

from __future__ import annotations

from dataclasses import fields
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.importers.errors import RowError
from ingest.importers.focus_columns import FIELDS, version_of
from ingest.importers.focus_rows import Charge, charge_of, part_of, tokens_of
from ingest.store.charges import CHARGE_COLUMNS

DAY_US = 86_400_000_000
START_US = 20_000 * DAY_US


def row(**changes: Any) -> dict[str, Any]:
    given = {
        "provider": "OpenAI",
        "billing_account": "org",
        "period_start": START_US,
        "period_end": START_US + 30 * DAY_US,
        "charge_start": START_US,
        "charge_end": START_US + DAY_US,
        "category": "Usage",
        "billed_cost": Decimal("1.50"),
        "effective_cost": Decimal("1.5"),
        "currency": "USD",
    }
    return {**dict.fromkeys(field.name for field in FIELDS), **given, **changes}


def charge(**changes: Any) -> Charge:
    return charge_of(2, row(**changes), None, START_US + 40 * DAY_US)[0]


def test_a_charge_is_staged_in_the_order_of_the_stores_columns() -> None:
    assert [field.name for field in fields(Charge)] == list(CHARGE_COLUMNS)


def test_amounts_tags_and_the_invoice_may_be_restated_and_what_is_charged_when_says_which_charge_it_is() -> None:
    first = charge()
    assert charge(billed_cost=Decimal("1.5000")).content_sha256 == first.content_sha256
    for changes in (
        {"billed_cost": Decimal(2)},
        {"consumed_quantity": Decimal(7)},
        {"invoice_id": "INV-1"},
        {"tags": {"a": "b"}},
    ):
        restated = charge(**changes)
        assert restated.identity_sha256 == first.identity_sha256
        assert restated.content_sha256 != first.content_sha256
    for other in ({"sku": "x"}, {"resource": "r"}, {"charge_class": "Correction"}, {"charge_end": START_US + 1}):
        assert charge(**other).identity_sha256 != first.identity_sha256


def test_what_no_database_holds_in_a_tag_is_replaced() -> None:
    assert charge(tags={"a\0": "b\0c", "n": 7, "none": None}).tags == '{"a\\ufffd": "b\\ufffdc", "n": "7"}'


@pytest.mark.parametrize(
    ("unit", "quantity", "tokens"),
    [
        ("Tokens", "1200", 1200),
        ("tokens", "0", 0),
        ("1K tokens", "1.2", 1200),
        ("1M Tokens", "0.0012", 1200),
        ("1000000 Tokens", "2", 2_000_000),
        ("1,000 tokens", "3", 3_000),
        ("per 1M input tokens", "1", 1_000_000),
        ("Thousand Tokens", "1.234", 1_234),
        ("1 million tokens", "0.25", 250_000),
        ("Tokens - input", "7", 7),
        ("Tokens (1K)", "2", 2_000),
        ("KTokens", "2", 2_000),
        ("Tokens in millions", "1", 1_000_000),
        ("1000 tokens/month", "2", 2_000),
        ("Token count", "12", 12),
        ("1B tokens", "0.5", 500_000_000),
        # What takes tokens back is less than nothing, and exact.
        ("1K Tokens", "-1.5", -1_500),
        ("1M Tokens", "-2", -2_000_000),
        # A double's own error, as Parquet files have it: 0.1 + 0.2 of thousands are 300.
        ("1K Tokens", "0.30000000000000004", 300),
        ("Hours", "3", None),
        ("Hardtokened seats", "3", None),
        ("GB", "1", None),
    ],
)
def test_tokens_are_read_in_the_units_providers_use(unit: str, quantity: str, tokens: int | None) -> None:
    assert tokens_of(row(consumed_unit=unit, consumed_quantity=Decimal(quantity))) == tokens
    assert tokens_of(row(pricing_unit=unit, pricing_quantity=Decimal(quantity))) == tokens


@pytest.mark.parametrize(
    ("unit", "quantity", "reason"),
    [
        ("Tokens", "1.5", "not a whole number of tokens"),
        ("1M Tokens", "1.2345678", "not a whole number of tokens"),
        ("1K Tokens", "0.0000001", "not a whole number of tokens"),
        ("token-hours", "3", "unit of tokens is not understood"),
        ("1000 tokens per minute", "3", "unit of tokens is not understood"),
        ("1.5 tokens", "3", "unit of tokens is not understood"),
        ("1K tokens (1M)", "3", "unit of tokens is not understood"),
        ("0 tokens", "3", "unit of tokens is not understood"),
    ],
)
def test_tokens_that_are_not_understood_are_refused_never_a_charge_beside_the_calls(
    unit: str, quantity: str, reason: str
) -> None:
    for place in ("consumed", "pricing"):
        tokens = {f"{place}_unit": unit, f"{place}_quantity": Decimal(quantity), "model": "gpt-4o"}
        with pytest.raises(RowError, match=reason):
            charge(**tokens)
        assert charge(**{**tokens, "model": None}).covers is None


@given(
    st.integers(-(10**12), 10**12),
    st.sampled_from([("Tokens", 1), ("1K tokens", 1_000), ("1M Tokens", 10**6), ("per 100 tokens", 100)]),
)
def test_a_count_of_tokens_survives_every_unit_exactly_with_its_sign(count: int, unit: tuple[str, int]) -> None:
    name, each = unit
    assert tokens_of(row(consumed_unit=name, consumed_quantity=Decimal(count) / each)) == count


def test_what_takes_token_charges_back_covers_what_they_cover_and_is_no_report_of_a_call() -> None:
    taken = {
        "consumed_unit": "1K Tokens",
        "consumed_quantity": Decimal(-2),
        "model": "gpt-4o",
        "billed_cost": Decimal(-5),
    }
    assert (charge(**taken).covers, charge(**taken).call_tokens) == ("calls", -2_000)
    for changes in ({"charge_class": "Correction"}, {"category": "Credit"}, {"category": "Adjustment"}):
        found, line = charge_of(2, row(**{**taken, **changes}, call="r-1"), None, START_US + 40 * DAY_US)
        assert (found.covers, found.call_id, found.call_tokens, line) == ("call", "r-1", -2_000, None)
    # Money given for tokens that were used takes no tokens back; a correction may give no count at all.
    assert charge(**{**taken, "category": "Credit", "consumed_quantity": Decimal(2)}).call_tokens is None
    without = charge(**{**taken, "charge_class": "Correction", "consumed_quantity": None})
    assert (without.covers, without.call_tokens) == ("calls", None)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"sku_meter": "Input Tokens"}, "input_uncached_tokens"),
        ({"sku_meter": "Cached Input Tokens"}, "cache_read_tokens"),
        ({"sku_meter": "Cache Write 5m Tokens"}, "cache_write_tokens"),
        ({"sku_meter": "Output Tokens"}, "output_text_tokens"),
        ({"description": "gpt-4o outp tokens"}, "output_text_tokens"),
        ({"sku_details": {"TokenDirection": "Input", "TokenCacheAction": "Read"}}, "cache_read_tokens"),
        ({"sku_details": {"TokenDirection": "Output"}, "sku_meter": "Input Tokens"}, "output_text_tokens"),
        ({"sku_meter": "Tokens"}, None),
        ({"description": "throughput readiness"}, None),
    ],
)
def test_which_tokens_are_charged_is_read_from_the_sku(changes: dict[str, Any], part: str | None) -> None:
    assert part_of(row(**changes)) == part


def test_only_token_usage_of_a_named_model_covers_calls() -> None:
    tokens = {"consumed_unit": "Tokens", "consumed_quantity": Decimal(5), "model": "gpt-4o"}
    assert charge(**tokens).covers == "calls"
    assert charge(**tokens, call="r-1").covers == "call"
    assert (charge(**tokens).call_provider, charge(**tokens).call_model, charge(**tokens).call_tokens) == (
        "openai",
        "gpt-4o",
        5,
    )
    for changes in ({"model": None}, {"category": "Purchase"}, {"category": "Tax"}, {"consumed_unit": "Seats"}):
        assert charge(**{**tokens, **changes}, call="r-1").covers is None


@pytest.mark.parametrize(
    ("header", "version"),
    [
        (["BilledCost", "ProviderName"], "1.0"),
        (["BilledCost", "SkuPriceDetails"], "1.1"),
        (["BilledCost", "InvoiceId", "SkuMeter"], "1.2"),
        (["BilledCost", "InvoiceId", "HostProviderName"], "1.3"),
    ],
)
def test_the_version_is_the_oldest_that_has_the_columns(header: list[str], version: str) -> None:
    assert version_of(header) == version
