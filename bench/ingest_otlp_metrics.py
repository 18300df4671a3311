"""ingest.otlp.metrics: OTLP metric points/s on one core from the body to columns, of a steady sender and of one that never repeats.

A steady sender's export differs from its last in instants and values alone, and is read by its layout. One whose layout
changes each time is walked, point by point. Both against the official classes filling the same columns, and with them
samples/s of Prometheus remote write, snappy included. Processor time, best of rounds.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import cramjam
import numpy as np
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from bench.report import Result
from ingest.receivers import remote_write
from ingest.receivers.otlp_metrics import MetricsReader
from ingest.series.book import Book
from ingest.series.names import DCGM

NODES: Final = 25
GPUS: Final = 8
BODIES: Final = 8
ROUNDS: Final = 5
TARGET_POINTS_S: Final = 1_500_000
AT_NS: Final = 1_795_300_000_000_000_000


def run() -> list[Result]:
    steady = [_export(number) for number in range(BODIES)]
    writes = [_write_request(number) for number in range(BODIES)]
    points = NODES * GPUS * len(DCGM)
    series = Book()
    reader = MetricsReader(series)
    reader.read(steady[0])
    official = _rate(_plainly, steady, points)
    by_layout = _rate(reader.read, steady, points)
    walked = _rate(lambda body: MetricsReader(series).read(body), steady, points)  # which remembers no layout
    book = Book()
    written = _rate(lambda body: remote_write.read(remote_write.decompressed(body), book), writes, points)
    detail: dict[str, Any] = {"points_per_body": points, "bytes_per_body": len(steady[0]), "rounds": ROUNDS}
    return [
        Result(
            "ingest.otlp.metrics",
            by_layout,
            "points/s",
            f">= {TARGET_POINTS_S:,} per core",
            by_layout >= TARGET_POINTS_S,
            official,
            detail,
        ),
        Result(
            "ingest.otlp.metrics_walked",
            walked,
            "points/s",
            ">= 1 x the official classes",
            walked >= official,
            official,
            detail,
        ),
        Result(
            "ingest.otlp.remote_write",
            written,
            "samples/s",
            ">= 1 x the official classes on as many OTLP points",
            written >= official,
            official,
            {**detail, "bytes_per_body": len(writes[0])},
        ),
    ]


def _rate(read: Callable[[bytes], object], bodies: Sequence[bytes], points: int) -> float:
    """Return points per second of processor, in the best of rounds."""
    best = 0.0
    for _ in range(ROUNDS):
        started_s = time.process_time()
        for body in bodies:
            read(body)
        best = max(best, points * len(bodies) / (time.process_time() - started_s))
    return best


def _export(number: int) -> bytes:
    request = ExportMetricsServiceRequest()
    for node in range(NODES):
        resource = request.resource_metrics.add()
        host = resource.resource.attributes.add(key="host.name")
        host.value.string_value = f"gpu-{node:04d}"
        scope = resource.scope_metrics.add()
        for position, name in enumerate(DCGM):
            metric = scope.metrics.add(name=name)
            for device in range(GPUS):
                point = metric.gauge.data_points.add(time_unix_nano=AT_NS + number * 10_000_000_000)
                point.as_double = float(number * 1_000 + position * 10 + device)
                uuid = f"GPU-{node:08x}-{device:04x}"
                for key, text in (("UUID", uuid), ("gpu", str(device)), ("modelName", "NVIDIA H100 80GB HBM3")):
                    point.attributes.add(key=key).value.string_value = text
    return request.SerializeToString()


def _plainly(body: bytes) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Fill the same three columns by the official classes, series found by name and attributes."""
    numbers: list[int] = []
    at: list[int] = []
    values: list[float] = []
    for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
        host = resource.resource.attributes[0].value.string_value
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.gauge.data_points:
                    key = (host, metric.name, *(pair.value.string_value for pair in point.attributes))
                    numbers.append(_KNOWN.setdefault(key, len(_KNOWN)))
                    at.append(point.time_unix_nano)
                    values.append(point.as_double)
    return np.array(numbers), np.array(at), np.array(values)


_KNOWN: dict[tuple[str, ...], int] = {}


def _write_request(number: int) -> bytes:
    at_ms = AT_NS // 1_000_000 + number * 10_000
    parts = []
    for node in range(NODES):
        for position, name in enumerate(DCGM):
            for device in range(GPUS):
                labels = {
                    "Hostname": f"gpu-{node:04d}",
                    "UUID": f"GPU-{node:08x}-{device:04x}",
                    "__name__": name,
                    "gpu": str(device),
                    "instance": f"gpu-{node:04d}:9400",
                    "job": "dcgm",
                    "modelName": "NVIDIA H100 80GB HBM3",
                }
                told = b"".join(_chunk(1, _chunk(1, k.encode()) + _chunk(2, v.encode())) for k, v in labels.items())
                value = struct.pack("<d", float(number * 1_000 + position * 10 + device + 1))
                parts.append(_chunk(1, told + _chunk(2, b"\x09" + value + b"\x10" + _varint(at_ms))))
    return bytes(cramjam.snappy.compress_raw(b"".join(parts)))


def _chunk(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*parts, value))
