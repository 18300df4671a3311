"""Imports electricity prices of a site: hourly market series or dated rates, per kWh or MWh. Negative prices are prices."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Final

import sqlalchemy as sa

from ingest.importers.columns import Field, Source, header_of, normalised, read
from ingest.importers.errors import OptionError, RowError
from ingest.importers.rates import DEFAULT_STEP, INTERVAL_FIELDS, checked_rate, intervals, need_interval, settle
from ingest.importers.report import ImportReport, ProgressCallback
from ingest.importers.run import importing
from ingest.store.import_rates import TARIFFS, DatedRows

PER_KWH: Final = {"kWh": Decimal(1), "MWh": Decimal("0.001"), "kwh": Decimal(1), "mwh": Decimal("0.001")}
METERING_POINTS: Final = ("it", "facility", "included")
_PRICE_HEADER = re.compile(r"(?:price|amount|tariff|rate)(?:_([a-z]{3}))?_per_(kwh|mwh)")
_ZONE = Field("zone", "text", {"zone": None, "market_zone": None, "bidding_zone": None, "area": None, "site": None})
_CURRENCY = Field("currency", "text", {"currency": None})
_PRICE_NAMES: Final = ("price_usd_per_kwh", "price_eur_per_mwh", "amount_per_kwh", "price", "tariff")


@dataclass(frozen=True, slots=True)
class TariffOptions:
    site: str
    zone: str | None = None
    """Which rows of a file with several zones are this site's."""
    metering_point: str = "facility"
    currency: str | None = None
    """Where neither the column's name nor a currency column says."""
    step: timedelta = DEFAULT_STEP


def import_tariffs(
    conn: sa.Connection,
    source: Source,
    options: TariffOptions,
    *,
    dry_run: bool = False,
    progress: ProgressCallback | None = None,
) -> ImportReport:
    """Import one file of tariffs for one site. Raises ImportFileError."""
    if options.metering_point not in METERING_POINTS:
        raise OptionError(f"--metering-point {options.metering_point!r} is none of {', '.join(METERING_POINTS)}")
    price, stated = _price_field(source)
    currency = options.currency or stated
    scope = f"zone={options.zone or ''} metering_point={options.metering_point}"
    with importing(conn, source, kind="tariffs", site=options.site, scope=scope, dry_run=dry_run) as (report, site_id):
        if site_id is None:
            return report
        rows = DatedRows(conn, TARIFFS)
        zones: set[str | None] = set()
        for chunk in read(source, (*INTERVAL_FIELDS, price, _ZONE, _CURRENCY), report, progress):
            need_interval(report, default=False)
            staged = []
            amounts, its_zone, its_currency = (chunk.values[name] for name in ("price", "zone", "currency"))
            for index, to_us, from_us in intervals(chunk, report, options.step):
                if options.zone is not None and its_zone[index] != options.zone:
                    continue
                zones.add(its_zone[index])
                line = chunk.lines[index]
                if amounts[index] is None:
                    report.rejections.reject(line, "no value, stays missing")
                    continue
                try:
                    money = _currency(its_currency[index] or currency)
                    amount = checked_rate(amounts[index], report, negative=True)
                except RowError as error:
                    report.rejections.reject(line, error.reason, error.detail)
                    continue
                staged.append((line, from_us, to_us, site_id, options.metering_point, amount, money))
            rows.add(staged)
        _one_zone(zones, options.zone, report)
        settle(report, rows, "tariffs", site_id=site_id)
    return report


def _price_field(source: Source) -> tuple[Field, str | None]:
    names: dict[str, str | None] = {"price": None, "tariff": None, "amount": None}
    currencies = set()
    for header in header_of(source):
        match = _PRICE_HEADER.fullmatch(normalised(header)[0])
        if match:
            names[match.group(0)] = match.group(2)
            if match.group(1):
                currencies.add(match.group(1).upper())
    field = Field("price", "decimal", names or dict.fromkeys(_PRICE_NAMES), units=PER_KWH, required=True)
    return field, currencies.pop() if len(currencies) == 1 else None


def _currency(code: str | None) -> str:
    if code is None:
        raise OptionError("the file does not say its currency; add --currency, e.g. EUR")
    if not re.fullmatch(r"[A-Z]{3}", code):
        raise RowError("not a currency code", repr(code))
    return code


def _one_zone(zones: set[str | None], wanted: str | None, report: ImportReport) -> None:
    if wanted is not None and not zones:
        raise OptionError(f"--zone {wanted}: {report.file_name} has no row of that zone")
    if len(zones) > 1:
        named = ", ".join(sorted(str(zone) for zone in zones))
        raise OptionError(f"{report.file_name} has {len(zones)} zones ({named}); say which is this site's: --zone")
