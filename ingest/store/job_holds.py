"""What jobs hold as schedulers tell it: (node, count) and (pool, model, count), wherever no agent saw which devices.

Order of evidence: on a node where agents saw a job hold devices their word stands alone, and the scheduler's for that node is
replaced; so nothing is counted twice. Where devices are known somewhere, a holding in a pool is replaced as well. Among the
rest begins and ends told one by one go before a list told with the job, and both before an import. What differs is not
decided here: findings name it (analytics.io.disagreements).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import psycopg

from ingest.store.intervals import Told, meaning
from ingest.store.job_facts import HINT, OVER, Words, evidence_of, ranked

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_JOBS: Final = "SELECT id, site_id, started_at, ended_at, state FROM jobs WHERE id = ANY (%s)"
_REPORTS: Final = "SELECT job_id, source, facts FROM job_reports WHERE job_id = ANY (%s)"
_EVENTS: Final = (
    "SELECT job_id, node_id, pool, model, at, action, accelerators, evidence FROM hold_events WHERE job_id = ANY (%s)"
)
_ROWS: Final = (
    "SELECT job_id, id, node_id, pool, model, accelerators, start_at, end_at, evidence FROM allocations "
    "WHERE job_id = ANY (%s) AND superseded_at IS NULL AND device_id IS NULL"
)
_SEEN: Final = (
    "SELECT DISTINCT held.job_id, placed.node_id FROM allocations AS held JOIN placements AS placed "
    "ON placed.device_id = held.device_id AND placed.superseded_at IS NULL "
    "WHERE held.job_id = ANY (%s) AND held.superseded_at IS NULL"
)


NodeIds = dict[tuple[int, str], int]
"""Site and name -> id."""


class Place(NamedTuple):
    node_id: int | None
    pool: str | None
    model: str | None


class Row(NamedTuple):
    """An allocation without a device, as it is or should be."""

    place: Place
    accelerators: int
    start_at: datetime
    end_at: datetime | None
    evidence: str


@dataclass
class Job:
    """All that is known of what one job holds. ``seen_on``: nodes on which agents saw it hold devices."""

    site_id: int
    started_at: datetime
    ended_at: datetime | None
    state: str
    reports: dict[str, Words] = field(default_factory=dict)
    events: dict[Place, list[Told]] = field(default_factory=dict)
    rows: dict[int, Row] = field(default_factory=dict)
    seen_on: set[int] = field(default_factory=set)


@dataclass
class Settled:
    """``changed_from``: by site, the earliest instant from which something changed. ``pools``: rows of pools were made."""

    changed_from: dict[int, datetime] = field(default_factory=dict)
    pools: bool = False


def settle(conn: psycopg.Connection[Any], job_ids: Collection[int]) -> Settled:
    """Make the allocations without a device of these jobs what the evidence says; the jobs' rows must be locked."""
    settled = Settled()
    jobs = _load(conn, list(job_ids))
    names = _node_ids(conn, jobs.values())
    gone: list[int] = []
    made: list[tuple[int, Job, Row]] = []
    for job_id, job in jobs.items():
        wanted = set(wanted_rows(job, names))
        current = set(job.rows.values())
        gone += [identity for identity, row in job.rows.items() if row not in wanted]
        made += [(job_id, job, row) for row in sorted(wanted - current, key=repr)]
        changed = [row.start_at for row in wanted ^ current]
        if changed:
            first = min(changed)
            settled.changed_from[job.site_id] = min(first, settled.changed_from.get(job.site_id, first))
    if gone or made:
        _write(conn, list(jobs), gone, made)
        settled.pools = any(row.place.pool is not None for _, _, row in made)
    return settled


def settle_seen(conn: psycopg.Connection[Any], job_ids: Collection[int]) -> dict[int, datetime]:
    """Let go of what devices now known replace; return by site from when on. For agents' events: nearly always nothing."""
    rows = conn.execute(
        "SELECT DISTINCT job_id FROM allocations WHERE job_id = ANY (%s) AND superseded_at IS NULL AND device_id IS NULL",
        [list(job_ids)],
    ).fetchall()
    return settle(conn, [job_id for (job_id,) in rows]).changed_from if rows else {}


def wanted_rows(job: Job, node_ids: NodeIds) -> list[Row]:
    """Return what the job holds without a known device. Pure."""
    rows = _told_rows(job, node_ids)
    if not rows and not job.events and not any("holds" in words for words in job.reports.values()):
        # Only imports spoke of it.
        rows = list(job.rows.values())
    return [row for row in rows if not _is_seen(row.place, job.seen_on)]


def _told_rows(job: Job, node_ids: NodeIds) -> list[Row]:
    rows = [
        Row(place, one.accelerators, one.start_at, one.end_at, one.evidence)
        for place, told in job.events.items()
        for one in meaning(told, job.started_at)
    ]
    listed = _listed(job, node_ids)
    # Who told of begins and ends on nodes knows better than a sum over some pool.
    precise = any(place.node_id is not None for place in job.events)
    rows += [row for row in listed if row.place not in job.events and not (precise and row.place.node_id is None)]
    return [row for row in rows if row.end_at is None or row.end_at > row.start_at]


def _listed(job: Job, node_ids: NodeIds) -> list[Row]:
    for source in ranked(job.reports):
        facts = job.reports[source]
        if source == HINT or "holds" not in facts:
            continue
        ended_us = facts.get("ended_at", [0, None])[1]
        state = facts.get("state", [0, None])[1]
        # Where the best source has not said the end another's is taken, which ``ended_at`` of the job is made of.
        end_at = job.ended_at if ended_us is None else _instant(ended_us)
        if end_at is None and state in OVER:
            return []  # it is over, nobody says since when: held until today would invent usage
        started_us = facts.get("started_at", [0, None])[1]
        start_at = job.started_at if started_us is None else _instant(started_us)
        return [
            Row(
                Place(None if node is None else node_ids[job.site_id, node], pool, model),
                accelerators,
                start_at,
                end_at,
                evidence_of(source),
            )
            for node, pool, model, accelerators in facts["holds"][1] or ()
        ]
    return []


def _is_seen(place: Place, seen_on: set[int]) -> bool:
    return bool(seen_on) if place.node_id is None else place.node_id in seen_on


def _load(conn: psycopg.Connection[Any], job_ids: list[int]) -> dict[int, Job]:
    jobs = {job_id: Job(*known) for job_id, *known in conn.execute(_JOBS, [job_ids])}
    for job_id, source, facts in conn.execute(_REPORTS, [job_ids]):
        jobs[job_id].reports[source] = facts
    for job_id, node_id, pool, model, at, action, accelerators, evidence in conn.execute(_EVENTS, [job_ids]):
        told = Told(at, action, None, None, accelerators, evidence)
        jobs[job_id].events.setdefault(Place(node_id, pool, model), []).append(told)
    for job_id, identity, node_id, pool, model, accelerators, start_at, end_at, evidence in conn.execute(
        _ROWS, [job_ids]
    ):
        jobs[job_id].rows[identity] = Row(Place(node_id, pool, model), accelerators, start_at, end_at, evidence)
    for job_id, node_id in conn.execute(_SEEN, [job_ids]):
        jobs[job_id].seen_on.add(node_id)
    return jobs


def named_nodes(reports: Iterable[Words]) -> set[str]:
    """Return the names of nodes that reports say jobs hold something of."""
    return {hold[0] for facts in reports if "holds" in facts for hold in facts["holds"][1] or () if hold[0] is not None}


def _node_ids(conn: psycopg.Connection[Any], jobs: Iterable[Job]) -> NodeIds:
    wanted = sorted({(job.site_id, name) for job in jobs for name in named_nodes(job.reports.values())})
    rows = conn.execute(
        "SELECT site_id, name, id FROM nodes JOIN unnest(%s::integer[], %s::text[]) AS wanted (site, node) "
        "ON site_id = site AND name = node",
        [[site_id for site_id, _ in wanted], [name for _, name in wanted]],
    )
    return {(site_id, name): identity for site_id, name, identity in rows}


def _write(
    conn: psycopg.Connection[Any], job_ids: list[int], gone: list[int], made: list[tuple[int, Job, Row]]
) -> None:
    known = conn.execute(
        "SELECT greatest(clock_timestamp(), max(recorded_at) + interval '1 microsecond') FROM allocations "
        "WHERE job_id = ANY (%s)",
        [job_ids],
    ).fetchone()
    assert known is not None  # noqa: S101 - an aggregate has one row
    if gone:
        conn.execute("UPDATE allocations SET superseded_at = %s WHERE id = ANY (%s)", [known[0], gone])
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO allocations (job_id, site_id, node_id, pool, model, accelerators, start_at, end_at, evidence, recorded_at) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                (job_id, job.site_id, *row.place, row.accelerators, row.start_at, row.end_at, row.evidence, known[0])
                for job_id, job, row in made
            ],
        )


def _instant(at_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at_us)
