"""Writes dated facts that cost something: prices, tariffs, intensity, facility factors. Append-only, dated twice.

New rows replace what was known about their own interval and nothing else: an older row that reaches further keeps the rest
as a new row. A row that says what is known already changes nothing.
"""
# ruff: noqa: S608 - the SQL is made of this package's own names; what a file says travels by COPY and parameters

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from ingest.store.imports import KNOWN_AT, Stage, at_sql, known_from_here, mark_changed, mark_prices


@dataclass(frozen=True, slots=True)
class Series:
    """A table of dated facts: what identifies a series in it, and what a row of it says."""

    table: str
    keys: dict[str, str]
    values: dict[str, str]
    extras: dict[str, str] = field(default_factory=dict)
    """What a row says besides that makes it no other: what its keys say in columns of their own, and where it comes from."""


PRICES = Series(
    "prices",
    {"provider": "text", "model": "text", "meter": "text", "conditions": "text"},
    {"amount": "numeric", "unit": "text", "currency": "text"},
    {
        "site_id": "integer",
        "region": "text",
        "purchase": "text",
        "service_tier": "text",
        "above_tokens": "bigint",
        "cache_ttl_s": "integer",
        "time_zone": "text",
        "from_local": "time",
        "to_local": "time",
        "weekdays": "smallint",
        "per": "numeric",
        "source_url": "text",
        "published_on": "date",
        "book_id": "integer",
    },
)
TARIFFS = Series(
    "tariffs", {"site_id": "integer", "metering_point": "text"}, {"amount_per_kwh": "numeric", "currency": "text"}
)
INTENSITY = Series(
    "intensity",
    {"grid_zone": "text", "basis": "text", "life_cycle": "boolean"},
    {"gco2e_per_kwh": "numeric", "estimated": "boolean"},
)
FACILITY_FACTORS = Series("facility_factors", {"site_id": "integer"}, {"factor": "numeric", "category": "smallint"})


@dataclass(frozen=True, slots=True)
class WrittenSeries:
    inserted: int
    unchanged: int
    superseded: int
    overlapping: list[tuple[int, str]]
    first_us: int | None
    last_us: int | None


class DatedRows:
    """Rows of one file on their way into one of the dated tables."""

    def __init__(self, conn: sa.Connection, series: Series) -> None:
        self._conn, self._series = conn, series
        self._stage = Stage(
            conn,
            "import_dated",
            {"line": "bigint", "from_us": "bigint", "to_us": "bigint", **series.keys, **series.values, **series.extras},
        )
        self._told = [*series.keys, *series.values, *series.extras]

    def add(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Stage (line, from_us, to_us or None = open, keys…, values…, extras…)."""
        self._stage.copy(rows)

    def store(self, source: str, *, until_next: bool, site_id: int | None) -> WrittenSeries:
        """Write what was staged. ``until_next``: an open row ends where the next of its series in the file begins."""
        conn, series = self._conn, self._series
        self._stage.ready()
        keys = ", ".join(series.keys)
        if until_next:
            self._sql(
                "UPDATE import_dated AS d SET to_us = n.following FROM (SELECT line, "
                f"{keys}, lead(from_us) OVER (PARTITION BY {keys} ORDER BY from_us) AS following FROM import_dated) AS n "
                f"WHERE d.to_us IS NULL AND d.line = n.line AND {_same('d', 'n', series.keys)}"
            )
        overlapping = self._overlapping(keys)
        first_us, last_us = conn.exec_driver_sql(
            "SELECT min(from_us), max(coalesce(to_us, from_us)) FROM import_dated"
        ).one()
        # One transaction at a time decides what a series is; two imports of prices would else both see the old rows.
        conn.execute(
            sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": f"wattledger.{series.table}"}
        )
        known_from_here(conn)
        self._sql(
            "CREATE TEMPORARY TABLE import_fresh ON COMMIT DROP AS SELECT "
            f"{at_sql('from_us')} AS valid_from, {at_sql('to_us')} AS valid_to, {', '.join(self._told)} "
            "FROM import_dated"
        )
        unchanged = self._sql(
            f"DELETE FROM import_fresh AS f USING {series.table} AS t WHERE t.superseded_at IS NULL "
            f"AND {_same('f', 't', [*series.keys, *series.values, 'valid_from'])} "
            "AND f.valid_to IS NOT DISTINCT FROM t.valid_to"
        )
        conn.exec_driver_sql("ANALYZE import_fresh")
        superseded = self._supersede(keys)
        inserted = self._insert("import_fresh", source)
        if series is PRICES:
            mark_prices(conn, "SELECT tstzrange(valid_from, valid_to), provider, model FROM import_fresh")
        else:
            mark_changed(conn, site_id, series.table, "SELECT tstzrange(valid_from, valid_to) FROM import_fresh")
        return WrittenSeries(inserted, unchanged, superseded, overlapping, first_us, last_us)

    def _overlapping(self, keys: str) -> list[tuple[int, str]]:
        rows = self._conn.exec_driver_sql(
            "DELETE FROM import_dated AS d USING (SELECT ctid AS place, max(coalesce(to_us, 1::bigint << 62)) OVER "
            f"(PARTITION BY {keys} ORDER BY from_us, line ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS reached, from_us "
            "FROM import_dated) AS o WHERE d.ctid = o.place AND o.from_us < o.reached "
            f"RETURNING d.line, {at_sql('d.from_us')}::text"
        ).all()
        return sorted((line, at) for line, at in rows)

    def _supersede(self, keys: str) -> int:
        series = self._series
        columns = [*self._told, "source"]
        self._sql(
            "CREATE TEMPORARY TABLE import_rest ON COMMIT DROP AS WITH fresh AS "
            f"(SELECT {keys}, range_agg(tstzrange(valid_from, valid_to)) AS spans FROM import_fresh GROUP BY {keys}) "
            f"SELECT t.id, {', '.join(f't.{column}' for column in columns)}, "
            "tstzmultirange(tstzrange(t.valid_from, t.valid_to)) - fresh.spans AS rest "
            f"FROM {series.table} AS t JOIN fresh ON {_same('t', 'fresh', series.keys)} "
            "WHERE t.superseded_at IS NULL AND fresh.spans && tstzrange(t.valid_from, t.valid_to)"
        )
        superseded = self._sql(
            f"UPDATE {series.table} AS t SET superseded_at = {KNOWN_AT} FROM import_rest AS r WHERE r.id = t.id"
        )
        named = ", ".join(columns)
        self._sql(
            f"INSERT INTO {series.table} (valid_from, valid_to, {named}, recorded_at) "
            f"SELECT lower(part), upper(part), {named}, {KNOWN_AT} FROM import_rest, unnest(rest) AS part"
        )
        return superseded

    def _insert(self, table: str, source: str) -> int:
        named = ", ".join(["valid_from", "valid_to", *self._told])
        statement = sa.text(
            f"INSERT INTO {self._series.table} ({named}, source, recorded_at) "
            f"SELECT {named}, :source, {KNOWN_AT} FROM {table}"
        )
        return self._conn.execute(statement, {"source": source}).rowcount

    def _sql(self, statement: str) -> int:
        return self._conn.exec_driver_sql(statement).rowcount


def _same(left: str, right: str, columns: Iterable[str] | Sequence[str]) -> str:
    # None of them is ever null; a plain = can be hashed.
    return " AND ".join(f"{left}.{column} = {right}.{column}" for column in columns)
