"""Imports tables of jobs: who ran what from when to when, on which nodes or how many accelerators of which pool."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, Final

import sqlalchemy as sa

from ingest.importers.columns import Chunk, Field, Source
from ingest.importers.errors import OptionError, RowError
from ingest.importers.hostlist import expand
from ingest.importers.job_rows import (
    Hold,
    JobFile,
    JobRow,
    Reader,
    checked_cluster,
    checked_holds,
    checked_times,
    import_job_rows,
)
from ingest.importers.report import ImportReport, ProgressCallback, RowLog
from ingest.store.import_samples import node_names

_STATES: Final = {
    "success": "completed",
    "succeeded": "completed",
    "completed": "completed",
    "complete": "completed",
    "done": "completed",
    "failed": "failed",
    "error": "failed",
    "aborted": "failed",
    "cancelled": "cancelled",
    "canceled": "cancelled",
    "killed": "cancelled",
    "preempted": "preempted",
    "timeout": "timeout",
    "running": "running",
    "pending": "pending",
}
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


def _names(*names: str, **units: str) -> dict[str, str | None]:
    return {**dict.fromkeys(names), **units}


FIELDS: Final = (
    Field("job_id", "text", _names("job_id", "jobid", "native_id", "id", "run", "run_id"), required=True, filled=True),
    Field(
        "start",
        "instant",
        _names(
            "started_at",
            "start",
            "start_time",
            "start_at",
            run_start_ms="ms",
            start_ms="ms",
            start_s="s",
            init_start_ms="ms",
        ),
        required=True,
    ),
    Field(
        "end",
        "instant",
        _names(
            "ended_at", "end", "end_time", "stop_time", "end_at", run_stop_ms="ms", end_ms="ms", stop_ms="ms", end_s="s"
        ),
        required=True,
    ),
    Field("submit", "instant", _names("submitted_at", "submit", "submit_time", submit_ms="ms")),
    Field("state", "text", _names("state", "status")),
    Field("cluster", "text", _names("cluster")),
    Field("account", "text", _names("account", "tenant", "project", "team")),
    Field("user", "text", _names("user", "user_name", "username")),
    Field("partition", "text", _names("partition", "queue")),
    Field("namespace", "text", _names("namespace")),
    Field("name", "text", _names("name", "job_name", "benchmark")),
    Field("workload_kind", "text", _names("workload_kind")),
    Field("node_list", "text", _names("node_list", "nodelist", "hosts", "node_names")),
    Field("nodes", "integer", _names("nodes", "node_count", "nnodes", "num_nodes")),
    Field("per_node", "integer", _names("accel_per_node", "gpus_per_node", "accelerators_per_node")),
    Field("accelerators", "integer", _names("gpus", "accelerators", "gpu_count", "num_gpus", "alloc_gpus")),
    Field("pool", "text", _names("pool", "system", "node_type", "instance_type")),
    Field("model", "text", _names("accel_model", "gpu_model", "accelerator_model", "gpu_type", "model")),
)
WORKLOAD_KINDS: Final = ("training", "fine-tuning", "inference", "agent", "simulation", "batch", "unknown")


@dataclass(frozen=True, slots=True)
class JobOptions:
    site: str
    cluster: str | None = None
    """Where the table has no such column."""
    on_nodes: str | None = None
    """Glob with {job_id}, {cluster} or {name} over node names known to the site, for logs whose nodes are named after
    their run: ``{job_id}/*``."""
    tenant: str | None = None
    """Who pays for all of them; otherwise the bindings say."""


def import_jobs(
    conn: sa.Connection,
    source: Source,
    options: JobOptions,
    *,
    now: datetime,
    dry_run: bool = False,
    progress: ProgressCallback | None = None,
) -> ImportReport:
    """Import one table of jobs; a later export of it brings them up to date. Raises ImportFileError."""
    if options.on_nodes and (unknown := set(_PLACEHOLDER.findall(options.on_nodes)) - {"job_id", "cluster", "name"}):
        raise OptionError(f"--on-nodes: {{{min(unknown)}}} is none of job_id, cluster, name")

    def reader(connection: sa.Connection, site_id: int) -> Reader:
        known = node_names(connection, site_id) if options.on_nodes else {}

        def rows(chunk: Chunk, report: ImportReport) -> Iterator[JobRow]:
            return parse_jobs(chunk, report.rejections, options, known, now)

        return rows

    return import_job_rows(
        conn,
        source,
        JobFile("jobs", options.site, options.tenant, FIELDS, evidence="import"),
        reader,
        dry_run=dry_run,
        progress=progress,
    )


def parse_jobs(
    chunk: Chunk, log: RowLog, options: JobOptions, known_nodes: Mapping[str, int], now: datetime
) -> Iterator[JobRow]:
    """Yield the jobs of a chunk that ran; the others go to the log."""
    names = list(chunk.values)
    for line, *values in chunk.rows(*names):
        row = dict(zip(names, values, strict=True))
        try:
            yield _job(line, row, options, known_nodes, now)
        except RowError as error:
            log.reject(line, error.reason, f"{row['job_id']} {error.detail}".strip())


def _job(line: int, row: Mapping[str, Any], options: JobOptions, known: Mapping[str, int], now: datetime) -> JobRow:
    text = (row["state"] or "").casefold()
    state = _STATES.get(text, "unknown")
    if state == "pending":
        raise RowError("never started", text)
    started_us = checked_times(row["start"], row["end"], state, now)
    if row["workload_kind"] is not None and row["workload_kind"] not in WORKLOAD_KINDS:
        raise RowError("unknown workload kind", f"{row['workload_kind']!r} is none of {', '.join(WORKLOAD_KINDS)}")
    cluster = checked_cluster(row["cluster"] or options.cluster)
    holds = checked_holds(_holds(row, cluster, options, known))
    return JobRow(
        line=line,
        cluster=cluster,
        native_id=row["job_id"],
        started_us=started_us,
        ended_us=row["end"],
        state="running" if state == "unknown" and row["end"] is None else state,
        submitted_us=row["submit"],
        reason=text if state in {"unknown", "failed"} and text not in {"", "failed"} else None,
        account=row["account"],
        user_name=row["user"],
        partition=row["partition"],
        namespace=row["namespace"],
        name=row["name"],
        workload_kind=row["workload_kind"],
        accelerators=sum(hold[3] for hold in holds) or None,
        holds=holds,
    )


def _holds(row: Mapping[str, Any], cluster: str, options: JobOptions, known: Mapping[str, int]) -> list[Hold]:
    nodes = _nodes(row, cluster, options, known)
    total, per_node, model = row["accelerators"], row["per_node"], row["model"]
    count = len(nodes) or row["nodes"]
    if total is None and per_node is not None and count is not None:
        total = per_node * count
    if total is None or total == 0:
        return []
    if total < 0:
        raise RowError("accelerators out of range", str(total))
    if nodes:
        each, rest = divmod(total, len(nodes))
        if rest or (per_node is not None and per_node != each):
            raise RowError("accelerators do not fit the nodes", f"{total} on {len(nodes)} nodes")
        return [(node, None, None, each) for node in nodes]
    # No node is known: the job held so many of a pool.
    return [(None, row["pool"] or row["partition"] or cluster, model, total)]


def _nodes(row: Mapping[str, Any], cluster: str, options: JobOptions, known: Mapping[str, int]) -> list[str]:
    if row["node_list"]:
        nodes = expand(row["node_list"])
    elif options.on_nodes:
        values = {"job_id": row["job_id"], "cluster": cluster, "name": row["name"] or ""}
        pattern = _PLACEHOLDER.sub(lambda match: values[match.group(1)], options.on_nodes)
        nodes = [name for name in known if fnmatchcase(name, pattern)]
        if not nodes:
            raise RowError(
                "no such nodes", f"{pattern!r} matches none of the site's {len(known)}; import their meters first"
            )
    else:
        return []
    if row["nodes"] is not None and len(nodes) != row["nodes"]:
        raise RowError("another number of nodes", f"{len(nodes)} found, the table says {row['nodes']}")
    return nodes
