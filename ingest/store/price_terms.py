"""The conditions of a price: what they are called, the text that tells two prices of one meter apart, and the columns they fill.

It refuses to choose between prices: that is the model's (``analytics.model.api_prices``).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import date, time
from decimal import Decimal
from typing import Any, Final


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTerms:
    """Under which conditions an amount is the price; null = whatever they are."""

    site_id: int | None = None
    region: str | None = None
    purchase: str | None = None
    service_tier: str | None = None
    above_tokens: int | None = None
    cache_ttl_s: int | None = None
    time_zone: str | None = None
    from_local: time | None = None
    to_local: time | None = None
    weekdays: int | None = None

    def text(self) -> str:
        """Return all there are as ``name=value``, in the order of the fields; empty = none."""
        told = ((entry.name, getattr(self, entry.name)) for entry in fields(self))
        return " ".join(f"{name}={value}" for name, value in told if value is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceSource:
    """Where a price comes from. ``per``: how many units the source quotes it for."""

    per: Decimal | None = None
    source_url: str | None = None
    published_on: date | None = None
    book_id: int | None = None


ANY: Final = PriceTerms()
NOWHERE: Final = PriceSource()


def price_row(
    line: int,
    interval_us: tuple[int, int | None],
    who: tuple[str, str, str],
    cost: tuple[Decimal, str, str],
    terms: PriceTerms = ANY,
    source: PriceSource = NOWHERE,
) -> tuple[Any, ...]:
    """Return a price as ``ingest.store.import_rates.PRICES`` takes it. ``who``: provider, model, meter; ``cost``: amount, unit, currency."""
    of_terms = [getattr(terms, entry.name) for entry in fields(terms)]
    of_source = [getattr(source, entry.name) for entry in fields(source)]
    return (line, *interval_us, *who, terms.text(), *cost, *of_terms, *of_source)
