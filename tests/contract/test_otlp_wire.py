"""The OTLP encodings and answers: what is refused, what is bounded, and how failures are worded."""

from __future__ import annotations

import gzip
import json
import tracemalloc

import pytest
import zstandard
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from ingest.content_encoding import decoded
from ingest.errors import BadBodyError, TooLargeError, UnavailableError, UnsupportedError
from ingest.receivers.gen_ai import read_calls
from ingest.receivers.gen_ai_names import WANTED
from ingest.receivers.otlp import JSON, PROTOBUF, Signal, failure, media_type, response
from ingest.receivers.otlp_attributes import MAX_FIELDS
from ingest.receivers.otlp_logs import read_logs
from ingest.receivers.otlp_spans import MAX_SPANS, read_spans

pytestmark = pytest.mark.contract


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"resourceSpans": 5}',
        b'{"resourceSpans": [{"scopeSpans": [{"spans": 5}]}]}',
    ],
)
def test_what_is_no_export_is_refused(body: bytes) -> None:
    with pytest.raises(BadBodyError):
        read_spans(body, JSON, WANTED)
    with pytest.raises(BadBodyError):
        read_spans(b"\xff" + body, PROTOBUF, WANTED)


@pytest.mark.parametrize("encode", [gzip.compress, zstandard.compress])
def test_compressed_bodies_are_bounded(encode: object) -> None:
    name, pack = ("gzip", gzip.compress) if encode is gzip.compress else ("zstd", zstandard.compress)
    assert decoded(pack(b"abc"), name, 3) == b"abc"
    with pytest.raises(TooLargeError):
        decoded(pack(bytes(10_000)), name, 9_999)
    with pytest.raises(BadBodyError):
        decoded(pack(b"abc" * 100)[:-6], name, 1_000)
    with pytest.raises(BadBodyError):
        decoded(b"abc", name, 1_000)


@pytest.mark.parametrize("encode", [gzip.compress, zstandard.compress])
def test_every_member_of_a_compressed_body_is_read_and_nothing_after_the_last(encode: object) -> None:
    name, pack = ("gzip", gzip.compress) if encode is gzip.compress else ("zstd", zstandard.compress)
    parts = [b"first " * 40_000, b"", b"second"]
    assert decoded(b"".join(map(pack, parts)), name, 250_000) == b"".join(parts)
    with pytest.raises(TooLargeError):  # the bound is on all of them together
        decoded(pack(bytes(600)) + pack(bytes(600)), name, 1_000)
    for rest in (b"garbage", b"\0", pack(b"second")[:-3]):
        with pytest.raises(BadBodyError):
            decoded(pack(b"first") + rest, name, 1_000)
    with pytest.raises(TooLargeError, match="4096"):
        decoded(pack(b"") * 5_000, name, 1_000)


def test_other_encodings_and_types_are_refused() -> None:
    with pytest.raises(UnsupportedError):
        decoded(b"", "br", 1)
    with pytest.raises(UnsupportedError):
        media_type("text/plain")


def test_a_zstd_frame_that_wants_much_memory_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    wide = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = wide.compress(b"abc") + wide.flush()
    with pytest.raises(BadBodyError):
        decoded(body, "zstd", 1_000)


def test_a_failure_is_a_status_in_the_encoding_of_the_request() -> None:
    error = UnavailableError("queue_full", "later: ü", 7)
    answer = failure(PROTOBUF, error)
    # google.rpc.Status: 1 = code (14 unavailable), 2 = message, its length in two bytes (9 = 0x89 0x00).
    assert (answer.status, answer.content_type) == (503, PROTOBUF)
    assert answer.body == b"\x08\x0e\x12\x89\x00" + "later: ü".encode()
    answer = failure("application/json; charset=utf-8", error)
    assert answer.content_type == JSON
    assert json.loads(answer.body) == {
        "code": 14,
        "message": "later: ü",
        "type": "urn:wattledger:problem:queue_full",
        "title": "Cannot be kept now",
        "status": 503,
        "detail": "later: ü",
    }
    assert failure(None, UnsupportedError("what is it")).content_type == JSON


def test_partial_success_is_unset_on_success_and_counts_otherwise() -> None:
    assert response(PROTOBUF, 0, "") == b""
    assert response(JSON, 0, "") == b"{}"
    partial = ExportTraceServiceResponse.FromString(response(PROTOBUF, 2, "why")).partial_success
    assert (partial.rejected_spans, partial.error_message) == (2, "why")
    assert json.loads(response(JSON, 1, "why", Signal.LOGS)) == {
        "partialSuccess": {"rejectedLogRecords": "1", "errorMessage": "why"}
    }


def test_log_records_are_counted_in_both_encodings() -> None:
    request = ExportLogsServiceRequest()
    for records in (2, 0, 3):
        scope = request.resource_logs.add().scope_logs.add()
        for _ in range(records):
            scope.log_records.add(severity_text="INFO")
    assert read_logs(request.SerializeToString(), PROTOBUF).records == 5
    told = {"resourceLogs": [{"scopeLogs": [{"logRecords": [{}, {}]}, {}]}, {"scopeLogs": None}]}
    assert read_logs(json.dumps(told).encode(), JSON).records == 2
    assert (read_logs(b"", PROTOBUF).records, read_logs(b"{}", JSON).records) == (0, 0)
    with pytest.raises(BadBodyError):
        read_logs(b'{"resourceLogs": [3]}', JSON)
    with pytest.raises(BadBodyError):
        read_logs(b"\x0a\x05ab", PROTOBUF)


def field(number: int, value: bytes) -> bytes:
    length, spelled = len(value), bytearray()
    while length >= 0x80:
        spelled.append(length & 0x7F | 0x80)
        length >>= 7
    spelled.append(length)
    return bytes((number << 3 | 2,)) + bytes(spelled) + value


def test_many_empty_spans_are_counted_before_they_are_made() -> None:
    body = field(1, field(2, bytes((2 << 3 | 2, 0)) * (MAX_SPANS + 1)))
    with pytest.raises(TooLargeError, match="spans"):
        read_spans(body, PROTOBUF, WANTED)
    with pytest.raises(TooLargeError, match="scopes"):
        read_spans(field(1, bytes((2 << 3 | 2, 0)) * 1_000_000), PROTOBUF, WANTED)
    with pytest.raises(TooLargeError, match="members"):
        read_spans(b'{"resourceSpans": [' + b"{}," * 2_000_000 + b"{}]}", JSON, WANTED)


def test_one_span_of_a_million_empty_attributes_is_refused_by_itself() -> None:
    hostile = field(2, bytes((9 << 3 | 2, 0)) * 1_000_000)
    fine = ExportTraceServiceRequest()
    fine.resource_spans.add().scope_spans.add().spans.add(name="fine")
    body = field(1, field(2, hostile)) + fine.SerializeToString()
    tracemalloc.start()
    export = read_spans(body, PROTOBUF, WANTED)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ([span.name for span in export.spans], export.refused) == (["fine"], {"too_many_parts": 1})
    assert peak_bytes < 8_000_000
    assert MAX_FIELDS < 1_000_000


def test_a_call_with_a_picture_in_its_messages_is_a_call_like_any_other() -> None:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"t" * 16, span_id=b"s" * 8, name="chat m")
    span.start_time_unix_nano = 1_795_255_064_555_000_000
    for key, value in {
        "gen_ai.operation.name": AnyValue(string_value="chat"),
        "gen_ai.input.messages": AnyValue(string_value="x" * 5_000_000),
        "gen_ai.usage.input_tokens": AnyValue(int_value=9),
    }.items():
        span.attributes.append(KeyValue(key=key, value=value))
    (call,) = read_calls(read_spans(request.SerializeToString(), PROTOBUF, WANTED), 1_900_000_000_000_000).calls
    assert (call.model, call.input_uncached_tokens) == ("m", 9)


def _group(service: bytes | str, spans: int, **more: str) -> bytes:
    """A ResourceSpans of chat calls as it travels; ``service`` in bytes need be no text."""
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    mark = "service".ljust(len(service), "_") if isinstance(service, bytes) else service
    for key, text in {"service.name": mark, **more}.items():
        group.resource.attributes.add(key=key).value.string_value = text
    scope = group.scope_spans.add()
    for number in range(1, spans + 1):
        span = scope.spans.add(trace_id=number.to_bytes(16), span_id=number.to_bytes(8), name="chat m")
        span.start_time_unix_nano = 1_795_255_064_555_000_000
        span.attributes.add(key="gen_ai.operation.name").value.string_value = "chat"
    packed = request.SerializeToString()
    return packed.replace(mark.encode(), service) if isinstance(service, bytes) else packed


@pytest.mark.parametrize("spans", [2, 40])
def test_a_resource_that_cannot_be_read_costs_its_own_spans_alone(spans: int) -> None:
    bad = _group(b"\xff\xfe\xfd not a text", spans)
    long = _group("x" * 70_000, spans)
    export = read_spans(_group("good", spans) + bad + long, PROTOBUF, WANTED)
    kept = [*export.spans, *(span for alike in export.alike for span in alike.spans())]
    assert (len(kept), {span.resource["api_key"] for span in kept}) == (spans, {"good"})
    assert export.refused == {"malformed": 2 * spans}
    assert "service.name of a resource" in export.why["malformed"]


def test_what_is_not_wanted_of_a_resource_or_a_span_may_be_of_any_length_and_no_text() -> None:
    arguments = {"process.command_args": "a" * 70_000, "process.owner": "OWNER"}
    packed = _group("good", 1, **arguments).replace(b"OWNER", b"\xff\xff\xff\xff\xff")
    request = ExportTraceServiceRequest.FromString(_group("good", 1))
    span = request.resource_spans[0].scope_spans[0].spans[0]
    span.attributes.add(key="gen_ai.prompt").value.string_value = "CONTENT"
    export = read_spans(packed + request.SerializeToString().replace(b"CONTENT", b"\xff" * 7), PROTOBUF, WANTED)
    assert (len(export.spans), export.refused) == (2, {})
    assert {read.resource["api_key"] for read in export.spans} == {"good"}


def test_an_evaluation_of_a_resource_that_cannot_be_read_costs_itself_alone() -> None:
    request = ExportLogsServiceRequest()
    for name in ("good", "BROKEN"):
        group = request.resource_logs.add()
        group.resource.attributes.add(key="service.name").value.string_value = name
        record = group.scope_logs.add().log_records.add(event_name="gen_ai.evaluation.result", time_unix_nano=1)
        record.attributes.add(key="gen_ai.evaluation.name").value.string_value = "thumbs"
    logs = read_logs(request.SerializeToString().replace(b"BROKEN", b"\xff" * 6), PROTOBUF)
    assert (logs.records, len(logs.evaluations), logs.malformed) == (2, 1, 1)
