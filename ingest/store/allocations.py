"""Applies allocation events to jobs and allocations: a start opens, an end closes, a repetition changes nothing.

Runs inside the transaction that copies the samples of the same bodies. The upsert of a job locks its row, so two writers
with events of one job take turns. An end whose start was never seen makes an allocation from the job's own start, and
says so in its evidence; the start, should it come after all, replaces it. A written row is never completed in place: the
completed one supersedes it, so that a close made in between can be computed again as things were known then. When that
was is read from the server's clock once the job is locked: a transaction's own start lies before what it waited for, and a
row would have been replaced before it was known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, NamedTuple

import psycopg

START: Final = 1
END: Final = 2
START_UNKNOWN: Final = "+start-unknown"
"""Suffix of the evidence of an allocation whose start is the job's, not an event's."""
_JOB_TEXTS: Final = ("account", "user_name", "partition", "qos", "namespace", "label", "name", "workload_kind")
_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


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


@dataclass(slots=True)
class Allocation:
    """A row of ``allocations`` as far as events go; ``id`` is None for one not written yet."""

    id: int | None
    start_at: datetime
    end_at: datetime | None
    start_energy_mj: int | None
    end_energy_mj: int | None
    share_ratio: Decimal | None
    evidence: str
    accelerators: int = 1
    superseded: bool = False
    changed: bool = False

    @property
    def start_is_known(self) -> bool:
        return not self.evidence.endswith(START_UNKNOWN)


def apply(conn: psycopg.Connection[Any], events: Iterable[Event]) -> dict[int, datetime]:
    """Apply events in time order; return, by site, the earliest instant from which some allocation changed."""
    ordered = sorted(events, key=lambda event: (event.job, event.device_id, event.at_us, event.action))
    if not ordered:
        return {}
    job_ids = _upsert_jobs(conn, ordered)
    held = _current(conn, sorted(set(job_ids.values())))
    touched: dict[int, datetime] = {}
    for event in ordered:
        rows = held.setdefault((job_ids[event.job], event.device_id), [])
        changed_from = fold(rows, event)
        if changed_from is not None:
            touched[event.site_id] = min(changed_from, touched.get(event.site_id, changed_from))
    facts = {(job_ids[event.job], event.device_id): event for event in ordered}
    if any(row.changed for rows in held.values() for row in rows):
        known_at = _knowing_at(conn, sorted(set(job_ids.values())))
        for (job_id, device_id), rows in held.items():
            if (job_id, device_id) in facts:
                _write(conn, job_id, facts[(job_id, device_id)], rows, known_at)
    _settle_jobs(conn, sorted(set(job_ids.values())))
    return touched


def fold(rows: list[Allocation], event: Event) -> datetime | None:
    """Apply one event to the current allocations of its job and device; return from when on they changed. Pure."""
    at = _instant(event.at_us)
    current = [row for row in rows if not row.superseded]
    if event.action == START:
        if any(
            row.start_is_known and row.start_at <= at and (row.end_at is None or at < row.end_at) for row in current
        ):
            return None
        if any(row.start_is_known and row.start_at == at for row in current):
            return None
        guess = next(
            (row for row in current if not row.start_is_known and row.end_at is not None and at <= row.end_at), None
        )
        if guess is not None:
            guess.superseded = guess.changed = True
            rows.append(_opened(event, at, guess))
            return min(at, guess.start_at)
        rows.append(_opened(event, at, None))
        return at
    if any(row.end_at == at for row in current):
        return None
    opened = next((row for row in current if row.end_at is None and row.start_at <= at), None)
    if opened is not None:
        rows.append(replace(opened, id=None, end_at=at, end_energy_mj=event.energy_mj, changed=True))
        opened.superseded = opened.changed = True
        return at
    start = min(_instant(event.job.started_at_us), at)
    guess = _opened(replace(event, energy_mj=None), start, None)
    guess.evidence += START_UNKNOWN
    guess.end_at, guess.end_energy_mj = at, event.energy_mj
    rows.append(guess)
    return start


def _opened(event: Event, at: datetime, guess: Allocation | None) -> Allocation:
    share = None if event.share_ratio is None else round(Decimal(repr(event.share_ratio)), 6)
    return Allocation(
        id=None,
        start_at=at,
        end_at=None if guess is None else guess.end_at,
        start_energy_mj=event.energy_mj,
        end_energy_mj=None if guess is None else guess.end_energy_mj,
        share_ratio=share,
        evidence=event.evidence,
        accelerators=event.accelerators,
        changed=True,
    )


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


def _current(conn: psycopg.Connection[Any], job_ids: list[int]) -> dict[tuple[int, int], list[Allocation]]:
    held: dict[tuple[int, int], list[Allocation]] = {}
    rows = conn.execute(
        "SELECT job_id, device_id, id, start_at, end_at, start_energy_mj, end_energy_mj, share_ratio, evidence, "
        "accelerators FROM allocations WHERE job_id = ANY (%s) AND device_id IS NOT NULL AND superseded_at IS NULL ORDER BY start_at",
        [job_ids],
    )
    for job_id, device_id, *fields in rows:
        held.setdefault((job_id, device_id), []).append(Allocation(*fields))
    return held


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
    conn: psycopg.Connection[Any], job_id: int, event: Event, rows: Sequence[Allocation], known_at: datetime
) -> None:
    """Write what changed: rows are superseded or inserted, and one both made and superseded here was never there."""
    for row in rows:
        if not row.changed:
            continue
        if row.superseded:
            if row.id is not None:
                conn.execute("UPDATE allocations SET superseded_at = %s WHERE id = %s", [known_at, row.id])
            continue
        conn.execute(
            "INSERT INTO allocations (job_id, site_id, device_id, accelerators, share_ratio, start_at, end_at, "
            "start_energy_mj, end_energy_mj, evidence, recorded_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                job_id,
                event.site_id,
                event.device_id,
                row.accelerators,
                row.share_ratio,
                row.start_at,
                row.end_at,
                row.start_energy_mj,
                row.end_energy_mj,
                row.evidence,
                known_at,
            ],
        )


def _settle_jobs(conn: psycopg.Connection[Any], job_ids: list[int]) -> None:
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
