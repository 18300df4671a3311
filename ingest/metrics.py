"""Ingest's own metrics: OpenTelemetry instruments, and their exposition in Prometheus text.

The exposition is ours because the official one is not among the packages we may rely on; it covers sums, gauges and
histograms, which is all there is here. Labels are closed sets: no node, token or job name becomes a label. Only names of
series that have no place here do, a thousand of them at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Gauge, Histogram, InMemoryMetricReader, Sum
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource

from ingest.series.counts import SeriesCounts

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class IngestMetrics:
    """The instruments of one ingest process; nothing global."""

    def __init__(self, queued_bytes: Callable[[], int]) -> None:
        self.answered: Counter[tuple[str, str]] = Counter()
        """Bodies answered by (endpoint, outcome); the event loop's thread counts here."""
        self._reader = InMemoryMetricReader()
        buckets = View(instrument_name="*_duration_seconds", aggregation=ExplicitBucketHistogramAggregation(_SECONDS))
        self._provider = MeterProvider([self._reader], Resource({"service.name": "wattledger-ingest"}), views=[buckets])
        meter = self._provider.get_meter("wattledger.ingest")
        meter.create_observable_counter(
            "wattledger_ingest_bodies_total",
            [lambda _: self._bodies()],
            description="Bodies answered, by endpoint and outcome",
        )
        self.series = SeriesCounts()
        meter.create_observable_counter(
            "wattledger_ingest_series_samples_total",
            [lambda _: self._outcomes()],
            description="Samples of named series (remote write, OTLP metrics) by what became of them",
        )
        meter.create_observable_counter(
            "wattledger_ingest_series_not_stored_total",
            [lambda _: self._names()],
            description="Samples of series that have no place here, by name; of too many names, of the rest together",
        )
        self.rows = meter.create_counter("wattledger_ingest_rows_total", description="Rows by what became of them")
        self.refused = meter.create_counter(
            "wattledger_ingest_refused_rows_total",
            description="Rows refused, and values made null, by stream and reason",
        )
        self.unknown_columns = meter.create_counter(
            "wattledger_ingest_unknown_columns_total", description="Columns ignored because the wire does not know them"
        )
        self.group_duration = meter.create_histogram(
            "wattledger_ingest_group_duration_seconds", description="From a group's first body to its commit", unit="s"
        )
        meter.create_observable_gauge(
            "wattledger_ingest_queued_bytes",
            [lambda _: [Observation(queued_bytes())]],
            description="Decoded bytes waiting to be written",
        )

    def exposition(self) -> str:
        """Return everything measured so far as Prometheus text."""
        data = self._reader.get_metrics_data()
        lines: list[str] = []
        for resource in [] if data is None else data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    lines += _metric_lines(metric.name, metric.description, metric.data)
        return "\n".join(lines) + "\n"

    def _bodies(self) -> list[Observation]:
        return [
            Observation(count, {"endpoint": endpoint, "outcome": outcome})
            for (endpoint, outcome), count in sorted(self.answered.items())
        ]

    def _outcomes(self) -> list[Observation]:
        return [
            Observation(count, {"protocol": protocol, "outcome": outcome})
            for (protocol, outcome), count in sorted(self.series.outcomes.copy().items())
        ]

    def _names(self) -> list[Observation]:
        return [
            Observation(count, {"series": name, "reason": reason})
            for (name, reason), count in sorted(self.series.names.copy().items())
        ]

    def close(self) -> None:
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
