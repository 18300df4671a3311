"""A process's own metrics: OpenTelemetry instruments held in memory, and their exposition in Prometheus text.

The exposition is ours because the official one is not among the packages we may rely on; it covers sums, gauges and
histograms, which is all there is here. It sends nothing anywhere and names no metric: who measures does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Gauge, Histogram, InMemoryMetricReader, Sum
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds of the buckets for what somebody waits for."""
WORK_SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)
"""Those for what nobody waits for: a round after an outage takes minutes."""


class Meters:
    """The instruments of one process; nothing global."""

    def __init__(self, service: str, seconds: Sequence[float]) -> None:
        """``seconds``: upper bounds of the buckets of every histogram called ``*_duration_seconds``."""
        self._reader = InMemoryMetricReader()
        buckets = View(instrument_name="*_duration_seconds", aggregation=ExplicitBucketHistogramAggregation(seconds))
        self._provider = MeterProvider([self._reader], Resource({"service.name": service}), views=[buckets])

    def meter(self, name: str) -> Meter:
        """Return the maker of instruments of one part of the process."""
        return self._provider.get_meter(name)

    def exposition(self) -> str:
        """Return everything measured so far as Prometheus text."""
        data = self._reader.get_metrics_data()
        lines: list[str] = []
        for resource in [] if data is None else data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    lines += _metric_lines(metric.name, metric.description, metric.data)
        return "\n".join(lines) + "\n"

    def close(self) -> None:
        """Let go of the instruments; what is recorded afterwards is dropped."""
        self._provider.shutdown()


def _metric_lines(name: str, description: str | None, data: Any) -> list[str]:
    kind = {Sum: "counter", Gauge: "gauge", Histogram: "histogram"}.get(type(data))
    if kind is None:
        raise TypeError(f"metric {name} is a {type(data).__name__}; only sums, gauges and histograms are exposed")
    lines = [f"# HELP {name} {_escaped(description or '', quotes=False)}", f"# TYPE {name} {kind}"]
    for point in data.data_points:
        labels = dict(point.attributes or {})
        if kind != "histogram":
            lines.append(f"{name}{_labels(labels)} {point.value}")
            continue
        total = 0
        for bound, count in zip((*point.explicit_bounds, "+Inf"), point.bucket_counts, strict=True):
            total += count
            lines.append(f"{name}_bucket{_labels({**labels, 'le': str(bound)})} {total}")
        lines += [f"{name}_sum{_labels(labels)} {point.sum}", f"{name}_count{_labels(labels)} {point.count}"]
    return lines


def _labels(labels: Mapping[str, Any]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{_escaped(str(value), quotes=True)}"' for key, value in sorted(labels.items())) + "}"


def _escaped(text: str, *, quotes: bool) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text
