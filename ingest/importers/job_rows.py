"""What job tables and sacct share: one accepted job with what it held, and the run of its import."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any, Final

import sqlalchemy as sa

from ingest.importers.columns import Chunk, Field, Source, read
from ingest.importers.errors import OptionError, RowError
from ingest.importers.instants import EPOCH
from ingest.importers.report import ImportReport, ProgressCallback
from ingest.importers.run import importing
from ingest.receivers.work_events import MAX_ACCELERATORS, MAX_OF_A_NODE
from ingest.store.import_work import Jobs

MAX_AHEAD: Final = timedelta(minutes=5)
TERMINAL: Final = frozenset({"completed", "failed", "cancelled", "preempted", "timeout"})


Hold = tuple[str | None, str | None, str | None, int]
"""Node, pool, model, accelerators."""


@dataclass(frozen=True, slots=True)
class JobRow:
    """One run of a job and what it held."""

    line: int
    cluster: str
    native_id: str
    started_us: int
    ended_us: int | None
    state: str
    submitted_us: int | None = None
    eligible_us: int | None = None
    reason: str | None = None
    account: str | None = None
    user_name: str | None = None
    partition: str | None = None
    qos: str | None = None
    namespace: str | None = None
    label: str | None = None
    name: str | None = None
    workload_kind: str | None = None
    accelerators: int | None = None
    holds: Sequence[Hold] = ()

    def job(self) -> tuple[Any, ...]:
        """Return the row of JOB_COLUMNS."""
        return (
            self.line,
            self.cluster,
            self.native_id,
            self.started_us,
            self.submitted_us,
            self.eligible_us,
            self.ended_us,
            self.state,
            self.reason,
            self.account,
            self.user_name,
            self.partition,
            self.qos,
            self.namespace,
            self.label,
            self.name,
            self.workload_kind,
            self.accelerators,
        )

    def held(self) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of HOLD_COLUMNS."""
        for node, pool, model, accelerators in self.holds:
            yield self.line, node, pool, model, accelerators, self.started_us, self.ended_us


Reader = Callable[[Chunk, ImportReport], Iterator[JobRow]]


@dataclass(frozen=True, slots=True)
class JobFile:
    """What one kind of job file is: its fields and where its jobs go."""

    kind: str
    site: str
    tenant: str | None
    fields: Sequence[Field]
    evidence: str


def import_job_rows(
    conn: sa.Connection,
    source: Source,
    file: JobFile,
    reader: Callable[[sa.Connection, int], Reader],
    *,
    dry_run: bool,
    progress: ProgressCallback | None,
) -> ImportReport:
    """Run one import of jobs; ``reader`` is made once the site is known."""
    with importing(conn, source, kind=file.kind, site=file.site, dry_run=dry_run) as (report, site_id):
        if site_id is None:
            return report
        rows = reader(conn, site_id)
        jobs = Jobs(conn, site_id)
        open_ended = unheld = 0
        for chunk in read(source, file.fields, report, progress):
            accepted = [_without_unknown_end(each, report) for each in rows(chunk, report)]
            open_ended += sum(each.ended_us is None and each.state not in TERMINAL for each in accepted)
            unheld += sum(not each.holds for each in accepted)
            jobs.add((each.job() for each in accepted), (hold for each in accepted for hold in each.held()))
        written = jobs.store(file.kind, file.evidence, file.tenant)
        for line, native_id in written.repeated:
            report.rejections.reject(line, "repeated job", f"{native_id}: a later line of the file has it again")
        report.written.update({"jobs": written.inserted + written.updated, "allocations": written.allocations})
        report.unchanged = written.unchanged
        if written.updated:
            report.note(f"{written.updated} jobs were known and are brought up to date")
        if written.better_known:
            report.note(f"{written.better_known} allocations are known from better evidence and stay as they are")
        if open_ended:
            report.note(
                f"{open_ended} jobs have no end: they count as running until a later import or an agent ends them"
            )
        if unheld:
            report.note(f"{unheld} jobs held no accelerator, or it is not known how many: they cost nothing")
        if written.first_us is not None and written.last_us is not None:
            report.saw(written.first_us, written.last_us)
    return report


def _without_unknown_end(row: JobRow, report: ImportReport) -> JobRow:
    if row.ended_us is not None or row.state not in TERMINAL:
        return row
    # It is over, nobody says since when: held until today would invent usage.
    report.note(
        "jobs that are over but have no end hold nothing, and cost nothing, until a later import gives their end"
    )
    return replace(row, holds=())


def checked_times(start: int | None, end: int | None, state: str, now: datetime) -> int:
    """Return the start of a job that ran; raise RowError for one that did not, or whose times cannot be."""
    if start is None:
        raise RowError("never started", state)
    limit = (now + MAX_AHEAD - EPOCH) // timedelta(microseconds=1)
    if start > limit:
        raise RowError("in the future", "starts after now")
    if end is not None and end > limit:
        raise RowError("in the future", "ends after now")
    if end is not None and end < start:
        raise RowError("ends before it starts")
    return start


def checked_holds(holds: Sequence[Hold]) -> Sequence[Hold]:
    """Return what a job held; raise RowError where no node, or no run, has as many accelerators."""
    total, of_node = sum(hold[3] for hold in holds), Counter[str]()
    if total > MAX_ACCELERATORS:
        raise RowError("accelerators out of range", f"{total}; no run has more than {MAX_ACCELERATORS}")
    for node, _, _, count in holds:
        if node is not None:
            of_node[node] += count
    node, count = max(of_node.items(), key=itemgetter(1), default=("", 0))
    if count > MAX_OF_A_NODE:
        raise RowError("accelerators out of range", f"{count} on {node}; no node has more than {MAX_OF_A_NODE}")
    return holds


def checked_cluster(cluster: str | None) -> str:
    if not cluster:
        raise OptionError("the file does not say which cluster its jobs ran on; add --cluster")
    return cluster
