"""Puts reports of calls into a temporary table by COPY, in the form in which the rest is plain SQL.

A temporary table, because COPY does not pass row-level security; one per connection, emptied at each commit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, overload

import psycopg
import pyarrow as pa

from ingest.calls import ApiCall, CallSource, Report, names_of
from ingest.rows import Rows
from ingest.store.copy import SQL_TYPES, copy_statement, encode_batches

MAX_KEYS: Final = 3
"""Names one report can give: its response's id, its request's, its own."""
_ARROW: Final[dict[str, Any]] = {"int": pa.int64(), "str": pa.string(), "bool": pa.bool_()}
_KIND: Final = {entry.name: str(entry.type).partition(" ")[0] for entry in fields(ApiCall)}
FIELDS: Final = tuple(name for name in _KIND if name != "called_at_us")
"""Fields of a call that are columns of the same name; ``called_at`` is apart."""
_JSON: Final = frozenset(("tool_calls",))
"""Fields that are texts here and in the temporary table, and jsonb where they are kept."""
AS_KEPT: Final = tuple(f"{name}::jsonb" if name in _JSON else name for name in FIELDS)
"""SQL for the fields as the tables take them from the temporary one."""
AS_TOLD: Final = tuple(f"rows.{name}::text" if name in _JSON else f"rows.{name}" for name in FIELDS)
"""SQL for the fields of kept ``rows`` as a call has them."""
AS_VALUE: Final = tuple("%s::jsonb" if name in _JSON else "%s" for name in FIELDS)
"""SQL for the fields as values of a statement."""
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


@dataclass(frozen=True, slots=True)
class SiteReport:
    """A report and whose site it is of."""

    site_id: int
    report: Report


class Reports(Sequence[SiteReport]):
    """Reports as columns: a report is made only where somebody asks for one. ``calls`` are what they say."""

    def __init__(
        self,
        site_ids: Sequence[int],
        sources: Sequence[CallSource],
        tenant_ids: Sequence[int | None],
        calls: Rows[ApiCall],
    ) -> None:
        self.site_ids = site_ids
        self.sources = sources
        self.tenant_ids = tenant_ids
        self.calls = calls

    @classmethod
    def of(cls, reports: Sequence[SiteReport]) -> Reports:
        """Return these reports as columns."""
        if isinstance(reports, Reports):
            return reports
        return cls(
            [entry.site_id for entry in reports],
            [entry.report.source for entry in reports],
            [entry.report.tenant_id for entry in reports],
            Rows.of(ApiCall, [entry.report.call for entry in reports]),
        )

    def __len__(self) -> int:
        return len(self.site_ids)

    @overload
    def __getitem__(self, at: int) -> SiteReport: ...
    @overload
    def __getitem__(self, at: slice) -> Reports: ...
    def __getitem__(self, at: int | slice) -> SiteReport | Reports:
        if isinstance(at, slice):
            return Reports(self.site_ids[at], self.sources[at], self.tenant_ids[at], self.calls[at])
        return SiteReport(self.site_ids[at], Report(self.calls[at], self.sources[at], self.tenant_ids[at]))


@dataclass(frozen=True, slots=True)
class Staged:
    """What was staged: how many names are to be registered, and the positions of reports that share a name with another."""

    names: int
    sharing: frozenset[int]


def stage(driver: psycopg.Connection[Any], reports: Reports) -> Staged:
    """Fill the temporary table with these reports, ``n`` their position."""
    driver.execute(CREATE)
    driver.execute(f"DELETE FROM {TABLE}")  # noqa: S608 - an import stages several times in one transaction
    told = reports.calls.columns
    names = [*map(names_of, told["response_id"], told["request_id"], told["dedupe_key"])]
    columns: list[Any] = [
        range(len(reports)),
        reports.site_ids,
        reports.tenant_ids,
        [source.value for source in reports.sources],
        told["called_at_us"],
        *(told[name] for name in FIELDS),
        [digest(given[0]) for given in names],
        [digest(given[1]) if len(given) == MAX_KEYS else None for given in names],
        [digest(given[-1]) if len(given) > 1 else None for given in names],
    ]
    arrays = [pa.array(values, kind) for values, kind in zip(columns, _SCHEMA.types, strict=True)]
    with driver.cursor() as cursor, cursor.copy(_COPY.encode()) as copy:
        copy.write(encode_batches([pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)]))
    return _staged(reports.site_ids, names)


def _staged(site_ids: Sequence[int], names: Sequence[tuple[str, ...]]) -> Staged:
    given = [(site_id, name) for site_id, told in zip(site_ids, names, strict=True) for name in told]
    if len(set(given)) == len(given):  # no name is given twice, as nearly always
        return Staged(sum(max(len(told) - 1, 1) for told in names), frozenset())
    first: dict[tuple[int, str], int] = {}
    sharing: set[int] = set()
    registered: set[tuple[int, str]] = set()
    for position, (site_id, told) in enumerate(zip(site_ids, names, strict=True)):
        for name in told:
            owner = first.setdefault((site_id, name), position)
            if owner != position:
                sharing |= {owner, position}
        registered.update([(site_id, name) for name in told[:-1] or told])
    return Staged(len(registered), frozenset(sharing))


def digest(name: str) -> bytes:
    """Return the 16 bytes by which a name is looked up."""
    return hashlib.sha256(name.encode()).digest()[:16]
