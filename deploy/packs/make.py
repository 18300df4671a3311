"""Makes two packs of published figures from public packages that ship them; refuses to guess. Run by ``build`` beside it.

    make.py FOLDER 2026-11-01      # from when prices hold that their package does not date

A price of what no sender tells is left out and counted by name, never flattened.
"""

# ruff: noqa: INP001 - a script, run in an environment of its own

from __future__ import annotations

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any, Final

import pycountry
from genai_prices.data import providers
from genai_prices.types import (
    ClauseContains,
    ClauseEndsWith,
    ClauseEquals,
    ClauseOr,
    ClauseRegex,
    ClauseStartsWith,
    ModelPrice,
    StartDateConstraint,
    TimeOfDateConstraint,
)

MIX: Final = "codecarbon/data/private_infra/global_energy_mix.json"
OLDEST_YEAR: Final = 2021
PROVIDERS: Final = ("anthropic", "cohere", "deepseek", "google", "groq", "mistral", "openai", "x-ai")
TOKENS: Final = {
    "input_mtok": "input",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "output_mtok": "output",
    "input_audio_mtok": "audio_input",
    "output_audio_mtok": "audio_output",
    "output_image_mtok": "image_output",
}
"""Of a million tokens -> the key of a price book."""
UNITS: Final = {
    "input_document_kpages": ("page", 1_000),
    "input_mchars": ("character", 1_000_000),
    "input_audio_hours": ("second", 3_600),
    "audio_hours": ("second", 3_600),
}
"""Of so many of a unit; of two that are one key the first counts."""
TOOLS: Final = {"web_searches_kcount": "web_search", "storage_searches_kcount": "file_search"}
LEFT_OUT: Final = {
    "input_image_mtok": "images that are sent: senders tell them as input",
    "input_video_mtok": "video tokens: no sender tells them",
    "output_video_mtok": "video tokens: no sender tells them",
    "cache_audio_read_mtok": "cached audio: what was cached is told across kinds of content",
    "cache_image_read_mtok": "cached images: what was cached is told across kinds of content",
    "input_annotated_document_kpages": "annotated pages: pages are told of one kind",
    "input_text_messages_kcount": "messages: no sender tells them",
}
TIERS: Final = ("batch", "flex", "priority")
PLACES: Final = Decimal(1).scaleb(-18)
SPECIAL: Final = re.compile(r"[.^$*+?()\[\]{}|\\]")


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


def book(known: date) -> Iterator[str]:
    """Yield the lines of a price book: list prices in force on a day and those announced for later, and the names of models."""
    skipped: Counter[str] = Counter()
    entries, names = [], []
    for provider in providers:
        if provider.id in PROVIDERS:
            for model in provider.models:
                entries += list(_entries(provider, model, known, skipped))
            names += list(_names(provider, skipped))
    for reason, count in sorted(skipped.items()):
        sys.stderr.write(f"left out: {count} {reason}\n")
    yield f"# List prices of APIs as the package genai-prices {version('genai-prices')} ships them. Made by deploy/packs/make.py."
    yield "book: genai-prices"
    yield f"note: genai-prices {version('genai-prices')}, MIT, Pydantic Services Inc."
    yield "currency: USD"
    for section, rows in (("prices", sorted(entries)), ("aliases", names)):
        yield f"{section}:"
        yield from (f"  - {row}" for row in rows)


def _entries(provider: Any, model: Any, known: date, skipped: Counter[str]) -> Iterator[str]:
    url = provider.pricing_urls[0] if provider.pricing_urls else None
    dated = [(None, model.prices)] if isinstance(model.prices, ModelPrice) else []
    dated = dated or [(each.constraint, each.prices) for each in model.prices]
    tiers = [(variant.when, variant.constraint, variant.prices) for variant in model.price_variants or ()]
    for tier, each in [("", dated), *((tier, _of_tier(tiers, tier)) for tier in TIERS)]:
        for start, end, hours, price in _in_time(each, known):
            entry = {"provider": provider.id, "model": model.id, "from": str(start)}
            entry |= {} if end is None else {"to": str(end)}
            entry |= {"source": url} if url else {}
            entry |= {"published": str(known), "per": "1000000"}
            entry |= {} if hours is None else {"hours": hours}
            amounts = _amounts(price, tier, skipped)
            if amounts:
                yield json.dumps(entry | amounts)
    for when, _, price in tiers:
        known_tier = len(when) == 1 and when.keys() <= {"processing", "service_tier"} and {*when.values()} <= {*TIERS}
        if not known_tier and any(amount is not None for amount in vars(price).values()):
            skipped[f"prices of {' '.join(f'{name} {value}' for name, value in sorted(when.items()))}"] += 1


def _of_tier(tiers: list[tuple[Any, Any, Any]], tier: str) -> list[tuple[Any, Any]]:
    return [
        (constraint, price)
        for when, constraint, price in tiers
        if when in ({"processing": tier}, {"service_tier": tier})
    ]


def _in_time(
    dated: list[tuple[Any, Any]], known: date
) -> Iterator[tuple[date, date | None, dict[str, str] | None, Any]]:
    """Yield what of a list is in force on a day or later: of several at a time the package takes the last of its list."""
    starts = [
        (at, constraint.start_date if constraint is not None else date.min)
        for at, (constraint, _) in enumerate(dated)
        if constraint is None or isinstance(constraint, StartDateConstraint)
    ]
    begun = max((at for at, start in starts if start <= known), default=-1)
    for at, (constraint, price) in enumerate(dated):
        later = [start for other, start in starts if other > at and start > known]
        if isinstance(constraint, TimeOfDateConstraint):
            if at > begun:
                clocks = {"from": f"{constraint.start_time:%H:%M}", "to": f"{constraint.end_time:%H:%M}"}
                yield known, min(later, default=None), {"zone": "UTC", **clocks}, price
        elif at == begun:
            own = constraint.start_date if constraint is not None else known
            yield own, None, None, price
        elif constraint is not None and constraint.start_date > known:
            yield constraint.start_date, None, None, price


def _amounts(price: Any, tier: str, skipped: Counter[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    above: dict[int, dict[str, str]] = {}
    for name, told in vars(price).items():
        if told is None:
            continue
        if name in LEFT_OUT:
            skipped[f"prices of {LEFT_OUT[name]}"] += 1
        elif name in TOKENS:
            base = told if isinstance(told, Decimal) else told.base
            found[TOKENS[name]] = _text(base)
            for step in () if isinstance(told, Decimal) else told.tiers:
                above.setdefault(step.start, {})[TOKENS[name]] = _text(step.price)
        elif tier or not isinstance(told, Decimal):
            skipped[f"prices of {name} in tiers"] += 1
        elif name in TOOLS:
            found.setdefault("tools", {})[TOOLS[name]] = {"per": "1000", "amount": _text(told)}
        elif name in UNITS:
            key, per = UNITS[name]
            exact = told / per
            if exact == exact.quantize(PLACES):
                found.setdefault(key, _text(exact))
            else:
                skipped[f"prices by the hour that are not exact by the {key}"] += 1
        else:
            skipped[f"prices of {name}"] += 1
    steps = [{"tokens": str(tokens), **amounts} for tokens, amounts in sorted(above.items())]
    if not tier:
        return found | ({"above": steps} if steps else {})
    # A book says a tier of a step within the step, and the step of a tier is a step that has only the tier.
    inner = [{"tokens": step.pop("tokens"), tier: step} for step in steps]
    return ({tier: found} if found else {}) | ({"above": inner} if inner else {})


def _names(provider: Any, skipped: Counter[str]) -> Iterator[str]:
    """Yield what stands for a model, in the order in which the package looks."""
    own = {model.id for model in provider.models}
    seen: set[tuple[str, str]] = set()
    for model in provider.models:
        for kind, pattern in _patterns(model.match, skipped):
            if (kind, pattern) in seen or (kind == "exact" and pattern in own):
                continue
            seen.add((kind, pattern))
            yield json.dumps({"provider": provider.id, kind: pattern, "model": model.id})


def _patterns(clause: Any, skipped: Counter[str]) -> Iterator[tuple[str, str]]:
    if isinstance(clause, ClauseOr):
        for part in clause.or_:
            yield from _patterns(part, skipped)
    elif isinstance(clause, ClauseEquals):
        yield "exact", clause.equals
    elif isinstance(clause, ClauseStartsWith):
        yield "prefix", clause.starts_with
    elif isinstance(clause, ClauseEndsWith):
        yield "regex", f".*{_literal(clause.ends_with)}"
    elif isinstance(clause, ClauseContains):
        yield "regex", f".*{_literal(clause.contains)}.*"
    elif isinstance(clause, ClauseRegex):
        # The package looks for it anywhere in a name, a book's is of the whole name.
        start = "" if clause.regex.startswith("^") else ".*"
        end = "" if clause.regex.endswith("$") else ".*"
        yield "regex", start + clause.regex.removeprefix("^").removesuffix("$") + end
    else:
        skipped["names by several patterns at once"] += 1


def _literal(text: str) -> str:
    return SPECIAL.sub(lambda found: "\\" + found[0], text)


def _text(amount: Decimal) -> str:
    return format(amount.normalize(), "f")


def write(path: Path, header: str, rows: Iterator[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(header.split(","))
        out.writerows(rows)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write(folder / "intensity-yearly.csv", "zone,valid_from,valid_to,gco2e_per_kwh,estimated,source", intensities())
    lines = book(date.fromisoformat(sys.argv[2]))
    (folder / "prices-api.yaml").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
