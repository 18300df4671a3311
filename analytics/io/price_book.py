"""The price book as a YAML file, validated as a whole: every fault with its line. It stores nothing and chooses no price.

docs/prices.md shows each key. Amounts are of ``per`` tokens (1 unless it says so) and become exact prices of one: what is not exact in 18
decimals is a fault, not rounded. Prices by a month's volume are refused by name: no hour knows its month.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from analytics.io.yaml_lines import Document, Fault, Path, Plain, read, spelled
from analytics.model.aliases import KINDS, fault_of
from analytics.model.api_prices import HOUR_TTL_S, POLICIES, TIERS
from ingest.store.price_terms import PriceSource, PriceTerms

EVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
MAX_PRICES: Final = 100_000
MAX_TEXT: Final = 255
TOKENS: Final[dict[str, tuple[str, int | None]]] = {
    "input": ("input_tokens", None),
    "cache_read": ("cache_read_tokens", None),
    "cache_write": ("cache_write_tokens", None),
    "cache_write_1h": ("cache_write_tokens", HOUR_TTL_S),
    "output": ("output_tokens", None),
    "reasoning": ("reasoning_tokens", None),
    "audio_input": ("audio_tokens", None),
    "audio_output": ("audio_output_tokens", None),
    "image_output": ("image_output_tokens", None),
}
"""Key -> meter, and how long a cache is kept."""
UNITS: Final = {"image": "image", "second": "second", "character": "character", "page": "page", "request": "request"}
"""Keys whose amounts are of one, whatever ``per`` says: each is its own meter and unit."""
PURCHASES: Final = ("on_demand", "reserved", "savings", "spot")
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WHO: Final = ("provider", "model", "instance", "from", "to", "currency", "per", "source", "published")
_WHERE: Final = ("site", "region", "purchase", "hours")
_GROUPS: Final = ("above", "tools", "hour", *TIERS[1:])
_ENTRY: Final = (*_WHO, *_WHERE, *TOKENS, *UNITS, *_GROUPS)
_BY_VOLUME: Final = ("volume", "graduated", "monthly", "steps")
_AMOUNT: Final = re.compile(r"\d{1,18}(\.\d{1,18})?")
_LAST_PLACE: Final = Decimal(1).scaleb(-18)


class PriceBookError(ValueError):
    """The book cannot be used; ``faults`` says why, all of it, by line."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        self.faults = faults
        super().__init__("the price book is not valid:\n" + "\n".join(f"  {fault}" for fault in faults))


@dataclass(frozen=True, slots=True)
class BookPrice:
    """One price of one unit. ``site``: its name, null = all."""

    line: int
    provider: str
    model: str
    meter: str
    amount: Decimal
    unit: str
    currency: str
    valid_from: datetime
    valid_to: datetime | None
    site: str | None
    terms: PriceTerms
    source: PriceSource


@dataclass(frozen=True, slots=True)
class BookAlias:
    line: int
    provider: str
    kind: str
    pattern: str
    model: str
    valid_from: datetime


@dataclass(frozen=True, slots=True)
class BookPolicy:
    line: int
    provider: str
    model: str
    unknown: str
    valid_from: datetime


@dataclass(frozen=True, slots=True)
class PriceBook:
    """A valid book. ``aliases`` and ``policies`` None: the file does not speak of them."""

    name: str
    note: str | None
    prices: tuple[BookPrice, ...]
    aliases: tuple[BookAlias, ...] | None
    policies: tuple[BookPolicy, ...] | None

    @property
    def rows(self) -> int:
        return len(self.prices) + len(self.aliases or ()) + len(self.policies or ())


def check(text: str) -> PriceBook:
    """Return the book a file is. Raises PriceBookError with every fault."""
    document = read(text)
    if document.data is None:
        raise PriceBookError(document.faults)
    reader = _Reader(document)
    book = reader.book()
    faults = tuple(sorted({*document.faults, *reader.faults}))
    if faults or book is None:
        raise PriceBookError(faults or (Fault(1, "", "the document is no price book"),))
    return book


@dataclass(slots=True)
class _Reader:
    document: Document
    faults: list[Fault] = field(default_factory=list)

    def fault(self, path: Path, message: str) -> None:
        self.faults.append(Fault(self.document.line_of(path), spelled(path), message))

    def book(self) -> PriceBook | None:
        data = self.document.data
        if not isinstance(data, dict):
            self.fault((), "must be a mapping with `book`, `prices`, `aliases`, `unknown`")
            return None
        self.known((), data, ("book", "note", "currency", "prices", "aliases", "unknown"))
        name = self.text((), data, "book") or ""
        prices = [price for path, entry in self.entries(data, "prices") for price in self.price(path, entry, data)]
        if len(prices) > MAX_PRICES:
            self.fault(("prices",), f"more than {MAX_PRICES} prices; split the book")
        self.overlaps(prices)
        self.holes(prices)
        aliases = self.aliases(data, prices)
        policies = self.policies(data)
        note = self.text((), data, "note", required=False)
        return PriceBook(
            name,
            note,
            tuple(prices),
            tuple(aliases) if "aliases" in data else None,
            tuple(policies) if "unknown" in data else None,
        )

    def entries(self, data: Mapping[str, Plain], section: str) -> Iterator[tuple[Path, dict[str, Plain]]]:
        given = data.get(section, [])
        if not isinstance(given, list):
            self.fault((section,), "must be a list")
            return
        for at, entry in enumerate(given):
            if isinstance(entry, dict):
                yield (section, at), entry
            else:
                self.fault((section, at), "must be a mapping")

    def known(self, path: Path, entry: Mapping[str, Plain], keys: Sequence[str]) -> None:
        for key in entry.keys() - set(keys):
            if key in _BY_VOLUME:
                self.fault(
                    (*path, key),
                    "prices by a month's volume are no prices of calls; they arrive as credits of the invoice",
                )
            else:
                self.fault((*path, key), f"unknown key; known are {', '.join(keys)}")

    def text(self, path: Path, entry: Mapping[str, Plain], key: str, *, required: bool = True) -> str | None:
        value = entry.get(key)
        if value is None:
            if required:
                self.fault(path, f"`{key}` is missing")
            return None
        if not isinstance(value, str) or not value.strip() or len(value) > MAX_TEXT or not value.isprintable():
            self.fault((*path, key), f"must be text of 1 to {MAX_TEXT} characters")
            return None
        return value.strip()

    def instant(self, path: Path, entry: Mapping[str, Plain], key: str, default: datetime | None) -> datetime | None:
        if key not in entry:
            return default
        try:
            found = datetime.fromisoformat(str(entry[key]))
        except ValueError:
            self.fault((*path, key), "must be a day or an instant, like 2026-11-01 or 2026-11-01T06:00Z")
            return default
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)

    def amount(self, path: Path, value: Plain, per: Decimal) -> Decimal | None:
        if not isinstance(value, str) or _AMOUNT.fullmatch(value) is None:
            self.fault(path, "must be an amount like 2.50, 0 or more, of at most 18 decimals")
            return None
        exact = Decimal(value) / per
        if exact != exact.quantize(_LAST_PLACE):
            self.fault(path, f"{value} of {per} is not exact in 18 decimals")
            return None
        return exact

    def per(self, path: Path, entry: Mapping[str, Plain]) -> Decimal:
        value = entry.get("per", "1")
        digits = value.replace("_", "") if isinstance(value, str) else ""
        if re.fullmatch(r"10{0,9}", digits) is None:
            self.fault((*path, "per"), "must be 1, 10, 100 … 1000000000: how many the amounts are of")
            return Decimal(1)
        return Decimal(digits)

    def price(self, path: Path, entry: dict[str, Plain], data: Mapping[str, Plain]) -> Iterator[BookPrice]:
        self.known(path, entry, _ENTRY)
        provider = self.text(path, entry, "provider")
        if ("model" in entry) == ("instance" in entry):
            self.fault(path, "one of `model` and `instance` is needed")
            return
        model = self.text(path, entry, "model" if "model" in entry else "instance")
        begun, ended = self.instant(path, entry, "from", None), self.instant(path, entry, "to", None)
        if "from" not in entry:
            self.fault(path, "`from` is missing: since when does it hold?")
        if begun is not None and ended is not None and ended <= begun:
            self.fault((*path, "to"), "ends before it begins")
        currency = self.text(path, {"currency": data["currency"], **entry} if "currency" in data else entry, "currency")
        if currency is not None and re.fullmatch(r"[A-Z]{3}", currency) is None:
            self.fault((*path, "currency"), f"{currency!r} is no currency code like USD")
        per, terms = self.per(path, entry), self.terms(path, entry)
        source = PriceSource(
            per=per if per != 1 else None,
            source_url=self.text(path, entry, "source", required=False),
            published_on=self.day(path, entry),
        )
        if provider is None or model is None or begun is None or currency is None:
            return
        site = self.text(path, entry, "site", required=False)
        usual = BookPrice(
            self.document.line_of(path),
            provider,
            model,
            "",
            Decimal(0),
            "token",
            currency,
            begun,
            ended,
            site,
            terms,
            source,
        )
        found = [*self.tokens(path, entry, per, usual)]
        for tier in TIERS[1:]:
            if tier in entry:
                inner = self.mapping((*path, tier), entry[tier], TOKENS)
                found += self.tokens((*path, tier), inner, per, replace(usual, terms=replace(terms, service_tier=tier)))
        found += self.above(path, entry, per, usual)
        found += self.units(path, entry, usual, is_instance="instance" in entry)
        if entry.keys().isdisjoint((*TOKENS, *UNITS, *_GROUPS)):
            self.fault(path, f"no amount in it: one of {', '.join((*TOKENS, *UNITS, 'hour', 'tools'))}")
        yield from found

    def mapping(self, path: Path, value: Plain, keys: Sequence[str] | Mapping[str, Any]) -> dict[str, Plain]:
        if not isinstance(value, dict):
            self.fault(path, "must be a mapping")
            return {}
        self.known(path, value, tuple(keys))
        return value

    def tokens(self, path: Path, entry: Mapping[str, Plain], per: Decimal, usual: BookPrice) -> Iterator[BookPrice]:
        for key, (meter, ttl_s) in TOKENS.items():
            if key in entry and (amount := self.amount((*path, key), entry[key], per)) is not None:
                terms = usual.terms if ttl_s is None else replace(usual.terms, cache_ttl_s=ttl_s)
                line = self.document.line_of((*path, key))
                yield replace(usual, line=line, meter=meter, amount=amount, terms=terms)

    def above(self, path: Path, entry: Mapping[str, Plain], per: Decimal, usual: BookPrice) -> Iterator[BookPrice]:
        if "above" not in entry:
            return
        given = entry["above"]
        steps = given if isinstance(given, list) else [given]
        for at, step in enumerate(steps):
            here: Path = (*path, "above", at) if isinstance(given, list) else (*path, "above")
            inner = self.mapping(here, step, ("tokens", *TIERS[1:], *TOKENS))
            count = str(inner.get("tokens", "")).replace("_", "")
            if re.fullmatch(r"[1-9]\d{0,11}", count) is None:
                self.fault(here, "`tokens` must say above how many tokens of the prompt")
                continue
            terms = replace(usual.terms, above_tokens=int(count))
            yield from self.tokens(here, inner, per, replace(usual, terms=terms))
            for tier in TIERS[1:]:
                if tier in inner:
                    of_tier = self.mapping((*here, tier), inner[tier], TOKENS)
                    yield from self.tokens(
                        (*here, tier), of_tier, per, replace(usual, terms=replace(terms, service_tier=tier))
                    )

    def units(
        self, path: Path, entry: Mapping[str, Plain], usual: BookPrice, *, is_instance: bool
    ) -> Iterator[BookPrice]:
        one = Decimal(1)
        plain = replace(usual, source=replace(usual.source, per=None))
        for key, unit in UNITS.items():
            if key in entry and (amount := self.amount((*path, key), entry[key], one)) is not None:
                yield replace(plain, line=self.document.line_of((*path, key)), meter=key, unit=unit, amount=amount)
        if "hour" in entry and (amount := self.amount((*path, "hour"), entry["hour"], one)) is not None:
            meter = "instance_hour" if is_instance else "accelerator_hour"
            yield replace(plain, line=self.document.line_of((*path, "hour")), meter=meter, unit="hour", amount=amount)
        tools = entry.get("tools", {})
        for name, told in (tools if isinstance(tools, dict) else {}).items():
            here: Path = (*path, "tools", name)
            inner = {"amount": told} if isinstance(told, str) else self.mapping(here, told, ("per", "amount"))
            per = self.per(here, inner)
            if re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name) is None:
                self.fault(here, "a tool's name is small letters, digits and _")
            elif "amount" not in inner:
                self.fault(here, "`amount` is missing")
            elif (amount := self.amount((*here, "amount"), inner["amount"], per)) is not None:
                source = replace(usual.source, per=per if per != 1 else None)
                line = self.document.line_of(here)
                yield replace(usual, line=line, meter=f"tool:{name}", unit="request", amount=amount, source=source)
        if not isinstance(tools, dict):
            self.fault((*path, "tools"), "must be a mapping of tools to amounts")

    def terms(self, path: Path, entry: Mapping[str, Plain]) -> PriceTerms:
        purchase = self.text(path, entry, "purchase", required=False)
        if purchase is not None and purchase not in PURCHASES:
            self.fault((*path, "purchase"), f"must be one of {', '.join(PURCHASES)}")
        terms = PriceTerms(region=self.text(path, entry, "region", required=False), purchase=purchase)
        if "hours" not in entry:
            return terms
        here = (*path, "hours")
        hours = self.mapping(here, entry["hours"], ("zone", "from", "to", "days"))
        zone = self.text(here, hours, "zone")
        begin, end = self.clock(here, hours, "from"), self.clock(here, hours, "to")
        if zone is None:
            return terms
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError):
            self.fault((*here, "zone"), f"{zone!r} is no IANA time zone; write it like Europe/Berlin")
        days = hours.get("days")
        if days is not None and (not isinstance(days, list) or not days or any(day not in DAYS for day in days)):
            self.fault((*here, "days"), f"must be a list of {', '.join(DAYS)}")
            days = None
        if begin is None or end is None:
            return terms
        bits = None if days is None else sum(1 << DAYS.index(str(day)) for day in set(map(str, days)))
        return replace(terms, time_zone=zone, from_local=begin, to_local=end, weekdays=bits)

    def clock(self, path: Path, entry: Mapping[str, Plain], key: str) -> time | None:
        if re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", str(entry.get(key, ""))) is None:
            self.fault((*path, key) if key in entry else path, f"`{key}` must be a wall clock like 08:00")
            return None
        return time.fromisoformat(str(entry[key]))

    def day(self, path: Path, entry: Mapping[str, Plain]) -> date | None:
        if "published" not in entry:
            return None
        try:
            return date.fromisoformat(str(entry["published"]))
        except ValueError:
            self.fault((*path, "published"), "must be a day like 2026-09-30")
            return None

    def overlaps(self, prices: Sequence[BookPrice]) -> None:
        series: dict[tuple[Any, ...], list[BookPrice]] = defaultdict(list)
        for price in prices:
            series[price.provider, price.model, price.meter, price.site, price.terms].append(price)
        for rows in series.values():
            rows.sort(key=lambda row: (row.valid_from, row.line))
            for one, following in pairwise(rows):
                # An open price ends where the next begins.
                if following.valid_from == one.valid_from or (one.valid_to or one.valid_from) > following.valid_from:
                    where = f"{following.provider} {following.model} {following.meter}"
                    message = f"another price of the same time and conditions is on line {one.line}"
                    self.faults.append(Fault(following.line, where, message))

    def holes(self, prices: Sequence[BookPrice]) -> None:
        low = {
            (price.provider, price.model, price.meter, price.site, price.terms)
            for price in prices
            if price.terms.above_tokens is None
        }
        for price in prices:
            below = replace(price.terms, above_tokens=None)
            if price.terms.above_tokens is not None and (
                (price.provider, price.model, price.meter, price.site, below) not in low
            ):
                message = f"there is a price above {price.terms.above_tokens} tokens and none up to there"
                self.faults.append(Fault(price.line, f"{price.provider} {price.model} {price.meter}", message))

    def aliases(self, data: Mapping[str, Plain], prices: Sequence[BookPrice]) -> list[BookAlias]:
        found: list[BookAlias] = []
        priced = {(price.provider, price.model) for price in prices}
        first: dict[tuple[str, str, str], int] = {}
        for path, entry in self.entries(data, "aliases"):
            self.known(path, entry, ("provider", "model", "from", *KINDS))
            provider, model = self.text(path, entry, "provider"), self.text(path, entry, "model")
            kinds = [kind for kind in KINDS if kind in entry]
            if len(kinds) != 1:
                self.fault(path, f"one of {', '.join(KINDS)} is needed")
                continue
            kind, pattern = kinds[0], str(entry[kinds[0]])
            begun = self.instant(path, entry, "from", EVER)
            fault = fault_of(kind, pattern)
            if fault is not None:
                self.fault((*path, kind), fault)
            if provider is None or model is None or begun is None:
                continue
            line = self.document.line_of(path)
            if kind == "exact" and (provider, pattern) in priced:
                self.fault((*path, kind), f"{pattern} has prices of its own in this book, which go first")
            same = first.setdefault((provider, kind, pattern), line)
            if same != line:
                self.fault(path, f"the same pattern is on line {same}, which counts")
            found.append(BookAlias(line, provider, kind, pattern, model, begun))
        return found

    def policies(self, data: Mapping[str, Plain]) -> list[BookPolicy]:
        found: list[BookPolicy] = []
        for path, entry in self.entries(data, "unknown"):
            self.known(path, entry, ("provider", "model", "policy", "from"))
            provider, policy = self.text(path, entry, "provider"), self.text(path, entry, "policy")
            model = self.text(path, entry, "model", required=False) or "*"
            begun = self.instant(path, entry, "from", EVER)
            if policy is not None and policy not in POLICIES:
                self.fault((*path, "policy"), f"must be one of {', '.join(POLICIES)}")
            if provider is not None and policy is not None and begun is not None:
                found.append(BookPolicy(self.document.line_of(path), provider, model, policy, begun))
        return found
