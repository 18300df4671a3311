"""Reads the evaluations out of an OTLP log export, and counts everything else, which is declined and never parsed.

The OpenTelemetry convention sends ``gen_ai.evaluation.result`` as an event: a log record of that event name, or, from SDKs
before records had one, with that name in the attribute ``event.name``. Of such a record the few attributes that make an
outcome are read; its body and explanation are content and are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from ingest.errors import TooLargeError, malformed
from ingest.receivers.gen_ai_names import ON_EVALUATION_RECORD, ON_RESOURCE
from ingest.receivers.otlp import PROTOBUF, parsed_json
from ingest.receivers.otlp_attributes import (
    Attribute,
    attributes_of,
    hex_of,
    json_attributes,
    list_of,
    number_of,
    object_of,
    resource_attributes,
)
from ingest.receivers.otlp_spans import EVALUATION_EVENT
from ingest.receivers.protobuf import messages

MAX_EVALUATIONS: Final = 5_000
"""In one body; each is a statement of its own."""
_EVENT_NAME: Final = "event.name"
_MARK: Final = EVALUATION_EVENT.encode()
_LONGEST_BYTES: Final = 1024 * 1024
_RESOURCE: Final = 1
_RESOURCE_LOGS: Final = 1
_GROUPS: Final = 2


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """A record that is an evaluation; ids are hex, '' = none; the time is nanoseconds since the Unix epoch, 0 = none."""

    at_ns: int
    trace_id: str
    span_id: str
    attributes: Mapping[str, Attribute]
    resource: Mapping[str, Attribute]


@dataclass(slots=True)
class Logs:
    """What a log export holds. ``records``: all of them. ``malformed``: those that seem to be evaluations and are none."""

    records: int = 0
    evaluations: list[EvaluationRecord] = field(default_factory=list)
    malformed: int = 0

    def add(self, record: EvaluationRecord) -> None:
        if len(self.evaluations) == MAX_EVALUATIONS:
            raise TooLargeError(f"more than {MAX_EVALUATIONS} evaluations in one request")
        self.evaluations.append(record)


def read_logs(data: bytes, media: str) -> Logs:
    """Return the evaluations of an uncompressed export, and how many records it holds; raises BadBodyError."""
    logs = Logs()
    if media == PROTOBUF:
        _from_protobuf(data, logs)
    else:
        _from_json(parsed_json(data), logs)
    return logs


def _from_protobuf(data: bytes, logs: Logs) -> None:
    for group in messages(data, 0, len(data), _RESOURCE_LOGS):
        found: list[bytes] = []
        for scope in messages(data, *group, _GROUPS):
            for at, end in messages(data, *scope, _GROUPS):
                logs.records += 1
                if data.find(_MARK, at, end) >= 0:  # it may be in a body as well; what is parsed decides
                    found.append(data[at:end] if end - at <= _LONGEST_BYTES else b"")
        if not found:
            continue
        resource: Mapping[str, Attribute] = {}
        try:
            for at, end in messages(data, *group, _RESOURCE):
                resource = resource_attributes(data[at:end], ON_RESOURCE)
        except ValueError:  # its records are nobody's; those of other resources are not to blame
            logs.malformed += len(found)
            continue
        for piece in found:
            _from_record(piece, resource, logs)


def _from_record(piece: bytes, resource: Mapping[str, Attribute], logs: Logs) -> None:
    try:
        record = LogRecord.FromString(piece)
    except DecodeError:
        logs.malformed += 1
        return
    attributes = attributes_of(record.attributes, ON_EVALUATION_RECORD)
    if EVALUATION_EVENT not in (record.event_name, attributes.get(_EVENT_NAME)):
        return
    at_ns = record.time_unix_nano or record.observed_time_unix_nano
    logs.add(EvaluationRecord(at_ns, record.trace_id.hex(), record.span_id.hex(), attributes, resource))


def _from_json(request: Mapping[str, Any], logs: Logs) -> None:
    try:
        for resource, record in _records(request):
            logs.records += 1
            if isinstance(record, dict) and _may_be_one(record):
                _from_json_record(resource, record, logs)
    except ValueError as error:
        raise malformed(f"not an OTLP/JSON log export: {error!s:.200}") from error


def _records(request: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    for group in list_of(request.get("resourceLogs"), "resourceLogs"):
        members = object_of(group, "a member of resourceLogs")
        for scope in list_of(members.get("scopeLogs"), "scopeLogs"):
            for record in list_of(object_of(scope, "a member of scopeLogs").get("logRecords"), "logRecords"):
                yield members.get("resource"), record


def _may_be_one(record: Mapping[str, Any]) -> bool:
    if record.get("eventName") == EVALUATION_EVENT:
        return True
    attributes = record.get("attributes")
    return isinstance(attributes, list) and any(
        isinstance(pair, dict) and pair.get("key") == _EVENT_NAME and _MARK.decode() in repr(pair.get("value"))
        for pair in attributes
    )


def _from_json_record(resource: Any, record: Mapping[str, Any], logs: Logs) -> None:
    try:
        attributes = json_attributes(record.get("attributes"), ON_EVALUATION_RECORD)
        if EVALUATION_EVENT not in (record.get("eventName"), attributes.get(_EVENT_NAME)):
            return
        at_ns = number_of(record.get("timeUnixNano"), "timeUnixNano") or number_of(
            record.get("observedTimeUnixNano"), "observedTimeUnixNano"
        )
        found = EvaluationRecord(
            at_ns,
            hex_of(record.get("traceId"), 32),
            hex_of(record.get("spanId"), 16),
            attributes,
            json_attributes(object_of(resource, "resource").get("attributes"), ON_RESOURCE),
        )
    except ValueError:
        logs.malformed += 1
        return
    logs.add(found)
