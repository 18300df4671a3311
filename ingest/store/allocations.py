"""Applies allocation events to jobs and allocations: what is held is what all events of a job and device mean together.

Runs inside the transaction that copies the samples of the same bodies. The upsert of a job locks its row, so two writers
with events of one job take turns. Every event is kept once; what it changes is made anew from the events since the device
was last given back before it (:mod:`ingest.store.intervals`), so batches may come in any order. A written row is never
completed in place: the completed one supersedes it, so that a close made in between can be computed again as things were
known then. When that was is read from the server's clock once the job is locked: a transaction's own start lies before what
it waited for, and a row would have been replaced before it was known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, NamedTuple

import psycopg

from ingest.receivers.work import RunKey
from ingest.store import anew, job_runs
from ingest.store.anew import Held
from ingest.store.intervals import ANEW, END, Allocation, Revision, Told, revise
from ingest.store.job_holds import settle_seen

_JOB_TEXTS: Final = ("account", "user_name", "partition", "qos", "namespace", "label", "name", "workload_kind")
_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


# An end at whose instant nothing starts leaves the device free, whatever came before it: what is earlier needs no second look.
_EVENTS_SINCE: Final = """
WITH new AS MATERIALIZED (
    SELECT given.*, (
        -- Grouped along the index from the instant backwards: it stops at the first that is an end alone.
        SELECT before.at FROM allocation_events AS before
        WHERE before.job_id = given.job_id AND before.device_id = given.device_id AND before.at < given.at
        AND NOT starts_with(before.evidence, '{anew}') -- which a start that comes later may take back
        GROUP BY before.at HAVING min(before.action) = {end} ORDER BY before.at DESC LIMIT 1
    ) AS closed_at
    FROM unnest(%s::bigint[], %s::integer[], %s::timestamptz[]) AS given (job_id, device_id, at)
)
SELECT new.job_id, new.device_id, new.closed_at, event.at, event.action, event.energy_mj, event.share_ratio,
       event.accelerators, event.evidence
FROM new JOIN allocation_events AS event ON event.job_id = new.job_id AND event.device_id = new.device_id
AND event.at > coalesce(new.closed_at, '-infinity')
""".replace("{end}", str(END)).replace("{anew}", ANEW)
_ROWS_SINCE: Final = """
SELECT held.job_id, held.device_id, held.id, held.start_at, held.end_at, held.start_energy_mj, held.end_energy_mj,
       held.share_ratio, held.evidence, held.accelerators
FROM unnest(%s::bigint[], %s::integer[], %s::timestamptz[]) AS given (job_id, device_id, closed_at)
JOIN allocations AS held ON held.job_id = given.job_id AND held.device_id = given.device_id
AND held.superseded_at IS NULL AND (held.end_at IS NULL OR held.end_at > coalesce(given.closed_at, '-infinity'))
"""


class JobKey(NamedTuple):
    cluster: str
    native_id: str
    started_at_us: int


@dataclass(frozen=True, slots=True)
class Event:
    """One allocation event, its ids resolved. ``texts`` follows account, user, partition, qos, namespace, label, name, kind."""

    site_id: int
    device_id: int
    job: JobKey
    at_us: int
    action: int
    energy_mj: int | None
    share_ratio: float | None
    accelerators: int
    evidence: str
    origin: int
    texts: tuple[str | None, ...]


_Pair = tuple[int, int]
"""Ids of a job and a device."""


def apply(conn: psycopg.Connection[Any], events: Iterable[Event]) -> dict[int, datetime]:
    """Apply events; return, by site, the earliest instant from which some allocation changed."""
    ordered = sorted(events, key=lambda event: (event.job, event.device_id, event.at_us, event.action))
    if not ordered:
        return {}
    ordered = _as_known(conn, ordered)
    job_ids = _upsert_jobs(conn, ordered)
    held = {
        (job_ids[event.job], event.device_id): Held(event.site_id, _instant(event.job.started_at_us))
        for event in ordered
    }
    fresh = _keep(conn, job_ids, ordered)
    for pair, at in anew.ends(conn, {pair: (at, held[pair].job_started_at) for pair, at in fresh.items()}).items():
        fresh[pair] = min(at, fresh[pair])
    return _revise(conn, fresh, held, sorted(set(job_ids.values())))


def begin_anew(conn: psycopg.Connection[Any], begun: Iterable[tuple[int, datetime]]) -> dict[int, datetime]:
    """Take in, by node, when agents began without knowing what was told before; return by site from when on that changes anything."""
    held = anew.begin(conn, begun)
    if not held:
        return {}
    fresh = anew.ends(conn, {pair: (one.start_at, one.job_started_at) for pair, one in held.items()})
    return _revise(conn, fresh, held, sorted({job_id for job_id, _ in fresh})) if fresh else {}


def _revise(
    conn: psycopg.Connection[Any],
    fresh: dict[_Pair, datetime],
    held: Mapping[_Pair, Held],
    job_ids: list[int],
) -> dict[int, datetime]:
    """Write what new events since ``fresh`` change; return by site from when on."""
    revisions = _revisions(conn, fresh, held)
    if revisions:
        _write(conn, held, revisions, _knowing_at(conn, job_ids))
    settle_jobs(conn, job_ids)
    # What a scheduler said of a node whose devices are known now would count twice.
    touched = settle_seen(conn, job_ids)
    for pair, revision in revisions.items():
        site_id = held[pair].site_id
        if revision.changed_from is not None:
            touched[site_id] = min(revision.changed_from, touched.get(site_id, revision.changed_from))
    return touched


def _keep(conn: psycopg.Connection[Any], job_ids: dict[JobKey, int], events: Sequence[Event]) -> dict[_Pair, datetime]:
    """Keep the events that are new; return the earliest new one's instant of each job and device."""
    rows = conn.execute(
        "INSERT INTO allocation_events (job_id, device_id, at, action, energy_mj, share_ratio, accelerators, evidence) "
        "SELECT * FROM unnest(%s::bigint[], %s::integer[], %s::timestamptz[], %s::smallint[], %s::bigint[], "
        "%s::numeric[], %s::integer[], %s::text[]) ON CONFLICT DO NOTHING RETURNING job_id, device_id, at",
        [
            [job_ids[event.job] for event in events],
            [event.device_id for event in events],
            [_instant(event.at_us) for event in events],
            [event.action for event in events],
            [event.energy_mj for event in events],
            [None if event.share_ratio is None else round(Decimal(repr(event.share_ratio)), 6) for event in events],
            [event.accelerators for event in events],
            [event.evidence for event in events],
        ],
    ).fetchall()
    fresh: dict[_Pair, datetime] = {}
    for job_id, device_id, at in rows:
        fresh[job_id, device_id] = min(at, fresh.get((job_id, device_id), at))
    return fresh


def _revisions(
    conn: psycopg.Connection[Any], fresh: dict[_Pair, datetime], held: Mapping[_Pair, Held]
) -> dict[_Pair, Revision]:
    """Return what the new events change, read from the last end before them after which nothing was held."""
    if not fresh:
        return {}
    closed: dict[_Pair, datetime | None] = {}
    told: dict[_Pair, list[Told]] = {pair: [] for pair in fresh}
    for job_id, device_id, closed_at, *fields in conn.execute(
        _EVENTS_SINCE, [[job for job, _ in fresh], [device for _, device in fresh], list(fresh.values())]
    ):
        closed[job_id, device_id] = closed_at
        told[job_id, device_id].append(Told(*fields))
    rows: dict[_Pair, list[Allocation]] = {pair: [] for pair in fresh}
    for job_id, device_id, *fields in conn.execute(
        _ROWS_SINCE, [[job for job, _ in closed], [device for _, device in closed], list(closed.values())]
    ):
        rows[job_id, device_id].append(Allocation(*fields))
    found = {pair: revise(rows[pair], told[pair], held[pair].job_started_at, closed[pair]) for pair in fresh}
    return {pair: revision for pair, revision in found.items() if revision.changed_from is not None}


def _as_known(conn: psycopg.Connection[Any], events: Sequence[Event]) -> list[Event]:
    """Return the events under the start that their run is known by: hooks of old Slurms date it by up to 3 s otherwise."""
    told = {event.job: event for event in events}
    runs = {job: (event.site_id, RunKey(*job)) for job, event in told.items()}
    known = job_runs.known_starts(conn, runs.values())
    keys = {job: job._replace(started_at_us=known.get(run, job.started_at_us)) for job, run in runs.items()}
    renamed = [replace(event, job=keys[event.job]) for event in events]
    return sorted(renamed, key=lambda event: (event.job, event.device_id, event.at_us, event.action))


def _upsert_jobs(conn: psycopg.Connection[Any], events: Sequence[Event]) -> dict[JobKey, int]:
    """Return the ids of the events' jobs, made where missing and locked; what a job did not say before is filled in."""
    latest: dict[JobKey, Event] = {event.job: event for event in events}
    jobs = [latest[key] for key in sorted(latest)]
    filled = ", ".join(
        f"{name} = coalesce(jobs.{name}, excluded.{name})" for name in _JOB_TEXTS if name != "workload_kind"
    )
    rows = conn.execute(
        "INSERT INTO jobs (site_id, cluster, native_id, started_at, "  # noqa: S608 (constants)
        f"{', '.join(_JOB_TEXTS)}, workload_kind_source, state, origin, source) "
        "SELECT site_id, cluster, native_id, started_at, account, user_name, partition, qos, namespace, label, name, "
        "coalesce(workload_kind, 'unknown'), CASE WHEN workload_kind IS NOT NULL THEN 'agent' END, 'running', origin, 'agent' "
        "FROM unnest(%s::integer[], %s::text[], %s::text[], %s::timestamptz[], %s::text[], %s::text[], %s::text[], %s::text[], "
        "%s::text[], %s::text[], %s::text[], %s::text[], %s::smallint[]) AS new (site_id, cluster, native_id, started_at, "
        "account, user_name, partition, qos, namespace, label, name, workload_kind, origin) "
        "ORDER BY cluster, native_id, started_at ON CONFLICT (cluster, native_id, started_at) DO UPDATE "
        f"SET {filled} RETURNING id, cluster, native_id, started_at",
        [
            [job.site_id for job in jobs],
            [job.job.cluster for job in jobs],
            [job.job.native_id for job in jobs],
            [_instant(job.job.started_at_us) for job in jobs],
            *([job.texts[position] for job in jobs] for position in range(len(_JOB_TEXTS))),
            [job.origin for job in jobs],
        ],
    ).fetchall()
    return {JobKey(cluster, native_id, _us(started_at)): identity for identity, cluster, native_id, started_at in rows}


def _knowing_at(conn: psycopg.Connection[Any], job_ids: list[int]) -> datetime:
    """Return the instant from which what is written now is known: after all that is known of these jobs, whatever the clock does."""
    row = conn.execute(
        "SELECT greatest(clock_timestamp(), max(recorded_at) + interval '1 microsecond') FROM allocations WHERE job_id = ANY (%s)",
        [job_ids],
    ).fetchone()
    assert row is not None  # noqa: S101 - an aggregate has one row
    known_at: datetime = row[0]
    return known_at


def _write(
    conn: psycopg.Connection[Any], held: Mapping[_Pair, Held], revisions: dict[_Pair, Revision], known_at: datetime
) -> None:
    gone = [row.id for revision in revisions.values() for row in revision.superseded]
    if gone:
        conn.execute("UPDATE allocations SET superseded_at = %s WHERE id = ANY (%s)", [known_at, gone])
    made = [(pair, row) for pair, revision in revisions.items() for row in revision.made]
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO allocations (job_id, site_id, device_id, accelerators, share_ratio, start_at, end_at, "
            "start_energy_mj, end_energy_mj, evidence, recorded_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                (
                    job_id,
                    held[job_id, device_id].site_id,
                    device_id,
                    row.accelerators,
                    row.share_ratio,
                    row.start_at,
                    row.end_at,
                    row.start_energy_mj,
                    row.end_energy_mj,
                    row.evidence,
                    known_at,
                )
                for (job_id, device_id), row in made
            ],
        )


def settle_jobs(conn: psycopg.Connection[Any], job_ids: list[int]) -> None:
    """Give a job that only agents speak of the end of its last allocation; how it ended no agent knows."""
    conn.execute(
        "UPDATE jobs SET ended_at = held.ended_at, state = CASE WHEN held.ended_at IS NULL THEN 'running' ELSE 'unknown' END "
        "FROM (SELECT job_id, CASE WHEN bool_or(end_at IS NULL) THEN NULL ELSE max(end_at) END AS ended_at FROM allocations "
        "WHERE job_id = ANY (%s) AND superseded_at IS NULL GROUP BY job_id) AS held "
        "WHERE jobs.id = held.job_id AND jobs.source = 'agent' AND jobs.ended_at IS DISTINCT FROM held.ended_at "
        "AND (held.ended_at IS NULL OR held.ended_at >= jobs.started_at)",
        [job_ids],
    )


def _instant(at_us: int) -> datetime:
    return _UNIX_EPOCH + timedelta(microseconds=at_us)


def _us(at: datetime) -> int:
    return (at - _UNIX_EPOCH) // timedelta(microseconds=1)
