"""19,366 requests of the Azure 2023 conversation trace at LiteLLM's prices: their bill, and the same bill computed apart.

The trace has no tenant and no model. It is imported twice: as published, all of one key; and with a key and a model added to
each line in turn, so that rounding groups have several lines of several tenants.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Final

from ingest.importers.columns import Source
from ingest.importers.llm_log import LlmLogOptions, import_llm_log
from ingest.importers.prices import PriceOptions, import_prices
from ingest.importers.report import ImportReport
from tests.real.independent import Line, billed, kept_rate
from tests.real.stand import NOW, Stand

TRACE: Final = Path("data/llm-traces/azure_2023_conv.csv")
PRICES: Final = Path("data/billing/llm_prices_litellm_1.109.1.csv")
FROM_AT: Final = datetime(2023, 11, 16, tzinfo=UTC)
TO_AT: Final = datetime(2023, 11, 17, tzinfo=UTC)
GPT: Final = ("azure", "azure/us-gov/gpt-5.1")
"""Input 1.71875e-06: eleven decimals."""
DEEPSEEK: Final = ("novita", "novita/deepseek/deepseek_v3")
"""8.900000000000001e-07: twenty-two, of which eighteen are kept."""
KEYS: Final = (("chat", GPT), ("search", GPT), ("agents", DEEPSEEK), ("batch", GPT), ("labs", DEEPSEEK))
GATEWAY: Final = "gateway"
_PARTS: Final = (("input_uncached_tokens", "input_tokens"), ("output_text_tokens", "output_tokens"))
_COLUMNS: Final = {"input_tokens": "input_cost_per_token", "output_tokens": "output_cost_per_token"}


@dataclass(frozen=True, slots=True)
class Call:
    site: str
    hour: datetime
    key: str
    model: tuple[str, str]
    input_tokens: int
    output_tokens: int


def calls(shared: Path) -> list[Call]:
    """Read both imports' calls without the product's reader."""
    found = []
    with (shared / TRACE).open(newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream)):
            hour = datetime.fromisoformat(row["TIMESTAMP"][:13] + ":00:00+00:00")
            tokens = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            key, model = KEYS[number % len(KEYS)]
            found += [Call("published", hour, GATEWAY, GPT, *tokens), Call("keyed", hour, key, model, *tokens)]
    return found


def load(stand: Stand, shared: Path, folder: Path) -> tuple[ImportReport, ImportReport, ImportReport]:
    """Import prices and both logs, bind keys to tenants, and close."""
    keyed = folder / "keyed.csv"
    with (shared / TRACE).open(newline="") as stream, keyed.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["timestamp", "input_tokens", "output_tokens", "key_name", "provider", "model"])
        for number, row in enumerate(csv.DictReader(stream)):
            key, (provider, model) = KEYS[number % len(KEYS)]
            writer.writerow([row["TIMESTAMP"], row["ContextTokens"], row["GeneratedTokens"], key, provider, model])
    keys = "\n".join(f"  - {{tenant: {tenant_of(key)}, key: {key}}}" for key in (GATEWAY, *(key for key, _ in KEYS)))
    stand.bind(f"bindings:\n{keys}\n")
    with stand.importing("import prices") as connection:
        options = PriceOptions(site="published", valid_from=FROM_AT - timedelta(days=365))
        prices = import_prices(connection, Source(shared / PRICES), options)
    with stand.importing("import calls") as connection:
        given = LlmLogOptions(site="published", provider=GPT[0], model=GPT[1], api_key=GATEWAY)
        published = import_llm_log(connection, Source(shared / TRACE, tz="UTC"), given, now=NOW)
    with stand.importing("import keyed calls") as connection:
        report = import_llm_log(connection, Source(keyed, tz="UTC"), LlmLogOptions(site="keyed"), now=NOW)
    stand.close()
    return prices, published, report


def tenant_of(key: str) -> str:
    """Two keys share a tenant, so that tenants and keys are not the same thing."""
    return {"chat": "acme/product", "search": "acme/product"}.get(key, f"acme/{key}")


def expected(shared: Path, made: Sequence[Call]) -> dict[str, int]:
    """Return billionths by key, by exact fractions, from what is published alone: ties go by tenant and key."""
    rates = dict(_rates(shared))
    tokens: dict[tuple[str, datetime, tuple[str, str], str, str], int] = defaultdict(int)
    for call in made:
        for meter, count in (("input_tokens", call.input_tokens), ("output_tokens", call.output_tokens)):
            tokens[call.site, call.hour, call.model, meter, call.key] += count
    groups: dict[tuple[str, datetime, tuple[str, str], str], list[Line]] = defaultdict(list)
    for (site, hour, model, meter, key), count in tokens.items():
        groups[site, hour, model, meter].append(Line(key, count, (tenant_of(key), key)))
    nano: dict[str, int] = defaultdict(int)
    for (_, _, model, meter), lines in groups.items():
        for line, amount in billed(lines, rates[(*model, meter)], 1):
            nano[line.owner] += amount
    return dict(nano)


def _rates(shared: Path) -> Iterator[tuple[tuple[str, str, str], Decimal]]:
    with (shared / PRICES).open(newline="") as stream:
        for row in csv.DictReader(stream):
            for meter, column in _COLUMNS.items():
                if row[column]:
                    yield (row["litellm_provider"], row["model"], meter), kept_rate(row[column])
