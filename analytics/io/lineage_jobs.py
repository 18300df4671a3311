"""Which scheduler jobs a run or an id stands for: all of them, or a word on those that are left out.

One run can be several rows of the books: a requeued job has its id again with another start, a heterogeneous job one row a
component, an array one a task, and each pod of a Job, JobSet or Deployment is one. A part is never told as the whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

MAX_JOBS: Final = 10_000
"""Of one hop; of more the hop says that they are not in it."""
SAME_WORK_WITHIN: Final = timedelta(days=31)
"""Ids and names come again. Jobs of one id, or pods of one owner, are one piece of work while no longer pause parts them."""
_EARLY: Final = timedelta(minutes=10)
"""A run may be told of before the scheduler's start: clocks, and hooks that wait."""
_NAMED_IN_TEXT: Final = 3
_EVER: Final = datetime.max.replace(tzinfo=UTC)
_SLURM: Final = re.compile(r"(\d+)(?:\+\d+)?")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_COMPONENTS: Final = 128
"""Slurm's own bound on the components of a heterogeneous job."""
_JOBS: Final = """
SELECT jobs.*, sites.name AS site, tenants.path AS tenant FROM jobs JOIN sites ON sites.id = jobs.site_id
LEFT JOIN tenants ON tenants.id = jobs.tenant_id WHERE cluster = :cluster AND {which}
ORDER BY started_at DESC, native_id, jobs.id LIMIT :most
"""
_BY_ID: Final = sa.text(_JOBS.format(which="native_id = ANY (:ids)"))
_TASKS: Final = sa.text(_JOBS.format(which="starts_with(native_id, :array)"))
_PODS: Final = sa.text(
    _JOBS.format(which="workload = :workload AND namespace IS NOT DISTINCT FROM :namespace AND site_id = :site_id")
)


@dataclass(frozen=True, slots=True)
class Work:
    """All jobs behind one hop, by start. ``named``: the one to show; ``missing``: what is not among them, in words."""

    named: Any
    asked: str
    """The id by which it was looked for."""
    jobs: tuple[Any, ...]
    left: tuple[Any, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def basis(self) -> str:
        """Say of what the figures are."""
        if len(self.jobs) == 1:
            return "all hours of the job"
        whole = {job.workload for job in self.jobs}
        if len(whole) == 1 and None not in whole:
            return f"all hours of the {len(self.jobs)} pods of {self.named.workload}"
        ids = {job.native_id for job in self.jobs}
        if len(ids) == 1:
            return f"all hours of the {len(self.jobs)} runs of job {named(self.named)}, which was begun anew"
        return f"all hours of {len(self.jobs)} jobs that are one: {some(self.jobs)}"


def named(job: Any) -> str:
    return f"{job.cluster}/{job.native_id}"


def of_run(conn: sa.Connection, run: Any) -> Work | None:
    """Return the scheduler jobs a run says it is, as many as were there while it was; None where there is none."""
    if run.cluster is None or run.native_id is None:
        return None
    known = _of_id(conn, run.cluster, run.native_id)
    first, last = run.first_event_at, run.ended_at or _EVER
    then = [job for job in known if job.started_at <= first + _EARLY and _end(job) >= first]
    if not then and run.ended_at is not None:
        then = [job for job in reversed(known) if job.started_at <= last and _end(job) >= first]
    if not then:
        return None
    one = then[0]
    begins, ends = min(first, one.started_at), last if one.ended_at is None else max(last, one.ended_at)
    return _work(conn, one, run.native_id, known, begins, ends)


def of_id(conn: sa.Connection, cluster: str, native_id: str, at: datetime) -> Work | None:
    """Return all that is the same work as the last job of this id that had begun at an instant: other starts, parts, pods."""
    known = _of_id(conn, cluster, native_id)
    begun = [job for job in known if job.started_at <= at + _EARLY]
    one = next((job for job in begun if job.native_id == native_id), begun[0] if begun else None)
    if one is None:
        return None
    return _work(conn, one, native_id, known, datetime.min.replace(tzinfo=UTC), _EVER)


def unseen(conn: sa.Connection, work: Work) -> int:
    """Count jobs of the same work that ``conn`` sees and the connection that made ``work`` did not."""
    one = work.named
    known = _of_id(conn, one.cluster, work.asked)
    seen = {job.id for job in (*work.jobs, *work.left)}
    return sum(job.id not in seen for job in _one_piece(one, [*known, *_pods(conn, one)]))


def _work(conn: sa.Connection, one: Any, asked: str, known: Sequence[Any], begins: datetime, ends: datetime) -> Work:
    pods = _pods(conn, one)
    whole = _one_piece(one, [*known, *pods])
    there = tuple(job for job in whole if job.started_at <= ends and _end(job) >= begins)
    left = tuple(job for job in whole if job not in there)
    missing = []
    if left:
        missing.append(f"{len(left)} of its jobs were not there while the run was, and are not in this: {some(left)}")
    if max(len(known), len(pods)) > MAX_JOBS:
        missing.append(f"it is more than {MAX_JOBS} jobs; the latest of them are in this")
    if one.workload is None and _UUID.fullmatch(one.native_id):
        missing.append("nobody told what the pod belongs to; other pods of the same work are not in this")
    return Work(one, asked, there, left, tuple(missing))


def _of_id(conn: sa.Connection, cluster: str, native_id: str) -> list[Any]:
    """Return the jobs of an id, its other components among them, else the tasks of that array; the latest begun first."""
    number = _SLURM.fullmatch(native_id)
    ids = {native_id}
    if number is not None:
        ids |= {number[1], *(f"{number[1]}+{component}" for component in range(_COMPONENTS))}
    found = list(conn.execute(_BY_ID, {"cluster": cluster, "ids": sorted(ids), "most": MAX_JOBS + 1}))
    if not found and native_id.isdecimal():
        found = list(conn.execute(_TASKS, {"cluster": cluster, "array": f"{native_id}_", "most": MAX_JOBS + 1}))
    return found


def _pods(conn: sa.Connection, one: Any) -> list[Any]:
    if one.workload is None:
        return []
    asked = {name: getattr(one, name) for name in ("cluster", "workload", "namespace", "site_id")}
    return list(conn.execute(_PODS, {**asked, "most": MAX_JOBS + 1}))


def _one_piece(one: Any, jobs: Iterable[Any]) -> list[Any]:
    """Return those that are one piece of work with ``one``, by start."""
    ordered = sorted({job.id: job for job in (one, *jobs)}.values(), key=lambda job: (job.started_at, job.id))
    piece: list[Any] = []
    until = ordered[0].started_at
    for job in ordered:
        if job.started_at - until > SAME_WORK_WITHIN:
            if any(each.id == one.id for each in piece):
                break
            piece = []
        piece.append(job)
        until = max(until, _end(job))
    return piece


def _end(job: Any) -> datetime:
    return job.ended_at or _EVER


def some(jobs: Sequence[Any]) -> str:
    """Name the first few of them."""
    names = list(dict.fromkeys(named(job) for job in jobs))
    more = f" and {len(names) - _NAMED_IN_TEXT} more" if len(names) > _NAMED_IN_TEXT else ""
    return ", ".join(names[:_NAMED_IN_TEXT]) + more
