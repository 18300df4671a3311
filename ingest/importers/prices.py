"""Imports a price book: one price per row, or LiteLLM's table of one model per row and one cost column per token part.

Amounts are read from the text exactly (``1.5e-07`` is 0.00000015); a price of 0 is a price, an empty cell is none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa

from ingest.importers.columns import Chunk, Field, Source, header_of, normalised, read
from ingest.importers.errors import MissingColumnError, OptionError, RowError
from ingest.importers.instants import EPOCH
from ingest.importers.litellm_prices import REFUSED, Priced, litellm_columns
from ingest.importers.rates import DEFAULT_STEP, VALID_FROM, VALID_TO, checked_rate, intervals, settle
from ingest.importers.report import ImportReport, ProgressCallback
from ingest.importers.run import importing
from ingest.store.import_rates import PRICES, DatedRows
from ingest.store.price_terms import ANY, PriceTerms, price_row

UNITS: Final = ("hour", "token", "request", "kilowatt_month", "image", "second", "character", "page", "month")
_MODEL = Field("model", "text", {"model": None, "model_name": None}, required=True, filled=True)
_PROVIDER = Field("provider", "text", {"provider": None, "litellm_provider": None})
_METER = Field("meter", "text", {"meter": None}, required=True, filled=True)
_AMOUNT = Field("amount", "decimal", {"amount": None, "price": None}, required=True, filled=True)
_UNIT = Field("unit", "text", {"unit": None}, required=True, filled=True)
_CURRENCY = Field("currency", "text", {"currency": None})
_START = Field("start", "instant", {})


@dataclass(frozen=True, slots=True)
class PriceOptions:
    site: str
    valid_from: datetime | None = None
    """From when the prices hold where the file has no such column."""
    currency: str = "USD"
    provider: str | None = None
    """Takes only this provider's rows."""


def import_prices(
    conn: sa.Connection,
    source: Source,
    options: PriceOptions,
    *,
    dry_run: bool = False,
    progress: ProgressCallback | None = None,
) -> ImportReport:
    """Import one price book. Raises ImportFileError."""
    meters = litellm_columns(header_of(source))
    fields = _litellm_fields(meters) if meters else (_MODEL, _PROVIDER, _METER, _AMOUNT, _UNIT, _CURRENCY)
    scope = (
        f"valid_from={options.valid_from.isoformat() if options.valid_from else ''} provider={options.provider or ''}"
    )
    with importing(conn, source, kind="prices", site=options.site, scope=scope, dry_run=dry_run) as (report, site_id):
        if site_id is None:
            return report
        rows = DatedRows(conn, PRICES)
        for chunk in read(source, (*fields, _START, VALID_FROM, VALID_TO), report, progress):
            rows.add(staged_prices(chunk, meters, options, report))
        skipped = [name for name in header_of(source) if "cost" in name and name not in meters] if meters else []
        if skipped:
            named = ", ".join(f"{name} ({REFUSED[name]})" if name in REFUSED else name for name in skipped)
            report.note(f"{len(skipped)} cost columns have no meter here and were left out: {named}")
        settle(report, rows, "prices", site_id=None)
    return report


def staged_prices(
    chunk: Chunk, meters: dict[str, Priced], options: PriceOptions, report: ImportReport
) -> list[tuple[Any, ...]]:
    """Return every price in the chunk, as :func:`price_row` makes them."""
    if options.valid_from is None and "valid_from" not in report.columns:
        raise OptionError(
            f"{report.file_name} does not say from when its prices hold; add --valid-from, e.g. 2026-01-01"
        )
    default_us = (options.valid_from - EPOCH) // timedelta(microseconds=1) if options.valid_from else None
    staged: list[tuple[Any, ...]] = []
    providers, models = chunk.values["provider"], chunk.values["model"]
    for index, to_us, from_us in intervals(chunk, report, DEFAULT_STEP, default_us):
        line, provider = chunk.lines[index], providers[index] or options.provider
        if provider is None:
            report.rejections.reject(line, "provider is empty", str(models[index]))
            continue
        if options.provider is not None and provider != options.provider:
            continue
        try:
            prices = list(_prices(chunk, index, meters, options.currency, report))
        except RowError as error:
            report.rejections.reject(line, error.reason, f"{models[index]} {error.detail}")
            continue
        staged += [
            price_row(line, (from_us, to_us), (provider, models[index], meter), (amount, unit, code), terms)
            for meter, terms, amount, unit, code in prices
        ]
    return staged


def _prices(
    chunk: Chunk, index: int, meters: dict[str, Priced], currency: str, report: ImportReport
) -> list[tuple[str, PriceTerms, Decimal, str, str]]:
    if meters:
        best: dict[tuple[str, PriceTerms], tuple[Decimal, str]] = {}
        for column, (meter, unit, terms) in meters.items():
            amount = chunk.values[column][index]
            if amount is not None and not best.get((meter, terms), (0,))[0]:
                best[meter, terms] = checked_rate(amount, report), unit
        return [(meter, terms, amount, unit, currency) for (meter, terms), (amount, unit) in best.items()]
    meter, amount, unit = (chunk.values[name][index] for name in ("meter", "amount", "unit"))
    if unit not in UNITS:
        raise RowError("unknown unit", f"{unit!r} is none of {', '.join(UNITS)}")
    code = chunk.values["currency"][index] or currency
    if not re.fullmatch(r"[A-Z]{3}", code):
        raise RowError("not a currency code", repr(code))
    return [(meter, ANY, checked_rate(amount, report), unit, code)]


def _litellm_fields(meters: dict[str, Priced]) -> tuple[Field, ...]:
    costs = tuple(Field(column, "decimal", {normalised(column)[0]: None}) for column in meters)
    if not costs:
        raise MissingColumnError("no cost column")
    return (_MODEL, _PROVIDER, *costs)
