"""Reads the text of ``/proc/<pid>/cgroup`` as the name of whoever a process runs for. Pure: it opens no file.

A cgroup's path is proof as far as root alone can make it. Below the point where a job, a container or a login session begins
its user may be allowed to make cgroups of any name, so a path is read from its root and everything after the first holder it
names is ignored: ``/user.slice/user-1000.slice/…/job_31`` is user 1000 and nobody's job. (The kernel allows no newline in a
cgroup's name, so lines cannot be forged.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

HolderKind = Literal["slurm", "pod", "container", "login", "system"]

SCHEDULED: Final[frozenset[HolderKind]] = frozenset({"slurm", "pod"})
"""Holders a scheduler gave the node's devices to. A bare container is somebody's, but nobody granted it anything."""

MAX_LINES: Final = 64
"""cgroup v1 has a line a controller, some fifteen of them."""

_HEX64: Final = r"[0-9a-f]{64}"
_END: Final = r"(?=/|$)"
_STEP: Final = r"(?:/step_(?P<step>[^/]+)(?:/(?:user|slurm))?(?:/task_(?P<task>[A-Za-z0-9]+))?)?"
_POD_UID: Final = r"pod(?P<pod>[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})"
_RUNTIME: Final = r"(?P<runtime>docker|cri-containerd|crio-conmon|crio|containerd|nerdctl|libpod-conmon|libpod)"
_CONTAINER: Final = rf"(?:/(?:{_RUNTIME}[-:])?(?P<container>{_HEX64})(?:\.scope)?)?"
_QOS: Final = r"(?P<qos>burstable|besteffort)"

_SLURM_JOB: Final = rf"/(?:job_(?P<job>\d{{1,10}})|(?P<sluid>s[0-9A-HJKMNP-TV-Z]{{13}})){_STEP}"
_POD_SLICE: Final = rf"kubepods(?:-(?:burstable|besteffort))?-{_POD_UID}\.slice{_CONTAINER}"


def _compiled(*patterns: tuple[HolderKind, str]) -> tuple[tuple[HolderKind, re.Pattern[str]], ...]:
    return tuple((kind, re.compile(pattern + _END, re.ASCII)) for kind, pattern in patterns)


_ABSOLUTE: Final = _compiled(
    # Slurm with cgroup v2; since 26.05 a job's folder is its SLUID unless CgroupJobIdPaths=yes.
    ("slurm", rf"/system\.slice/(?:(?P<node>[^/]+)_)?slurmstepd\.scope{_SLURM_JOB}"),
    # Slurm with cgroup v1; slurm_<node> where several slurmd share a host.
    ("slurm", rf"/slurm(?:_(?P<node>[^/]+))?/uid_(?P<uid>\d{{1,10}})/job_(?P<job>\d{{1,10}}){_STEP}"),
    # Kubernetes, cgroupfs driver, with or without a --cgroup-root of one level.
    ("pod", rf"(?:/[a-z0-9-]+)?/kubepods(?:/{_QOS})?/{_POD_UID}{_CONTAINER}"),
    # Kubernetes, systemd driver; with a --cgroup-root each slice repeats its name: kubelet.slice/kubelet-kubepods.slice.
    ("pod", rf"/kubepods\.slice(?:/kubepods-{_QOS}\.slice)?/{_POD_SLICE}"),
    (
        "pod",
        rf"/(?P<root>[a-z0-9]+)\.slice/(?P=root)-kubepods\.slice(?:/(?P=root)-kubepods-{_QOS}\.slice)?/(?P=root)-{_POD_SLICE}",
    ),
    ("container", rf"/(?P<runtime>docker|containerd|k8s\.io|libpod)/(?P<container>{_HEX64})"),
    ("container", rf"/(?:system|machine)\.slice/{_RUNTIME}-(?P<container>{_HEX64})\.scope"),
    ("login", r"/user\.slice(?:/user-(?P<uid>\d{1,10})\.slice)?"),
    ("system", r"/(?:system\.slice/(?P<unit>[^/]+)|init\.scope)"),
)
# What is left of a path whose beginning lies outside the reader's cgroup namespace. Only names that carry their own place
# count: a pod's slice repeats its ancestors, and slurmstepd.scope is made by root alone.
_RELATIVE: Final = _compiled(
    ("slurm", rf"/(?:(?P<node>[^/]+)_)?slurmstepd\.scope{_SLURM_JOB}"),
    ("pod", rf"(?:/(?:[a-z0-9]+-)?kubepods-{_QOS}\.slice)?/(?:[a-z0-9]+-)?{_POD_SLICE}"),
    ("pod", rf"(?:/{_QOS})?/{_POD_UID}{_CONTAINER}"),
)
_DELETED: Final = " (deleted)"
_RUNTIME_NAMES: Final = {"crio-conmon": "crio", "libpod-conmon": "libpod", "k8s.io": "containerd"}


@dataclass(frozen=True, slots=True)
class Holder:
    """Whom a process runs for, as the root-owned part of its cgroup path says."""

    kind: HolderKind
    id: str
    """Job id or SLUID; pod UID with dashes (32 hex digits for a static pod); container id; user id; unit."""
    step: str | None = None
    task: str | None = None
    node: str | None = None
    """The name slurmd goes by where several share a host."""
    uid: int | None = None
    qos: str | None = None
    container: str | None = None
    runtime: str | None = None

    @property
    def is_sluid(self) -> bool:
        """Whether the id is Slurm's SLUID, which says nothing of the job's number."""
        return self.kind == "slurm" and not self.id.isdigit()


@dataclass(frozen=True, slots=True)
class Placement:
    """What a cgroup text says: a holder, or None and why not."""

    holder: Holder | None
    foreign: bool = False
    """The path leaves the reader's cgroup namespace; the agent should run in the host's."""
    remark: str | None = None


def parse(text: str) -> Placement:
    """Return whom the process runs for.

    Lines of cgroup v1 controllers may disagree in kind (a controller that nobody manages stays in the session's cgroup): a
    scheduler's word counts before a container's, that before a session's. Two jobs in one text are no holder, with the reason.
    """
    best: dict[int, Holder] = {}
    foreign = False
    remark: str | None = None
    for line in text.splitlines()[:MAX_LINES]:
        path = line.split(":", 2)[-1].removesuffix(_DELETED)
        holder, outside = _of_path(path)
        foreign = foreign or outside
        if holder is None:
            continue
        rank = _RANK[holder.kind]
        known = best.setdefault(rank, holder)
        if known.kind in SCHEDULED and (known.kind, known.id) != (holder.kind, holder.id):
            remark = f"two jobs in one process's cgroups: {known.kind} {known.id} and {holder.kind} {holder.id}"
    if remark is not None:
        return Placement(None, foreign, remark)
    holder = best[min(best)] if best else None
    if foreign and holder is None:
        remark = (
            "the path lies outside the agent's cgroup namespace; run the agent with the host's cgroup namespace "
            "(and hostPID), or as a service of the host"
        )
    return Placement(holder, foreign, remark)


_RANK: Final[dict[HolderKind, int]] = {"slurm": 0, "pod": 0, "container": 1, "login": 2, "system": 3}


def _of_path(path: str) -> tuple[Holder | None, bool]:
    """Return the holder of one path and whether the path leaves the reader's namespace."""
    outside = path.startswith("/..")
    while path.startswith("/.."):
        path = path[3:]
    for patterns in (_ABSOLUTE, _RELATIVE) if outside else (_ABSOLUTE,):
        for kind, pattern in patterns:
            found = pattern.match(path)
            if found is not None:
                return _holder(kind, found.groupdict()), outside
    return None, outside


def _holder(kind: HolderKind, parts: dict[str, str | None]) -> Holder | None:
    uid = parts.get("uid")
    runtime = parts.get("runtime")
    if kind == "slurm":
        identity = parts.get("job") or parts.get("sluid")
    elif kind == "pod":
        identity = (parts.get("pod") or "").replace("_", "-")
    elif kind == "container":
        identity = parts.get("container")
    elif kind == "login":
        identity = uid or "unknown"
    else:
        identity = parts.get("unit") or "init"
        if identity.endswith("slurmstepd.scope"):  # stepds between two jobs; and the scope itself
            return None
    return Holder(
        kind,
        identity or "",
        step=parts.get("step"),
        task=parts.get("task"),
        node=parts.get("node"),
        uid=None if uid is None else int(uid),
        qos=(parts.get("qos") or "guaranteed") if kind == "pod" else None,
        container=parts.get("container"),
        runtime=None if runtime is None else _RUNTIME_NAMES.get(runtime, runtime),
    )
