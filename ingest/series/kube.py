"""What series of kube-state-metrics 2.x say of pods and nodes: labels to facts. Pure.

A pod is told of in a dozen series, which come in any order and in different requests; each is a piece here, and what the
pieces of a pod mean together is :mod:`ingest.store.kube_report`'s to say. Names of labels and resources arrive with each
character but letters, digits and ``_`` made ``_``; where Prometheus' own labels were in the way, behind ``exported_``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from collector.wire import Origin, cleaned
from ingest.pollers.kube_objects import MAKERS, MAX_LABELS, MIG, QUEUE_LABEL, SHARED, STANDING_LABELS, WHOLE
from ingest.series.labels import Skip, label, origin_of

CLUSTER_LABELS: Final = ("cluster", "k8s.cluster.name", "k8s_cluster_name", "k8s_cluster", "cluster_name")
"""Which label names the cluster: an external label of whoever scrapes. It is to be what agents and watchers call it."""
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_REPLICA_SET: Final = re.compile(r"-[bcdfghjklmnpqrstvwxz2456789]{5,10}$")
"""What a Deployment appends to its name: a hash in Kubernetes' alphabet without vowels."""
_LABEL: Final = "label_"
_LONGEST: Final = 255
_NAMED: Final = re.compile(r"[^,\s]*")
_NOISE: Final = re.compile(
    r"(^|_io_|_org_)(pod_template_hash|controller_uid|controller_revision_hash|job_completion_index|job_name|pod_index)$"
)
"""Labels that controllers make, as the watcher leaves them out."""
_OVER: Final = frozenset({"Succeeded", "Failed"})
_INSTANTS: Final = {
    "kube_pod_start_time": "start",
    "kube_pod_created": "created",
    "kube_pod_completion_time": "completed",
}
_ASKS: Final = {
    "kube_pod_container_resource_requests": "c",
    "kube_pod_container_resource_limits": "c",
    "kube_pod_init_container_resource_requests": "i",
    "kube_pod_init_container_resource_limits": "i",
}
_PODS: Final = frozenset({"kube_pod_info", "kube_pod_owner", "kube_pod_labels", "kube_pod_status_phase"})
_NODES: Final = "kube_node_labels"
KUBE: Final = frozenset({*_PODS, *_INSTANTS, *_ASKS, _NODES})
"""Names that are read; all others of kube-state-metrics have no place here."""
ASK: Final = "ask"
OVER: Final = "over"


def as_label(name: str) -> str:
    """Return a name of Kubernetes as kube-state-metrics spells it."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", name)


HELD: Final = frozenset(as_label(name) for name in WHOLE)
HELD_MIG: Final = as_label(MIG)
REPLICAS: Final = frozenset(as_label(name) for name in SHARED)
_MAKER_LABELS: Final = tuple((_LABEL + as_label(name), kind) for name, kind in MAKERS)
_QUEUE_LABEL: Final = _LABEL + as_label(QUEUE_LABEL)
_STANDING: Final = {_LABEL + as_label(name): name for name in STANDING_LABELS}


@dataclass(frozen=True, slots=True)
class PodPiece:
    """What one series says of one pod, as long as it is told."""

    cluster: str
    uid: str
    exporter: str
    origin: Origin
    says: tuple[tuple[str, str], ...] = ()
    """Field and value of what the labels say."""
    number: str = ""
    """The field that the sample's value is: an instant in seconds, or a count for one that begins with ``ask/``."""
    is_flag: bool = False
    """The labels are true only while the value is 1."""


@dataclass(frozen=True, slots=True)
class NodePiece:
    """Where a node stands, as its labels say; by the names they have in Kubernetes."""

    node: str
    labels: tuple[tuple[str, str], ...]


def kube_piece(name: str, labels: Mapping[str, str]) -> PodPiece | NodePiece | Skip:
    """Return what a series named in :data:`KUBE` says."""
    if name == _NODES:
        return _node(name, labels)
    if name in _ASKS and not is_accelerator(labels.get("resource", "")):
        return Skip(name, "other_resource")
    cluster = label(labels, *CLUSTER_LABELS)
    if cluster is None:
        return Skip(name, "no_cluster")
    uid = label(labels, "uid", "exported_uid")
    if uid is None or not _UUID.fullmatch(uid):
        return Skip(name, "bad_labels")
    exporter = cleaned(label(labels, "instance", "service.instance.id") or "")
    number = _INSTANTS.get(name, "")
    if name in _ASKS:
        container = label(labels, "exported_container", "container")
        if container is None:
            return Skip(name, "bad_labels")
        number = f"{ASK}/{_ASKS[name]}/{cleaned(container)}/{labels['resource']}"
    is_flag = name == "kube_pod_status_phase"
    return PodPiece(cluster, uid.lower(), exporter, origin_of(labels), tuple(_says(name, labels)), number, is_flag)


def _says(name: str, labels: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for field, names in (("namespace", ("exported_namespace", "namespace")), ("pod", ("exported_pod", "pod"))):
        value = label(labels, *names)
        if value is not None:
            yield field, cleaned(value)
    if name == "kube_pod_info":
        yield from _node_of(labels)
        yield from _owner(labels, "created_by")
    elif name == "kube_pod_owner" and labels.get("owner_is_controller") == "true":
        yield from _owner(labels, "owner")
    elif name == "kube_pod_labels":
        yield from _labels(labels)
    elif name == "kube_pod_status_phase" and labels.get("phase") in _OVER:
        yield OVER, labels["phase"]
    elif name in _ASKS:
        yield from _node_of(labels)


def is_accelerator(resource: str) -> bool:
    """Whether a resource, as kube-state-metrics spells it, is accelerators."""
    return resource in HELD or resource in REPLICAS or (resource.startswith(HELD_MIG) and len(resource) < 100)


def _node_of(labels: Mapping[str, str]) -> list[tuple[str, str]]:
    node = label(labels, "exported_node", "node")
    return [] if node is None else [("node", cleaned(node))]


def _owner(labels: Mapping[str, str], prefix: str) -> list[tuple[str, str]]:
    kind, name = label(labels, f"{prefix}_kind"), label(labels, f"{prefix}_name")
    if kind is None or name is None or kind == "<none>":
        return []
    if kind == "ReplicaSet" and _REPLICA_SET.search(name):
        kind, name = "Deployment", _REPLICA_SET.sub("", name)
    return [("owner", cleaned(f"{kind}/{name}"))]


def _labels(labels: Mapping[str, str]) -> list[tuple[str, str]]:
    says = []
    kept = {
        key.removeprefix(_LABEL): value
        for key, value in sorted(labels.items())
        if key.startswith(_LABEL) and value.isprintable() and _NAMED.fullmatch(value) and 0 < len(value) <= _LONGEST
    }
    named = [f"{key}={value}" for key, value in kept.items() if not _NOISE.search(key)]
    if named:
        says.append(("label", ",".join(named[:MAX_LABELS])))
    maker = next(((kind, labels[key]) for key, kind in _MAKER_LABELS if labels.get(key)), None)
    if maker is not None:
        says.append(("maker", cleaned("/".join(maker))))
    if labels.get(_QUEUE_LABEL):
        says.append(("partition", cleaned(labels[_QUEUE_LABEL])))
    return says


def _node(name: str, labels: Mapping[str, str]) -> NodePiece | Skip:
    node = label(labels, "exported_node", "node")
    if node is None:
        return Skip(name, "bad_labels")
    found = tuple((_STANDING[key], value) for key in _STANDING if (value := label(labels, key)) is not None)
    return NodePiece(node, found) if found else Skip(name, "unmapped")
