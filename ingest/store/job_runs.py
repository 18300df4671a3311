"""Finds or makes the row of a run of a job, whoever speaks of it first. Two sources date one start a little differently.

Runs of one id whose starts lie within 5 s are one run: a prolog's clock or whole seconds differ by less. Not so where one
scheduler says that the first ended before the second began: it requeued the job that fast. An id that is a UUID (a pod's) is used once, so there every start is the same run. It refuses a run that another
site has: a site's token may not touch it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any, Final, NamedTuple

import psycopg

from ingest.receivers.work import RunKey

SAME_START_US: Final = 5_000_000
EVER_US: Final = 1 << 60
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_KNOWN: Final = """
SELECT given.place, near.id, near.site_id, near.started_at
FROM unnest(%s::integer[], %s::text[], %s::text[], %s::timestamptz[], %s::bigint[])
    AS given (place, cluster, native_id, started_at, apart_us)
CROSS JOIN LATERAL (
    SELECT jobs.id, jobs.site_id, jobs.started_at FROM jobs
    WHERE jobs.cluster = given.cluster AND jobs.native_id = given.native_id
    AND abs(extract(epoch FROM jobs.started_at - given.started_at)) * 1000000 <= given.apart_us
    ORDER BY abs(extract(epoch FROM jobs.started_at - given.started_at)), jobs.id LIMIT 1
) AS near
"""

MAKING: Final = "SELECT pg_advisory_xact_lock(hashtextextended('wattledger.jobs', 0))"
"""Whoever makes a run's row first asks for it: two that make one run a second apart would not meet at the unique key."""


@dataclass(frozen=True, slots=True)
class Known:
    """A run's row. ``started_at`` is the row's, which need not be what this source says."""

    id: int
    site_id: int
    started_at: datetime

    @property
    def started_at_us(self) -> int:
        return (self.started_at - _EPOCH) // timedelta(microseconds=1)


class Span(NamedTuple):
    """When a run began and ended as one scheduler says, in microseconds; null: no end."""

    started_us: int
    ended_us: int | None

    def is_apart(self, other: Span) -> bool:
        """Say whether one ended before the other began: no run does both."""
        first, second = sorted((self, other), key=itemgetter(0))
        return first[0] < second[0] and first.ended_us is not None and first.ended_us <= second.started_us


def is_unique(native_id: str) -> bool:
    """Say whether an id names one run for ever: a UUID does."""
    return _UUID.fullmatch(native_id) is not None


def resolve(
    conn: psycopg.Connection[Any],
    site_id: int,
    runs: Mapping[RunKey, tuple[str, int]],
    scheduler: str = "",
    told: Mapping[RunKey, int | None] | None = None,
) -> dict[RunKey, Known]:
    """Return the row of each run, made where there is none; ``runs`` give the source and origin of those made.

    ``told``: the runs that a scheduler tells of, with the ends it tells (µs). A run that another site has is returned with
    that site's id, for the caller to refuse. All of this site's are locked.
    """
    ends = told or {}
    found = _rows(conn, runs, scheduler, ends)
    missing = [run for run in runs if run not in found]
    if missing:
        conn.execute(MAKING)
        found |= _rows(conn, missing, scheduler, ends)
        made: list[RunKey] = []
        for run in sorted((run for run in missing if run not in found), key=_order):
            if not (made and _is_same(made[-1], run)) or _are_apart(made[-1], run, ends):
                made.append(run)
        _make(conn, site_id, {run: runs[run] for run in made})
        found |= _find(conn, missing)
    _lock(conn, [known.id for known in found.values() if known.site_id == site_id])
    return found


def known_starts(conn: psycopg.Connection[Any], runs: Iterable[tuple[int, RunKey]]) -> dict[tuple[int, RunKey], int]:
    """Return, for runs by site, the start of the row each is known by; of those that nobody knows the first of each decides.

    For agents' events, which make rows themselves: whoever makes one holds a lock until he commits, so that two sources that
    date one start differently do not both make it. A run that another site has is not looked at: it stays as it was told.
    """
    wanted = {run: site_id for site_id, run in runs}
    found = _of_sites(_find(conn, wanted), wanted)
    missing = sorted((run for run in wanted if run not in found), key=_order)
    starts = {(wanted[run], run): known.started_at_us for run, known in found.items()}
    if not missing:
        return starts
    conn.execute(MAKING)
    found = _of_sites(_find(conn, missing), wanted)
    first: RunKey | None = None
    for run in missing:
        if run in found:
            starts[wanted[run], run] = found[run].started_at_us
            continue
        if first is None or wanted[first] != wanted[run] or not _is_same(first, run):
            first = run
        starts[wanted[run], run] = first.started_at_us
    return starts


def _of_sites(found: Mapping[RunKey, Known], sites: Mapping[RunKey, int]) -> dict[RunKey, Known]:
    return {run: known for run, known in found.items() if known.site_id == sites[run]}


def _order(run: RunKey) -> tuple[str, str, int]:
    return run.cluster, run.native_id, run.started_at_us


def _is_same(one: RunKey, other: RunKey) -> bool:
    apart_us = EVER_US if is_unique(one.native_id) else SAME_START_US
    same_job = (one.cluster, one.native_id) == (other.cluster, other.native_id)
    return same_job and abs(one.started_at_us - other.started_at_us) <= apart_us


def _are_apart(one: RunKey, other: RunKey, ends: Mapping[RunKey, int | None]) -> bool:
    if one not in ends or other not in ends or is_unique(one.native_id):
        return False
    return Span(one.started_at_us, ends[one]).is_apart(Span(other.started_at_us, ends[other]))


def _rows(
    conn: psycopg.Connection[Any], runs: Collection[RunKey], scheduler: str, ends: Mapping[RunKey, int | None]
) -> dict[RunKey, Known]:
    """Return the rows that runs have; none for a run that the same scheduler tells apart from the row next to it."""
    found = _find(conn, runs)
    near = {run: found[run] for run in ends if run in found and not is_unique(run.native_id)}
    near = {run: known for run, known in near.items() if known.started_at_us != run.started_at_us}
    if not near:
        return found
    spans = {
        job_id: Span(started_us, ended_us)
        for job_id, started_us, ended_us in conn.execute(
            "SELECT job_id, (facts -> 'started_at' ->> 1)::bigint, (facts -> 'ended_at' ->> 1)::bigint FROM job_reports "
            "WHERE source = %s AND job_id = ANY (%s) AND facts -> 'started_at' ->> 1 IS NOT NULL",
            [scheduler, [known.id for known in near.values()]],
        )
    }
    for run, known in near.items():
        span = spans.get(known.id)
        if span is None:
            continue  # nobody but others told of that row
        now_told = ends.get(replace(run, started_at_us=span.started_us))
        row = Span(span.started_us, now_told or span.ended_us)
        if row.is_apart(Span(run.started_at_us, ends[run])):
            del found[run]
    return found


def _find(conn: psycopg.Connection[Any], runs: Collection[RunKey]) -> dict[RunKey, Known]:
    wanted = list(runs)
    rows = conn.execute(
        _KNOWN,
        [
            list(range(len(wanted))),
            [run.cluster for run in wanted],
            [run.native_id for run in wanted],
            [_instant(run.started_at_us) for run in wanted],
            [EVER_US if is_unique(run.native_id) else SAME_START_US for run in wanted],
        ],
    )
    return {wanted[place]: Known(identity, site_id, started_at) for place, identity, site_id, started_at in rows}


def _make(conn: psycopg.Connection[Any], site_id: int, runs: Mapping[RunKey, tuple[str, int]]) -> None:
    conn.execute(
        "INSERT INTO jobs (site_id, cluster, native_id, started_at, state, origin, source) "
        "SELECT %s, cluster, native_id, started_at, CASE source WHEN 'agent' THEN 'running' ELSE 'unknown' END, origin, source "
        "FROM unnest(%s::text[], %s::text[], %s::timestamptz[], %s::text[], %s::smallint[]) "
        "AS new (cluster, native_id, started_at, source, origin) ORDER BY cluster, native_id, started_at "
        "ON CONFLICT (cluster, native_id, started_at) DO NOTHING",
        [
            site_id,
            [run.cluster for run in runs],
            [run.native_id for run in runs],
            [_instant(run.started_at_us) for run in runs],
            [source for source, _ in runs.values()],
            [origin for _, origin in runs.values()],
        ],
    )


def _lock(conn: psycopg.Connection[Any], ids: list[int]) -> None:
    # In the order in which allocation events lock them (ingest.store.allocations): the two wait instead of deadlocking.
    conn.execute(
        "SELECT FROM jobs WHERE id = ANY (%s) ORDER BY cluster, native_id, started_at FOR NO KEY UPDATE", [ids]
    )


def _instant(at_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at_us)
