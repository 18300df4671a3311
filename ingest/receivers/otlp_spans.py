"""Reads OTLP trace exports, protobuf or JSON, into one plain form. Knows the encoding, not what a span means.

Only wanted attributes are read; all others, message content among them, are left in the body. JSON differs from
protobuf's own JSON mapping: ids are hex, and 64-bit numbers come as texts or numbers. Every way a body can be wrong ends
in BadBodyError; a span that is too large for its caps is refused by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from ingest.errors import BadBodyError, TooLargeError
from ingest.receivers.otlp import PROTOBUF, parsed_json
from ingest.receivers.protobuf import fields, messages

MAX_SPANS: Final = 100_000
MAX_GROUPS: Final = 20_000
"""Resources and scopes of one export."""
MAX_FIELDS: Final = 20_000
"""Attributes, events and links of one span."""
MAX_EVENTS: Final = 64
"""Events looked at: the first token is among the first."""
_LARGE_BYTES: Final = 64 * 1024
_RESOURCE_SPANS: Final = 1
_RESOURCE: Final = 1
_GROUPS: Final = 2
_ATTRIBUTES: Final = 9
_EVENTS: Final = 11
_KEPT_FIELDS: Final = frozenset((1, 2, 4, 5, 6, 7, 8, 15))
_STATUS_ERROR: Final = 2
_SCALARS: Final = frozenset(("string_value", "int_value", "bool_value", "double_value"))

Attribute = str | int | float | bool
"""Lists, maps and bytes are left out: no attribute we use is one, and content often is."""
Names = Mapping[str, tuple[str, int]]
"""Wanted attributes: what each means, and its rank among those that mean the same, 0 = counts first."""
Wanted = tuple[Names, Names, Names]
"""What is wanted of spans, of resources, and of events that are evaluations."""
EVALUATION_EVENT: Final = "gen_ai.evaluation.result"


@dataclass(slots=True)
class Span:
    """One span; times are nanoseconds since the Unix epoch, 0 where the sender gave none; ids are hex, '' = none."""

    trace_id: str
    span_id: str
    parent_span_id: str
    name: str
    start_ns: int
    end_ns: int
    is_error: bool
    attributes: dict[str, Attribute]
    resource: Mapping[str, Attribute]
    events: Sequence[tuple[str, int]] = ()
    evaluations: Sequence[tuple[int, Mapping[str, Attribute]]] = ()
    """Of the events those that are evaluations, with what is wanted of them."""


@dataclass(slots=True)
class Export:
    """The spans of a body, and how many were refused by reason."""

    spans: list[Span] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)


def read_spans(data: bytes, media: str, wanted: Wanted) -> Export:
    """Return the spans of an uncompressed export, wanted attributes by what they mean; raises BadBodyError."""
    export = Export()
    try:
        if media == PROTOBUF:
            _from_protobuf(data, wanted, export)
        else:
            export.spans = list(_capped(_from_json(parsed_json(data), wanted)))
    except DecodeError as error:
        raise BadBodyError("malformed", f"not an ExportTraceServiceRequest: {error}") from error
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        # Shapes JSON allows and OTLP does not: a text where a list should be, a number that is none.
        raise BadBodyError("malformed", f"not an OTLP/JSON trace export: {error!r:.200}") from error
    return export


def _capped(spans: Iterable[Span]) -> Iterator[Span]:
    for number, span in enumerate(spans):
        if number == MAX_SPANS:
            raise TooLargeError(f"more than {MAX_SPANS} spans in one request")
        yield span


def _from_protobuf(data: bytes, wanted: Wanted, export: Export) -> None:
    of_span, of_resource, of_evaluation = wanted
    groups = 0
    spans, total = export.spans, 0
    for group_at, group_end in messages(data, 0, len(data), _RESOURCE_SPANS):
        resource: Mapping[str, Attribute] = {}
        for at, end in messages(data, group_at, group_end, _RESOURCE):
            resource = _resource(data[at:end], of_resource)
        for scope_at, scope_end in messages(data, group_at, group_end, _GROUPS):
            groups += 1
            if groups > MAX_GROUPS:
                raise TooLargeError(f"more than {MAX_GROUPS} scopes in one request")
            for at, end in messages(data, scope_at, scope_end, _GROUPS):
                total += 1
                if total > MAX_SPANS:
                    raise TooLargeError(f"more than {MAX_SPANS} spans in one request")
                piece = data[at:end] if end - at <= _LARGE_BYTES else _lean(data, at, end, of_span)
                if piece is None:
                    export.refused["too_many_parts"] = export.refused.get("too_many_parts", 0) + 1
                else:
                    spans.append(_span(SpanMessage.FromString(piece), resource, of_span, of_evaluation))


def _span(span: SpanMessage, resource: Mapping[str, Attribute], wanted: Names, of_evaluation: Names) -> Span:
    events = span.events[:MAX_EVENTS] if span.events else ()
    return Span(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status.code == _STATUS_ERROR,
        _attributes(span.attributes, wanted),
        resource,
        [(event.name, event.time_unix_nano) for event in events],
        [
            (event.time_unix_nano, _attributes(event.attributes, of_evaluation))
            for event in events
            if event.name == EVALUATION_EVENT
        ],
    )


def _resource(data: bytes, wanted: Names) -> dict[str, Attribute]:
    if len(data) > _LARGE_BYTES:
        raise TooLargeError(f"a resource of more than {_LARGE_BYTES} bytes")
    return _attributes(Resource.FromString(data).attributes, wanted)


def _lean(data: bytes, start: int, end: int, wanted: Names) -> bytes | None:
    """Return a large span without what is not wanted of it; None where it has too many parts."""
    parts: list[bytes] = []
    events = 0
    for count, (number, begin, at, stop) in enumerate(fields(data, start, end)):
        if count == MAX_FIELDS:
            return None
        if number == _ATTRIBUTES:
            if stop - at <= _LARGE_BYTES and _key(data, at, stop) in wanted:
                parts.append(data[begin:stop])
        elif number == _EVENTS:
            events += 1
            if events <= MAX_EVENTS and stop - at <= _LARGE_BYTES:
                parts.append(data[begin:stop])
        elif number in _KEPT_FIELDS and stop - at <= _LARGE_BYTES:
            parts.append(data[begin:stop])
    return b"".join(parts)


def _key(data: bytes, start: int, end: int) -> str:
    return next((data[at:stop].decode(errors="replace") for at, stop in messages(data, start, end, 1)), "")


def _attributes(pairs: Iterable[KeyValue], wanted: Names) -> dict[str, Attribute]:
    values: dict[str, Attribute] = {}
    ranks: dict[str, int] = {}
    for pair in pairs:
        meant = wanted.get(pair.key)
        if meant is None:
            continue
        name, rank = meant
        if name in values and ranks.get(name, 0) <= rank:
            continue
        value = pair.value
        # Which of its members is set costs as much to ask as to read one that is not, and nearly all are texts and counts.
        found: Attribute = value.string_value or value.int_value
        if not found:
            kind = value.WhichOneof("value")
            if kind not in _SCALARS:
                continue
            found = getattr(value, kind)
        values[name] = found
        if rank or name in ranks:
            ranks[name] = rank
    return values


def _from_json(request: Mapping[str, Any], wanted: Wanted) -> Iterator[Span]:
    of_span, of_resource, of_evaluation = wanted
    for group in request.get("resourceSpans") or []:
        resource = _json_attributes((group.get("resource") or {}).get("attributes"), of_resource)
        for scope in group.get("scopeSpans") or []:
            for span in scope.get("spans") or []:
                status = (span.get("status") or {}).get("code", 0)
                events = (span.get("events") or [])[:MAX_EVENTS]
                yield Span(
                    _hex(span.get("traceId"), 32),
                    _hex(span.get("spanId"), 16),
                    _hex(span.get("parentSpanId"), 16),
                    str(span.get("name") or ""),
                    int(span.get("startTimeUnixNano") or 0),
                    int(span.get("endTimeUnixNano") or 0),
                    status in (_STATUS_ERROR, "STATUS_CODE_ERROR"),
                    _json_attributes(span.get("attributes"), of_span),
                    resource,
                    [(str(event["name"]), int(event.get("timeUnixNano") or 0)) for event in events],
                    [
                        (int(event.get("timeUnixNano") or 0), _json_attributes(event.get("attributes"), of_evaluation))
                        for event in events
                        if event["name"] == EVALUATION_EVENT
                    ],
                )


def _hex(text: Any, digits: int) -> str:
    if text in (None, ""):
        return ""
    if not isinstance(text, str) or len(text) != digits:
        raise ValueError(f"an id must be {digits} hex digits, got {text!r:.40}")
    return bytes.fromhex(text).hex()


def _json_attributes(pairs: Any, wanted: Names) -> dict[str, Attribute]:
    values: dict[str, Attribute] = {}
    ranks: dict[str, int] = {}
    for pair in pairs or []:
        meant = wanted.get(pair["key"])
        if meant is None or ranks.get(meant[0], meant[1] + 1) <= meant[1]:
            continue
        name, rank = meant
        given = pair.get("value") or {}
        if "stringValue" in given:
            values[name] = str(given["stringValue"])
        elif "intValue" in given:
            values[name] = int(given["intValue"])
        elif "doubleValue" in given:
            values[name] = float(given["doubleValue"])
        elif "boolValue" in given:
            values[name] = given["boolValue"] is True
        else:
            continue
        ranks[name] = rank
    return values
