"""What sources of evidence say, in common terms: a job, what it was granted, what it uses. Declarations only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple


class Evidence(StrEnum):
    """How a holding is known, as it travels; in the order of trust (DESIGN §4)."""

    CGROUP = "cgroup"
    SLURMSTEPD = "slurmstepd"
    SLURMCTLD = "slurmctld"
    HOOK = "hook"
    POD_RESOURCES = "pod-resources"
    JOB_MAPPING = "job-mapping"
    ENVIRON = "environ"


RANK: Final[dict[Evidence, int]] = {evidence: rank for rank, evidence in enumerate(Evidence)}


class JobKey(NamedTuple):
    """One run of one job. A job that is requeued keeps its id and gets another start."""

    cluster: str
    native_id: str
    started_at_us: int


@dataclass(frozen=True, slots=True)
class Job:
    """One run of one job and what its manager says of it; texts may hold anything a user may write."""

    key: JobKey
    scheduled: bool = True
    """Whether a scheduler gave it its devices; False for a bare container, which nobody granted anything."""
    account: str | None = None
    user: str | None = None
    partition: str | None = None
    qos: str | None = None
    namespace: str | None = None
    label: str | None = None
    job_name: str | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """A manager gave (part of) a device to a job."""

    job: Job
    evidence: Evidence
    since_us: int | None = None
    """When, where the manager says; None = when it was first seen."""
    share_ratio: float | None = None
    """Of the device, where the manager says; None = the whole device, or an equal part where others hold it too."""
    weight: int | None = None
    """Parts (Slurm shards) that are to be set against the others' where no ratio is known."""

    @property
    def exclusive(self) -> bool:
        """Whether the device was given away as a whole."""
        return self.share_ratio is None and self.weight is None


@dataclass(frozen=True, slots=True)
class Use:
    """Processes of a job were seen on a device."""

    job: Job
    evidence: Evidence
    since_us: int
    """The start of the earliest of these processes."""


@dataclass(frozen=True, slots=True)
class Change:
    """A job's holding of a device begins or ends."""

    at_us: int
    device_uuid: str
    job: Job
    begins: bool
    share_ratio: float | None
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about evidence that a person should know."""

    at_us: int
    kind: str
    device_uuid: str
    """Empty where it is about the node."""
    detail: str
