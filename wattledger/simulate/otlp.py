"""LLM calls as OTLP trace export requests, with the GenAI semantic conventions and no message content."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from wattledger.simulate.llm import ApiCall
from wattledger.simulate.spec import FleetSpec

TRACES_PATH: Final = "/v1/traces"
TRACES_CONTENT_TYPE: Final = "application/x-protobuf"
API_KEY_ATTRIBUTE: Final = "wattledger.api_key"
ORIGIN_ATTRIBUTE: Final = "wattledger.origin"
ORIGIN: Final = "simulated"


@dataclass(frozen=True, slots=True)
class Export:
    """One serialized ExportTraceServiceRequest and how many spans are in it."""

    body: bytes
    spans: int


def export_requests(spec: FleetSpec, calls: Sequence[ApiCall], spans_per_request: int) -> Iterator[Export]:
    """Yield export requests of at most so many spans, in the order of the calls."""
    for first in range(0, len(calls), spans_per_request):
        request = ExportTraceServiceRequest()
        group = request.resource_spans.add()
        group.resource.attributes.extend(
            [
                _text("service.name", "llm-gateway"),
                _text("service.instance.id", f"{spec.site}-gateway"),
                _text(ORIGIN_ATTRIBUTE, ORIGIN),
            ]
        )
        scope = group.scope_spans.add()
        scope.scope.name = "wattledger.simulate"
        scope.spans.extend(_span(call) for call in calls[first : first + spans_per_request])
        yield Export(request.SerializeToString(deterministic=True), len(scope.spans))


def _span(call: ApiCall) -> Span:
    attributes = [
        _text("gen_ai.operation.name", "chat"),
        _text("gen_ai.provider.name", call.provider),
        _text("gen_ai.request.model", call.model),
        _text(API_KEY_ATTRIBUTE, call.api_key),
    ]
    status = Status(code=Status.STATUS_CODE_UNSET)
    if call.usage_known:
        attributes += [
            _text("gen_ai.response.model", call.model),
            _text("gen_ai.response.id", call.response_id),
            _number("gen_ai.usage.input_tokens", call.input_tokens),
            _number("gen_ai.usage.cache_read.input_tokens", call.cached_tokens),
            _number("gen_ai.usage.output_tokens", call.output_tokens),
        ]
        if call.reasoning_tokens:
            attributes.append(_number("gen_ai.usage.reasoning.output_tokens", call.reasoning_tokens))
    else:
        attributes.append(_text("error.type", "overloaded"))
        status = Status(code=Status.STATUS_CODE_ERROR, message="overloaded")
    return Span(
        trace_id=call.trace_id,
        span_id=call.span_id,
        name=f"chat {call.model}",
        kind=Span.SPAN_KIND_CLIENT,
        start_time_unix_nano=call.start_us * 1000,
        end_time_unix_nano=call.end_us * 1000,
        attributes=attributes,
        status=status,
    )


def _text(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def _number(key: str, value: int) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(int_value=value))
