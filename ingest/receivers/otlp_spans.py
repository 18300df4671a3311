"""Reads OTLP trace exports, protobuf or JSON, into one plain form. Knows the encoding, not what a span means.

Only wanted attributes are read; all others, message content among them, are left in the body. JSON differs from
protobuf's own JSON mapping: ids are hex, and 64-bit numbers come as texts or numbers. Every way a body can be wrong ends
in BadBodyError; a span that is too large for its caps, or cannot be read, is refused by itself. Members that JSON leaves
out because they have their default (a name, a key) are empty.
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

    why: dict[str, str] = field(default_factory=dict)
    """What was wrong with the first span refused for a reason, for people."""

    def refuse(self, reason: str, why: str) -> None:
        """Count a span that is refused by itself."""
        self.refused[reason] = self.refused.get(reason, 0) + 1
        self.why.setdefault(reason, why[:200])


def read_spans(data: bytes, media: str, wanted: Wanted) -> Export:
    """Return the spans of an uncompressed export, wanted attributes by what they mean; raises BadBodyError."""
    export = Export()
    try:
        if media == PROTOBUF:
            _from_protobuf(data, wanted, export)
        else:
            export.spans = list(_capped(_from_json(parsed_json(data), wanted, export)))
    except DecodeError as error:
        raise BadBodyError("malformed", f"not an ExportTraceServiceRequest: {error}") from error
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise BadBodyError("malformed", f"not an OTLP/JSON trace export: {error!s:.200}") from error
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
                    export.refuse("too_many_parts", f"more than {MAX_FIELDS} attributes, events and links")
                    continue
                try:
                    message = SpanMessage.FromString(piece)
                except DecodeError as error:
                    export.refuse("malformed", f"not a span: {error}")
                    continue
                spans.append(_span(message, resource, of_span, of_evaluation))


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


def _from_json(request: Mapping[str, Any], wanted: Wanted, export: Export) -> Iterator[Span]:
    for group in _list(request.get("resourceSpans"), "resourceSpans"):
        members = _object(group, "a member of resourceSpans")
        resource: Mapping[str, Attribute] | ValueError
        try:
            resource = _json_attributes(_object(members.get("resource"), "resource").get("attributes"), wanted[1])
        except ValueError as error:
            resource = error
        for scope in _list(members.get("scopeSpans"), "scopeSpans"):
            for span in _list(_object(scope, "a member of scopeSpans").get("spans"), "spans"):
                try:
                    if isinstance(resource, ValueError):
                        raise resource
                    yield _json_span(_object(span, "a span"), resource, wanted)
                except _BadIdError as error:
                    export.refuse("bad_ids", str(error))
                except ValueError as error:
                    # Shapes JSON allows and OTLP does not: a text where a list should be, a number that is none.
                    export.refuse("malformed", str(error))


class _BadIdError(ValueError):
    pass


def _json_span(span: Mapping[str, Any], resource: Mapping[str, Attribute], wanted: Wanted) -> Span:
    of_span, _, of_evaluation = wanted
    status = _object(span.get("status"), "status").get("code", 0)
    events = [_object(event, "an event") for event in _list(span.get("events"), "events")[:MAX_EVENTS]]
    return Span(
        _hex(span.get("traceId"), 32),
        _hex(span.get("spanId"), 16),
        _hex(span.get("parentSpanId"), 16),
        str(span.get("name") or ""),
        _number(span.get("startTimeUnixNano"), "startTimeUnixNano"),
        _number(span.get("endTimeUnixNano"), "endTimeUnixNano"),
        status in (_STATUS_ERROR, "STATUS_CODE_ERROR"),
        _json_attributes(span.get("attributes"), of_span),
        resource,
        [(str(event.get("name") or ""), _number(event.get("timeUnixNano"), "timeUnixNano")) for event in events],
        [
            (
                _number(event.get("timeUnixNano"), "timeUnixNano"),
                _json_attributes(event.get("attributes"), of_evaluation),
            )
            for event in events
            if event.get("name") == EVALUATION_EVENT
        ],
    )


def _number(given: Any, what: str) -> int:
    try:
        return int(given or 0)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{what} must be a number, got {given!r:.60}") from error


def _float(given: Any, key: str) -> float:
    try:
        return float(given)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"doubleValue of {key} must be a number, got {given!r:.60}") from error


def _list(given: Any, what: str) -> list[Any]:
    if given is None or isinstance(given, list):
        return given or []
    raise ValueError(f"{what} must be a list, got {given!r:.60}")


def _object(given: Any, what: str) -> Mapping[str, Any]:
    if given is None or isinstance(given, dict):
        return given or {}
    raise ValueError(f"{what} must be an object, got {given!r:.60}")


def _hex(text: Any, digits: int) -> str:
    if text in (None, ""):
        return ""
    if not isinstance(text, str) or len(text) != digits:
        raise _BadIdError(f"an id must be {digits} hex digits, got {text!r:.40}")
    try:
        return bytes.fromhex(text).hex()
    except ValueError as error:
        raise _BadIdError(f"an id must be {digits} hex digits, got {text!r:.40}") from error


def _json_attributes(pairs: Any, wanted: Names) -> dict[str, Attribute]:
    values: dict[str, Attribute] = {}
    ranks: dict[str, int] = {}
    for entry in _list(pairs, "attributes"):
        pair = _object(entry, "an attribute")
        key = pair.get("key") or ""
        meant = wanted.get(key) if isinstance(key, str) else None
        if meant is None or ranks.get(meant[0], meant[1] + 1) <= meant[1]:
            continue
        name, rank = meant
        given = _object(pair.get("value"), "value of an attribute")
        if "stringValue" in given:
            values[name] = str(given["stringValue"])
        elif "intValue" in given:
            values[name] = _number(given["intValue"], f"intValue of {key}")
        elif "doubleValue" in given:
            values[name] = _float(given["doubleValue"], key)
        elif "boolValue" in given:
            values[name] = given["boolValue"] is True
        else:
            continue
        ranks[name] = rank
    return values
