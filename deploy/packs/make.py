"""Makes two packs of published figures from public packages that ship them; refuses to guess. Run by ``build`` beside it.

    make.py FOLDER 2026-11-01      # from when prices hold that their package does not date

A price with tiers, by the hour of the day or of a part we have no meter for is left out and counted, never flattened.
"""

# ruff: noqa: INP001 - a script, run in an environment of its own

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any, Final

import pycountry
from genai_prices.data import providers
from genai_prices.types import ModelPrice, StartDateConstraint

MIX: Final = "codecarbon/data/private_infra/global_energy_mix.json"
OLDEST_YEAR: Final = 2021
PROVIDERS: Final = ("anthropic", "cohere", "deepseek", "google", "groq", "mistral", "openai", "x-ai")
METERS: Final = {
    "input_mtok": "input_tokens",
    "cache_read_mtok": "cache_read_tokens",
    "cache_write_mtok": "cache_write_tokens",
    "output_mtok": "output_tokens",
}
MILLION: Final = Decimal(1_000_000)


def intensities() -> Iterator[tuple[str, ...]]:
    """Yield a year's mean of each country: in that year as published, after it as an estimate until somebody knows better."""
    # Where it lies, not by import: importing codecarbon would need all that it measures with.
    text = Path(str(distribution("codecarbon").locate_file(MIX))).read_text(encoding="utf-8")
    source = f"Our World in Data (Ember, Energy Institute) in codecarbon {version('codecarbon')}"
    found = []
    for code, mix in json.loads(text, parse_float=Decimal).items():
        country = pycountry.countries.get(alpha_3=code)
        if country is None or mix["year"] < OLDEST_YEAR or not mix["carbon_intensity"]:
            sys.stderr.write(f"left out: {code} {mix['year']} {mix['carbon_intensity']}\n")
            continue
        year, value = int(mix["year"]), format(Decimal(mix["carbon_intensity"]), "f")
        begin, end = f"{year}-01-01T00:00:00Z", f"{year + 1}-01-01T00:00:00Z"
        found.append((country.alpha_2, begin, end, value, "false", source))
        found.append((country.alpha_2, end, "", value, "true", f"{source}: mean of {year}"))
    yield from sorted(found)


def prices(known: date) -> Iterator[tuple[str, ...]]:
    """Yield the list prices in force on a day and those announced for later."""
    skipped: Counter[str] = Counter()
    found = set()
    for provider in providers:
        if provider.id not in PROVIDERS:
            continue
        for model in provider.models:
            dated = [(None, model.prices)] if isinstance(model.prices, ModelPrice) else []
            for each in model.prices if not dated else ():
                if each.constraint is not None and not isinstance(each.constraint, StartDateConstraint):
                    skipped["by the hour of the day"] += 1
                    continue
                dated.append((each.constraint.start_date if each.constraint is not None else None, each.prices))
            begun = [one for one in dated if one[0] is None or one[0] <= known]
            later = [one for one in dated if one[0] is not None and one[0] > known]
            for start, price in [*begun[-1:], *later]:
                for row in _amounts(price, skipped):
                    found.add((provider.id, model.id, *row, _midnight(start or known)))
    for reason, count in skipped.items():
        sys.stderr.write(f"left out: {count} prices {reason}\n")
    yield from sorted(found)


def _amounts(price: Any, skipped: Counter[str]) -> Iterator[tuple[str, str, str, str]]:
    told = {name: getattr(price, name, None) for name in METERS}
    if any(amount is not None and not isinstance(amount, Decimal) for amount in told.values()):
        skipped["in tiers"] += 1
        return
    for name, amount in told.items():
        if amount is not None:
            yield METERS[name], format((amount / MILLION).normalize(), "f"), "token", "USD"


def _midnight(day: date) -> str:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).isoformat().replace("+00:00", "Z")


def write(path: Path, header: str, rows: Iterator[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(header.split(","))
        out.writerows(rows)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write(folder / "intensity-yearly.csv", "zone,valid_from,valid_to,gco2e_per_kwh,estimated,source", intensities())
    write(
        folder / "prices-api.csv",
        "provider,model,meter,amount,unit,currency,valid_from",
        prices(date.fromisoformat(sys.argv[2])),
    )
