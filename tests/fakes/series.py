"""Named series as Prometheus and OpenTelemetry send them, written byte by byte: no decoder of ours had a hand in it."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

import cramjam
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_CUMULATIVE

Labels = Mapping[str, str]
Sample = tuple[float, int]
"""Value and instant in ms."""
HEADERS = {
    "content-type": "application/x-protobuf",
    "content-encoding": "snappy",
    "x-prometheus-remote-write-version": "0.1.0",
}
STALE = struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000002))[0]
SPELLED_STALE = struct.pack("<Q", 0x7FF0000000000002)


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def chunk(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def label(name: str, value: str) -> bytes:
    return chunk(1, chunk(1, name.encode()) + chunk(2, value.encode()))


def sample(value: float | bytes, at_ms: int) -> bytes:
    """A sample as Prometheus writes it: a value of 0 is left out. Bytes are a value as it is spelled."""
    spelled = struct.pack("<d", value) if isinstance(value, float) else value
    return chunk(2, (b"" if spelled == bytes(8) else b"\x09" + spelled) + b"\x10" + varint(at_ms))


def series(labels: Labels, *samples: tuple[float | bytes, int]) -> bytes:
    """A TimeSeries, labels sorted by name as the protocol has it."""
    told = b"".join(label(name, labels[name]) for name in sorted(labels))
    return chunk(1, told + b"".join(sample(value, at_ms) for value, at_ms in samples))


def write_request(*parts: bytes) -> bytes:
    """A request of such series, as it travels."""
    return bytes(cramjam.snappy.compress_raw(b"".join(parts)))


def device_labels(name: str, uuid: str, host: str = "gpu-1", **more: str) -> dict[str, str]:
    """The labels of a series of dcgm-exporter that Prometheus scraped."""
    return {
        "__name__": name,
        "DCGM_FI_DRIVER_VERSION": "550.54.15",
        "Hostname": host,
        "UUID": uuid,
        "device": "nvidia0",
        "gpu": "0",
        "instance": f"{host}:9400",
        "job": "dcgm",
        "modelName": "NVIDIA H100 80GB HBM3",
        **more,
    }


def device_series(
    uuid: str, at_ms: int, values: Mapping[str, float], host: str = "gpu-1", **more: str
) -> Iterable[bytes]:
    """One scrape of a device: a series for each metric."""
    for name, value in values.items():
        yield series(device_labels(name, uuid, host, **more), (float(value), at_ms))


def otlp_export(
    points: Iterable[tuple[str, Labels, float | int, int]], resource: Labels, *, counters: Iterable[str] = ()
) -> ExportMetricsServiceRequest:
    """An export of (name, attributes, value, instant in ns), a metric for each run of one name."""
    request = ExportMetricsServiceRequest()
    group = request.resource_metrics.add()
    for key, text in resource.items():
        attribute = group.resource.attributes.add(key=key)
        attribute.value.string_value = text
    metrics = group.scope_metrics.add().metrics
    for name, labels, value, at_ns in points:
        metric = metrics[-1] if metrics and metrics[-1].name == name else metrics.add(name=name)
        if name in counters:
            metric.sum.is_monotonic = True
            metric.sum.aggregation_temporality = AGGREGATION_TEMPORALITY_CUMULATIVE
            point = metric.sum.data_points.add(time_unix_nano=at_ns)
        else:
            point = metric.gauge.data_points.add(time_unix_nano=at_ns)
        if isinstance(value, int):
            point.as_int = value
        else:
            point.as_double = value
        for key, text in labels.items():
            attribute = point.attributes.add(key=key)
            attribute.value.string_value = text
    return request
