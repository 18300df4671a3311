"""Tells which run of which job a name means: a Slurm number, a SLUID, a pod's UID or its namespace and name, a container's id.

A run's identity, once given out, never changes while it is in use: allocations are told under it. So the first source that names a
run decides what it is called, and later ones only add what they know of it. Pure, but for what it remembers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Final

from collector.jobs.evidence import Job, JobKey
from collector.jobs.hooks import HookEvent

Ref = tuple[str, str]
"""(slurm | pod | pod-name | container, what the source calls it)."""

MAX_RUNS: Final = 4_096
_ROOM: Final = 256
"""So many are forgotten at once where the roster is full: to look for the oldest at each new run would cost more than the rest."""
ENDED_KEPT_US: Final = 3_600_000_000
SILENT_KEPT_US: Final = 86_400_000_000
POD_GONE_US: Final = 60_000_000
"""A pod of the same namespace and name that comes back later than this is another pod."""
PROLOG_AGAIN_US: Final = 60_000_000
"""Slurm lets a requeued job wait for as long as its credentials are valid, 120 s by default (batch_requeue_fini in its job_mgr.c)."""
_US_PER_S: Final = 1_000_000


@dataclass(slots=True)
class Run:
    """One run and when anything was heard of it last."""

    job: Job
    seen_us: int
    refs: list[Ref] = field(default_factory=list)
    ended_us: int | None = None
    """By a hook's word."""
    pod_uid: str | None = None
    uid: int | None = None
    """The user id it runs under, by a hook's word."""


class Roster:
    """The runs this node has heard of lately."""

    def __init__(self, cluster: str, needed: Callable[[], Collection[JobKey]] = tuple) -> None:
        """Name the cluster of jobs whose manager does not say which it is; ``needed`` gives the runs that may not be forgotten."""
        self._needed = needed
        self.cluster = cluster
        self.slurm_cluster: str | None = None
        """As the hooks had it last."""
        self.runs: dict[Ref, Run] = {}

    def hooked(self, event: HookEvent) -> Run:
        """Return the run a hook speaks of; a start after its end, or with another start of Slurm's own, is another run."""
        self.slurm_cluster = event.cluster or self.slurm_cluster
        ref = ("slurm", event.job_id)
        known = self.runs.get(ref)
        if event.action == "end":
            run = known if known is not None else self._enter(_hooked_job(event, self._slurm()), event.at_us, ref)
            run.ended_us = event.at_us
            run.seen_us = max(run.seen_us, event.at_us)
            return run
        job = _hooked_job(event, self._slurm())
        if known is not None and known.ended_us is None and self._is_same(known, job, event):
            known.job = replace(job, key=known.job.key)
            run = known
        else:
            if known is not None and known.ended_us is None:
                known.ended_us = event.at_us  # nobody told: its epilog was lost
            run = self._enter(job, event.at_us, ref)
        run.uid = event.uid
        run.seen_us = max(run.seen_us, event.at_us)
        if event.sluid is not None:
            self._name(run, ("slurm", event.sluid))
        return run

    def slurm(self, identity: str, at_us: int, first_us: int, begun_us: int | None) -> Run:
        """Return the run of a Slurm job a process belongs to.

        ``first_us``: the process's start. ``begun_us``: the start of the job's first slurmstepd on this node, where it was
        looked for; one that began after the run was last heard of is a requeued job.
        """
        ref = ("slurm", identity)
        run = self.runs.get(ref)
        over_us = None if run is None else (run.seen_us if run.ended_us is None else run.ended_us)
        if run is None or (begun_us is not None and over_us is not None and begun_us > over_us):
            started_us = min(first_us, begun_us if begun_us is not None else first_us)
            # Whole seconds, as Slurm's own, and mostly the same ones.
            key = JobKey(self._slurm(), identity, started_us // _US_PER_S * _US_PER_S)
            run = self._enter(Job(key), at_us, ref)
        run.seen_us = max(run.seen_us, at_us)
        return run

    def pod(self, uid: str | None, name: tuple[str, str] | None, at_us: int, first_us: int) -> Run:
        """Return the run of a pod known by its UID, by (namespace, name), or by both."""
        run = None if uid is None else self.runs.get(("pod", uid))
        if run is None and name is not None:
            run = self.runs.get(("pod-name", "/".join(name)))
            if run is not None and (
                (uid is not None and run.pod_uid not in (None, uid)) or at_us - run.seen_us > POD_GONE_US
            ):
                run = None
        if run is None:
            identity = uid or "/".join(name or ("", ""))
            run = self._enter(Job(JobKey(self.cluster, identity, first_us)), at_us, ("pod", identity))
        if uid is not None:
            run.pod_uid = uid
            self._name(run, ("pod", uid))
        if name is not None:
            self._name(run, ("pod-name", "/".join(name)))
            if run.job.namespace is None:
                run.job = replace(run.job, namespace=name[0], job_name=name[1])
        run.seen_us = max(run.seen_us, at_us)
        return run

    def container(self, identity: str, at_us: int, first_us: int) -> Run:
        """Return the run of a container no orchestrator speaks for."""
        ref = ("container", identity)
        run = self.runs.get(ref)
        if run is None:
            run = self._enter(Job(JobKey(self.cluster, identity, first_us), scheduled=False), at_us, ref)
        run.seen_us = max(run.seen_us, at_us)
        return run

    def corroborated(self, identity: str, uid: int | None) -> Run | None:
        """Return the run of a job that an environment names, if a hook said it is that user's and it has not ended.

        So an environment can move a process among its own user's jobs on this node, and to nobody else's.
        """
        run = self.runs.get(("slurm", identity))
        if run is None or uid is None or run.uid != uid or run.ended_us is not None:
            return None
        return run

    def knows(self, ref: Ref) -> Run | None:
        """Return a run by name."""
        return self.runs.get(ref)

    def forget(self, now_us: int, held: Collection[JobKey]) -> None:
        """Drop runs that ended an hour ago, or that nobody spoke of for a day, unless they hold a device."""
        for run in {id(run): run for run in self.runs.values()}.values():
            over = run.ended_us is not None and now_us - run.ended_us > ENDED_KEPT_US
            if (over or now_us - run.seen_us > SILENT_KEPT_US) and run.job.key not in held:
                for ref in run.refs:
                    del self.runs[ref]

    def clock_set_back(self, at_us: int) -> None:
        """Take what was heard under a clock that has been set back since for as old as ``at_us``."""
        for run in self.runs.values():
            run.seen_us = min(run.seen_us, at_us)
            if run.ended_us is not None:
                run.ended_us = min(run.ended_us, at_us)

    def enter_again(self, run: Run) -> None:
        """Put a remembered run back."""
        for ref in run.refs:
            self.runs[ref] = run

    def _slurm(self) -> str:
        return self.slurm_cluster or self.cluster

    @staticmethod
    def _is_same(known: Run, job: Job, event: HookEvent) -> bool:
        """Say whether a start told by a hook is of the run that processes were seen of, or that a hook told before."""
        started_at_us = known.job.key.started_at_us
        if known.job.key == job.key or (known.uid is None and started_at_us >= event.started_at_us):
            return True
        # Without Slurm's own start each prolog that runs twice would be two jobs. None is requeued and begins again so soon.
        return not event.start_told and 0 <= event.at_us - started_at_us < PROLOG_AGAIN_US

    def _enter(self, job: Job, at_us: int, ref: Ref) -> Run:
        run = Run(job, at_us)
        self._name(run, ref)
        if len(self.runs) > MAX_RUNS:
            self._make_room(run)
        return run

    def _make_room(self, newest: Run) -> None:
        """Forget ended runs first, then those that were silent longest; never one that is needed, however silent."""
        needed = {newest.job.key, *self._needed()}
        runs = {id(run): run for run in self.runs.values() if run.job.key not in needed}
        for run in sorted(runs.values(), key=lambda entry: (entry.ended_us is None, entry.seen_us)):
            if len(self.runs) <= MAX_RUNS - _ROOM:
                return
            for name in run.refs:
                del self.runs[name]

    def _name(self, run: Run, ref: Ref) -> None:
        known = self.runs.get(ref)
        if known is run:
            return
        if known is not None:
            known.refs.remove(ref)
        run.refs.append(ref)
        self.runs[ref] = run


def _hooked_job(event: HookEvent, cluster: str) -> Job:
    return Job(
        JobKey(event.cluster or cluster, event.native_id, event.started_at_us),
        account=event.account,
        user=event.user,
        partition=event.partition,
        qos=event.qos,
        job_name=event.job_name,
    )
