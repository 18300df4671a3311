"""Every pricing shape of LiteLLM's table is a meter under conditions here, or refused by name."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from ingest.importers.litellm_prices import REFUSED, litellm_columns
from ingest.store.price_terms import ANY, PriceTerms

pytestmark = pytest.mark.unit


def test_every_cost_column_of_the_table_is_a_meter_or_is_refused_by_name(shared: Path) -> None:
    with (shared / "data" / "billing" / "llm_prices_litellm_1.109.1.csv").open(newline="") as table:
        header = next(csv.reader(table))
    costs = {name for name in header if "cost" in name}
    mapped = litellm_columns(header)
    assert mapped.keys() | REFUSED.keys() == costs
    assert not mapped.keys() & REFUSED.keys()
    # No two columns are one price but for those of which the first that says something counts.
    several = {key for key in mapped.values() if list(mapped.values()).count(key) > 1}
    assert {key.meter for key in several} == {"second", "cache_read_tokens"}


@pytest.mark.parametrize(
    ("column", "meter", "terms"),
    [
        ("output_cost_per_token", "output_tokens", ANY),
        ("input_cost_per_token_batches", "input_tokens/batches", ANY),
        ("input_cost_per_token_above_200k_tokens", "input_tokens", PriceTerms(above_tokens=200_000)),
        (
            "cache_read_input_token_cost_above_272k_tokens_priority",
            "cache_read_tokens/priority",
            PriceTerms(above_tokens=272_000),
        ),
        ("cache_creation_input_token_cost_above_1hr", "cache_write_tokens", PriceTerms(cache_ttl_s=3_600)),
        (
            "cache_creation_input_token_cost_above_1hr_above_100k_tokens",
            "cache_write_tokens",
            PriceTerms(above_tokens=100_000, cache_ttl_s=3_600),
        ),
        ("google_maps_grounding_cost_per_query", "tool:maps_grounding", ANY),
    ],
)
def test_a_column_says_its_conditions_in_its_name(column: str, meter: str, terms: PriceTerms) -> None:
    found = litellm_columns([column])[column]
    assert (found.meter, found.terms) == (meter, terms)


def test_two_conditions_are_never_one_text() -> None:
    texts = [
        PriceTerms(above_tokens=3_600).text(),
        PriceTerms(cache_ttl_s=3_600).text(),
        PriceTerms(above_tokens=3_600, service_tier="batch").text(),
        ANY.text(),
    ]
    assert texts == ["above_tokens=3600", "cache_ttl_s=3600", "service_tier=batch above_tokens=3600", ""]
