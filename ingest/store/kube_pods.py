"""Keeps what kube-state-metrics tells of pods, and makes reports on jobs of it: in one transaction a request.

Everything known of a pod lies in its row, so any replica may get any piece. A report goes the way of the watcher's
(:mod:`ingest.store.job_events`), from a source that is believed less. That a pod is gone is concluded in one way alone: whoever
told of it was heard of for ten minutes without a break and said nothing more of it; or, where that teller is gone too, others
told of the cluster for a day. Then it ended at the scrape in which its series were missing, else when it was seen last. A
pod that is told of again afterwards never ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
import sqlalchemy as sa
from psycopg.types.json import Jsonb

from collector.wire import Origin
from ingest.errors import BadBodyError, UnavailableError
from ingest.pollers.kube_objects import node_events
from ingest.receivers.work import JobTold, NodeTold, RunKey, WaitTold, Work
from ingest.series.pods import KubeTold, PodTold, Words
from ingest.store import job_events
from ingest.store.kube_report import SOURCE, asked, over, report, wait, with_words
from ingest.store.outages import OUTAGES

SILENT_FOR: Final = timedelta(minutes=10)
"""Longer than a pod's last sighting may lie behind (``ingest.series.pods.NOTE_EVERY_US``), shorter than hours wait to close."""
GONE_AFTER: Final = timedelta(days=1)
BREAK: Final = timedelta(minutes=5)
"""A teller silent for longer is heard of anew."""
_KEPT_WITHOUT_ACCELERATORS: Final = timedelta(days=1)
_KEPT_AFTER_END: Final = timedelta(days=7)
_MOST_AT_ONCE: Final = 1_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_COLUMNS: Final = "facts, exporter, origin, seen_at, gone_at, ended_at, told_us"
_GONE: Final = f"""
SELECT pod.uid, {_COLUMNS} FROM kube_pods AS pod
WHERE pod.site_id = %(site)s AND pod.cluster = %(cluster)s AND pod.ended_at IS NULL AND pod.accelerators IS NOT NULL AND (
    EXISTS (SELECT FROM kube_exporters AS teller WHERE teller.site_id = pod.site_id AND teller.cluster = pod.cluster
            AND teller.name = pod.exporter AND teller.heard_at - greatest(teller.since_at, pod.seen_at) >= %(silent)s)
    OR pod.seen_at < (SELECT max(heard_at) FROM kube_exporters WHERE site_id = %(site)s AND cluster = %(cluster)s) - %(gone)s)
ORDER BY pod.uid LIMIT %(most)s FOR UPDATE OF pod SKIP LOCKED
"""  # noqa: S608 (our own names)
_FORGET: Final = """
DELETE FROM kube_pods WHERE (site_id, cluster, uid) IN (
    SELECT site_id, cluster, uid FROM kube_pods WHERE site_id = %(site)s AND cluster = %(cluster)s
    AND ((accelerators IS NULL AND recorded_at < %(now)s - %(plain)s)
         OR (ended_at < %(now)s - %(ended)s AND seen_at < %(now)s - %(ended)s AND recorded_at < %(now)s - %(plain)s))
    LIMIT %(most)s FOR UPDATE SKIP LOCKED)
"""


@dataclass(frozen=True, slots=True)
class _Pod:
    """A row of ``kube_pods``."""

    facts: Words
    exporter: str
    origin: int
    seen_at: datetime
    gone_at: datetime | None
    ended_at: datetime | None
    told_us: int

    @property
    def gone_us(self) -> int | None:
        return None if self.ended_at is None else _us(self.ended_at)

    @property
    def report(self) -> dict[str, Any] | None:
        return report(self.facts, self.gone_us)

    @property
    def wait(self) -> dict[str, Any] | None:
        return wait(self.facts, self.gone_us)


@dataclass(slots=True)
class _Changed:
    """Rows to write, and reports to make, by cluster and UID."""

    pods: dict[tuple[str, str], _Pod] = field(default_factory=dict)
    jobs: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    waits: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def take(self, key: tuple[str, str], before: _Pod, after: _Pod) -> None:
        if after == before:
            return
        said, waited = after.report, after.wait
        is_new, is_new_wait = said != before.report, waited != before.wait
        if is_new or is_new_wait:
            latest_us = max((word[0] for word in after.facts.values()), default=0)
            after = replace(after, told_us=max(before.told_us + 1, latest_us))
        if is_new and said is not None:
            self.jobs[key] = said
        if is_new_wait and waited is not None:
            self.waits[key] = waited
        self.pods[key] = after


def keep(engine: sa.Engine, site_id: int, told: KubeTold, now: datetime) -> Counter[str]:
    """Commit what a request says; return what of it was refused, by reason. Raises UnavailableError or BadBodyError."""
    try:
        with engine.begin() as conn:
            return _keep(conn, site_id, told, now)
    except (*OUTAGES, psycopg.errors.DeadlockDetected) as error:
        raise UnavailableError("database_unavailable", "the series cannot be kept now; send them again", 2) from error
    except (sa.exc.DBAPIError, psycopg.Error) as error:
        if isinstance(getattr(error, "orig", None), psycopg.errors.DeadlockDetected):
            raise UnavailableError("database_unavailable", "another was first; send them again", 1) from error
        raise BadBodyError("refused_by_database", f"the database refuses these: {type(error).__name__}") from error


def _keep(sa_conn: sa.Connection, site_id: int, told: KubeTold, now: datetime) -> Counter[str]:
    conn: psycopg.Connection[Any] | None = sa_conn.connection.driver_connection
    assert conn is not None  # noqa: S101 - a checked-out connection has one
    changed = _Changed()
    for key, before in _locked(conn, site_id, told.pods).items():
        changed.take(key, before, _with(before, told.pods[key]))
    _write(conn, site_id, changed.pods)
    _hear(conn, site_id, told.heard)
    swept = _Changed()
    for cluster in sorted(told.sweep):
        _sweep(conn, site_id, cluster, now, swept)
    _write(conn, site_id, swept.pods)
    changed = _Changed(changed.pods | swept.pods, changed.jobs | swept.jobs, changed.waits | swept.waits)
    _leave_to_watchers(conn, site_id, changed.waits)
    refused: Counter[str] = Counter()
    for work in _works(told, changed):
        kept = job_events.keep_within(sa_conn, site_id, work, node=None, now=now)
        refused.update(each.reason for each in kept.refused)
    return refused


def _with(before: _Pod, told: PodTold) -> _Pod:
    facts = with_words(before.facts, told.facts)
    seen_at = max(before.seen_at, _instant(told.seen_us))
    gone_at = before.gone_at
    if told.gone_us:
        gone_at = _instant(told.gone_us) if gone_at is None else max(gone_at, _instant(told.gone_us))
    ended = over(facts)
    ended_at = before.ended_at
    if ended is not None:
        ended_at = _instant(ended[1])
    elif ended_at is not None and seen_at > ended_at and seen_at > before.seen_at:
        ended_at = None  # it was thought to be gone
    exporter = told.exporter if _instant(told.seen_us) >= before.seen_at else before.exporter
    return replace(before, facts=facts, exporter=exporter, seen_at=seen_at, gone_at=gone_at, ended_at=ended_at)


def _locked(
    conn: psycopg.Connection[Any], site_id: int, told: Mapping[tuple[str, str], PodTold]
) -> dict[tuple[str, str], _Pod]:
    keys = sorted(told)  # in one order, so that two with the same pods wait for each other
    if not keys:
        return {}
    arrays = [[cluster for cluster, _ in keys], [uid for _, uid in keys]]
    conn.execute(
        "INSERT INTO kube_pods (site_id, cluster, uid, facts, exporter, origin, seen_at, told_us) "
        "SELECT %s, cluster, uid, '{}', exporter, origin, %s, 0 "
        "FROM unnest(%s::text[], %s::text[], %s::text[], %s::smallint[]) AS new (cluster, uid, exporter, origin) "
        "ON CONFLICT (site_id, cluster, uid) DO NOTHING",
        [site_id, _EPOCH, *arrays, [told[key].exporter for key in keys], [int(told[key].origin) for key in keys]],
    )
    rows = conn.execute(
        f"SELECT pod.cluster, pod.uid, {_COLUMNS} FROM kube_pods AS pod "  # noqa: S608 (our own names)
        "JOIN unnest(%s::text[], %s::text[]) AS given (cluster, uid) ON given.cluster = pod.cluster AND given.uid = pod.uid "
        "WHERE pod.site_id = %s ORDER BY pod.cluster, pod.uid FOR UPDATE OF pod",
        [*arrays, site_id],
    )
    return {(cluster, uid): _Pod(*row) for cluster, uid, *row in rows}


def _hear(conn: psycopg.Connection[Any], site_id: int, heard: Mapping[tuple[str, str], int]) -> None:
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO kube_exporters AS known (site_id, cluster, name, since_at, heard_at) VALUES (%s, %s, %s, %s, %s) "
            "ON CONFLICT (site_id, cluster, name) DO UPDATE SET heard_at = excluded.heard_at, "
            "since_at = CASE WHEN excluded.heard_at - known.heard_at > %s THEN excluded.heard_at ELSE known.since_at END "
            "WHERE excluded.heard_at > known.heard_at",
            [(site_id, *teller, _instant(at_us), _instant(at_us), BREAK) for teller, at_us in sorted(heard.items())],
        )


def _sweep(conn: psycopg.Connection[Any], site_id: int, cluster: str, now: datetime, changed: _Changed) -> None:
    given = {"site": site_id, "cluster": cluster, "now": now, "most": _MOST_AT_ONCE}
    for uid, *row in conn.execute(_GONE, {**given, "silent": SILENT_FOR, "gone": GONE_AFTER}).fetchall():
        before = _Pod(*row)
        missed = before.gone_at is not None and before.gone_at > before.seen_at
        changed.take((cluster, uid), before, replace(before, ended_at=before.gone_at if missed else before.seen_at))
    ages = {"plain": _KEPT_WITHOUT_ACCELERATORS, "ended": _KEPT_AFTER_END}
    conn.execute(_FORGET, {**given, **ages})


def _write(conn: psycopg.Connection[Any], site_id: int, pods: Mapping[tuple[str, str], _Pod]) -> None:
    with conn.cursor() as cursor:
        cursor.executemany(
            "UPDATE kube_pods SET facts = %s, exporter = %s, seen_at = %s, gone_at = %s, ended_at = %s, told_us = %s, "
            "accelerators = %s WHERE site_id = %s AND cluster = %s AND uid = %s",
            [
                (
                    Jsonb(pod.facts),
                    pod.exporter,
                    pod.seen_at,
                    pod.gone_at,
                    pod.ended_at,
                    pod.told_us,
                    None if (wanted := asked(pod.facts)) is None else wanted[1],
                    site_id,
                    *key,
                )
                for key, pod in sorted(pods.items())
            ],
        )


def _leave_to_watchers(
    conn: psycopg.Connection[Any], site_id: int, waits: dict[tuple[str, str], dict[str, Any]]
) -> None:
    """Take out the waits that somebody else tells of: a watcher knows why, and words of a wait are not ranked by source."""
    keys = sorted(waits)
    if keys:
        rows = conn.execute(
            "SELECT cluster, native_id FROM queue_entries JOIN unnest(%s::text[], %s::text[]) AS given (cluster, native_id) "
            "USING (cluster, native_id) WHERE site_id = %s AND source <> %s",
            [[cluster for cluster, _ in keys], [uid for _, uid in keys], site_id, SOURCE],
        )
        for key in rows.fetchall():
            waits.pop(key, None)


def _works(told: KubeTold, changed: _Changed) -> Iterator[Work]:
    """Yield what is to be told of jobs, waits and nodes, by where the data was born."""
    origins: dict[int, Work] = {}
    for key in sorted(changed.jobs.keys() | changed.waits.keys()):
        pod = changed.pods[key]
        work = origins.setdefault(pod.origin, Work(SOURCE, Origin(pod.origin)))
        said, waited = changed.jobs.get(key), changed.waits.get(key)
        if said is not None:
            work.jobs.append((len(work.jobs), JobTold(RunKey(*key, said["started_at"]), pod.told_us, said)))
        if waited is not None:
            created_us = pod.facts["created"][1]
            told_wait = WaitTold(*key, created_us, pod.told_us, None, created_us, waited)
            work.waits.append((len(work.waits), told_wait))
    yield from (origins[origin] for origin in sorted(origins))
    if told.nodes:
        yield Work(SOURCE, Origin.LIVE, nodes=list(enumerate(_standings(told.nodes))))


def _standings(nodes: Mapping[str, tuple[int, Sequence[tuple[str, str]]]]) -> Iterator[NodeTold]:
    for name, (at_us, labels) in sorted(nodes.items()):
        thing = {"metadata": {"name": name, "labels": dict(labels)}}
        for _, event, _ in node_events(thing, "", _instant(at_us)):
            yield NodeTold(name, at_us, event.get("rack"), event.get("switch"), event.get("nvlink_domain"))


def _instant(at_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at_us)


def _us(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)
