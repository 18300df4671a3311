"""Findings about sealed files, and what the worker and the doctor ask of the catalog."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, LiteralString

import psycopg
from psycopg.types.json import Jsonb

from collector.wire import Origin
from ingest.store.segments_check import Checked

DAMAGED: Final = "segment_damaged"
TOO_LATE: Final = "samples_after_retention"
REFUSED: Final = "recompute_refused"
CLOCKS: Final = "clocks_disagree"
"""The worker's clock and the database's: nothing is deleted by age until they agree."""
UNREACHABLE: Final = "segments_unreachable"
"""The folder or bucket of the segments is away: nothing is sealed and nothing deleted."""
HELD_BACK: Final = "retention_held_back"
"""Segments are past retention by the clock, and no new sample has come for so long that it is not believed."""
_RAISE: Final = """
INSERT INTO findings (dedupe_key, site_id, kind, start_at, end_at, evidence, confidence, origin)
VALUES (%(key)s, %(site_id)s, %(kind)s, %(hour_at)s, %(hour_at)s::timestamptz + interval '1 hour', %(evidence)s, 1.0, %(origin)s)
ON CONFLICT (dedupe_key) DO UPDATE SET evidence = excluded.evidence, recorded_at = now(), withdrawn_at = NULL
"""
# A file that is replaced is nobody's trouble any more; one that was restored is found healthy when it is looked at again.
_WITHDRAW: Final = """
UPDATE findings SET withdrawn_at = now() WHERE kind = %(kind)s AND withdrawn_at IS NULL AND NOT EXISTS (
    SELECT FROM hour_segments AS files WHERE files.path = findings.evidence ->> 'path' AND files.retired_at IS NULL)
"""
_WITHDRAW_PATHS: Final = """
UPDATE findings SET withdrawn_at = now() WHERE kind = %(kind)s AND withdrawn_at IS NULL AND evidence ->> 'path' = ANY (%(paths)s)
"""
# What concerns no site stands with each of them.
_RAISE_EVERYWHERE: Final = """
INSERT INTO findings (dedupe_key, site_id, kind, start_at, end_at, evidence, confidence, origin)
SELECT %(kind)s || '/' || id, id, %(kind)s, %(at)s, %(at)s, %(evidence)s, 1.0, %(origin)s FROM sites
ON CONFLICT (dedupe_key) DO UPDATE SET evidence = excluded.evidence, end_at = excluded.end_at, withdrawn_at = NULL,
    start_at = CASE WHEN findings.withdrawn_at IS NULL THEN findings.start_at ELSE excluded.start_at END, recorded_at = now()
"""
_WITHDRAW_EVERYWHERE: Final = "UPDATE findings SET withdrawn_at = now() WHERE kind = %s AND withdrawn_at IS NULL"
_RAISE_MORE: Final = """
INSERT INTO findings (dedupe_key, site_id, kind, start_at, end_at, evidence, confidence, origin)
VALUES (%(key)s, %(site_id)s, %(kind)s, %(hour_at)s, %(hour_at)s::timestamptz + interval '1 hour', %(evidence)s, 1.0, %(origin)s)
ON CONFLICT (dedupe_key) DO UPDATE SET recorded_at = now(), withdrawn_at = NULL, evidence = jsonb_set(excluded.evidence, '{rows}',
    to_jsonb((excluded.evidence ->> 'rows')::bigint + coalesce((findings.evidence ->> 'rows')::bigint, 0)))
"""
_RECENT: Final = """
SELECT sites.name, hour_at FROM hour_catalog JOIN sites ON sites.id = site_id WHERE hour_catalog.updated_at >= %s
"""
_FACTS: Final = """
SELECT (SELECT count(*) FROM hour_catalog WHERE state = 'sealed'), (SELECT max(hour_at) FROM hour_catalog WHERE state = 'sealed'),
       (SELECT coalesce(sum(size_bytes), 0)::bigint FROM hour_segments WHERE retired_at IS NULL),
       (SELECT count(*) FROM findings WHERE kind = %(kind)s AND withdrawn_at IS NULL),
       (SELECT min(evidence ->> 'path') FROM findings WHERE kind = %(kind)s AND withdrawn_at IS NULL)
"""


@dataclass(frozen=True, slots=True)
class SegmentFacts:
    """What the catalog holds, and the files found damaged that nobody has replaced."""

    sealed_hours: int
    last_hour_at: datetime | None
    size_bytes: int
    damaged_files: int
    first_damaged: str | None


def raise_damaged(connection: psycopg.Connection[Any], damaged: Sequence[Checked]) -> int:
    """Raise a finding for each damaged file, once a file; return how many are damaged."""
    for checked in damaged:
        listed = checked.listed
        connection.execute(
            _RAISE,
            {
                "key": f"{DAMAGED}/{listed.file.path}",
                "site_id": listed.site_id,
                "kind": DAMAGED,
                "hour_at": listed.hour_at,
                "evidence": Jsonb({"path": listed.file.path, "stream": listed.stream, "fault": checked.fault}),
                "origin": int(Origin.LIVE),
            },
        )
    return len(damaged)


def raise_too_late(connection: psycopg.Connection[Any], discarded: Sequence[tuple[int, datetime, str, int]]) -> int:
    """Raise a finding for each (site, hour, stream, rows) that came after its hour's segments were gone; return the rows.

    Rows are added to those a finding tells of already.
    """
    for site_id, hour_at, stream, rows in discarded:
        evidence = {"stream": stream, "rows": rows}
        _raise(connection, TOO_LATE, site_id, hour_at, f"/{stream}", evidence, statement=_RAISE_MORE)
    return sum(rows for _, _, _, rows in discarded)


def raise_everywhere(connection: psycopg.Connection[Any], kind: str, at: datetime, evidence: dict[str, Any]) -> None:
    """Raise a finding that concerns every site alike, or say that it still stands."""
    given = {"kind": kind, "at": at, "evidence": Jsonb(evidence), "origin": int(Origin.LIVE)}
    connection.execute(_RAISE_EVERYWHERE, given)


def withdraw_everywhere(connection: psycopg.Connection[Any], kind: str) -> None:
    """Withdraw what :func:`raise_everywhere` has raised."""
    connection.execute(_WITHDRAW_EVERYWHERE, [kind])


def raise_refused(connection: psycopg.Connection[Any], site_id: int, hour_at: datetime, error: Exception) -> None:
    """Raise a finding: this hour's inputs changed, and its books stay as they are, since its samples are gone."""
    _raise(connection, REFUSED, site_id, hour_at, "", {"error": str(error)})


def _raise(
    connection: psycopg.Connection[Any],
    kind: str,
    site_id: int,
    hour_at: datetime,
    of: str,
    evidence: dict[str, Any],
    *,
    statement: LiteralString = _RAISE,
) -> None:
    # The server's zone is not ours: one hour must have one key.
    key = f"{kind}/{site_id}/{hour_at.astimezone(UTC).isoformat()}{of}"
    given = {"key": key, "site_id": site_id, "kind": kind, "hour_at": hour_at}
    connection.execute(statement, given | {"evidence": Jsonb(evidence), "origin": int(Origin.LIVE)})


def withdraw_healthy(connection: psycopg.Connection[Any], healthy_paths: Sequence[str] = ()) -> int:
    """Withdraw findings about files that are no longer read, or were found healthy; return how many."""
    withdrawn = connection.execute(_WITHDRAW, {"kind": DAMAGED}).rowcount
    if healthy_paths:
        given = {"kind": DAMAGED, "paths": list(healthy_paths)}
        withdrawn += connection.execute(_WITHDRAW_PATHS, given).rowcount
    return withdrawn


def recent_hours(connection: psycopg.Connection[Any], since: datetime) -> list[tuple[str, datetime]]:
    """Return (site, hour) of the catalog rows that changed since."""
    return [(name, hour_at) for name, hour_at in connection.execute(_RECENT, [since])]


def segment_facts(connection: psycopg.Connection[Any]) -> SegmentFacts:
    """Return what doctor says of sealed hours."""
    row = connection.execute(_FACTS, {"kind": DAMAGED}).fetchone()
    if row is None:
        raise psycopg.DataError("a query of counts returned no row")
    return SegmentFacts(*row)
