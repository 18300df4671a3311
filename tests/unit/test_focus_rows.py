"""What one FOCUS row is: which charge, and which tokens of which calls it covers."""

from __future__ import annotations

from dataclasses import fields
from decimal import Decimal
from typing import Any

import pytest

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
        ("Tokens", "1.5", None),
        ("Hours", "3", None),
        ("token-hours", "3", None),
        ("GB", "1", None),
    ],
)
def test_tokens_are_read_in_the_units_providers_use(unit: str, quantity: str, tokens: int | None) -> None:
    assert tokens_of(row(consumed_unit=unit, consumed_quantity=Decimal(quantity))) == tokens
    assert tokens_of(row(pricing_unit=unit, pricing_quantity=Decimal(quantity))) == tokens


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
    for changes in ({"model": None}, {"category": "Credit"}, {"category": "Tax"}, {"consumed_unit": "Seats"}):
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
