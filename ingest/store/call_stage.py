"""Puts reports of calls into a temporary table by COPY, in the form in which the rest is plain SQL.

A temporary table, because COPY does not pass row-level security; one per connection, emptied at each commit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Final

import psycopg
import pyarrow as pa

from ingest.calls import ApiCall, Report
from ingest.store.copy import SQL_TYPES, copy_statement, encode_batches

MAX_KEYS: Final = 3
"""Names one report can give: its response's id, its request's, its own."""
_ARROW: Final[dict[str, Any]] = {"int": pa.int64(), "str": pa.string(), "bool": pa.bool_()}
_KIND: Final = {entry.name: str(entry.type).partition(" ")[0] for entry in fields(ApiCall)}
FIELDS: Final = tuple(name for name in _KIND if name != "called_at_us")
"""Fields of a call that are columns of the same name; ``called_at`` is apart."""
_KEYS: Final = tuple(f"key{place}" for place in range(MAX_KEYS))
_SCHEMA: Final = pa.schema(
    {
        "n": pa.int32(),
        "site_id": pa.int32(),
        "tenant_id": pa.int32(),
        "source": pa.string(),
        "called_at": pa.timestamp("us", "UTC"),
        **{name: _ARROW[_KIND[name]] for name in FIELDS},
        **dict.fromkeys(_KEYS, pa.binary()),
    }
)
TABLE: Final = "call_stage"
CREATE: Final = (
    f"CREATE TEMPORARY TABLE IF NOT EXISTS {TABLE} ("
    + ", ".join(f"{column.name} {SQL_TYPES[column.type]}" for column in _SCHEMA)
    + ") ON COMMIT DELETE ROWS"
)


def _named(keys: Sequence[str]) -> str:
    return (
        f"(SELECT n, site_id, encode(name, 'hex')::uuid AS key, called_at, dedupe_key FROM {TABLE}, "  # noqa: S608 (our own names)
        "LATERAL (VALUES " + ", ".join(f"({key})" for key in keys) + ") AS names (name) WHERE name IS NOT NULL)"
    )


NAMED: Final = _named(_KEYS)
"""SQL for one row per report and name."""
NAMING: Final = _named(_KEYS[:-1])
"""The same of the names that are registered for a report: its ids, or its own name where it has none."""
OWN: Final = _named(_KEYS[-1:])
"""The same of the own names of reports with ids, which are only looked up."""
KNOWN_NAME: Final = "LATERAL (SELECT found.called_at, found.dedupe_key, found.xmin AS written_by FROM call_keys AS found WHERE found.site_id = named.site_id AND found.key = named.key OFFSET 0)"
"""SQL for the known name that is ``named``, looked up along the key: a planner without statistics joins in squares."""
_COPY: Final = copy_statement(TABLE, _SCHEMA.names)
_values: Final = attrgetter(*FIELDS)


@dataclass(frozen=True, slots=True)
class SiteReport:
    """A report and whose site it is of."""

    site_id: int
    report: Report


@dataclass(frozen=True, slots=True)
class Staged:
    """What was staged: how many names are to be registered, and the positions of reports that share a name with another."""

    names: int
    sharing: frozenset[int]


def stage(driver: psycopg.Connection[Any], reports: Sequence[SiteReport]) -> Staged:
    """Fill the temporary table with these reports, ``n`` their position."""
    driver.execute(CREATE)
    driver.execute(f"DELETE FROM {TABLE}")  # noqa: S608 - an import stages several times in one transaction
    first: dict[tuple[int, str], int] = {}
    sharing: set[int] = set()
    registered: set[tuple[int, str]] = set()
    digests: tuple[list[bytes | None], ...] = ([], [], [])
    for position, entry in enumerate(reports):
        names = entry.report.call.names()
        named, own = (names[:-1], names[-1]) if len(names) > 1 else (names, None)
        digests[0].append(digest(named[0]))
        digests[1].append(digest(named[1]) if len(named) > 1 else None)
        digests[2].append(None if own is None else digest(own))
        for name in names:
            owner = first.setdefault((entry.site_id, name), position)
            if owner != position:
                sharing |= {owner, position}
        registered.update([(entry.site_id, name) for name in named])
    columns: list[Any] = [
        range(len(reports)),
        [entry.site_id for entry in reports],
        [entry.report.tenant_id for entry in reports],
        [entry.report.source.value for entry in reports],
        [entry.report.call.called_at_us for entry in reports],
        *zip(*(_values(entry.report.call) for entry in reports), strict=True),
        *digests,
    ]
    arrays = [pa.array(values, kind) for values, kind in zip(columns, _SCHEMA.types, strict=True)]
    with driver.cursor() as cursor, cursor.copy(_COPY.encode()) as copy:
        copy.write(encode_batches([pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)]))
    return Staged(len(registered), frozenset(sharing))


def digest(name: str) -> bytes:
    """Return the 16 bytes by which a name is looked up."""
    return hashlib.sha256(name.encode()).digest()[:16]
