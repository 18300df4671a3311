"""Ends what a node's agent left open before it began without knowing anything: its state, or the node's disk, was lost.

Such an agent tells when it began (``collector.wire.JOBS_BEGUN_ANEW``) and, as a start at that very instant, what it found held. Whatever of
the node was open then and is not told so is given an end: at the last reading of the device before, as nobody knows more. Ends are
events like any other (``intervals.ANEW``), so it does not matter in which order starts, ends and this come; they are looked for whenever
an event before such an instant arrives. Allocations that no agent told of are not touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg

from ingest.store.intervals import ANEW, END, START, Allocation, Told, meaning

_WINDOWS: Final = (timedelta(minutes=10), timedelta(hours=2), timedelta(hours=48))
"""How far back the last reading is looked for, near first: a partition that is still written to is only indexed by time."""
_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_Pair = tuple[int, int]

_LOCK: Final = "SELECT pg_advisory_xact_lock{kind}(hashtextextended('wattledger.begun_anew', 0))"
"""Shared while events are kept, alone while a beginning is: else of a start and a beginning at once neither would see the other."""
_BEGUN: Final = """
SELECT given.job_id, given.device_id, begun.at
FROM unnest(%s::bigint[], %s::integer[], %s::timestamptz[]) AS given (job_id, device_id, since_at)
JOIN placements AS placed ON placed.device_id = given.device_id AND placed.superseded_at IS NULL
JOIN begun_anew AS begun ON begun.node_id = placed.node_id AND begun.at > given.since_at
AND (placed.valid_to IS NULL OR placed.valid_to > begun.at)
ORDER BY begun.at
"""
_OPEN: Final = """
SELECT held.job_id, held.device_id, held.site_id, min(held.start_at), jobs.started_at
FROM unnest(%s::integer[], %s::timestamptz[]) AS begun (node_id, at)
JOIN placements AS placed ON placed.node_id = begun.node_id AND placed.superseded_at IS NULL
AND (placed.valid_to IS NULL OR placed.valid_to > begun.at)
JOIN allocations AS held ON held.device_id = placed.device_id AND held.superseded_at IS NULL
AND held.start_at < begun.at AND (held.end_at IS NULL OR held.end_at > begun.at)
JOIN jobs ON jobs.id = held.job_id
WHERE EXISTS (SELECT FROM allocation_events AS told WHERE told.job_id = held.job_id AND told.device_id = held.device_id)
GROUP BY held.job_id, held.device_id, held.site_id, jobs.started_at
"""
_TOLD: Final = """
SELECT at, action, energy_mj, share_ratio, accelerators, evidence FROM allocation_events WHERE job_id = %s AND device_id = %s
"""


@dataclass(frozen=True, slots=True)
class Held:
    """What is known of a job's holding of a device, beside its events."""

    site_id: int
    job_started_at: datetime
    start_at: datetime = _UNIX_EPOCH
    """The earliest start of those that were open."""


def begin(conn: psycopg.Connection[Any], begun: Iterable[tuple[int, datetime]]) -> dict[_Pair, Held]:
    """Note when agents of nodes began without knowing anything; return what was open on those nodes then, its jobs locked."""
    conn.execute(_LOCK.replace("{kind}", ""))
    fresh = conn.execute(
        "INSERT INTO begun_anew (node_id, at) SELECT * FROM unnest(%s::integer[], %s::timestamptz[]) "
        "ON CONFLICT DO NOTHING RETURNING node_id, at",
        [list(column) for column in zip(*sorted(set(begun)), strict=True)] or [[], []],
    ).fetchall()
    if not fresh:
        return {}
    columns = [[node_id for node_id, _ in fresh], [at for _, at in fresh]]
    jobs = sorted({row[0] for row in conn.execute(_OPEN, columns)})
    # In the order in which events lock them; what is open is read again, as it is once they are locked.
    conn.execute(
        "SELECT FROM jobs WHERE id = ANY (%s) ORDER BY cluster, native_id, started_at FOR NO KEY UPDATE", [jobs]
    )
    return {
        (job_id, device_id): Held(site_id, started_at, start_at)
        for job_id, device_id, site_id, start_at, started_at in conn.execute(_OPEN, columns)
        if job_id in jobs
    }


def ends(conn: psycopg.Connection[Any], since: Mapping[_Pair, tuple[datetime, datetime]]) -> dict[_Pair, datetime]:
    """Keep the ends that agents' beginnings mean for jobs on devices; return the earliest new one of each.

    ``since``: from when on beginnings matter, and the job's start.
    """
    if not since:
        return {}
    conn.execute(_LOCK.replace("{kind}", "_shared"))
    columns = [[job for job, _ in since], [device for _, device in since], [at for at, _ in since.values()]]
    found: dict[_Pair, datetime] = {}
    for job_id, device_id, begun_at in conn.execute(_BEGUN, columns).fetchall():
        pair = (job_id, device_id)
        told = [Told(*row) for row in conn.execute(_TOLD, pair)]
        if any(event.action == START and event.at == begun_at for event in told):
            continue
        for held in meaning(told, since[pair][1]):
            if held.start_at < begun_at and (held.end_at is None or held.end_at > begun_at):
                end_at = _last_reading(conn, device_id, held.start_at, begun_at)
                _keep(conn, pair, held, end_at, begun_at)
                found[pair] = min(end_at, found.get(pair, end_at))
    return found


def _last_reading(conn: psycopg.Connection[Any], device_id: int, after: datetime, before: datetime) -> datetime:
    """Return the instant of a device's last reading in between; without one ``after``, or the instant until which none was looked for."""
    reach = before
    for window in _WINDOWS:
        reach = max(after, before - window)
        row = conn.execute(
            "SELECT max(at) FROM device_samples WHERE device_id = %s AND at >= %s AND at < %s",
            [device_id, reach, before],
        ).fetchone()
        if row is not None and row[0] is not None:
            found: datetime = row[0]
            return found
    return reach


def _keep(conn: psycopg.Connection[Any], pair: _Pair, held: Allocation, end_at: datetime, begun_at: datetime) -> None:
    begun_at_us = (begun_at - _UNIX_EPOCH) // timedelta(microseconds=1)
    conn.execute(
        "INSERT INTO allocation_events (job_id, device_id, at, action, energy_mj, share_ratio, accelerators, evidence) "
        "VALUES (%s, %s, %s, %s, NULL, %s, %s, %s) ON CONFLICT DO NOTHING",
        [*pair, end_at, END, held.share_ratio, held.accelerators, f"{ANEW}{begun_at_us}"],
    )
