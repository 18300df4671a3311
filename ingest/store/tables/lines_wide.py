"""Columns of lines that came after lines were kept, hashed and chained: of the books, of corrections, and of the sums of bills.

All of them are nullable, and a line of before says nothing in them. It knows no table.
"""

from typing import Any

from sqlalchemy import BigInteger, Column, Integer, Numeric, String, Text

from ingest.store.tables.columns import MONEY, column, named


def later_amounts(more: str = "") -> tuple[Column[Any], ...]:
    """Return the columns that add up; ``more`` ends their comments."""
    return (
        _amount("carbon_market_gco2e", "grams of CO2 equivalent, market-based; null = not known" + more),
        _amount(
            "carbon_marginal_gco2e",
            "grams of CO2 equivalent at the margin, never part of an inventory; null = not known" + more,
        ),
        _amount("embodied_gco2e", "grams of CO2 equivalent of making the hardware; null = not known" + more),
        column("water_ml", BigInteger, nullable=True, comment="millilitres; null = not known" + more),
        _amount("list_cost", "in currency, at list prices; null = none is known" + more),
    )


def later_words() -> tuple[Column[Any], ...]:
    """Return the columns that say what a line is."""
    return (
        column(
            "ghg_scope",
            Text,
            nullable=True,
            comment="Greenhouse Gas Protocol: 2, or 3.1, 3.2, 3.3, 3.8 (scope 3 by category); null = not said",
        ),
        column(
            "basis",
            Text,
            nullable=True,
            comment="allocation or usage: what its cost is shared by; null = by what it says itself",
        ),
        column(
            "terms",
            Text,
            nullable=True,
            comment="tier, region and purchase it was priced by; null = no price says any",
        ),
    )


def later_sources() -> tuple[Column[Any], ...]:
    """Return the columns that say what figures of a line are made of."""
    return (
        named("intensity_id", "intensity", nullable=True, comment="surrogate id: of the intensity its carbon is of"),
        # No table has them yet.
        column(
            "market_factor_id",
            Integer,
            nullable=True,
            comment="surrogate id: of the factor its market-based carbon is of",
        ),
        # Not looked up: a later file takes the place of a charge, and the line says what it was made of then.
        column("charge_id", BigInteger, nullable=True, comment="surrogate id: of the imported charge it is"),
        named(
            "fx_rate_id",
            "fx_rates",
            nullable=True,
            comment="surrogate id: of the exchange rate its cost is converted by",
        ),
        column(
            "source_currency", String(3), nullable=True, comment="of source_cost; null = its cost was not converted"
        ),
        column(
            "source_cost",
            Numeric,
            nullable=True,
            comment="in source_currency, every digit, before it was converted",
        ),
    )


def _amount(name: str, comment: str) -> Column[Any]:
    return column(name, MONEY, nullable=True, comment=comment)
