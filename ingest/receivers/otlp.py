"""Reads OTLP/HTTP trace exports, protobuf or JSON, into one plain form. Knows the encoding, not what a span means.

JSON differs from protobuf's own JSON mapping: ids are hex, and 64-bit numbers come as texts or numbers. Every way a body
can be wrong ends in BadBodyError.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from ingest.errors import BadBodyError, TooLargeError, UnsupportedError

TRACES_PATH: Final = "/v1/traces"
PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
MAX_BODY_BYTES: Final = 16 * 1024 * 1024
MAX_DECODED_BYTES: Final = 64 * 1024 * 1024
MAX_SPANS: Final = 100_000
_STATUS_ERROR: Final = 2

Attribute = str | int | float | bool
"""Lists, maps and bytes are left out: no attribute we use is one, and content often is."""


@dataclass(frozen=True, slots=True)
class Span:
    """One span; times are nanoseconds since the Unix epoch, 0 where the sender gave none; ids are hex."""

    trace_id: str
    span_id: str
    start_ns: int
    end_ns: int
    is_error: bool
    attributes: Mapping[str, Attribute]
    resource: Mapping[str, Attribute]
    events: tuple[tuple[str, int], ...]


def media_type(content_type: str | None) -> str:
    """Return which of the two encodings a body has; raises UnsupportedError."""
    name = (content_type or "").partition(";")[0].strip().lower()
    if name not in (PROTOBUF, JSON):
        raise UnsupportedError(f"content type {content_type!r:.80}; send {PROTOBUF} or {JSON}")
    return name


def read_spans(data: bytes, media: str) -> list[Span]:
    """Return the spans of an export request, uncompressed; raises BadBodyError."""
    try:
        spans = list(_capped(_from_protobuf(data) if media == PROTOBUF else _from_json(data)))
    except DecodeError as error:
        raise BadBodyError("malformed", f"not an ExportTraceServiceRequest: {error}") from error
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        # Shapes JSON allows and OTLP does not: a text where a list should be, a number that is none.
        raise BadBodyError("malformed", f"not an OTLP/JSON trace export: {error!r:.200}") from error
    return spans


def response(media: str, rejected_spans: int, message: str) -> bytes:
    """Return the export response; OTLP's partial success says how many spans were not taken, and why."""
    if media == JSON:
        partial = {"rejectedSpans": str(rejected_spans), "errorMessage": message} if rejected_spans else {}
        return orjson.dumps({"partialSuccess": partial} if partial else {})
    answer = ExportTraceServiceResponse()
    if rejected_spans:
        answer.partial_success.rejected_spans = rejected_spans
        answer.partial_success.error_message = message
    return answer.SerializeToString()


def _capped(spans: Iterable[Span]) -> Iterator[Span]:
    for number, span in enumerate(spans):
        if number == MAX_SPANS:
            raise TooLargeError(f"more than {MAX_SPANS} spans in one request")
        yield span


def _from_protobuf(data: bytes) -> Iterator[Span]:
    request = ExportTraceServiceRequest.FromString(data)
    for group in request.resource_spans:
        resource = _attributes(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                yield Span(
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    span.status.code == _STATUS_ERROR,
                    _attributes(span.attributes),
                    resource,
                    tuple((event.name, event.time_unix_nano) for event in span.events),
                )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Attribute]:
    values: dict[str, Attribute] = {}
    for pair in pairs:
        value = _value(pair.value)
        if value is not None:
            values[pair.key] = value
    return values


def _value(value: AnyValue) -> Attribute | None:
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return value.string_value
    if kind == "int_value":
        return value.int_value
    if kind == "double_value":
        return value.double_value
    return value.bool_value if kind == "bool_value" else None


def _from_json(data: bytes) -> Iterator[Span]:
    for group in orjson.loads(data).get("resourceSpans") or []:
        resource = _json_attributes((group.get("resource") or {}).get("attributes"))
        for scope in group.get("scopeSpans") or []:
            for span in scope.get("spans") or []:
                status = (span.get("status") or {}).get("code", 0)
                yield Span(
                    _hex(span["traceId"], 32),
                    _hex(span["spanId"], 16),
                    int(span.get("startTimeUnixNano") or 0),
                    int(span.get("endTimeUnixNano") or 0),
                    status in (_STATUS_ERROR, "STATUS_CODE_ERROR"),
                    _json_attributes(span.get("attributes")),
                    resource,
                    tuple(
                        (str(event["name"]), int(event.get("timeUnixNano") or 0)) for event in span.get("events") or []
                    ),
                )


def _hex(text: Any, digits: int) -> str:
    if not isinstance(text, str) or len(text) != digits:
        raise ValueError(f"an id must be {digits} hex digits, got {text!r:.40}")
    return bytes.fromhex(text).hex()


def _json_attributes(pairs: Any) -> dict[str, Attribute]:
    values: dict[str, Attribute] = {}
    for pair in pairs or []:
        given = pair.get("value") or {}
        if "stringValue" in given:
            values[pair["key"]] = str(given["stringValue"])
        elif "intValue" in given:
            values[pair["key"]] = int(given["intValue"])
        elif "doubleValue" in given:
            values[pair["key"]] = float(given["doubleValue"])
        elif "boolValue" in given:
            values[pair["key"]] = given["boolValue"] is True
    return values
