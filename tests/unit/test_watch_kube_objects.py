"""Objects of Kubernetes to events: accelerators, what a pod belongs to, its run and its wait."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ingest.pollers.kube_objects import asked, job_events, node_events, pod_events, workload_events, workload_of
from ingest.receivers.work import read_work

pytestmark = pytest.mark.unit
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
UID = "240eb8bd-a70f-4720-b308-bc72f296352e"


def pod(
    status: dict[str, Any] | None = None, *, gpus: Any = "2", node: str | None = "n1", **metadata: Any
) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "train-x",
            "namespace": "team-a",
            "uid": UID,
            "creationTimestamp": "2026-11-21T10:00:00Z",
            "labels": {"team": "a"},
            **metadata,
        },
        "spec": {
            "containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": gpus}}}],
            **({"nodeName": node} if node else {}),
        },
        "status": status or {"phase": "Pending"},
    }


def ended(reason: str, at: str) -> dict[str, Any]:
    return {"state": {"terminated": {"reason": reason, "finishedAt": at}}}


def run_of(thing: dict[str, Any], *, deleted: bool = False) -> dict[str, Any]:
    return next(event for key, event, _ in pod_events(thing, "c", NOW, deleted=deleted) if key.startswith("run/"))


def taken(*events: dict[str, Any]) -> bool:
    """Whether ingest reads all of these."""
    work = read_work(json.dumps({"version": 1, "source": "kubernetes", "events": events}).encode(), NOW)
    return not work.refused


def test_accelerators_are_those_that_run_together_or_one_init_container_if_that_is_more() -> None:
    gpu, mig = {"nvidia.com/gpu": "2"}, {"nvidia.com/mig-1g.10gb": "3"}
    two = {"resources": {"limits": gpu, "requests": gpu}}
    assert asked({"containers": [two, {"resources": {"requests": mig}}, {}]}).held == 5
    assert (
        asked({"containers": [two], "initContainers": [{"resources": {"limits": {"nvidia.com/gpu": "4"}}}]}).held == 4
    )
    sidecar = {"restartPolicy": "Always", "resources": {"limits": {"amd.com/gpu": "1"}}}
    assert asked({"containers": [two], "initContainers": [sidecar]}).held == 3
    shared = asked({"containers": [{"resources": {"limits": {"nvidia.com/gpu.shared": "1"}}}]})
    assert (shared.held, shared.shared) == (0, 1)
    assert not asked({"containers": [{"resources": {"limits": {"cpu": "2", "example.com/gpu-tax": "1"}}}]}).any


def test_a_running_pod_holds_its_count_on_its_node_since_the_kubelet_took_it() -> None:
    thing = pod({"phase": "Running", "startTime": "2026-11-21T10:05:00Z"})
    run = run_of(thing)
    assert run == {
        "kind": "job",
        "at": "2026-11-21T12:00:00+00:00",
        "job": {"cluster": "c", "id": UID, "start": "2026-11-21T10:05:00Z"},
        "state": "running",
        "namespace": "team-a",
        "name": "train-x",
        "labels": {"team": "a"},
        "accelerators": 2,
        "submitted_at": "2026-11-21T10:00:00Z",
        "holds": [{"node": "n1", "accelerators": 2}],
    }
    waits, key, open_ = next(
        (event, key, on) for key, event, on in pod_events(thing, "c", NOW) if key.startswith("wait/")
    )
    assert (key, open_) == (f"wait/c/{UID}", False)
    assert (waits["left_at"], waits["outcome"]) == ("2026-11-21T10:05:00Z", "started")
    assert taken(run, waits)


@pytest.mark.parametrize(
    ("status", "deleted", "expected"),
    [
        (
            {"phase": "Succeeded", "containerStatuses": [ended("Completed", "2026-11-21T11:00:00Z")]},
            False,
            ("completed", "2026-11-21T11:00:00Z", None),
        ),
        (
            {"phase": "Failed", "containerStatuses": [ended("OOMKilled", "2026-11-21T11:00:00Z")]},
            False,
            ("failed", "2026-11-21T11:00:00Z", "OOMKilled"),
        ),
        (
            {"phase": "Failed", "reason": "Evicted", "conditions": [{"lastTransitionTime": "2026-11-21T10:30:00Z"}]},
            True,
            ("preempted", "2026-11-21T10:30:00Z", "Evicted"),
        ),
        ({"phase": "Running"}, True, ("cancelled", "2026-11-21T12:00:00Z", None)),
    ],
)
def test_how_a_pod_ended(status: dict[str, Any], deleted: bool, expected: tuple[str, str, str | None]) -> None:  # noqa: FBT001
    run = run_of(pod({**status, "startTime": "2026-11-21T10:05:00Z"}), deleted=deleted)
    assert (run["state"], run["ended_at"], run.get("reason")) == expected
    assert taken(run)


def test_a_pod_that_cannot_be_placed_waits_with_what_is_missing() -> None:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/5 nodes are available: 2 Insufficient nvidia.com/gpu, 3 Insufficient memory. preemption: 0/5",
        "lastTransitionTime": "2026-11-21T10:00:01Z",
    }
    ((_, event, open_),) = pod_events(pod({"phase": "Pending", "conditions": [condition]}, node=None), "c", NOW)
    assert open_
    assert event["reason"] == "Unschedulable: Insufficient memory, Insufficient nvidia.com/gpu"
    assert event["since"] == "2026-11-21T10:00:01Z"
    assert taken(event)


@pytest.mark.parametrize(
    ("labels", "owner", "expected"),
    [
        ({}, ("Job", "train"), ("Job", "train")),
        ({"pod-template-hash": "abc"}, ("ReplicaSet", "chat-abc"), ("Deployment", "chat")),
        ({"jobset.sigs.k8s.io/jobset-name": "big"}, ("Job", "big-0"), ("JobSet", "big")),
        (
            {"ray.io/originated-from-cr-name": "tune", "ray.io/cluster": "tune-x"},
            ("RayCluster", "tune-x"),
            ("RayJob", "tune"),
        ),
        ({}, None, None),
    ],
)
def test_what_a_pod_belongs_to(
    labels: dict[str, str], owner: tuple[str, str] | None, expected: tuple[str, str] | None
) -> None:
    owners = [{"kind": owner[0], "name": owner[1], "controller": True}] if owner else []
    assert workload_of({"labels": labels, "ownerReferences": owners}) == expected


def test_pods_of_a_deployment_serve_and_noise_is_no_label() -> None:
    labels = {"app": "chat", "pod-template-hash": "abc"}
    owner = [{"kind": "ReplicaSet", "name": "chat-abc", "controller": True}]
    run = run_of(pod({"phase": "Running", "startTime": "2026-11-21T10:05:00Z"}, labels=labels, ownerReferences=owner))
    assert (run["workload"], run["name"], run["workload_kind"], run["labels"]) == (
        "Deployment/chat",
        "chat",
        "inference",
        {"app": "chat"},
    )


def test_a_workload_of_kueue_waits_for_its_quota_and_leaves_when_admitted() -> None:
    thing = {
        "metadata": {
            "name": "job-train-1",
            "namespace": "team-a",
            "uid": UID,
            "creationTimestamp": "2026-11-21T10:00:00Z",
            "ownerReferences": [{"kind": "Job", "name": "train"}],
        },
        "spec": {"queueName": "gpu-queue", "podSets": [{"count": 4, "template": {"spec": pod()["spec"]}}]},
        "status": {
            "conditions": [
                {
                    "type": "QuotaReserved",
                    "status": "False",
                    "reason": "Pending",
                    "message": "insufficient unused quota",
                    "lastTransitionTime": "2026-11-21T10:00:02Z",
                }
            ]
        },
    }
    ((_, event, open_),) = workload_events(thing, "c", NOW)
    assert open_
    assert (event["accelerators"], event["tasks"], event["partition"], event["workload"]) == (
        8,
        4,
        "gpu-queue",
        "Job/train",
    )
    assert (event["reason"], event["since"]) == ("Pending", "2026-11-21T10:00:02Z")
    assert taken(event)
    admitted = {"type": "Admitted", "status": "True", "lastTransitionTime": "2026-11-21T10:09:00Z"}
    ((_, event, open_),) = workload_events({**thing, "status": {"conditions": [admitted]}}, "c", NOW)
    assert (open_, event["left_at"], event["outcome"]) == (False, "2026-11-21T10:09:00Z", "started")


@pytest.mark.parametrize("events", [pod_events, job_events, workload_events])
def test_a_null_where_an_object_could_be_says_nothing(events: Any) -> None:
    metadata = {"name": "x", "namespace": None, "uid": UID, "creationTimestamp": "2026-11-21T10:00:00Z"}
    empty = {"metadata": {**metadata, "labels": None, "ownerReferences": None}, "spec": None, "status": None}
    assert list(events(empty, "c", NOW)) == []
    spec = {**pod()["spec"], "suspend": True, "initContainers": None, "queueName": None}
    spec |= {"template": {"spec": spec}, "podSets": [{"template": {"spec": spec}}, {"template": None}]}
    (told,) = events({**empty, "spec": spec}, "c", NOW)
    assert (told[1]["kind"], told[1]["accelerators"]) == ("queue", 2)


def test_labels_of_nodes_say_where_they_stand() -> None:
    labels = {
        "network.topology.nvidia.com/spine": "s1",
        "network.topology.nvidia.com/leaf": "l7",
        "nvidia.com/gpu.clique": "d1.32766",
        "topology.kubernetes.io/rack": "r9",
    }
    ((_, event, _),) = node_events({"metadata": {"name": "n1", "labels": labels}}, "c", NOW)
    assert (event["rack"], event["switch"], event["nvlink_domain"]) == ("r9", "s1/l7", "d1.32766")
    assert taken(event)
    assert list(node_events({"metadata": {"name": "n2", "labels": {"a": "b"}}}, "c", NOW)) == []


def test_what_a_real_api_server_listed_is_read(shared: Path) -> None:
    captures = shared / "captures" / "kubernetes"
    pods = json.loads((captures / "05-list-pods.json").read_text())["response"]["items"]
    events = [event for each in pods for _, event, _ in pod_events(each, "c", NOW)]
    assert [(event["kind"], event["accelerators"], event["workload"], event["reason"]) for event in events] == [
        ("queue", 2, "Job/train", "Pending"),
        ("queue", 2, "Job/train", "Pending"),
    ]
    jobs = [
        json.loads((captures / name).read_text())["response"]
        for name in ("06-get-job.json", "08-get-job-suspended.json")
    ]
    waits = [
        (event.get("reason"), event["tasks"], open_) for job in jobs for _, event, open_ in job_events(job, "c", NOW)
    ]
    assert waits == [(None, 2, False), ("Suspended", 2, True)]
    assert taken(*events, *(event for job in jobs for _, event, _ in job_events(job, "c", NOW)))
