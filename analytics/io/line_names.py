"""Chains the lines of one hour as they are saved, and loads what a chain needs to know of lines that are stored: names instead of ids."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import polars as pl
import psycopg

from analytics.io.runs import HourState
from analytics.model.chain import Names, stamp, start_of_hour

_TENANTS: Final = "SELECT id, path FROM tenants WHERE id = ANY (%s)"
_PRICES: Final = """
SELECT id, provider, model, meter, trim_scale(amount)::text, currency, unit, valid_from FROM prices WHERE id = ANY (%s)
"""
_TARIFFS: Final = """
SELECT id, metering_point, trim_scale(amount_per_kwh)::text, currency, valid_from FROM tariffs WHERE id = ANY (%s)
"""


@dataclass(frozen=True, slots=True)
class Chained:
    """Lines with their links; ``head``: the last of them, the beginning of the chain where there is no line."""

    lines: pl.DataFrame
    head: bytes


def names_of(connection: psycopg.Connection[Any], lines: pl.DataFrame) -> Names:
    """Return the names behind the ids of lines (``tenant_id``, ``price_id``, ``tariff_id``)."""
    tenants, prices, tariffs = (
        lines[name].drop_nulls().unique().to_list() for name in ("tenant_id", "price_id", "tariff_id")
    )
    return load_names(connection, tenants, prices, tariffs)


def load_names(
    connection: psycopg.Connection[Any], tenants: Collection[int], prices: Collection[int], tariffs: Collection[int]
) -> Names:
    """Return tenant paths, and prices and tariffs as ``provider model meter: amount currency/unit since instant``."""
    return Names(
        tenants=dict(connection.execute(_TENANTS, [list(tenants)]).fetchall()) if tenants else {},
        prices={
            number: f"{provider} {model} {meter}: {amount} {currency}/{unit} since {_instant(valid_from)}"
            for number, provider, model, meter, amount, currency, unit, valid_from in (
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
    start = start_of_hour(site_name(connection, state.site_id), state.hour_at)
    if lines.is_empty():
        return Chained(lines, start)
    chained = stamp(lines, names_of(connection, lines), start, secrets.token_bytes(32))
    return Chained(chained, bytes(chained["chain_sha256"][-1]))


def site_name(connection: psycopg.Connection[Any], site_id: int) -> str:
    row = connection.execute("SELECT name FROM sites WHERE id = %s", [site_id]).fetchone()
    if row is None:
        raise psycopg.DataError(f"there is no site {site_id}")
    return str(row[0])


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")
