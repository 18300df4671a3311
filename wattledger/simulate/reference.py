"""Dated reference rows for the demo: prices, tariff, grid intensity, facility factor. All invented and labelled so.

Amounts are texts, as they must enter the books: no float is near them. Public price lists are not copied here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from wattledger.simulate.seeds import unit
from wattledger.simulate.spec import BLOCK_US, DAY_US, DEVICE_DRAW, FleetSpec

SOURCE: Final = "demo price"
CURRENCY: Final = "USD"
GRID_ZONE: Final = "SIM"
DAYS_AHEAD: Final = 30
"""How far beyond the fleet's start hourly rows go; the last one stays open."""


@dataclass(frozen=True, slots=True)
class DemoPrice:
    """One price: ``amount`` buys one ``unit``. Provider ``owned`` is the published rate of our own accelerators."""

    provider: str
    model: str
    meter: str
    amount: str
    unit: str
    currency: str = CURRENCY
    source: str = SOURCE


@dataclass(frozen=True, slots=True)
class DemoRate:
    """One dated rate during [valid_from, valid_to); a null end stays in force."""

    valid_from_us: int
    valid_to_us: int | None
    amount: str
    source: str = SOURCE


# Price per million tokens: input, cache read, output (reasoning is billed as output).
_PER_MILLION: Final = {
    ("openai", "gpt-5"): ("1.5", "0.2", "11"),
    ("openai", "gpt-5-mini"): ("0.3", "0.03", "2.2"),
    ("openai", "o4-mini"): ("1.2", "0.3", "4.8"),
    ("openai", "gpt-4o-mini"): ("0.2", "0.1", "0.7"),
    ("anthropic", "claude-sonnet-4-5"): ("3.2", "0.35", "16"),
    ("anthropic", "claude-haiku-4-5"): ("1.1", "0.12", "5.5"),
    ("gcp.gemini", "gemini-2.5-flash"): ("0.35", "0.04", "2.6"),
}
_METERS: Final = ("input_tokens", "cache_read_tokens", "output_tokens", "reasoning_tokens")


def prices(spec: FleetSpec) -> list[DemoPrice]:
    """Return the price book of the demo: our accelerators by the hour, each model's token parts by the token."""
    rows = [DemoPrice("owned", spec.device_model, "accelerator_hour", "2.15", "hour")]
    for (provider, model), (text, cached, output) in _PER_MILLION.items():
        amounts = (text, cached, output, output)
        rows += [
            DemoPrice(provider, model, meter, _per_token(amount), "token")
            for meter, amount in zip(_METERS, amounts, strict=True)
        ]
    return rows


def _per_token(per_million: str) -> str:
    """Move the decimal point six places to the left, exactly."""
    whole, _, fraction = per_million.partition(".")
    digits = whole.rjust(7, "0") + fraction
    point = len(digits) - 6 - len(fraction)
    return f"{digits[:point]}.{digits[point:]}"


def tariffs(spec: FleetSpec) -> list[DemoRate]:
    """Return the electricity price per kWh at the facility's meter: a day and a night rate, by UTC hour."""
    return _hourly(spec, lambda at_us: "0.148" if 6 <= at_us // BLOCK_US % 24 < 22 else "0.092")


def intensity(spec: FleetSpec) -> list[DemoRate]:
    """Return grams of CO2e per kWh, location-based: low at noon, high in the evening, different every hour."""

    def grams(at_us: int) -> str:
        hour = at_us // BLOCK_US
        base = (290, 280, 275, 272, 275, 290, 300, 280, 240, 200, 165, 145, 140, 145, 165, 205, 260, 320, 350, 360)
        level = (*base, 355, 340, 325, 305)[hour % 24]
        return f"{level + int(20 * unit(spec.seed, DEVICE_DRAW, hour))}.5"

    return _hourly(spec, grams)


def facility_factor() -> DemoRate:
    """Return the facility factor (interim PUE, category 1)."""
    return DemoRate(0, None, "1.24")


def _hourly(spec: FleetSpec, amount_of: Callable[[int], str]) -> list[DemoRate]:
    first_us = spec.start_at_us // BLOCK_US * BLOCK_US
    rows: list[DemoRate] = []
    for at_us in range(first_us, first_us + DAYS_AHEAD * DAY_US, BLOCK_US):
        amount = amount_of(at_us)
        if rows and rows[-1].amount == amount:
            rows[-1] = DemoRate(rows[-1].valid_from_us, at_us + BLOCK_US, amount)
        else:
            rows.append(DemoRate(at_us, at_us + BLOCK_US, amount))
    rows[-1] = DemoRate(rows[-1].valid_from_us, None, rows[-1].amount)
    return rows
