"""Tokens of real senders at real prices: the public failures of other tools (cached twice, reasoning added, 1,000 times), by name.

Every chat of the captures used 1,000 input tokens, 600 of them cached, and 250 output tokens, 120 of them reasoning. At 2.50 a
million for input, 1.25 for cached input and 10.00 for output: 400 × 2.5 + 600 × 1.25 + 250 × 10 = 4,250 millionths = 0.00425.
"""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from analytics.frames import ApiCalls, Prices, Tenants
from analytics.model.tokens import token_lines
from ingest.calls import ApiCall
from tests.contract.test_otlp_gen_ai import CACHED, FULL, SENT, TOTALS, captured, parts
from tests.fakes.site import at, price, table

pytestmark = pytest.mark.contract
RIGHT = Decimal("0.004250000")
WITHOUT_DETAIL = Decimal("0.005000000")
"""A sender that tells totals alone tells of no cached token: 1,000 × 2.5 + 250 × 10."""
OF_PARTS: dict[tuple[int | None, ...], Decimal] = {FULL: RIGHT, CACHED: RIGHT, TOTALS: WITHOUT_DETAIL}
WRONG = {
    "cached tokens charged in full beside their own price": Decimal("0.005750000"),
    "cached tokens charged at the price of input": WITHOUT_DETAIL,
    "reasoning added to the output it is part of": Decimal("0.005450000"),
    "a price of a million taken for a price of a thousand": Decimal("4.250000000"),
}
"""What public tools made of it: LiteLLM 14849, Langfuse 12306 and 10592, Helicone 4893 and 5067, MLflow 24759."""
"""USD a token."""
BOOK = {"input_tokens": "0.0000025", "cache_read_tokens": "0.00000125", "output_tokens": "0.00001"}


def billed(call: ApiCall, **prices: str) -> Decimal:
    row = asdict(call) | {"called_at": at(5), "provider": "openai", "model": "m"}
    book = [
        price(n, amount, provider="openai", model="m", meter=meter)
        for n, (meter, amount) in enumerate((BOOK | prices).items(), 1)
    ]
    calls = table(ApiCalls, [row]).with_columns(pl.lit(None, pl.Int32).alias("tenant_id"))
    lines = token_lines(calls, table(Prices, book), Tenants.create_empty(), "USD")
    assert lines["billed_cost"].null_count() == 0
    return sum(lines["billed_cost"], Decimal(0))


@pytest.mark.parametrize("sender", sorted(SENT.keys() - {"rotel-collector"}))  # it sent no chat of these
def test_a_captured_chat_costs_what_it_costs_and_none_of_what_others_made_of_it(shared: Path, sender: str) -> None:
    chats = [call for call in captured(shared, sender).calls if parts(call) in OF_PARTS]
    assert chats
    for call in chats:
        assert billed(call) == OF_PARTS[parts(call)]
        if parts(call) != TOTALS:
            assert billed(call) not in WRONG.values()


def test_reasoning_that_has_a_price_of_its_own_is_taken_out_of_the_output(shared: Path) -> None:
    chat = next(call for call in captured(shared, "openllmetry-openai").calls if parts(call) == FULL)
    # 1,000 + 750 as before; 130 × 10 + 120 × 12 = 2,740 millionths.
    assert billed(chat, reasoning_tokens="0.000012") == Decimal("0.004490000")


def test_the_tier_a_captured_answer_names_is_kept(shared: Path) -> None:
    tiers = {call.service_tier for sender in SENT for call in captured(shared, sender).calls}
    assert tiers == {None, "standard"}  # the fake API answers with "default"
