"""Imports ``sacct -P`` (and ``-p``): jobs with their accelerators and nodes, steps left out.

``sacct -X -P -o JobID,Cluster,Account,User,Partition,QOS,State,Submit,Eligible,Start,End,AllocTRES,NodeList,NNodes,JobName``
is what it reads best; more columns do no harm. Times are the cluster's local ones: say its zone with --tz.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from ingest.importers.columns import Chunk, Field, Source
from ingest.importers.errors import RowError
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
from ingest.importers.report import ImportReport, ProgressCallback

# 12, 12_3 (array), 12+1 (het job), 12_[4-9] (array elements still pending); a step has a dot.
_JOB_ID = re.compile(r"\d+(?:_\d+|\+\d+|_\[[^\]]*\])?")
_STATES: Final = {
    "COMPLETED": "completed",
    "RUNNING": "running",
    "SUSPENDED": "running",
    "COMPLETING": "running",
    "FAILED": "failed",
    "NODE_FAIL": "failed",
    "BOOT_FAIL": "failed",
    "OUT_OF_MEMORY": "failed",
    "LAUNCH_FAILED": "failed",
    "RECONFIG_FAIL": "failed",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
    "PREEMPTED": "preempted",
    "REQUEUED": "preempted",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
}
"""First word of State: "CANCELLED by 0" names the uid behind it, "CANCELLED+" was cut at the column's width."""
FIELDS: Final = (
    Field("job_id", "text", {"jobid": None}, required=True, filled=True),
    Field("start", "instant", {"start": None}, required=True),
    Field("end", "instant", {"end": None}, required=True),
    Field("state", "text", {"state": None}, required=True),
    Field("alloc_tres", "text", {"alloctres": None}, required=True),
    Field("node_list", "text", {"nodelist": None}),
    Field("submit", "instant", {"submit": None}),
    Field("eligible", "instant", {"eligible": None}),
    Field("cluster", "text", {"cluster": None}),
    Field("account", "text", {"account": None}),
    Field("user", "text", {"user": None}),
    Field("partition", "text", {"partition": None}),
    Field("qos", "text", {"qos": None}),
    Field("reason", "text", {"reason": None}),
    Field("name", "text", {"jobname": None}),
)
_NO_NODES: Final = frozenset({"", "none assigned", "(null)", "none"})


@dataclass(frozen=True, slots=True)
class SacctOptions:
    site: str
    cluster: str | None = None
    """Where Cluster was not among the columns."""
    tenant: str | None = None


def import_sacct(
    conn: sa.Connection,
    source: Source,
    options: SacctOptions,
    *,
    now: datetime,
    dry_run: bool = False,
    progress: ProgressCallback | None = None,
) -> ImportReport:
    """Import one sacct output; a later one brings its jobs up to date. Raises ImportFileError."""

    def reader(_: sa.Connection, __: int) -> Reader:
        def rows(chunk: Chunk, report: ImportReport) -> Iterator[JobRow]:
            return parse_sacct(chunk, report, options.cluster, now)

        return rows

    return import_job_rows(
        conn,
        source,
        JobFile("sacct", options.site, options.tenant, FIELDS, evidence="sacct"),
        reader,
        dry_run=dry_run,
        progress=progress,
    )


def parse_sacct(chunk: Chunk, report: ImportReport, cluster: str | None, now: datetime) -> Iterator[JobRow]:
    """Yield the jobs that ran; steps are skipped with a note, the rest goes to the log."""
    names = list(chunk.values)
    for line, *values in chunk.rows(*names):
        row = dict(zip(names, values, strict=True))
        job_id = row["job_id"]
        if "." in job_id:
            report.note(
                "lines of job steps (JobID with a dot) are left out: their job has a line of its own (sacct -X)"
            )
            continue
        try:
            if not _JOB_ID.fullmatch(job_id):
                raise RowError("not a job id", repr(job_id))  # noqa: TRY301 - one place logs all of a row's faults
            yield job_of(line, row, cluster, now)
        except RowError as error:
            report.rejections.reject(line, error.reason, f"{job_id} {error.detail}".strip())


def gpus(alloc_tres: str | None) -> tuple[int, str | None]:
    """Return the accelerators in an AllocTRES text and their type; ``gres/gpu=4,gres/gpu:a100=4`` says four once."""
    total, typed, models = 0, 0, []
    for item in (alloc_tres or "").split(","):
        name, _, count = item.strip().partition("=")
        if name != "gres/gpu" and not name.startswith("gres/gpu:"):
            continue
        if not re.fullmatch(r"\d{1,7}", count):
            raise RowError("AllocTRES not understood", repr(alloc_tres))
        if name == "gres/gpu":
            total = int(count)
        else:
            typed += int(count)
            models.append(name.partition(":")[2])
    return total or typed, models[0] if len(models) == 1 else None


def job_of(line: int, row: Mapping[str, Any], cluster: str | None, now: datetime) -> JobRow:
    """Return the job of one row, keyed by the names of FIELDS, instants in microseconds; raises RowError and OptionError."""
    word = re.split(r"[\s+]", row["state"] or "", maxsplit=1)[0].upper()
    state = _STATES.get(word, "unknown")
    if word == "PENDING":
        raise RowError("never started", word)
    # A job cancelled while it waited has an End, and Start as Unknown or None.
    started_us = checked_times(row["start"], row["end"], state, now)
    accelerators, model = gpus(row["alloc_tres"])
    its_cluster = checked_cluster(row["cluster"] or cluster)
    return JobRow(
        line=line,
        cluster=its_cluster,
        native_id=row["job_id"],
        started_us=started_us,
        ended_us=row["end"],
        state="running" if state == "unknown" and row["end"] is None else state,
        submitted_us=row["submit"],
        eligible_us=row["eligible"],
        reason=row["state"] if word == "CANCELLED" or state == "failed" else row["reason"],
        account=row["account"],
        user_name=row["user"],
        partition=row["partition"],
        qos=row["qos"],
        name=row["name"],
        accelerators=accelerators or None,
        holds=checked_holds(_holds(row, accelerators, model, its_cluster)),
    )


def _holds(row: Mapping[str, Any], accelerators: int, model: str | None, cluster: str) -> list[Hold]:
    if accelerators == 0:
        return []
    listed = (row["node_list"] or "").strip()
    if listed.casefold() in _NO_NODES:
        return [(None, row["partition"] or cluster, model, accelerators)]
    nodes = expand(listed)
    each, rest = divmod(accelerators, len(nodes))
    if rest or not each:
        # sacct gives the sum only; which node held more it does not say.
        return [(None, row["partition"] or cluster, model, accelerators)]
    return [(node, None, None, each) for node in nodes]
