"""What kube-state-metrics 2.x exposes of pods and nodes, written from its documentation: no reader of ours had a hand in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ingest.series.book import Book
from ingest.series.pods import KubeTold, gathered
from ingest.series.samples import Samples

Series = tuple[str, dict[str, str], float]
"""Name, labels and value."""
PHASES = ("Pending", "Succeeded", "Failed", "Unknown", "Running")


@dataclass(frozen=True)
class Pod:
    """A pod as the exporter sees it; instants in seconds since 1970, null = it has none."""

    uid: str
    name: str = "train-0"
    namespace: str = "nlp"
    node: str = "gpu-1"
    phase: str = "Running"
    created: float = 0.0
    start: float | None = None
    completed: float | None = None
    owner: tuple[str, str] | None = ("Job", "train")
    gpus: Mapping[str, int] = field(default_factory=lambda: {"nvidia_com_gpu": 4})
    labels: Mapping[str, str] = field(default_factory=dict)

    def over(self, phase: str, at: float) -> Pod:
        return replace(self, phase=phase, completed=at)

    @property
    def series(self) -> list[Series]:
        """All that is exposed of it that could mean something here, and a little that does not."""
        about = {"namespace": self.namespace, "pod": self.name, "uid": self.uid}
        kind, owner = self.owner or ("<none>", "<none>")
        found: list[Series] = [
            (
                "kube_pod_info",
                about
                | {"host_ip": "10.0.0.1", "pod_ip": "10.1.0.7", "node": self.node, "host_network": "false"}
                | {"created_by_kind": kind, "created_by_name": owner, "priority_class": ""},
                1.0,
            ),
            (
                "kube_pod_owner",
                about | {"owner_kind": kind, "owner_name": owner, "owner_is_controller": "true"},
                1.0,
            ),
            ("kube_pod_created", about, self.created),
            ("kube_pod_restart_policy", about | {"type": "Never"}, 1.0),
        ]
        if self.labels:
            found.append(
                ("kube_pod_labels", about | {f"label_{key}": value for key, value in self.labels.items()}, 1.0)
            )
        if self.start is not None:
            found.append(("kube_pod_start_time", about, self.start))
        if self.completed is not None:
            found.append(("kube_pod_completion_time", about, self.completed))
        found += [("kube_pod_status_phase", about | {"phase": one}, float(one == self.phase)) for one in PHASES]
        asks = {"cpu": (8.0, "core"), **{name: (float(count), "integer") for name, count in self.gpus.items()}}
        for name, (value, unit) in asks.items():
            asked = about | {"container": "main", "node": self.node, "resource": name, "unit": unit}
            found += [(f"kube_pod_container_resource_{kind}", asked, value) for kind in ("requests", "limits")]
        return found


def text(series: Iterable[Series]) -> str:
    """Return series in Prometheus' text format."""
    by_name: dict[str, list[str]] = {}
    for name, labels, value in series:
        spelled = ",".join(f'{key}="{labels[key]}"' for key in sorted(labels))
        by_name.setdefault(name, []).append(f"{name}{{{spelled}}} {value!r}")
    lines = []
    for name, told in by_name.items():
        lines += [f"# HELP {name} of a fake", f"# TYPE {name} gauge", *told]
    return "\n".join(lines) + "\n"


def told(
    *samples: tuple[float, list[Series]], now: float, cluster: str = "prod", exporter: str = "ksm-0:8080"
) -> KubeTold:
    """Return what is gathered of series scraped at these instants (seconds since 1970); NaN ends a series."""
    book, numbers, at_us, values = Book(), [], [], []
    for at, series in samples:
        for name, labels, value in series:
            outside = {"cluster": cluster, "instance": exporter, "job": "kube-state-metrics"}
            numbers.append(book.learn(repr((name, labels)).encode(), name, lambda own={**labels, **outside}: own))  # type: ignore[misc]
            at_us.append(round(at * 1_000_000))
            values.append(value)
    gathered_of = Samples(np.array(numbers, dtype=np.int32), np.array(at_us, dtype=np.int64), np.array(values))
    return gathered(gathered_of, book.entries, round(now * 1_000_000))[0]


def ended(pod: Pod) -> list[Series]:
    """The stale markers of all series of a pod."""
    return [(name, labels, float("nan")) for name, labels, _ in pod.series]


class Exporter:
    """A kube-state-metrics of these pods, which a test may change."""

    def __init__(self, *pods: Pod) -> None:
        self.pods = pods
        self.port = 0

    def text(self) -> str:
        """Return a scrape in Prometheus' text format."""
        return text(one for pod in self.pods for one in pod.series)
