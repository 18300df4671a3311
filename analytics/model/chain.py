"""Chains the lines of an hour, the hours of a month and the corrections posted in it, and names the first link that does not hold.

A link is SHA-256 over the link before and the canonical text of what stands there: JSON of names, amounts as decimal text, never an id of a
database, so that a restored or rebuilt one has the same links. It knows no key and signs nothing; who keeps the head elsewhere can tell
whether all of it is as it was. People's API keys go in as a salted hash, so that a name can be forgotten and the chain still hold.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

import polars as pl

from analytics.model.later import LATER, LATER_IDS

_SALT_BYTES: Final = 16
_NOBODYS: Final = "?"
"""In place of a name that no id has: a line that names what is not there is another than one that names nothing."""
_AMOUNTS: Final = (
    "quantity",
    "energy_mj",
    "energy_low_mj",
    "energy_high_mj",
    "facility_mj",
    "facility_category",
    "carbon_gco2e",
    "billed_cost",
    "effective_cost",
)
_WORDS: Final = ("pool", "device_model", "charge_category", "quantity_unit", "currency", "source", "origin", "method")


class Fault(StrEnum):
    """What can be wrong with a line of a chain."""

    ALTERED = "altered"
    DROPPED = "dropped"
    REORDERED = "reordered"
    INVENTED = "invented"


@dataclass(frozen=True, slots=True)
class Names:
    """What ids of lines stand for: tenant paths, and prices and tariffs as text that says all they charge by."""

    tenants: Mapping[int, str]
    prices: Mapping[int, str]
    tariffs: Mapping[int, str]
    later: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """By column, of ids in columns that came later (``LATER_IDS``)."""


@dataclass(frozen=True, slots=True)
class Link:
    """One stored line: where it says it stands, the hash it says it has, its canonical text, and what to call it."""

    ordinal: int | None
    chain: bytes | None
    text: str
    called: str


@dataclass(frozen=True, slots=True)
class Break:
    """The first line that is not what was chained; ``ordinal`` counts from 1."""

    fault: Fault
    ordinal: int
    called: str


def instant_text(at: datetime) -> str:
    """Return an instant as it stands in a chain: RFC 3339, UTC, whole seconds."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def start_of(*parts: str | int | None) -> bytes:
    """Return what a chain begins with: the hash of what it is a chain of."""
    return hashlib.sha256(_json(list(parts)).encode()).digest()


def start_of_hour(site: str, hour_at: datetime, version: int = 1) -> bytes:
    """Return the beginning of the chain of an hour's lines; ``version``: :func:`analytics.model.later.chain_version` of them."""
    return start_of(f"wattledger/line/{version}", site, instant_text(hour_at))


def follow(before: bytes, texts: Iterable[str]) -> list[bytes]:
    """Return the link of each text, the first after ``before``."""
    links = []
    for text in texts:
        before = hashlib.sha256(before + text.encode()).digest()
        links.append(before)
    return links


def told(**fields: str | int | None) -> str:
    """Return the canonical text of an entry that is no line: a JSON object of these fields in this order."""
    return _json(fields)


def canonical(lines: pl.DataFrame, names: Names) -> list[str]:
    """Return the text of each line that is chained, in the order given.

    ``lines``: the columns of LedgerLines and ``api_key_seal`` (binary, :func:`seals`). Amounts are decimal text, nulls null.
    A column that came later is in the text of a line that says something in it and in no other: lines of before have the text they had.
    """
    columns = [
        pl.col("tenant_id").replace_strict(names.tenants, default=None, return_dtype=pl.String).alias("tenant"),
        pl.col("holder_key").alias("holder"),
        pl.col("api_key_seal").bin.slice(-32).bin.encode("hex").alias("api_key_sha256"),
        pl.col("price_id").replace_strict(names.prices, default=None, return_dtype=pl.String).alias("price"),
        pl.col("tariff_id").replace_strict(names.tariffs, default=None, return_dtype=pl.String).alias("tariff"),
        *(pl.col(name).cast(pl.String) for name in (*_WORDS, *_AMOUNTS)),
        pl.Series("coverage", [repr(value) for value in lines["coverage"].to_list()], dtype=pl.String),
    ]
    text = pl.struct(columns).struct.json_encode()
    if more := _later(lines, names):
        text = pl.concat_str(text.str.head(-1), *more, pl.lit("}"))
    return lines.select(text.alias("text"))["text"].to_list()


def _later(lines: pl.DataFrame, names: Names) -> list[pl.Expr]:
    """Return what the later columns add to the text of each line: ``,"name":"value"``, or nothing where a line says nothing in one."""
    return [
        pl.when(value.is_not_null())
        .then("," + pl.struct(value.alias(name.removesuffix("_id"))).struct.json_encode().str.slice(1).str.head(-1))
        .otherwise(pl.lit(""))
        for name, value in _later_values(lines, names)
    ]


def _later_values(lines: pl.DataFrame, names: Names) -> Iterator[tuple[str, pl.Expr]]:
    """Yield the later columns in which some line says something, as text; an id is the name behind it."""
    for name in LATER:
        if name not in lines.columns or lines[name].null_count() == lines.height:
            continue
        value = pl.col(name)
        if name in LATER_IDS:
            named = value.replace_strict(names.later.get(name, {}), default=_NOBODYS, return_dtype=pl.String)
            value = pl.when(value.is_not_null()).then(named)
        yield name, value.cast(pl.String)


def seals(keys: Sequence[str | None], salt: bytes) -> list[bytes | None]:
    """Return for each API key 16 bytes of salt and the SHA-256 over them and the key; ``salt`` is random and of this run alone.

    Who forgets a name takes its salt away: what is left says nothing of the name, and the chain has it still.
    """
    found: list[bytes | None] = []
    for place, key in enumerate(keys):
        own = hashlib.sha256(salt + place.to_bytes(8, "big")).digest()[:_SALT_BYTES]
        found.append(None if key is None else own + hashlib.sha256(own + key.encode()).digest())
    return found


def opens(seal: bytes | None, key: str | None) -> bool | None:
    """Say whether a seal is of this key; None where its salt was taken away with the name."""
    if seal is None or key is None:
        return seal is None and key is None
    if len(seal) != _SALT_BYTES + 32:
        return None
    return hashlib.sha256(seal[:_SALT_BYTES] + key.encode()).digest() == seal[_SALT_BYTES:]


def stamp(lines: pl.DataFrame, names: Names, start: bytes, salt: bytes) -> pl.DataFrame:
    """Return an hour's lines with ``ordinal`` (from 1), ``chain_sha256`` and ``api_key_seal``, in the order of the chain.

    The order is of names, so that any database has the same: category, holder, model, price, tariff, tenant, key.
    """
    order = [
        pl.col("charge_category"),
        pl.col("holder_key"),
        pl.col("device_model"),
        pl.col("price_id").replace_strict(names.prices, default=None, return_dtype=pl.String),
        pl.col("tariff_id").replace_strict(names.tariffs, default=None, return_dtype=pl.String),
        pl.col("tenant_id").replace_strict(names.tenants, default=None, return_dtype=pl.String),
        pl.col("api_key"),
        pl.col("quantity_unit"),
        pl.col("quantity"),
        *(value for _, value in _later_values(lines, names)),
    ]
    ordered = lines.sort(*order, nulls_last=False, maintain_order=True)
    sealed = ordered.with_columns(pl.Series("api_key_seal", seals(ordered["api_key"].to_list(), salt), pl.Binary))
    links = follow(start, canonical(sealed, names))
    return sealed.with_columns(
        pl.int_range(1, pl.len() + 1, dtype=pl.Int32).alias("ordinal"), pl.Series("chain_sha256", links, pl.Binary)
    )


def first_break(links: Sequence[Link], start: bytes, count: int, head: bytes) -> Break | None:
    """Return the first stored line that is not what was chained, or None where all of ``count`` lines lead to ``head``.

    What was dropped is named by its place and by the line after it; what was invented, altered or moved, by itself.
    """
    rows = sorted(links, key=lambda link: (link.ordinal is None, link.ordinal or 0))
    before = start
    for place, row in enumerate(rows):
        here = hashlib.sha256(before + row.text.encode()).digest()
        if row.ordinal == place + 1 and row.chain == here:
            before = here
            continue
        return _named(rows, place, before, count)
    if len(rows) < count:
        return Break(Fault.DROPPED, len(rows) + 1, f"the last {count - len(rows)} of {count}")
    if len(rows) > count:
        return Break(Fault.INVENTED, count + 1, rows[count].called)
    return None if before == head else Break(Fault.ALTERED, len(rows), "the chain of the whole hour")


def _named(rows: Sequence[Link], place: int, before: bytes, count: int) -> Break:
    row, ordinal = rows[place], place + 1
    surplus = len(rows) - count
    stays = any(
        hashlib.sha256((row.chain or b"") + other.text.encode()).digest() == other.chain for other in rows[place + 1 :]
    )
    fitting = [other for other in rows[place + 1 :] if _fits(before, other, row)]
    if surplus > 0 and (fitting or not stays):
        # Two that claim one place: the one that follows from the line before is the old one.
        return Break(Fault.INVENTED, ordinal, row.called)
    if surplus < 0 and (row.ordinal != ordinal or [other.ordinal for other in rows] == list(range(1, len(rows) + 1))):
        return Break(Fault.DROPPED, ordinal, f"what stood before {row.called}")
    if fitting:
        return Break(Fault.REORDERED, ordinal, fitting[0].called)
    return Break(Fault.ALTERED, ordinal, row.called)


def _fits(before: bytes, other: Link, row: Link) -> bool:
    link = hashlib.sha256(before + other.text.encode()).digest()
    return link in {other.chain, row.chain}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
