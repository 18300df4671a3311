"""What all OTLP/HTTP receivers share: the two encodings, the answers the specification asks for, and the caps.

Success, partial success and failure are messages of the protocol, in the encoding of the request. A failure is a
google.rpc.Status; to senders of JSON it is at the same time our problem document (RFC 9457), since receivers of OTLP/JSON
must ignore members they do not know.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

import orjson
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from ingest.errors import BadBodyError, IngestError, TooLargeError, UnsupportedError
from ingest.http import Answer

TRACES_PATH: Final = "/v1/traces"
LOGS_PATH: Final = "/v1/logs"
PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
MEDIA: Final = (PROTOBUF, JSON)
MAX_BODY_BYTES: Final = 16 * 1024 * 1024
MAX_DECODED_BYTES: Final = 64 * 1024 * 1024
MAX_JSON_BYTES: Final = 32 * 1024 * 1024
MAX_JSON_PARTS: Final = 2_000_000
"""Members and elements of a JSON body: each becomes a Python object, of which the smallest has 28 bytes."""
SENT_AGAIN: Final = frozenset((429,))
"""Of the refusals below 500 the one that the specification has exporters try again: 408 is not among them."""
_RPC_CODES: Final = {400: 3, 401: 16, 403: 7, 408: 4, 413: 3, 415: 3, 429: 8, 503: 14}
"""google.rpc.Code by HTTP status; OTLP clients go by the HTTP status, people by the code."""

_MAX_MESSAGE_BYTES: Final = 16_383
"""What a length of two bytes can say."""


class Signal(Enum):
    """A kind of export: its response message, and what its partial success calls what was rejected."""

    TRACES = (ExportTraceServiceResponse, "rejected_spans", "rejectedSpans")
    METRICS = (ExportMetricsServiceResponse, "rejected_data_points", "rejectedDataPoints")
    LOGS = (ExportLogsServiceResponse, "rejected_log_records", "rejectedLogRecords")


def media_type(content_type: str | None) -> str:
    """Return which of the two encodings a body has; raises UnsupportedError."""
    name = (content_type or "").partition(";")[0].strip().lower()
    if name not in (PROTOBUF, JSON):
        raise UnsupportedError(f"content type {content_type!r:.80}; send {PROTOBUF} or {JSON}")
    return name


def response(media: str, rejected: int, message: str, signal: Signal = Signal.TRACES) -> bytes:
    """Return the export response. Rejected 0 and no message is success, with the partial success unset."""
    kind, field, json_field = signal.value
    if media == JSON:
        partial = {json_field: str(rejected), "errorMessage": message} if rejected or message else {}
        return orjson.dumps({"partialSuccess": partial} if partial else {})
    answer: Message = kind()
    if rejected or message:
        partial_success = answer.partial_success  # type: ignore[attr-defined]
        setattr(partial_success, field, rejected)
        partial_success.error_message = message
    return answer.SerializeToString()


def failure(content_type: str | None, error: IngestError) -> Answer:
    """Return a refusal as a sender of this content type reads it."""
    try:
        media = media_type(content_type)
    except UnsupportedError:
        media = JSON
    code = _RPC_CODES.get(error.status, 2)
    if media == PROTOBUF:
        return Answer(error.status, status_message(code, error.detail), PROTOBUF, error.reason)
    body = orjson.dumps({"code": code, "message": error.detail, **error.problem()})
    return Answer(error.status, body, JSON, error.reason)


def status_message(code: int, message: str) -> bytes:
    """Return a google.rpc.Status, whose code is field 1 and message field 2; a package for two fields is too many."""
    text = message.encode()[:_MAX_MESSAGE_BYTES].decode(errors="ignore").encode()
    length = len(text)
    return bytes((0x08, code, 0x12, length & 0x7F | 0x80, length >> 7)) + text


def parsed_json(data: bytes) -> dict[str, Any]:
    """Return the object of a JSON body whose number of parts was bounded before; raises BadBodyError."""
    if len(data) > MAX_JSON_BYTES:
        raise TooLargeError(f"more than {MAX_JSON_BYTES} bytes of JSON; send {PROTOBUF} or smaller bodies")
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MAX_JSON_PARTS:
        raise TooLargeError(f"more than {MAX_JSON_PARTS} members and elements in one JSON body")
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadBodyError("malformed", f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadBodyError("malformed", "not an OTLP/JSON export: it must be an object")
    return found
