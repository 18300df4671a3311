"""Ids that name no call, because more calls carry them than one call can have reports.

A gateway or a mock that answers each request with the same id would make one call of thousands. The names of such ids are
marked in ``call_keys``: from then on a report is found by its other names alone, and is written like any new call, however
many others have the id. What was merged by the id before is taken apart (ingest.store.call_merge).
"""
# ruff: noqa: S608 - the SQL is made of this package's own names

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import psycopg
from psycopg.types.json import Jsonb

from ingest.calls import Report
from ingest.store.call_stage import SiteReport, digest
from ingest.store.imports import EPOCH_SQL

MAX_REPORTS: Final = 16
"""Of one source and one id, at different instants. A framework, a client library, a proxy and retries of each are fewer."""
MARK: Final = "!reused"
"""In the place of a call's key. Keys of calls begin with what made them: span/, litellm/, ..."""
_IDS: Final = "id/"
_MARKED: Final = (
    "SELECT wanted.site_id, wanted.name FROM unnest(%s::integer[], %s::uuid[]) AS wanted (site_id, name), LATERAL "
    "(SELECT FROM call_keys AS found WHERE found.site_id = wanted.site_id AND found.key = wanted.name "
    f"AND found.dedupe_key = '{MARK}' OFFSET 0) AS known"
)
_REGISTER: Final = (
    "INSERT INTO call_keys (site_id, key, called_at, dedupe_key) SELECT site_id, name, "
    f"{EPOCH_SQL} + at_us * interval '1 microsecond', dedupe_key "
    "FROM unnest(%s::integer[], %s::uuid[], %s::bigint[], %s::text[]) AS given (site_id, name, at_us, dedupe_key) "
    "ORDER BY site_id, name ON CONFLICT DO NOTHING RETURNING site_id, key"
)
_POINT_NOWHERE: Final = (
    f"INSERT INTO call_keys (site_id, key, called_at, dedupe_key) VALUES (%s, %s::uuid, {EPOCH_SQL}, '{MARK}') "
    "ON CONFLICT (site_id, key) DO UPDATE SET called_at = excluded.called_at, dedupe_key = excluded.dedupe_key"
)
_FINDING: Final = (
    "INSERT INTO findings (dedupe_key, site_id, kind, start_at, end_at, evidence, confidence, origin) VALUES "
    f"(%s, %s, 'response_id_reused', {EPOCH_SQL} + %s * interval '1 microsecond', "
    f"{EPOCH_SQL} + %s * interval '1 microsecond', %s, 1, %s) ON CONFLICT (dedupe_key) DO NOTHING"
)


def freed(driver: psycopg.Connection[Any], reports: Sequence[SiteReport], slow: Collection[int]) -> set[int]:
    """Return which of these positions share only marked ids with others; their other names, all new, are registered.

    They are calls of their own, and need no lock. One with a name that is known is left to be merged.
    """
    told_at = {at: reports[at] for at in slow}
    names = {
        at: [(told.site_id, digest(name).hex(), name) for name in told.report.call.names()]
        for at, told in told_at.items()
    }
    ids = sorted({(site, key) for told in names.values() for site, key, name in told if name.startswith(_IDS)})
    if not ids:
        return set()
    marked = {(site, name.hex) for site, name in driver.execute(_MARKED, [*map(list, zip(*ids, strict=True))])}
    if not marked:
        return set()
    left = {at: [(site, key) for site, key, _ in told if (site, key) not in marked] for at, told in names.items()}
    sharing = Counter(name for told in left.values() for name in told)
    alone = [at for at, told in left.items() if len(told) < len(names[at]) and all(sharing[name] == 1 for name in told)]
    given = [
        (site, key, told_at[at].report.call.called_at_us, told_at[at].report.call.dedupe_key)
        for at in alone
        for site, key in left[at]
    ]
    if not given:
        return set()
    made = driver.execute(_REGISTER, [*map(list, zip(*given, strict=True))])
    new = {(site, key.hex) for site, key in made}
    return {at for at in alone if all(name in new for name in left[at])}


def contradicted(reports: Iterable[Report]) -> set[str]:
    """Return the ids that more reports of one source carry, at different instants, than one call has."""
    instants: Mapping[tuple[str, str], set[int]] = defaultdict(set)
    for report in reports:
        for name in report.call.names():
            if name.startswith(_IDS):
                instants[report.source.value, name].add(report.call.called_at_us)
    return {name for (_, name), at in instants.items() if len(at) > MAX_REPORTS}


def mark(driver: psycopg.Connection[Any], site_id: int, names: Iterable[str], reports: Collection[Report]) -> None:
    """Make these ids name nothing, and raise a finding for each."""
    at = [report.call.called_at_us for report in reports]
    origin = max(report.call.origin for report in reports)
    for name in sorted(names):
        key = digest(name).hex()
        driver.execute(_POINT_NOWHERE, [site_id, key])
        evidence = Jsonb({"id": name.removeprefix(_IDS)[:255], "reports": len(reports), "at_most": MAX_REPORTS})
        driver.execute(
            _FINDING, [f"response_id_reused/{site_id}/{key}", site_id, min(at), max(at) + 1, evidence, origin]
        )
