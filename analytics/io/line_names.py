"""Chains the lines of one hour as they are saved, and loads what a chain needs to know of lines that are stored: names instead of ids."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, LiteralString

import polars as pl
import psycopg

from analytics.io.runs import HourState
from analytics.model.chain import Names, stamp, start_of_hour
from analytics.model.later import LATER_IDS, chain_version

_TENANTS: Final = "SELECT id, path FROM tenants WHERE id = ANY (%s)"
_PRICES: Final = """
SELECT prices.id, provider, model, meter, trim_scale(amount)::text, currency, unit, valid_from, CASE
       WHEN site_id IS NULL THEN conditions ELSE 'site=' || sites.name || substr(conditions, length('site_id=' || site_id) + 1) END
FROM prices LEFT JOIN sites ON sites.id = site_id WHERE prices.id = ANY (%s)
"""
_TARIFFS: Final = """
SELECT id, metering_point, trim_scale(amount_per_kwh)::text, currency, valid_from FROM tariffs WHERE id = ANY (%s)
"""
_LATER: Final[Mapping[str, LiteralString]] = {
    "intensity_id": """
        SELECT id, concat_ws(' ', grid_zone, basis, CASE WHEN life_cycle THEN 'life-cycle' END, CASE WHEN estimated THEN 'estimated' END, 'by', source)
               || ': ' || trim_scale(gco2e_per_kwh)::text || ' g/kWh', valid_from FROM intensity WHERE id = ANY (%s)
    """,
    "fx_rate_id": """
        SELECT id, base_currency || '/' || quote_currency || ' by ' || source || ': ' || trim_scale(rate)::text, valid_from
        FROM fx_rates WHERE id = ANY (%s)
    """,
    "charge_id": """
        SELECT id, provider || ' ' || coalesce(invoice_id, '-') || ' ' || encode(content_sha256, 'hex'), charge_start_at
        FROM imported_charges WHERE id = ANY (%s)
    """,
}
"""By column that came later: what the ids in it stand for."""


@dataclass(frozen=True, slots=True)
class Chained:
    """Lines with their links; ``head``: the last of them, the beginning of the chain where there is no line."""

    lines: pl.DataFrame
    head: bytes
    version: int
    """How they are chained (:func:`chain_version`)."""


def names_of(connection: psycopg.Connection[Any], lines: pl.DataFrame) -> Names:
    """Return the names behind the ids of lines (``tenant_id``, ``price_id``, ``tariff_id``, and of later columns what they have)."""
    found = {
        name: lines[name].drop_nulls().unique().to_list()
        for name in ("tenant_id", "price_id", "tariff_id", *LATER_IDS)
        if name in lines.columns
    }
    return load_names(connection, **found)


def load_names(
    connection: psycopg.Connection[Any],
    tenant_id: Collection[int],
    price_id: Collection[int] = (),
    tariff_id: Collection[int] = (),
    **later: Collection[int],
) -> Names:
    """Return tenant paths, and prices and tariffs as ``provider model meter: amount currency/unit since instant``.

    A price under conditions says them at the end, after ``if``.

    ``later``: ids by column that came later, each told in words with its figure and since when.
    """
    tenants, prices, tariffs = tenant_id, price_id, tariff_id
    return Names(
        later={
            name: {
                number: f"{words} since {_instant(at)}"
                for number, words, at in connection.execute(_LATER[name], [list(ids)])
            }
            for name, ids in later.items()
            if ids and name in _LATER
        },
        tenants=dict(connection.execute(_TENANTS, [list(tenants)]).fetchall()) if tenants else {},
        prices={
            number: f"{provider} {model} {meter}: {amount} {currency}/{unit} since {_instant(valid_from)}{_if(conditions)}"
            for number, provider, model, meter, amount, currency, unit, valid_from, conditions in (
                connection.execute(_PRICES, [list(prices)]) if prices else ()
            )
        },
        tariffs={
            number: f"{point}: {amount} {currency}/kWh since {_instant(valid_from)}"
            for number, point, amount, currency, valid_from in (
                connection.execute(_TARIFFS, [list(tariffs)]) if tariffs else ()
            )
        },
    )


def chain_lines(connection: psycopg.Connection[Any], state: HourState, lines: pl.DataFrame) -> Chained:
    """Return an hour's lines chained under the names they have now; ``lines``: LedgerLines of that hour alone."""
    version = chain_version(lines)
    start = start_of_hour(site_name(connection, state.site_id), state.hour_at, version)
    if lines.is_empty():
        return Chained(lines, start, version)
    chained = stamp(lines, names_of(connection, lines), start, secrets.token_bytes(32))
    return Chained(chained, bytes(chained["chain_sha256"][-1]), version)


def site_name(connection: psycopg.Connection[Any], site_id: int) -> str:
    row = connection.execute("SELECT name FROM sites WHERE id = %s", [site_id]).fetchone()
    if row is None:
        raise psycopg.DataError(f"there is no site {site_id}")
    return str(row[0])


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _if(conditions: str) -> str:
    """Return what a price's text ends in; of one under any conditions nothing, so texts of before there were any stay to the byte."""
    return f" if {conditions}" if conditions else ""
