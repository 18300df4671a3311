"""Decoders of series against plain protobuf, and against bytes made to hurt."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from ingest.errors import BadBodyError
from ingest.receivers import remote_write
from ingest.receivers.otlp_metrics import MetricsReader
from ingest.receivers.otlp_metrics_json import read_json
from ingest.series.book import Book
from ingest.series.intake import Intake
from ingest.series.labels import Skip
from ingest.series.places import Place
from tests.fakes.series import device_labels, otlp_export, series, write_request

pytestmark = pytest.mark.property
NOW_US = 1_795_300_000_000_000
AT_MS = 1_795_300_000_000
NAMES = ("DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "node_load1", "hw.power", "")
numbers = st.floats(allow_nan=False) | st.just(0.0)
instants = st.integers(0, 2**62) | st.just(AT_MS)
texts = st.text(max_size=8)


@st.composite
def points(draw: st.DrawFn) -> list[tuple[str, dict[str, str], float | int, int]]:
    return draw(
        st.lists(
            st.tuples(
                st.sampled_from(NAMES),
                st.dictionaries(
                    st.sampled_from(("UUID", "gpu", "host.name", "hw.id", "hw.type", "x")), texts, max_size=4
                ),
                numbers | st.integers(-(2**63), 2**63 - 1),
                st.integers(0, 2**63),
            ),
            max_size=8,
        )
    )


def plainly(request: ExportMetricsServiceRequest) -> list[tuple[str, int, float]]:
    """Walk an export with the official classes: name, instant in µs, value of each number that has a name."""
    found = []
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                kind = metric.WhichOneof("data")
                if kind not in ("gauge", "sum", "histogram") or not metric.name:
                    continue
                for point in getattr(metric, kind).data_points:
                    field = "count" if kind == "histogram" else point.WhichOneof("value")
                    if field is not None and not point.flags & 1:
                        found.append((metric.name, point.time_unix_nano // 1000, float(getattr(point, field))))
    return found


def as_told(reader: MetricsReader, book: Book, data: bytes) -> list[tuple[str, int, float]]:
    """Read by our decoder, with a placed series by its column and the others by name."""
    read = reader.read(data)
    return [
        (_named(book, number), at_us, value)
        for number, at_us, value in zip(read.series.tolist(), read.at_us.tolist(), read.values.tolist(), strict=True)
    ]


def _named(book: Book, number: int) -> str:
    entry = book.entries[number]
    assert isinstance(entry, Place | Skip), "no name of these tests tells of pods or events"
    return entry.column if isinstance(entry, Place) else entry.name


def _by_column(told: list[tuple[str, int, float]]) -> list[tuple[int, float]]:
    return [(at_us, value) for _, at_us, value in told]


@given(first=points(), second=points(), resource=st.dictionaries(st.just("host.name"), texts))
def test_otlp_is_read_as_the_official_classes_read_it_walked_or_by_layout(
    first: list[Any], second: list[Any], resource: dict[str, str]
) -> None:
    book = Book()
    reader = MetricsReader(book)
    # The second has the first's layout with other numbers half of the time: then it is read without a walk.
    alike = [(name, labels, value, at) for (name, labels, _, _), (_, _, value, at) in zip(first, second, strict=False)]
    for given_points in (first, first, second, alike, alike):
        request = otlp_export(given_points, resource, counters=["DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"])
        assert _by_column(as_told(reader, book, request.SerializeToString())) == _by_column(plainly(request))


@given(
    st.lists(
        st.tuples(st.sampled_from(NAMES[:3]), texts, st.lists(st.tuples(numbers, instants), max_size=3)), max_size=6
    )
)
def test_remote_write_is_read_as_it_was_written(told: list[tuple[str, str, list[tuple[float, int]]]]) -> None:
    book = Book()
    for _ in range(2):  # the second time every series is known
        body = write_request(
            *(series({"__name__": name, "UUID": "GPU-1", "x": text}, *samples) for name, text, samples in told)
        )
        read = remote_write.read(remote_write.decompressed(body), book)
        wanted = [(at_ms, value) for _, _, samples in told for value, at_ms in samples]
        limit_ms = (2**63 - 1) // 1000
        assert read.at_us.tolist() == [min(at_ms, limit_ms) * 1000 for at_ms, _ in wanted]
        assert [struct.pack("<d", value) for value in read.values.tolist()] == [
            struct.pack("<d", value) for _, value in wanted
        ]


def mutated(body: bytes, seed: int) -> bytes:
    """Change, drop, repeat or insert some bytes."""
    chance = random.Random(seed)
    spoiled = bytearray(body)
    if seed % 2:  # one byte alone: the frame around it often holds
        spoiled[chance.randrange(len(spoiled))] = chance.randrange(256)
        return bytes(spoiled)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(spoiled) + 1)
        what = chance.randrange(4)
        if what == 0 and at < len(spoiled):
            spoiled[at] = chance.randrange(256)
        elif what == 1:
            del spoiled[at : at + chance.randint(1, 9)]
        elif what == 2:
            spoiled[at:at] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 9)))
        else:
            spoiled[at:at] = spoiled[max(0, at - chance.randint(1, 40)) : at]
    return bytes(spoiled)


GOOD_WRITE = remote_write.decompressed(
    write_request(
        series(device_labels("DCGM_FI_DEV_POWER_USAGE", "GPU-1"), (312.5, AT_MS), (0.0, AT_MS + 1000)),
        series({"__name__": "node_load1", "instance": "gpu-1:9100"}, (1.5, AT_MS)),
        series({"__name__": "vllm:num_requests_running", "instance": "a:8000", "model_name": "m"}, (0.0, AT_MS)),
    )
)
GOOD_EXPORT = otlp_export(
    [
        ("hw.power", {"hw.id": "GPU-1", "hw.type": "gpu"}, 71.5, AT_MS * 1_000_000),
        ("hw.energy", {"hw.id": "GPU-1", "hw.type": "gpu"}, 12, AT_MS * 1_000_000),
        ("other", {}, 1.0, AT_MS * 1_000_000),
    ],
    {"host.name": "gpu-1"},
    counters=["hw.energy"],
).SerializeToString()
INTAKE = Intake()


@given(st.integers(0, 2**63))
@settings(max_examples=400)
def test_spoiled_bytes_are_read_or_refused_and_nothing_else(seed: int) -> None:
    attempts: tuple[Callable[[], object], ...] = (
        lambda: INTAKE.remote_write(write_request(mutated(GOOD_WRITE, seed)), 1, "n", NOW_US, None),
        lambda: INTAKE.remote_write(mutated(write_request(GOOD_WRITE), seed), 1, "n", NOW_US, None),
        lambda: INTAKE.otlp(mutated(GOOD_EXPORT, seed), 1, "n", NOW_US, None, is_json=False),
    )
    for attempt in attempts:
        try:
            attempt()
        except BadBodyError:
            continue


@given(st.integers(0, 2**63))
@settings(max_examples=300)
def test_what_both_read_of_spoiled_bytes_is_the_same_to_the_official_classes(seed: int) -> None:
    data = mutated(GOOD_EXPORT, seed)
    book = Book()
    try:
        ours = as_told(MetricsReader(book), book, data)
        theirs = plainly(ExportMetricsServiceRequest.FromString(data))
    except (BadBodyError, DecodeError):
        return  # one of the two refuses it; ours is the stricter of them about repeated parts
    assert len(_by_column(ours)) <= len(theirs)
    for told in _by_column(ours):
        assert any(told[0] == at and (told[1] == value or told[1] != told[1]) for _, at, value in theirs)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    (
                        "resourceMetrics",
                        "scopeMetrics",
                        "metrics",
                        "name",
                        "gauge",
                        "sum",
                        "dataPoints",
                        "asInt",
                        "asDouble",
                        "attributes",
                        "key",
                        "value",
                        "stringValue",
                        "timeUnixNano",
                        "resource",
                        "flags",
                    )
                ),
                inner,
            )
        ),
        max_leaves=30,
    )
)
def test_any_json_is_read_or_refused(thing: Any) -> None:
    try:
        data = orjson.dumps(thing)
    except TypeError:
        return
    try:
        read_json(data, Book())
    except BadBodyError:
        return


def test_a_point_or_name_that_is_no_text_costs_itself_alone() -> None:
    labels = {"UUID": "GPU-1", "Hostname": "gpu-1"}
    at_ns = AT_MS * 1_000_000
    good = [("DCGM_FI_DEV_POWER_USAGE", labels, 300.0, at_ns), ("DCGM_FI_DEV_GPU_TEMP", labels, 50.0, at_ns)]
    bad = [("DCGM_FI_DEV_SM_CLOCK", {**labels, "UUID": "BROKEN"}, 1.0, at_ns), ("BROKEN", labels, 1.0, at_ns)]
    data = otlp_export([*good, *bad], {}).SerializeToString().replace(b"BROKEN", b"\xff" * 6)
    reader = MetricsReader(Book())
    for _ in range(2):  # the second time by what is remembered of the first
        samples = reader.read(data)
        assert (len(samples), samples.values.tolist()) == (2, [300.0, 50.0])
        assert samples.invalid == {"labels_not_utf8": 1, "name_not_utf8": 1}
    broken = otlp_export(good, {"host.name": "BROKEN"}).SerializeToString().replace(b"BROKEN", b"\xff" * 6)
    samples = MetricsReader(Book()).read(broken + otlp_export(good, {}).SerializeToString())
    assert (len(samples), samples.invalid) == (2, {"labels_not_utf8": 2})


def test_a_point_a_metric_or_a_resource_of_json_that_cannot_be_read_costs_itself_alone() -> None:
    def point(**changes: Any) -> dict[str, Any]:
        labels = [{"key": key, "value": {"stringValue": text}} for key, text in (("UUID", "GPU-1"), ("host", "a"))]
        return {"timeUnixNano": str(AT_MS * 1_000_000), "asDouble": 300.0, "attributes": labels, **changes}

    def metric(*data: Any, **changes: Any) -> dict[str, Any]:
        return {"name": "DCGM_FI_DEV_POWER_USAGE", "gauge": {"dataPoints": list(data)}, **changes}

    bad = [point(asDouble="much"), point(timeUnixNano="now"), point(attributes=[7]), point(asInt="9" * 30), 5]
    wrong_resource = {"resource": {"attributes": "none"}, "scopeMetrics": [{"metrics": [metric(point(), point())]}]}
    metrics = [metric(point(), *bad, point()), metric(gauge={"dataPoints": 7}), metric(gauge=7), "none"]
    body = {"resourceMetrics": [{"scopeMetrics": [{"metrics": metrics}]}, wrong_resource]}
    samples = read_json(orjson.dumps(body), Book())
    assert (len(samples), samples.values.tolist(), len(samples.at_us)) == (2, [300.0, 300.0], 2)
    assert samples.invalid == {"malformed_points": 5 + 3 + 2}
