"""Puts reports of calls into a temporary table by COPY, in the form in which the rest is plain SQL.

A temporary table, because COPY does not pass row-level security; one per connection, emptied at each commit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Final

import polars as pl
import psycopg

from ingest.calls import ApiCall, Report
from ingest.store.copy import copy_statement, encode_text_frame

MAX_KEYS: Final = 3
"""Names one report can give: its response's id, its request's, its own."""
_POLARS: Final[dict[str, Any]] = {"int": pl.Int64, "str": pl.String, "bool": pl.Boolean}
_SQL: Final = {"int": "bigint", "str": "text", "bool": "boolean"}
_KIND: Final = {entry.name: str(entry.type).partition(" ")[0] for entry in fields(ApiCall)}
FIELDS: Final = tuple(name for name in _KIND if name != "called_at_us")
"""Fields of a call that are columns of the same name; ``called_at`` is apart."""
_HEAD: Final[dict[str, Any]] = {"n": pl.Int32, "site_id": pl.Int32, "tenant_id": pl.Int32, "source": pl.String}
_KEYS: Final = tuple(f"key{place}" for place in range(MAX_KEYS))
SCHEMA: Final[dict[str, Any]] = {
    **_HEAD,
    "called_at": pl.Datetime("us", "UTC"),
    **{name: _POLARS[_KIND[name]] for name in FIELDS},
    **dict.fromkeys(_KEYS, pl.Binary),
}
TABLE: Final = "call_stage"
CREATE: Final = (
    f"CREATE TEMPORARY TABLE IF NOT EXISTS {TABLE} (n integer, site_id integer, tenant_id integer, source text, "
    "called_at timestamptz, " + ", ".join(f"{name} {_SQL[_KIND[name]]}" for name in FIELDS) + ", "
    "" + ", ".join(f"{key} bytea" for key in _KEYS) + ") ON COMMIT DELETE ROWS"
)
NAMED: Final = (
    f"(SELECT n, site_id, encode(name, 'hex')::uuid AS key, called_at, dedupe_key FROM {TABLE}, "  # noqa: S608 (our own names)
    "LATERAL (VALUES " + ", ".join(f"({key})" for key in _KEYS) + ") AS names (name) WHERE name IS NOT NULL)"
)
"""SQL for one row per report and name."""
_COPY: Final = copy_statement(TABLE, list(SCHEMA))
_values: Final = attrgetter(*FIELDS)


@dataclass(frozen=True, slots=True)
class SiteReport:
    """A report and whose site it is of."""

    site_id: int
    report: Report


@dataclass(frozen=True, slots=True)
class Staged:
    """What was staged: how many different names, and the positions of reports that share one with another."""

    names: int
    sharing: frozenset[int]


def stage(driver: psycopg.Connection[Any], reports: Sequence[SiteReport]) -> Staged:
    """Fill the temporary table with these reports, ``n`` their position."""
    driver.execute(CREATE)
    driver.execute(f"DELETE FROM {TABLE}")  # noqa: S608 - an import stages several times in one transaction
    first: dict[tuple[int, str], int] = {}
    sharing: set[int] = set()
    digests: list[list[bytes | None]] = [[], [], []]
    for position, entry in enumerate(reports):
        names = entry.report.call.names()
        for place in range(MAX_KEYS):
            digests[place].append(digest(names[place]) if place < len(names) else None)
        for name in names:
            owner = first.setdefault((entry.site_id, name), position)
            if owner != position:
                sharing |= {owner, position}
    columns: dict[str, Any] = {
        "n": range(len(reports)),
        "site_id": [entry.site_id for entry in reports],
        "tenant_id": [entry.report.tenant_id for entry in reports],
        "source": [entry.report.source.value for entry in reports],
        "called_at": [entry.report.call.called_at_us for entry in reports],
        **dict(zip(FIELDS, zip(*(_values(entry.report.call) for entry in reports), strict=True), strict=True)),
        **dict(zip(_KEYS, digests, strict=True)),
    }
    frame = pl.DataFrame(
        {
            name: pl.Series(values, dtype=pl.Int64 if name == "called_at" else SCHEMA[name])
            for name, values in columns.items()
        }
    ).with_columns(pl.col("called_at").cast(SCHEMA["called_at"]))
    with driver.cursor() as cursor, cursor.copy(_COPY.encode()) as copy:
        copy.write(encode_text_frame(frame))
    return Staged(len(first), frozenset(sharing))


def digest(name: str) -> bytes:
    """Return the 16 bytes by which a name is looked up."""
    return hashlib.sha256(name.encode()).digest()[:16]
