"""Writes imported jobs with what they held.

A job is known by cluster, native id and start: a later file adds its end and state. What an import says a job held gives way
to better evidence (an agent's), and replaces what an earlier import said.
"""
# ruff: noqa: S608 - the SQL is made of this package's own names; what a file says travels by COPY and parameters

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import sqlalchemy as sa

from collector.wire import Origin
from ingest.store import identities
from ingest.store.identities import NodeKey
from ingest.store.imports import KNOWN_AT, Stage, at_sql, known_from_here, mark_changed
from ingest.store.job_runs import MAKING, SAME_START_US
from ingest.store.pools import make_pool_devices

IMPORT_EVIDENCE: Final = ("import", "sacct")
_TEXTS: Final = ("account", "user_name", "partition", "qos", "namespace", "label", "name")
JOB_COLUMNS: Final = {
    "line": "bigint",
    "cluster": "text",
    "native_id": "text",
    "started_us": "bigint",
    "submitted_us": "bigint",
    "eligible_us": "bigint",
    "ended_us": "bigint",
    "state": "text",
    "reason": "text",
    **dict.fromkeys(_TEXTS, "text"),
    "workload_kind": "text",
    "accelerators": "integer",
}
HOLD_COLUMNS: Final = {
    "line": "bigint",
    "node": "text",
    "pool": "text",
    "model": "text",
    "accelerators": "integer",
    "start_us": "bigint",
    "end_us": "bigint",
}


@dataclass(frozen=True, slots=True)
class WrittenJobs:
    inserted: int
    updated: int
    unchanged: int
    allocations: int
    better_known: int
    repeated: list[tuple[int, str]]
    first_us: int | None
    last_us: int | None


class Jobs:
    """Jobs of one file and what they held, on their way into ``jobs`` and ``allocations``."""

    def __init__(self, conn: sa.Connection, site_id: int) -> None:
        self._conn, self._site_id = conn, site_id
        self._jobs = Stage(conn, "import_jobs", JOB_COLUMNS)
        self._holds = Stage(conn, "import_holds", HOLD_COLUMNS)

    def add(self, jobs: Iterable[tuple[Any, ...]], holds: Iterable[tuple[Any, ...]]) -> None:
        """Stage rows in the order of JOB_COLUMNS and HOLD_COLUMNS; ``line`` joins them."""
        self._jobs.copy(jobs)
        self._holds.copy(holds)

    def store(self, source: str, evidence: str, tenant: str | None) -> WrittenJobs:
        """Write what was staged; ``tenant`` names who pays where the file itself says (bindings decide otherwise)."""
        conn = self._conn
        self._jobs.ready()
        self._holds.ready()
        # A table exported while jobs ran may list one twice: its last row knows most.
        repeated = conn.exec_driver_sql(
            "DELETE FROM import_jobs AS j USING (SELECT line, row_number() OVER "
            "(PARTITION BY cluster, native_id, started_us ORDER BY line DESC) AS place FROM import_jobs) AS n "
            "WHERE j.line = n.line AND n.place > 1 RETURNING j.line, j.native_id"
        ).all()
        tenant_id = identities.tenant_ids(conn, [tenant])[tenant] if tenant else None
        self._take_starts()
        inserted, updated = self._upsert(source, tenant_id)
        staged, first_us, last_us = conn.exec_driver_sql(
            "SELECT count(*), min(started_us), max(coalesce(ended_us, started_us)) FROM import_jobs"
        ).one()
        allocations, better_known = self._hold(evidence)
        return WrittenJobs(
            inserted,
            updated,
            staged - inserted - updated,
            allocations,
            better_known,
            sorted((line, native_id) for line, native_id in repeated),
            first_us,
            last_us,
        )

    def _take_starts(self) -> None:
        """Give runs that agents dated a few seconds otherwise the start that the file says: it is the scheduler's own."""
        self._conn.exec_driver_sql(MAKING)
        started_at = at_sql("s.started_us")
        self._conn.execute(
            sa.text(
                f"UPDATE jobs SET started_at = near.started_at FROM (SELECT DISTINCT ON (s.line) j.id, {started_at} AS started_at "
                f"FROM import_jobs AS s JOIN jobs AS j ON j.cluster = s.cluster AND j.native_id = s.native_id "
                "WHERE j.site_id = :site_id AND j.source = 'agent' "
                f"AND j.started_at BETWEEN {started_at} - :apart AND {started_at} + :apart AND j.started_at <> {started_at} "
                "AND NOT EXISTS (SELECT FROM jobs AS other WHERE other.cluster = s.cluster AND other.native_id = s.native_id "
                f"AND other.started_at = {started_at}) ORDER BY s.line, abs(extract(epoch FROM j.started_at - {started_at})), j.id"
                ") AS near WHERE near.id = jobs.id"
            ),
            {"site_id": self._site_id, "apart": timedelta(microseconds=SAME_START_US)},
        )

    def _upsert(self, source: str, tenant_id: int | None) -> tuple[int, int]:
        texts = ", ".join(_TEXTS)
        newer = ["ended_at", "submitted_at", "eligible_at", "reason", *_TEXTS, "accelerators", "tenant_id"]
        kept = ", ".join(f"{column} = coalesce(excluded.{column}, jobs.{column})" for column in newer)
        # Unknown says nothing against what is known.
        state = "state = CASE excluded.state WHEN 'unknown' THEN jobs.state ELSE excluded.state END"
        # From now on the scheduler's word is what its end and state go by, not the last thing an agent saw it hold.
        whose = "source = CASE jobs.source WHEN 'agent' THEN excluded.source ELSE jobs.source END"
        differs = " OR ".join(f"coalesce(excluded.{c}, jobs.{c}) IS DISTINCT FROM jobs.{c}" for c in newer)
        result = self._conn.execute(
            sa.text(
                "WITH written AS (INSERT INTO jobs (site_id, cluster, native_id, started_at, submitted_at, eligible_at, "
                f"ended_at, state, reason, {texts}, workload_kind, workload_kind_source, accelerators, tenant_id, origin, source) "
                f"SELECT :site_id, cluster, native_id, {at_sql('started_us')}, {at_sql('submitted_us')}, "
                f"{at_sql('eligible_us')}, {at_sql('ended_us')}, state, reason, {texts}, coalesce(workload_kind, 'unknown'), "
                "CASE WHEN workload_kind IS NOT NULL THEN :source END, accelerators, :tenant_id, :origin, :source "
                "FROM import_jobs ON CONFLICT (cluster, native_id, started_at) DO UPDATE SET "
                f"{kept}, {state}, {whose} WHERE {differs} OR (excluded.state <> 'unknown' AND excluded.state <> jobs.state) "
                "OR jobs.source = 'agent' "
                "RETURNING (xmax = 0) AS fresh) SELECT count(*) FILTER (WHERE fresh), count(*) FILTER (WHERE NOT fresh) "
                "FROM written"
            ),
            {"site_id": self._site_id, "tenant_id": tenant_id, "origin": int(Origin.IMPORTED), "source": source},
        ).one()
        return result[0], result[1]

    def _hold(self, evidence: str) -> tuple[int, int]:
        conn = self._conn
        known_from_here(conn)
        names = conn.exec_driver_sql("SELECT DISTINCT node FROM import_holds WHERE node IS NOT NULL").scalars().all()
        node_ids = identities.node_ids(conn, [NodeKey(self._site_id, name) for name in names])
        nodes = Stage(conn, "import_nodes", {"node": "text", "node_id": "integer"})
        nodes.copy((key.name, node_id) for key, node_id in node_ids.items())
        conn.exec_driver_sql(
            "CREATE TEMPORARY TABLE import_wanted ON COMMIT DROP AS SELECT j.id AS job_id, n.node_id, h.pool, h.model, "
            f"h.accelerators, {at_sql('h.start_us')} AS start_at, {at_sql('h.end_us')} AS end_at "
            "FROM import_holds AS h JOIN import_jobs AS s USING (line) JOIN jobs AS j ON j.cluster = s.cluster "
            f"AND j.native_id = s.native_id AND j.started_at = {at_sql('s.started_us')} LEFT JOIN import_nodes AS n USING (node)"
        )
        better_known = conn.execute(
            sa.text(
                "DELETE FROM import_wanted AS w WHERE EXISTS (SELECT FROM allocations AS a WHERE a.job_id = w.job_id "
                "AND a.superseded_at IS NULL AND a.evidence <> ALL (:ours))"
            ),
            {"ours": list(IMPORT_EVIDENCE)},
        ).rowcount
        same = (
            "a.job_id = w.job_id AND a.superseded_at IS NULL AND a.accelerators = w.accelerators AND a.start_at = w.start_at "
            + "".join(f"AND a.{c} IS NOT DISTINCT FROM w.{c} " for c in ("node_id", "pool", "model", "end_at"))
        )
        conn.exec_driver_sql(
            "CREATE TEMPORARY TABLE import_changed ON COMMIT DROP AS WITH old AS (UPDATE allocations AS a "
            f"SET superseded_at = {KNOWN_AT} WHERE a.job_id IN (SELECT job_id FROM import_wanted) AND a.superseded_at IS NULL "
            f"AND NOT EXISTS (SELECT FROM import_wanted AS w WHERE {same}) RETURNING a.start_at, a.end_at) SELECT * FROM old"
        )
        conn.exec_driver_sql(f"DELETE FROM import_wanted AS w USING allocations AS a WHERE {same}")
        written = conn.execute(
            sa.text(
                "INSERT INTO allocations (job_id, site_id, node_id, pool, model, accelerators, start_at, end_at, evidence, "
                "recorded_at) SELECT job_id, :site_id, node_id, pool, model, accelerators, start_at, end_at, :evidence, "
                f"{KNOWN_AT} FROM import_wanted"
            ),
            {"site_id": self._site_id, "evidence": evidence},
        ).rowcount
        make_pool_devices(conn, self._site_id)
        mark_changed(
            conn,
            self._site_id,
            "allocations",
            "SELECT tstzrange(start_at, end_at, '[]') FROM "
            "(SELECT start_at, end_at FROM import_wanted UNION ALL SELECT start_at, end_at FROM import_changed) AS touched",
        )
        return written, better_known
