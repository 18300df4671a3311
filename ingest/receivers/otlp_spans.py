"""Reads OTLP trace exports, protobuf or JSON, into one plain form. Knows the encoding, not what a span means.

Only wanted attributes are read; all others, message content among them, are left in the body. JSON differs from
protobuf's own JSON mapping: ids are hex, and 64-bit numbers come as texts or numbers. Every way a body can be wrong ends
in BadBodyError; a span that is too large for its caps, or cannot be read, is refused by itself. Members that JSON leaves
out because they have their default (a name, a key) are empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from ingest.errors import BadBodyError, TooLargeError
from ingest.receivers.otlp import PROTOBUF, parsed_json
from ingest.receivers.otlp_alike import FEWEST, LONGEST_BYTES, Found, find_alike
from ingest.receivers.otlp_attributes import (
    MAX_FIELDS,
    Attribute,
    BadIdError,
    Names,
    attributes_of,
    hex_of,
    json_attributes,
    key_of,
    list_of,
    number_of,
    object_of,
    resource_attributes,
)
from ingest.receivers.protobuf import fields, messages

MAX_SPANS: Final = 100_000
MAX_GROUPS: Final = 20_000
"""Resources and scopes of one export."""
MAX_EVENTS: Final = 64
"""Events looked at: the first token is among the first."""
_LARGE_BYTES: Final = LONGEST_BYTES
_AT_ONCE: Final = 4_096
"""Spans compared with each other, which bounds what that takes."""
_RESOURCE_SPANS: Final = 1
_RESOURCE: Final = 1
_GROUPS: Final = 2
_ATTRIBUTES: Final = 9
_EVENTS: Final = 11
_KEPT_FIELDS: Final = frozenset((1, 2, 4, 5, 6, 7, 8, 15))
_STATUS_ERROR: Final = 2

Wanted = tuple[Names, Names, Names, frozenset[str]]
"""What is wanted of spans, of resources, and of events that are evaluations; and what differs between spans that are alike."""
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
class Alike:
    """Spans that differ from ``first``, which is one of them, in what ``found`` has columns of, and in nothing else."""

    first: Span
    found: Found

    def __len__(self) -> int:
        return len(self.found.positions)

    def spans(self) -> list[Span]:
        """Return each of them by itself."""
        found = self.found
        parents = found.parent_span_ids or [self.first.parent_span_id] * len(self)
        named = [dict(zip(found.values, row, strict=True)) for row in zip(*found.values.values(), strict=True)]
        ids = zip(found.trace_ids, found.span_ids, parents, strict=True)
        times = zip(found.start_ns, found.end_ns, strict=True)
        return [
            replace(
                self.first,
                trace_id=trace_id,
                span_id=span_id,
                parent_span_id=parent,
                start_ns=start_ns,
                end_ns=end_ns,
                attributes=self.first.attributes | values,
            )
            for (trace_id, span_id, parent), (start_ns, end_ns), values in zip(
                ids, times, named or [{}] * len(self), strict=True
            )
        ]


@dataclass(slots=True)
class Export:
    """The spans of a body, one by one and those that are alike, and how many were refused by reason."""

    spans: list[Span] = field(default_factory=list)
    alike: list[Alike] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)

    why: dict[str, str] = field(default_factory=dict)
    """What was wrong with the first span refused for a reason, for people."""

    def refuse(self, reason: str, why: str, spans: int = 1) -> None:
        """Count spans that are refused by themselves."""
        if spans:
            self.refused[reason] = self.refused.get(reason, 0) + spans
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
    groups = total = 0
    for group_at, group_end in messages(data, 0, len(data), _RESOURCE_SPANS):
        resource: Mapping[str, Attribute] | ValueError = {}
        for at, end in messages(data, group_at, group_end, _RESOURCE):
            try:
                resource = resource_attributes(data[at:end], wanted[1])
            except ValueError as error:  # its spans are nobody's; those of other resources are not to blame
                resource = error
        for scope_at, scope_end in messages(data, group_at, group_end, _GROUPS):
            groups += 1
            if groups > MAX_GROUPS:
                raise TooLargeError(f"more than {MAX_GROUPS} scopes in one request")
            places: list[tuple[int, int]] = []
            for place in messages(data, scope_at, scope_end, _GROUPS):
                places.append(place)
                if total + len(places) > MAX_SPANS:
                    raise TooLargeError(f"more than {MAX_SPANS} spans in one request")
            total += len(places)
            if isinstance(resource, ValueError):
                export.refuse("malformed", str(resource), len(places))
                continue
            for start in range(0, len(places), _AT_ONCE):
                _scope(data, places[start : start + _AT_ONCE], resource, wanted, export)


def _scope(
    data: bytes, places: list[tuple[int, int]], resource: Mapping[str, Attribute], wanted: Wanted, export: Export
) -> None:
    of_span, _, of_evaluation, varying = wanted
    left: Iterable[int] = range(len(places))
    if len(places) >= FEWEST:
        begin = places[0][0]
        groups, left = find_alike(
            data[begin : places[-1][1]], [(at - begin, end - begin) for at, end in places], of_span, varying
        )
        for found in groups:
            at, end = places[found.positions[0]]
            try:
                first = _span(SpanMessage.FromString(data[at:end]), resource, of_span, of_evaluation)
            except DecodeError:  # all of them are wrong in the same way
                left = [*left, *found.positions]
                continue
            export.alike.append(Alike(first, found))
    for position in left:
        at, end = places[position]
        message = _parsed(data, at, end, of_span, export)
        if message is not None:
            export.spans.append(_span(message, resource, of_span, of_evaluation))


def _parsed(data: bytes, at: int, end: int, wanted: Names, export: Export) -> SpanMessage | None:
    """Return a span, None where it is refused: one that is large, or wrong in what is not wanted, without that."""
    if end - at <= _LARGE_BYTES:
        try:
            return SpanMessage.FromString(data[at:end])
        except DecodeError:
            pass
    piece = _lean(data, at, end, wanted)
    if piece is None:
        export.refuse("too_many_parts", f"more than {MAX_FIELDS} attributes, events and links")
        return None
    try:
        return SpanMessage.FromString(piece)
    except DecodeError as error:
        export.refuse("malformed", f"not a span: {error}")
        return None


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
        attributes_of(span.attributes, wanted),
        resource,
        [(event.name, event.time_unix_nano) for event in events],
        [
            (event.time_unix_nano, attributes_of(event.attributes, of_evaluation))
            for event in events
            if event.name == EVALUATION_EVENT
        ],
    )


def _lean(data: bytes, start: int, end: int, wanted: Names) -> bytes | None:
    """Return a large span without what is not wanted of it; None where it has too many parts."""
    parts: list[bytes] = []
    events = 0
    for count, (number, begin, at, stop) in enumerate(fields(data, start, end)):
        if count == MAX_FIELDS:
            return None
        if number == _ATTRIBUTES:
            if stop - at <= _LARGE_BYTES and key_of(data, at, stop) in wanted:
                parts.append(data[begin:stop])
        elif number == _EVENTS:
            events += 1
            if events <= MAX_EVENTS and stop - at <= _LARGE_BYTES:
                parts.append(data[begin:stop])
        elif number in _KEPT_FIELDS and stop - at <= _LARGE_BYTES:
            parts.append(data[begin:stop])
    return b"".join(parts)


def _from_json(request: Mapping[str, Any], wanted: Wanted, export: Export) -> Iterator[Span]:
    for group in list_of(request.get("resourceSpans"), "resourceSpans"):
        members = object_of(group, "a member of resourceSpans")
        resource: Mapping[str, Attribute] | ValueError
        try:
            resource = json_attributes(object_of(members.get("resource"), "resource").get("attributes"), wanted[1])
        except ValueError as error:
            resource = error
        for scope in list_of(members.get("scopeSpans"), "scopeSpans"):
            for span in list_of(object_of(scope, "a member of scopeSpans").get("spans"), "spans"):
                try:
                    if isinstance(resource, ValueError):
                        raise resource
                    yield _json_span(object_of(span, "a span"), resource, wanted)
                except BadIdError as error:
                    export.refuse("bad_ids", str(error))
                except ValueError as error:
                    # Shapes JSON allows and OTLP does not: a text where a list should be, a number that is none.
                    export.refuse("malformed", str(error))


def _json_span(span: Mapping[str, Any], resource: Mapping[str, Attribute], wanted: Wanted) -> Span:
    of_span, _, of_evaluation, _ = wanted
    status = object_of(span.get("status"), "status").get("code", 0)
    events = [object_of(event, "an event") for event in list_of(span.get("events"), "events")[:MAX_EVENTS]]
    return Span(
        hex_of(span.get("traceId"), 32),
        hex_of(span.get("spanId"), 16),
        hex_of(span.get("parentSpanId"), 16),
        str(span.get("name") or ""),
        number_of(span.get("startTimeUnixNano"), "startTimeUnixNano"),
        number_of(span.get("endTimeUnixNano"), "endTimeUnixNano"),
        status in (_STATUS_ERROR, "STATUS_CODE_ERROR"),
        json_attributes(span.get("attributes"), of_span),
        resource,
        [(str(event.get("name") or ""), number_of(event.get("timeUnixNano"), "timeUnixNano")) for event in events],
        [
            (
                number_of(event.get("timeUnixNano"), "timeUnixNano"),
                json_attributes(event.get("attributes"), of_evaluation),
            )
            for event in events
            if event.get("name") == EVALUATION_EVENT
        ],
    )
