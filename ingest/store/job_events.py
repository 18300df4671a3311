"""Keeps what schedulers, watchers and prologs tell of jobs, in one transaction a body: all of it is in, or none.

What a job, its allocations and the queue are is made from everything told so far, not folded event by event, so events may
come in any order, any grouping and any number of times. Devices go the way of agents' events (:mod:`ingest.store.allocations`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
import sqlalchemy as sa
from psycopg.types.json import Jsonb

from collector.wire import UNKNOWN_MODEL, DeviceRef
from ingest.errors import BadBodyError, UnavailableError
from ingest.receivers.work import HoldTold, JobTold, Refused, RunKey, Work
from ingest.store import allocations, identities, job_holds, job_queue, job_runs, topology
from ingest.store.allocations import Event, JobKey
from ingest.store.identities import NodeKey
from ingest.store.job_facts import HINT, Words, meant, merged, ranked, words
from ingest.store.job_runs import Known
from ingest.store.outages import OUTAGES
from ingest.store.pools import make_pool_devices

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_INSTANTS: Final = ("submitted_at", "eligible_at", "ended_at")
_WHO: Final = ("account", "user_name", "partition", "qos", "namespace", "label")
"""What bindings go by: where one of these changes, what the job used is another's."""
_WORDS: Final = (*_WHO, "name", "workload", "state", "reason", "workload_kind", "accelerators", "suspended_us")


@dataclass(frozen=True, slots=True)
class Kept:
    """What came of a body; ``refused`` those that only the store could refuse."""

    accepted: int
    refused: tuple[Refused, ...]


def keep(engine: sa.Engine, site_id: int, work: Work, *, node: str | None, now: datetime) -> Kept:
    """Commit what a body says. ``node``: all that this sender may speak for. Raises UnavailableError or BadBodyError."""
    try:
        with engine.begin() as conn:
            return keep_within(conn, site_id, work, node=node, now=now)
    except OUTAGES as error:
        raise UnavailableError("database_unavailable", "the events cannot be kept now; send them again", 2) from error
    except (sa.exc.DBAPIError, psycopg.Error) as error:
        raise BadBodyError(
            "refused_by_database", f"the database refuses these events: {type(error).__name__}"
        ) from error


def keep_within(conn: sa.Connection, site_id: int, work: Work, *, node: str | None, now: datetime) -> Kept:
    """Do the same inside a transaction of the caller's."""
    return _Keeper(conn, site_id, work, node, now).run()


class _Keeper:
    """One body on its way in."""

    def __init__(self, conn: sa.Connection, site_id: int, work: Work, node: str | None, now: datetime) -> None:
        driver: psycopg.Connection[Any] | None = conn.connection.driver_connection
        assert driver is not None  # noqa: S101 - a checked-out connection has one
        self._sa, self._conn = conn, driver
        self._site_id, self._work, self._node, self._now = site_id, work, node, now
        self._refused: list[Refused] = []
        self._changes: list[tuple[datetime, datetime, str]] = []
        self._device_ids: dict[str, int] = {}

    def run(self) -> Kept:
        work = self._work
        self._check_rights()
        runs = self._resolve_runs()
        if runs:
            self._keep_runs(runs)
        waits = [told for _, told in work.waits]
        job_queue.keep(self._conn, self._site_id, work.source, int(work.origin), waits)
        self._keep_nodes()
        self._record_changes()
        return Kept(work.told, tuple(self._refused))

    def _keep_runs(self, runs: Mapping[RunKey, Known]) -> None:
        work = self._work
        nodes = {hold.node for _, hold in work.holds if hold.node is not None}
        nodes |= {each[0] for _, told in work.jobs for each in told.facts.get("holds", ()) if each[0] is not None}
        keys = [NodeKey(self._site_id, name) for name in sorted(nodes)]
        node_ids = {key.name: identity for key, identity in identities.node_ids(self._sa, keys).items()}
        self._merge_reports(runs)
        events = [self._event(told, runs[told.run]) for _, told in work.holds if told.device is not None]
        for at in allocations.apply(self._conn, events).values():
            self._changes.append((at, max(at, self._now), "allocations"))
        self._keep_holds(runs, node_ids)
        ids = sorted({known.id for known in runs.values()})
        self._project(ids)
        settled = job_holds.settle(self._conn, ids)
        for at in settled.changed_from.values():
            self._changes.append((at, max(at, self._now), "allocations"))
        if settled.pools:
            make_pool_devices(self._sa, self._site_id)
        allocations.settle_jobs(self._conn, ids)

    def _check_rights(self) -> None:
        """Refuse what a token of one node may not tell: anything but begins and ends on that node."""
        work = self._work
        devices = sorted({hold.device for _, hold in work.holds if hold.device is not None})
        if self._node is not None:
            detail = f"this token speaks for node {self._node!r} alone: begins and ends of holdings there"
            for told in (work.jobs, work.waits, work.nodes):
                self._refused += [Refused(index, "wrong_node", detail) for index, _ in told]
                told.clear()
            here = self._devices_of(self._node, devices)
            foreign = [
                index for index, hold in work.holds if hold.node != self._node and (hold.device or "") not in here
            ]
            self._refused += [Refused(index, "wrong_node", detail) for index in foreign]
            work.holds = [each for each in work.holds if each[0] not in set(foreign)]
            devices = sorted({hold.device for _, hold in work.holds if hold.device is not None})
        stubs = [DeviceRef(uuid=uuid, model=UNKNOWN_MODEL, vendor="unknown") for uuid in devices]
        self._device_ids = identities.device_ids(self._sa, stubs) if stubs else {}

    def _devices_of(self, node: str, uuids: Sequence[str]) -> frozenset[str]:
        rows = self._conn.execute(
            "SELECT devices.uuid FROM devices JOIN placements ON placements.device_id = devices.id "
            "JOIN nodes ON nodes.id = placements.node_id WHERE devices.uuid = ANY (%s) AND nodes.site_id = %s "
            "AND nodes.name = %s AND placements.superseded_at IS NULL AND placements.valid_to IS NULL",
            [list(uuids), self._site_id, node],
        )
        return frozenset(uuid for (uuid,) in rows)

    def _resolve_runs(self) -> dict[RunKey, Known]:
        work = self._work
        # Of a run that only prologs tell of, the end of its last holding is its end, as with agents.
        wanted = {told.run: ("agent", int(work.origin)) for _, told in work.holds}
        wanted |= {told.run: (work.source, int(work.origin)) for _, told in work.jobs}
        if not wanted:
            return {}
        ends: dict[RunKey, int | None] = {}
        for _, job in work.jobs:
            ends[job.run] = job.facts.get("ended_at", ends.get(job.run))
        runs = job_runs.resolve(self._conn, self._site_id, wanted, work.source, ends)
        foreign = {run for run, known in runs.items() if known.site_id != self._site_id}
        if foreign:
            detail = "another site has a job of this cluster, id and start; give each cluster a name of its own"
            told = [(index, one.run) for index, one in work.jobs] + [(index, one.run) for index, one in work.holds]
            self._refused += [Refused(index, "foreign_cluster", detail) for index, run in told if run in foreign]
            work.jobs = [each for each in work.jobs if each[1].run not in foreign]
            work.holds = [each for each in work.holds if each[1].run not in foreign]
        return {run: known for run, known in runs.items() if run not in foreign}

    def _merge_reports(self, runs: Mapping[RunKey, Known]) -> None:
        new: dict[tuple[int, str], Words] = {}
        told: list[tuple[str, JobTold | HoldTold]] = [(self._work.source, one) for _, one in self._work.jobs]
        told += [(HINT, one) for _, one in self._work.holds if one.facts]
        for source, one in told:
            key = (runs[one.run].id, source)
            new[key] = merged(new.get(key, {}), words(one.at_us, one.facts))
        known: dict[tuple[int, str], Words] = {
            (job_id, source): facts
            for job_id, source, facts in self._conn.execute(
                "SELECT job_id, source, facts FROM job_reports WHERE job_id = ANY (%s)", [[job_id for job_id, _ in new]]
            )
        }
        changed = {key: merged(known.get(key, {}), facts) for key, facts in new.items()}
        with self._conn.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO job_reports (job_id, source, facts) VALUES (%s, %s, %s) "
                "ON CONFLICT (job_id, source) DO UPDATE SET facts = excluded.facts, recorded_at = excluded.recorded_at",
                [(*key, Jsonb(facts)) for key, facts in sorted(changed.items()) if facts != known.get(key)],
            )

    def _event(self, told: HoldTold, known: Known) -> Event:
        assert told.device is not None  # noqa: S101 - chosen by the caller
        return Event(
            site_id=self._site_id,
            device_id=self._device_ids[told.device],
            job=JobKey(told.run.cluster, told.run.native_id, known.started_at_us),
            at_us=told.at_us,
            action=told.action,
            energy_mj=told.energy_mj,
            share_ratio=told.share_ratio,
            accelerators=1,
            evidence=told.evidence,
            origin=int(self._work.origin),
            texts=(None,) * 8,
        )

    def _keep_holds(self, runs: Mapping[RunKey, Known], node_ids: Mapping[str, int]) -> None:
        rows = [
            (
                runs[told.run].id,
                None if told.node is None else node_ids[told.node],
                told.pool,
                told.model,
                _instant(told.at_us),
                told.action,
                told.accelerators,
                told.evidence,
            )
            for _, told in self._work.holds
            if told.device is None
        ]
        with self._conn.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO hold_events (job_id, node_id, pool, model, at, action, accelerators, evidence) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                sorted(rows, key=repr),
            )

    def _project(self, ids: Collection[int]) -> None:
        """Make the jobs' rows what their reports mean; what nobody reports stays as it is."""
        reports: dict[int, dict[str, Words]] = {}
        for job_id, source, facts in self._conn.execute(
            "SELECT job_id, source, facts FROM job_reports WHERE job_id = ANY (%s)", [list(ids)]
        ):
            reports.setdefault(job_id, {})[source] = facts
        columns = ("started_at", *_INSTANTS, *_WORDS, "source")
        updates = []
        ends: dict[int, datetime] = {}
        for row in self._conn.execute(
            f"SELECT id, {', '.join(columns)} FROM jobs WHERE id = ANY (%s) ORDER BY id",  # noqa: S608 (our own names)
            [list(reports)],
        ).fetchall():
            before = dict(zip(("id", *columns), row, strict=True))
            after = before | _meaning(before, reports[before["id"]])
            if after == before:
                continue
            updates.append((*(after[name] for name in columns[1:]), after["started_at"], before["id"]))
            if after["ended_at"] != before["ended_at"]:
                ends[before["id"]] = min(filter(None, (before["ended_at"], after["ended_at"])))
            if any(after[name] != before[name] for name in _WHO):
                end_at = max(after["ended_at"] or self._now, after["started_at"])
                self._changes.append((after["started_at"], end_at, "jobs"))
        assignments = ", ".join(f"{name} = %s" for name in columns[1:])
        with self._conn.cursor() as cursor:
            # Another run of this id may have that very start already: two rows that are one are left as they are.
            cursor.executemany(
                f"UPDATE jobs SET {assignments}, started_at = CASE WHEN EXISTS (SELECT FROM jobs AS other "  # noqa: S608
                "WHERE other.cluster = jobs.cluster AND other.native_id = jobs.native_id AND other.id <> jobs.id "
                "AND other.started_at = %s) THEN started_at ELSE %s END WHERE id = %s",
                [(*values[:-1], values[-2], values[-1]) for values in updates],
            )

        self._note_ends(ends)

    def _note_ends(self, ends: Mapping[int, datetime]) -> None:
        """Have the hours closed again in which a job held something without an end: the job's end is its end there."""
        for (job_id,) in self._conn.execute(
            "SELECT DISTINCT job_id FROM allocations WHERE job_id = ANY (%s) AND superseded_at IS NULL AND end_at IS NULL",
            [list(ends)],
        ).fetchall():
            self._changes.append((ends[job_id], max(ends[job_id], self._now), "allocations"))

    def _keep_nodes(self) -> None:
        told = [one for _, one in self._work.nodes]
        ids = identities.node_ids(self._sa, [NodeKey(self._site_id, one.node) for one in told])
        standings: dict[int, list[topology.Standing]] = {}
        for one in sorted(told, key=repr):
            standing = topology.Standing(_instant(one.at_us), one.rack, one.switch, one.nvlink_domain)
            standings.setdefault(ids[NodeKey(self._site_id, one.node)], []).append(standing)
        topology.keep(self._conn, standings)

    def _record_changes(self) -> None:
        by_kind: dict[str, tuple[datetime, datetime]] = {}
        for first, last, kind in self._changes:
            known = by_kind.get(kind, (first, last))
            by_kind[kind] = (min(first, known[0]), max(last, known[1]))
        with self._conn.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO changes (site_id, from_at, to_at, kind) VALUES (%s, %s, %s, %s)",
                [(self._site_id, first, last, kind) for kind, (first, last) in sorted(by_kind.items())],
            )


def _meaning(row: Mapping[str, Any], reports: Mapping[str, Words]) -> dict[str, Any]:
    """Return the columns of ``jobs`` that the reports state."""
    facts = meant(reports)
    found = {name: facts[name] for name in _WORDS if facts.get(name) is not None}
    found |= {name: _instant(facts[name]) for name in _INSTANTS if facts.get(name) is not None}
    told_by = [source for source in ranked(reports) if source != HINT]
    if told_by:
        found["source"] = told_by[0]
        if row["source"] == "agent":  # an end that was made of the last holding's is a scheduler's to tell from now on
            found = {"state": "unknown", "ended_at": None} | found
    if facts.get("started_at") is not None:
        # The scheduler's start is the job's; an agent's prolog ran a little later.
        found["started_at"] = _instant(facts["started_at"])
    if facts.get("ended_at", 0) is None:
        found["ended_at"] = None  # an end was taken back
    if found.get("ended_at") is not None:
        found["ended_at"] = max(found["ended_at"], found.get("started_at", row["started_at"]))
    return found


def _instant(at_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at_us)
