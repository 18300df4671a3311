"""One row of a FOCUS export as a charge: checked, told apart from others, and joined to LLM calls where it lists some. Pure.

A charge's identity is what says which charge it is; amounts, quantities, tags and the invoice are what a later file may
restate. Amounts are kept with every digit.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from collector.wire import cleaned
from ingest.importers.columns import Chunk
from ingest.importers.errors import RowError
from ingest.importers.instants import EPOCH
from ingest.importers.report import RowLog
from ingest.importers.token_units import Tokens, tokens_of_unit, whole

CATEGORIES: Final = ("usage", "purchase", "tax", "credit", "adjustment")
_OF_TOKENS: Final = ("usage", "credit", "adjustment")
"""Categories of charges that may be of calls."""
_PAID_AHEAD: Final = ("one-time", "recurring")
MAX_COMING_US: Final = 10 * 366 * 86_400_000_000
"""How far ahead a charge may be paid; domains are, for ten years."""
MAX_AMOUNT: Final = Decimal(10) ** 20
MAX_PLACES: Final = 40
MAX_TAGS: Final = 500
_AMOUNTS: Final = ("billed_cost", "effective_cost", "list_cost", "contracted_cost")
_QUANTITIES: Final = ("pricing_quantity", "consumed_quantity")
# What a restated row keeps. Tags and names are filled in later as invoices are, and are no other charge for it.
_IDENTITY: Final = (
    *(
        "provider",
        "billing_account",
        "sub_account",
        "period_start",
        "period_end",
        "charge_start",
        "charge_end",
        "category",
    ),
    *(
        "is_correction",
        "service",
        "description",
        "pricing_category",
        "sku",
        "sku_price",
        "sku_meter",
        "resource",
        "region",
    ),
    *("commitment", "currency", "pricing_unit", "consumed_unit", "call", "model", "api_key"),
)
_RESTATABLE: Final = (
    *_AMOUNTS,
    *_QUANTITIES,
    *(
        "invoice_id",
        "invoice_issuer",
        "publisher",
        "service_category",
        "frequency",
        "sub_account_name",
        "resource_name",
    ),
    *("tags", "sku_details"),
)
_MODEL_KEYS: Final = ("ModelVersion", "ModelId", "Model", "ModelName", "x_ModelId")
_PARTS: Final = (
    # In this order: a cached input is no input, reasoning is billed apart where it is told apart.
    ("cache_write_1h_tokens", ("cache write 1h", "1 hour cache", "1h cache", "cachewrite1h")),
    ("cache_write_tokens", ("cache write", "cache creation", "cachewrite", "write")),
    ("cache_read_tokens", ("cached", "cache read", "cacheread", "cache hit", "read")),
    ("reasoning_tokens", ("reasoning",)),
    ("audio_output_tokens", ("audio output", "output audio", "audio out", "audio completion")),
    ("audio_input_tokens", ("audio",)),
    ("image_tokens", ("image",)),
    ("output_text_tokens", ("output", "completion", "outp", "generated")),
    ("input_uncached_tokens", ("input", "prompt", "inp")),
)


@dataclass(frozen=True, slots=True)
class Charge:
    """One row, its fields in the order of the store's CHARGE_COLUMNS; instants in microseconds, amounts exact."""

    line: int
    identity_sha256: bytes
    content_sha256: bytes
    provider: str
    publisher: str | None
    invoice_issuer: str | None
    invoice_id: str | None
    billing_account_id: str
    sub_account_id: str | None
    sub_account_name: str | None
    period_start_us: int
    period_end_us: int
    charge_start_us: int
    charge_end_us: int
    category: str
    is_correction: bool
    service_category: str | None
    service_name: str | None
    description: str | None
    frequency: str | None
    pricing_category: str | None
    sku_id: str | None
    sku_price_id: str | None
    sku_meter: str | None
    resource_id: str | None
    resource_name: str | None
    region_id: str | None
    commitment_id: str | None
    billed_cost: Decimal
    effective_cost: Decimal
    list_cost: Decimal | None
    contracted_cost: Decimal | None
    currency: str
    pricing_quantity: Decimal | None
    pricing_unit: str | None
    consumed_quantity: Decimal | None
    consumed_unit: str | None
    tags: str | None
    covers: str | None
    call_id: str | None
    call_provider: str | None
    call_model: str | None
    call_tokens: int | None


@dataclass(frozen=True, slots=True)
class CallLine:
    """What a line item says of one LLM call. ``part`` None: the file does not say which tokens."""

    call_id: str
    provider: str
    model: str
    at_us: int
    api_key: str | None
    part: str | None
    tokens: int


@dataclass(frozen=True, slots=True)
class _Covered:
    """What a row covers, and as a line of a call what it tells; ``tokens`` is less than 0 where they are taken back."""

    covers: str | None = None
    provider: str | None = None
    model: str | None = None
    tokens: int | None = None
    line: CallLine | None = None


def parse_charges(
    chunk: Chunk, log: RowLog, provider_of_calls: str | None, now: datetime
) -> Iterator[tuple[Charge, CallLine | None]]:
    """Yield the charges of a chunk; rows that cannot be one go to the log with the reason."""
    now_us = (now - EPOCH) // timedelta(microseconds=1)
    names = list(chunk.values)
    for line, *values in chunk.rows(*names):
        row = dict(zip(names, values, strict=True))
        try:
            yield charge_of(line, row, provider_of_calls, now_us)
        except RowError as error:
            log.reject(line, error.reason, error.detail)


def charge_of(
    line: int, row: Mapping[str, Any], provider_of_calls: str | None, now_us: int
) -> tuple[Charge, CallLine | None]:
    """Return one row as a charge, and as a line of a call where it is one; raises RowError."""
    category = row["category"].casefold()
    if category not in CATEGORIES:
        raise RowError("unknown charge category", f"{row['category']!r} is none of {', '.join(CATEGORIES)}")
    corrects = (row["charge_class"] or "").casefold()
    if corrects not in {"", "correction"}:
        raise RowError("unknown charge class", repr(row["charge_class"]))
    if not re.fullmatch(r"[A-Z]{3}", row["currency"]):
        raise RowError("not a currency code", repr(row["currency"]))
    if row["period_end"] <= row["period_start"]:
        raise RowError("period ends before it begins")
    if row["charge_end"] < row["charge_start"]:  # a fee or a tax may be of an instant
        raise RowError("charge ends before it begins")
    _in_time(row, category, now_us)
    for name in (*_AMOUNTS, *_QUANTITIES):
        _bounded(name, row[name])
    tags = _tags(row["tags"])
    complete = {**row, "category": category, "is_correction": corrects == "correction", "tags": tags}
    identity = _digest([_spelled(complete[name]) for name in _IDENTITY])
    content = _digest([identity.hex(), *(_spelled(complete[name]) for name in _RESTATABLE)])
    covered = _covered(row, provider_of_calls, is_correction=corrects == "correction")
    if covered.line is not None and row["charge_start"] > now_us:
        raise RowError("in the future", "a call that is not made yet")
    return (
        Charge(
            line=line,
            identity_sha256=identity,
            content_sha256=content,
            provider=row["provider"],
            publisher=row["publisher"],
            invoice_issuer=row["invoice_issuer"],
            invoice_id=row["invoice_id"],
            billing_account_id=row["billing_account"],
            sub_account_id=row["sub_account"],
            sub_account_name=row["sub_account_name"],
            period_start_us=row["period_start"],
            period_end_us=row["period_end"],
            charge_start_us=row["charge_start"],
            charge_end_us=row["charge_end"],
            category=category,
            is_correction=corrects == "correction",
            service_category=row["service_category"],
            service_name=row["service"],
            description=row["description"],
            frequency=row["frequency"],
            pricing_category=row["pricing_category"],
            sku_id=row["sku"],
            sku_price_id=row["sku_price"],
            sku_meter=row["sku_meter"],
            resource_id=row["resource"],
            resource_name=row["resource_name"],
            region_id=row["region"],
            commitment_id=row["commitment"],
            billed_cost=row["billed_cost"],
            effective_cost=row["effective_cost"],
            list_cost=row["list_cost"],
            contracted_cost=row["contracted_cost"],
            currency=row["currency"],
            pricing_quantity=row["pricing_quantity"],
            pricing_unit=row["pricing_unit"],
            consumed_quantity=row["consumed_quantity"],
            consumed_unit=row["consumed_unit"],
            tags=None if tags is None else json.dumps(tags, sort_keys=True),
            covers=covered.covers,
            call_id=None if covered.covers != "call" else row["call"],
            call_provider=covered.provider,
            call_model=covered.model,
            call_tokens=covered.tokens,
        ),
        covered.line,
    )


def _in_time(row: Mapping[str, Any], category: str, now_us: int) -> None:
    """Refuse usage that is still to come. What is paid ahead is charged now, on the invoice it stands on."""
    is_metered = category == "usage" and (row["frequency"] or "").casefold() not in _PAID_AHEAD
    if row["charge_start"] > now_us and is_metered:
        raise RowError("in the future", "usage that has not happened yet")
    if row["charge_start"] > now_us + MAX_COMING_US:
        raise RowError("in the future", "begins more than ten years ahead")


def _covered(row: Mapping[str, Any], provider_of_calls: str | None, *, is_correction: bool) -> _Covered:
    """Return what a row covers of LLM calls: one call, a model's calls, or none. Raises RowError.

    Its unit and its model say so, never its count: what takes tokens back, or money for them, goes with what it takes back.
    A support fee or a tax is nobody's call, and stays a charge. Credits and corrections are no report of a call: they
    are of an invoice that was written before.
    """
    category = row["category"].casefold()
    model = row["model"] or next(
        (str((row["sku_details"] or {})[key]) for key in _MODEL_KEYS if key in (row["sku_details"] or {})), None
    )
    unit = _token_unit(row)
    if category not in _OF_TOKENS or unit is None or model is None:
        return _Covered()
    provider, model = provider_of_calls or row["provider"].casefold(), cleaned(model)
    if category == "usage":
        tokens = _tokens(row, *unit)
    else:
        # A credit is money: the tokens it may name were used. Only those it takes back are told.
        quantity, each = unit
        tokens = None if quantity is None or each is None else whole(quantity, each)
        tokens = tokens if tokens is not None and tokens < 0 else None
    covers = "call" if row["call"] else "calls"
    if covers == "calls" or is_correction or category != "usage" or tokens is None:
        return _Covered(covers, provider, model, tokens)
    line = CallLine(row["call"], provider, model, row["charge_start"], row["api_key"], part_of(row), tokens)
    return _Covered(covers, provider, model, tokens, line)


def tokens_of(row: Mapping[str, Any]) -> int | None:
    """Return how many tokens a row charges, None where its unit is something else or it gives no count.

    Raises RowError where it charges tokens and the unit is not understood, or the count is no whole number.
    """
    unit = _token_unit(row)
    return None if unit is None else _tokens(row, *unit)


def _token_unit(row: Mapping[str, Any]) -> tuple[Decimal | None, int | None] | None:
    """Return a row's quantity and how many tokens one of it is (None: not understood); None where no unit is of tokens."""
    found: tuple[Decimal | None, int | None] | None = None
    for quantity, name in (("consumed_quantity", "consumed_unit"), ("pricing_quantity", "pricing_unit")):
        unit = tokens_of_unit(row[name] or "")
        if unit is not Tokens.NONE:
            each = None if unit is Tokens.NOT_UNDERSTOOD else unit
            if each is not None and row[quantity] is not None:
                return row[quantity], each
            found = found or (row[quantity], each)
    return found


def _tokens(row: Mapping[str, Any], quantity: Decimal | None, each: int | None) -> int | None:
    units = " / ".join(repr(row[name]) for name in ("consumed_unit", "pricing_unit") if row[name])
    if each is None:
        raise RowError("unit of tokens is not understood", units)
    if quantity is None:
        return None
    count = whole(quantity, each)
    if count is None:
        raise RowError("not a whole number of tokens", f"{quantity} of {units}"[:200])
    return count


def part_of(row: Mapping[str, Any]) -> str | None:
    """Return which part of a call's tokens a row charges, None where it does not say."""
    details = row["sku_details"] or {}
    said = [str(details.get(key, "")) for key in ("TokenCacheAction", "TokenDirection", "TokenType")]
    for words in (" ".join(said), row["sku_meter"] or "", row["description"] or ""):
        folded = words.casefold().replace("_", " ").replace("-", " ")
        for part, marks in _PARTS:
            if any(mark in folded.split() or (" " in mark and mark in folded) for mark in marks):
                return part
    return None


def _bounded(name: str, amount: Decimal | None) -> None:
    if amount is None:
        return
    exponent = amount.as_tuple().exponent
    if abs(amount) >= MAX_AMOUNT or not isinstance(exponent, int) or exponent < -MAX_PLACES:
        raise RowError(f"{name} is out of range", str(amount)[:60])


def _tags(given: Mapping[str, Any] | None) -> dict[str, str] | None:
    if not given:
        return None
    if len(given) > MAX_TAGS:
        raise RowError("too many tags", f"{len(given)}, at most {MAX_TAGS}")
    return {cleaned(str(key)): cleaned(str(value)) for key, value in given.items() if value is not None}


def _spelled(value: Any) -> Any:
    if isinstance(value, Decimal):
        # 1.50 and 1.5 are one amount, whatever a file writes.
        return format(value.normalize(), "f")
    return {str(key): str(each) for key, each in value.items()} if isinstance(value, dict) else value


def _digest(parts: list[Any]) -> bytes:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()
