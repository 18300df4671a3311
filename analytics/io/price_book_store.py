"""Keeps a price book, shows prices in force, and says what is used and has none. Prices, names and policies are dated twice.

A book says what it says: prices it does not mention stay. Names and policies of an earlier book of the same name that this one has a
section for and does not repeat are superseded, never deleted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from analytics.io.price_book import EVER, BookPrice, PriceBook, PriceBookError
from analytics.io.yaml_lines import Fault
from ingest.store.import_rates import PRICES, DatedRows
from ingest.store.imports import mark_changed
from ingest.store.price_terms import price_row

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST: Final = "SELECT number, sha256 FROM price_books WHERE name = :name ORDER BY number DESC LIMIT 1"
_ADD: Final = """
INSERT INTO price_books (name, number, sha256, applied_by, rows, note)
VALUES (:name, :number, :sha256, :applied_by, :rows, :note) RETURNING id
"""
_RULES: Final = {
    "model_aliases": ("provider", "kind", "pattern", "model", "position", "valid_from"),
    "price_policies": ("provider", "model", "unknown", "valid_from"),
}
_SHOW: Final = """
SELECT prices.provider, prices.model, meter, conditions, amount, unit, currency, per, valid_from, valid_to, sites.name AS site,
       coalesce(source_url, source) AS source, published_on, price_books.name AS book, price_books.number AS book_number
FROM prices LEFT JOIN price_books ON price_books.id = book_id LEFT JOIN sites ON sites.id = site_id
WHERE superseded_at IS NULL AND valid_from <= :at AND (valid_to IS NULL OR valid_to > :at)
AND (CAST(:provider AS text) IS NULL OR lower(prices.provider) = lower(:provider))
AND (CAST(:model AS text) IS NULL OR lower(prices.model) = lower(:model))
ORDER BY prices.provider, prices.model, meter, conditions, valid_from
"""
_MISSING: Final = """
SELECT provider, model, part, terms, sum(quantity)::bigint AS quantity, quantity_unit, count(DISTINCT (site_id, hour_at)) AS hours,
       min(hour_at) AS first_at, max(hour_at) AS last_at,
       (SELECT known.model FROM prices AS known WHERE known.superseded_at IS NULL AND lower(known.provider) = lower(lines.provider)
        AND starts_with(lower(lines.model), lower(known.model)) ORDER BY length(known.model) DESC, known.model LIMIT 1) AS stands_for
FROM (
    SELECT *, substr(holder_key, 5, strpos(substr(holder_key, 5), '/') - 1) AS provider,
           regexp_replace(regexp_replace(holder_key, '^api:[^/]*/', ''), '/[^/]*$', '') AS model,
           regexp_replace(holder_key, '^.*/', '') AS part
    FROM current_ledger_lines WHERE pool = 'api' AND billed_cost IS NULL AND hour_at >= :from_at AND hour_at < :to_at
) AS lines WHERE part <> 'usage_unknown'
GROUP BY provider, model, part, terms, quantity_unit ORDER BY provider, model, part, terms NULLS FIRST
"""
_GLOB: Final = frozenset("*?[")
"""Of a policy's provider: where its first part has one of these, it may be of any, and its change says no scope."""
_MARK: Final = """
INSERT INTO changes (site_id, from_at, to_at, kind, scope)
SELECT NULL, :from_at, now() + interval '1 hour', 'prices',
       jsonb_build_object('models', jsonb_agg(DISTINCT lower(word) || '/' ORDER BY lower(word) || '/'))
FROM unnest(CAST(:firsts AS text[])) AS word
"""


@dataclass(frozen=True, slots=True)
class Applied:
    """What a book changed. ``number`` 0: it is the one applied last, nothing was done."""

    number: int
    prices: int = 0
    superseded: int = 0
    names: int = 0
    policies: int = 0
    unchanged: int = 0


def apply(conn: sa.Connection, book: PriceBook, sha256: bytes, applied_by: str) -> Applied:
    """Make a valid book hold, in the transaction of ``conn``. Raises PriceBookError where it names a site there is not."""
    conn.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended('wattledger.price_books', 0))"))
    last = conn.execute(sa.text(_LAST), {"name": book.name}).one_or_none()
    if last is not None and bytes(last.sha256) == sha256:
        return Applied(0)
    sites = _site_ids(conn, book.prices)
    number = 1 if last is None else last.number + 1
    told = {"name": book.name, "number": number, "sha256": sha256, "applied_by": applied_by, "note": book.note}
    book_id = conn.execute(sa.text(_ADD), told | {"rows": book.rows}).scalar_one()
    rows = DatedRows(conn, PRICES)
    rows.add(_row(price, sites, book_id) for price in book.prices)
    written = rows.store(f"book {book.name} {number}", until_next=True, site_id=None)
    if written.overlapping:
        raise PriceBookError(
            tuple(Fault(line, "", f"overlaps an earlier price at {at}") for line, at in written.overlapping)
        )
    names = [
        {
            "provider": a.provider,
            "kind": a.kind,
            "pattern": a.pattern,
            "model": a.model,
            "position": at,
            "valid_from": a.valid_from,
        }
        for at, a in enumerate(book.aliases or (), 1)
    ]
    policies = [
        {"provider": p.provider, "model": p.model, "unknown": p.unknown, "valid_from": p.valid_from}
        for p in book.policies or ()
    ]
    of_names = [] if book.aliases is None else _settle(conn, "model_aliases", book.name, book_id, names)
    of_policies = [] if book.policies is None else _settle(conn, "price_policies", book.name, book_id, policies)
    _mark_rules(conn, {*of_names, *of_policies})
    return Applied(number, written.inserted, written.superseded, len(of_names), len(of_policies), written.unchanged)


def in_force(
    conn: sa.Connection, at: datetime, provider: str | None = None, model: str | None = None
) -> list[dict[str, Any]]:
    """Return the prices in force at an instant as they are known now, by provider, model, meter and conditions."""
    asked = {"at": at, "provider": provider, "model": model}
    return [dict(row) for row in conn.execute(sa.text(_SHOW), asked).mappings()]


def missing(conn: sa.Connection, from_at: datetime, to_at: datetime) -> list[dict[str, Any]]:
    """Return what calls used and no price was found for, by provider, model, part and terms.

    ``stands_for``: the longest model of the provider that has prices and that the name begins with; null = none.
    """
    return [dict(row) for row in conn.execute(sa.text(_MISSING), {"from_at": from_at, "to_at": to_at}).mappings()]


def _site_ids(conn: sa.Connection, prices: Sequence[BookPrice]) -> dict[str, int]:
    known: dict[str, int] = {row.name: row.id for row in conn.execute(sa.text("SELECT id, name FROM sites"))}
    faults = [
        Fault(price.line, f"{price.provider} {price.model}", f"there is no site {price.site!r}")
        for price in prices
        if price.site is not None and price.site not in known
    ]
    if faults:
        raise PriceBookError(tuple(sorted(set(faults))))
    return known


def _row(price: BookPrice, sites: dict[str, int], book_id: int) -> tuple[Any, ...]:
    begun, ended = (
        None if at is None else (at - _EPOCH) // timedelta(microseconds=1) for at in (price.valid_from, price.valid_to)
    )
    assert begun is not None  # noqa: S101 - a price of a book has a begin
    terms = price.terms if price.site is None else replace(price.terms, site_id=sites[price.site])
    return price_row(
        price.line,
        (begun, ended),
        (price.provider, price.model, price.meter),
        (price.amount, price.unit, price.currency),
        terms,
        replace(price.source, book_id=book_id),
    )


def _settle(conn: sa.Connection, table: str, name: str, book_id: int, rows: list[dict[str, Any]]) -> list[str]:
    """Make these the rules of a book's name, and return the provider of each row that this added or superseded."""
    columns = _RULES[table]
    known = conn.execute(
        sa.text(
            f"SELECT rule.id, {', '.join(f'rule.{column}' for column in columns)} FROM {table} AS rule "  # noqa: S608 - our own names
            "JOIN price_books ON price_books.id = rule.book_id WHERE price_books.name = :name AND rule.superseded_at IS NULL"
        ),
        {"name": name},
    ).mappings()
    stands = {tuple(row[column] for column in columns): row["id"] for row in known}
    wanted = {tuple(row[column] for column in columns): row for row in rows}
    gone = [number for key, number in stands.items() if key not in wanted]
    new = [row for key, row in wanted.items() if key not in stands]
    if gone:
        conn.execute(
            sa.text(f"UPDATE {table} SET superseded_at = clock_timestamp() WHERE id = ANY (:gone)"),  # noqa: S608
            {"gone": gone},
        )
    for row in new:
        values = ", ".join(f":{column}" for column in columns)
        conn.execute(
            sa.text(f"INSERT INTO {table} ({', '.join(columns)}, book_id) VALUES ({values}, :book_id)"),  # noqa: S608
            row | {"book_id": book_id},
        )
    of_provider = columns.index("provider")
    return [*(str(key[of_provider]) for key in stands if key not in wanted), *(str(row["provider"]) for row in new)]


def _mark_rules(conn: sa.Connection, providers: Collection[str]) -> None:
    """Note the hours that names and policies of these providers concern: those with anything of them, in the words of their runs."""
    if not providers:
        return
    firsts = sorted({provider.split("/")[0] for provider in providers})
    if any(set(first) & _GLOB for first in firsts):
        mark_changed(conn, None, "prices", f"SELECT tstzrange('{EVER.isoformat()}', NULL)")
        return
    conn.execute(sa.text(_MARK), {"from_at": EVER, "firsts": firsts})
