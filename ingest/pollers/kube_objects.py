"""What objects of Kubernetes say of jobs, of what waits, and of where nodes stand: objects to events. Pure.

A pod is the run: its UID names it once and for all, agents know it by the same UID, and what it belongs to (Job, JobSet,
RayJob, Deployment) is its ``workload``. Pods that ask for no accelerator are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from ingest.pollers.deliver import Event
from ingest.pollers.kube_api import Object

WHOLE: Final = frozenset({"nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/i915", "gpu.intel.com/xe", "habana.ai/gaudi"})
MIG: Final = "nvidia.com/mig-"
SHARED: Final = frozenset({"nvidia.com/gpu.shared"})
"""Replicas of time-sliced boards: how much of a board that is only the node knows, so nothing is held by count."""
QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
# What made the pod's maker, by the label it leaves on its pods: the name that its users know.
MAKERS: Final = (
    ("jobset.sigs.k8s.io/jobset-name", "JobSet"),
    ("ray.io/originated-from-cr-name", "RayJob"),
    ("ray.io/cluster", "RayCluster"),
    ("training.kubeflow.org/job-name", "TrainingJob"),
    ("leaderworkerset.sigs.k8s.io/name", "LeaderWorkerSet"),
    ("serving.kserve.io/inferenceservice", "InferenceService"),
)
KINDS: Final = {
    "Deployment": "inference",
    "StatefulSet": "inference",
    "InferenceService": "inference",
    "LeaderWorkerSet": "inference",
    "TrainingJob": "training",
    "Job": "batch",
}
_NOISE: Final = re.compile(
    r"(^|/)(pod-template-hash|controller-uid|controller-revision-hash|job-completion-index|job-name|pod-index)$"
)
_INSUFFICIENT: Final = re.compile(r"Insufficient [A-Za-z0-9./_-]*[A-Za-z0-9]")
_SWITCHES: Final = (
    ("network.topology.nvidia.com/core", "network.topology.nvidia.com/spine", "network.topology.nvidia.com/leaf"),
    (
        "topology.k8s.aws/network-node-layer-1",
        "topology.k8s.aws/network-node-layer-2",
        "topology.k8s.aws/network-node-layer-3",
    ),
    ("cloud.google.com/gce-topology-block", "cloud.google.com/gce-topology-subblock"),
)
_NVLINK: Final = ("nvidia.com/gpu.clique", "network.topology.nvidia.com/accelerator")
_RACKS: Final = ("topology.kubernetes.io/rack", "cloud.google.com/gce-topology-host")
STANDING_LABELS: Final = (*_RACKS, *(name for names in _SWITCHES for name in names), *_NVLINK)
"""Labels of a node that say where it stands."""
MAX_LABELS: Final = 64


@dataclass(frozen=True, slots=True)
class Asked:
    """Accelerators a pod asks for: ``held`` those that the scheduler gives it whole or as MIG instances."""

    held: int
    shared: int

    @property
    def any(self) -> bool:
        return self.held + self.shared > 0


def asked(spec: Mapping[str, Any]) -> Asked:
    """Return what a pod's containers ask for: all that run together, or one init container if that is more."""
    running = [*(spec.get("containers") or ())]
    first: list[Any] = []
    for container in spec.get("initContainers") or ():
        # One that is restarted always is a sidecar: it runs along.
        (running if container.get("restartPolicy") == "Always" else first).append(container)
    together = [_of_container(container) for container in running]
    alone = [_of_container(container) for container in first]
    return Asked(
        max([sum(each.held for each in together), *(each.held for each in alone)]),
        max([sum(each.shared for each in together), *(each.shared for each in alone)]),
    )


def pod_events(pod: Object, cluster: str, now: datetime, *, deleted: bool = False) -> Iterator[tuple[str, Event, bool]]:
    """Yield (subject, event, whether it goes on) of a pod: its wait, and its run once the kubelet has taken it."""
    wanted = asked(pod.get("spec") or {})
    if not wanted.any:
        return
    about = _about(pod) | ({"accelerators": wanted.held + wanted.shared})
    start = (pod.get("status") or {}).get("startTime")
    yield _pod_wait(pod, cluster, now, about, start, deleted=deleted)
    if start is None:
        return
    status, node = pod["status"], (pod.get("spec") or {}).get("nodeName")
    state, ended_at, reason = _end(status, now, deleted=deleted)
    run: Event = {
        "kind": "job",
        "at": now.isoformat(),
        "job": {"cluster": cluster, "id": pod["metadata"]["uid"], "start": start},
        "state": state,
        **about,
        "submitted_at": pod["metadata"]["creationTimestamp"],
        "holds": [{"node": node, "accelerators": wanted.held}] if node and wanted.held else [],
    }
    kind = KINDS.get(str(about.get("workload", "")).partition("/")[0])
    if kind is not None:
        run["workload_kind"] = kind
    if reason:
        run["reason"] = reason
    if ended_at is not None:
        run["ended_at"] = max(ended_at, start)
    yield f"run/{cluster}/{pod['metadata']['uid']}", run, ended_at is None


def job_events(job: Object, cluster: str, now: datetime, *, deleted: bool = False) -> Iterator[tuple[str, Event, bool]]:
    """Yield the wait of a Job that is suspended; one in a queue of Kueue is told of as its Workload."""
    spec, metadata = job.get("spec") or {}, job["metadata"]
    each = asked(_template(spec))
    if not each.any or QUEUE_LABEL in (metadata.get("labels") or {}):
        return
    is_over = deleted or bool((job.get("status") or {}).get("completionTime"))
    is_suspended = bool(spec.get("suspend")) and not is_over
    about = _about(job) | {"workload": f"Job/{metadata['name']}", "accelerators": each.held + each.shared}
    event = _wait(job, cluster, now) | about | {"tasks": spec.get("parallelism") or 1}
    if is_suspended:
        event["reason"] = "Suspended"
    else:
        started = (job.get("status") or {}).get("startTime") or _text(now)
        event |= {"left_at": _text(now) if deleted else started, "outcome": "cancelled" if deleted else "started"}
    yield f"suspended/{cluster}/{metadata['uid']}", event, is_suspended


def workload_events(
    workload: Object, cluster: str, now: datetime, *, deleted: bool = False
) -> Iterator[tuple[str, Event, bool]]:
    """Yield the wait of a Workload of Kueue, with the reason its conditions give."""
    metadata, spec = workload["metadata"], workload.get("spec") or {}
    sets = spec.get("podSets") or ()
    each = [(asked(_template(one)), int(one.get("count", 1))) for one in sets]
    accelerators = sum((wanted.held + wanted.shared) * count for wanted, count in each)
    if not accelerators:
        return
    about = _about(workload) | {"accelerators": accelerators, "tasks": max(1, sum(count for _, count in each))}
    owner = next(iter(metadata.get("ownerReferences") or ()), None)
    if owner is not None:
        about |= {"workload": f"{owner['kind']}/{owner['name']}", "name": owner["name"]}
    if spec.get("queueName"):
        about["partition"] = spec["queueName"]
    event = _wait(workload, cluster, now) | about
    conditions = {one["type"]: one for one in (workload.get("status") or {}).get("conditions") or ()}
    admitted, finished = conditions.get("Admitted", {}), conditions.get("Finished", {})
    done = next((one for one in (admitted, finished) if one.get("status") == "True"), None)
    if done is not None:
        event |= {"left_at": done["lastTransitionTime"], "outcome": "started"}
    elif deleted:
        event |= {"left_at": now.isoformat(), "outcome": "cancelled"}
    else:
        reserved = conditions.get("QuotaReserved") or conditions.get("Evicted") or {}
        event["reason"] = reserved.get("reason") or "Pending"
        if reserved.get("lastTransitionTime"):
            event["since"] = reserved["lastTransitionTime"]
    yield f"wait/{cluster}/{metadata['uid']}", event, "left_at" not in event


def node_events(
    node: Object, cluster: str, now: datetime, *, deleted: bool = False
) -> Iterator[tuple[str, Event, bool]]:
    """Yield where a node stands, from its labels; a node without any such label says nothing."""
    del cluster
    labels = node["metadata"].get("labels") or {}
    rack = next((labels[name] for name in _RACKS if labels.get(name)), None)
    switch = next(
        ("/".join(labels[name] for name in names if labels.get(name)) for names in _SWITCHES if labels.get(names[-1])),
        None,
    )
    nvlink = next((labels[name] for name in _NVLINK if labels.get(name)), None)
    place = {"rack": rack, "switch": switch, "nvlink_domain": nvlink}
    said = {name: value for name, value in place.items() if value is not None}
    if said and not deleted:
        name = node["metadata"]["name"]
        yield f"node/{name}", {"kind": "node", "at": now.isoformat(), "node": name, **said}, False


def workload_of(metadata: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return kind and name of what a pod belongs to, as its users know it; null for a pod by itself."""
    labels = metadata.get("labels") or {}
    for label, kind in MAKERS:
        if labels.get(label):
            return kind, labels[label]
    owner = next((one for one in metadata.get("ownerReferences") or () if one.get("controller")), None)
    if owner is None:
        return None
    kind, name = str(owner["kind"]), str(owner["name"])
    template = labels.get("pod-template-hash")
    if kind == "ReplicaSet" and template and name.endswith(f"-{template}"):
        return "Deployment", name.removesuffix(f"-{template}")
    return kind, name


def _template(owner: Mapping[str, Any]) -> Mapping[str, Any]:
    spec: Mapping[str, Any] = (owner.get("template") or {}).get("spec") or {}
    return spec


def _of_container(container: Mapping[str, Any]) -> Asked:
    resources = container.get("resources") or {}
    # Extended resources have equal requests and limits; where one is left out it is the other.
    stated = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    held = sum(_count(value) for name, value in stated.items() if name in WHOLE or name.startswith(MIG))
    return Asked(held, sum(_count(value) for name, value in stated.items() if name in SHARED))


def _count(value: object) -> int:
    match = re.fullmatch(r"(\d{1,7})(k?)", str(value))
    return int(match[1]) * (1_000 if match[2] else 1) if match else 0


def _about(thing: Object) -> Event:
    metadata = thing["metadata"]
    labels = {name: str(value) for name, value in (metadata.get("labels") or {}).items()}
    kept = {name: labels[name] for name in sorted(labels) if not _NOISE.search(name)}
    found: Event = {"namespace": metadata.get("namespace", "default"), "name": metadata["name"]}
    if kept:
        found["labels"] = dict(list(kept.items())[:MAX_LABELS])
    if labels.get(QUEUE_LABEL):
        found["partition"] = labels[QUEUE_LABEL]
    owner = workload_of(metadata)
    if owner is not None:
        found |= {"workload": "/".join(owner), "name": owner[1]}
    return found


def _wait(thing: Object, cluster: str, now: datetime) -> Event:
    metadata = thing["metadata"]
    job = {"cluster": cluster, "id": metadata["uid"], "submitted_at": metadata["creationTimestamp"]}
    return {"kind": "queue", "at": now.isoformat(), "job": job}


def _pod_wait(
    pod: Object, cluster: str, now: datetime, about: Event, start: str | None, *, deleted: bool
) -> tuple[str, Event, bool]:
    event = _wait(pod, cluster, now) | about
    if start is not None:
        event |= {"left_at": start, "outcome": "started"}
    elif deleted:
        event |= {"left_at": now.isoformat(), "outcome": "cancelled"}
    else:
        conditions = (pod.get("status") or {}).get("conditions") or ()
        scheduled: Mapping[str, Any] = next((one for one in conditions if one.get("type") == "PodScheduled"), {})
        missing = sorted(set(_INSUFFICIENT.findall(str(scheduled.get("message", "")))))
        reason = scheduled.get("reason") or ("Scheduled" if (pod.get("spec") or {}).get("nodeName") else "Pending")
        event["reason"] = ": ".join([reason, ", ".join(missing)] if missing else [reason])
        if scheduled.get("lastTransitionTime"):
            event["since"] = scheduled["lastTransitionTime"]
    return f"wait/{cluster}/{pod['metadata']['uid']}", event, start is None and not deleted


def _end(status: Mapping[str, Any], now: datetime, *, deleted: bool) -> tuple[str, str | None, str | None]:
    """Return state, end and reason of a run."""
    phase = status.get("phase")
    finished = _finished(status.get("containerStatuses") or ())
    reason = status.get("reason") or next((why for _, why in finished if why not in {None, "Completed"}), None)
    last = max((at for at, _ in finished), default=None)
    if phase == "Succeeded":
        return "completed", last or _ended_by_condition(status, now), None
    if phase == "Failed":
        state = (
            "preempted" if reason in {"Preempting", "Preempted", "Evicted", "NodeShutdown", "Terminated"} else "failed"
        )
        return state, last or _ended_by_condition(status, now), reason
    if deleted:
        return "cancelled", _text(now), reason
    return "running", None, None


def _finished(containers: Sequence[Mapping[str, Any]]) -> list[tuple[str, str | None]]:
    ended = [one["state"]["terminated"] for one in containers if (one.get("state") or {}).get("terminated")]
    return [(str(one["finishedAt"]), one.get("reason")) for one in ended if one.get("finishedAt")]


def _ended_by_condition(status: Mapping[str, Any], now: datetime) -> str:
    changed = [one.get("lastTransitionTime") for one in status.get("conditions") or ()]
    return max((str(at) for at in changed if at), default=_text(now))


def _text(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
