"""Spans that are alike are read in columns: to the same calls and steps as one by one, whatever is in the bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from ingest.errors import BadBodyError
from ingest.receivers import otlp_alike, otlp_spans
from ingest.receivers.gen_ai import Read, read_calls
from ingest.receivers.gen_ai_names import WANTED
from ingest.receivers.otlp import PROTOBUF
from ingest.receivers.otlp_spans import Export, read_spans
from tests.property.test_otlp_mutations import EDITS, edited

pytestmark = pytest.mark.property

NOW_US = 1_900_000_000_000_000
START_NS = 1_800_000_000_000_000_000
TEXTS = st.text(max_size=40) | st.sampled_from(("", " ", "chatcmpl-1", "x" * 300, "sk-" + "a" * 30, "Grüße, 世界"))
COUNTS = st.integers(0, 2_000) | st.sampled_from((0, 127, 128, 16_384, 2**34, 2**35, 2**40, 2**62, -1))
NAMES = (
    *("gen_ai.response.id", "gen_ai.request.id", "gen_ai.conversation.id", "user.id", "gen_ai.input.messages"),
    *("output.value", "session.id", "gen_ai.request.model", "llm.response.id", "error.type"),
)
TOKENS = (
    *("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "gen_ai.usage.total_tokens"),
    *("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_creation.input_tokens"),
    *("gen_ai.usage.reasoning_tokens", "llm.usage.prompt_tokens", "llm.token_count.prompt_details.audio"),
    *("gen_ai.request.max_tokens",),
)
DOUBLES = ("gen_ai.response.time_to_first_chunk", "gen_ai.request.temperature", "gen_ai.usage.input_tokens")
DIALECTS = (
    {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai"},
    {"openinference.span.kind": "LLM", "llm.system": "anthropic"},
    {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search"},
    {"ai.operationId": "ai.generateText.doGenerate", "ai.model.provider": "anthropic.messages"},
    {"http.route": "/"},
)


@st.composite
def programs(draw: st.DrawFn) -> list[Span]:
    """Spans of one kind as a program makes them: the same attributes in the same order, other values."""
    dialect = draw(st.sampled_from(DIALECTS))
    texts = draw(st.lists(st.sampled_from(NAMES), max_size=5))
    tokens = draw(st.lists(st.sampled_from(TOKENS), max_size=6))
    doubles = draw(st.lists(st.sampled_from(DOUBLES), max_size=2))
    has_parent = draw(st.booleans())
    values = draw(st.lists(st.tuples(TEXTS, COUNTS, st.floats()), min_size=1, max_size=6))
    spans = []
    for number in range(draw(st.sampled_from((20, 40)))):
        text, count, double = values[number % len(values)]
        span = Span(trace_id=draw(st.binary(min_size=16, max_size=16)), span_id=number.to_bytes(8), name="chat m")
        span.parent_span_id = b"p" * 8 if has_parent else b""
        span.start_time_unix_nano = START_NS + number
        span.end_time_unix_nano = START_NS + draw(st.sampled_from((1_900_000_000, 0, 2**62)))
        for name, told in dialect.items():
            span.attributes.add(key=name).value.string_value = told
        for name in texts:
            span.attributes.add(key=name).value.string_value = text
        for name in tokens:
            span.attributes.add(key=name).value.int_value = count
        for name in doubles:
            span.attributes.add(key=name).value.double_value = double
        spans.append(span)
    return spans


def body_of(spans: list[Span]) -> bytes:
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    group.resource.attributes.add(key="service.name").value.string_value = "backend"
    group.scope_spans.add().spans.extend(spans)
    return request.SerializeToString()


def read_with(fewest: int, body: bytes) -> Export:
    """Read spans in columns where at least so many are alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(otlp_spans, "FEWEST", fewest)
        patch.setattr(otlp_alike, "FEWEST", fewest)
        return read_spans(body, PROTOBUF, WANTED)


def in_columns(body: bytes) -> Export:
    return read_with(8, body)


def one_by_one(body: bytes) -> Export:
    return read_with(1_000_000, body)


def said(read: Read) -> tuple[Any, ...]:
    """What was read, whatever its order. NaN is in none of it."""
    calls = sorted(read.calls, key=lambda call: (call.dedupe_key, repr(call)))
    spans = sorted(read.spans, key=lambda span: (span.trace_id, span.span_id, repr(span)))
    return calls, spans, read.other_spans, read.refused


@given(st.lists(programs(), min_size=1, max_size=3), st.randoms())
@settings(max_examples=60, deadline=None)
def test_alike_spans_are_read_as_they_are_one_by_one(given_programs: list[list[Span]], random: Any) -> None:
    spans = [span for program in given_programs for span in program]
    random.shuffle(spans)
    body = body_of(spans)
    assert said(read_calls(in_columns(body), NOW_US)) == said(read_calls(one_by_one(body), NOW_US))


@given(programs(), EDITS)
@settings(max_examples=100, deadline=None)
def test_broken_bodies_are_read_or_refused_as_they_are_one_by_one(
    program: list[Span], edits: list[tuple[str, float, int, int]]
) -> None:
    body = edited(body_of(program), edits)
    try:
        expected = said(read_calls(one_by_one(body), NOW_US))
    except BadBodyError:
        with pytest.raises(BadBodyError):
            read_calls(in_columns(body), NOW_US)
        return
    assert said(read_calls(in_columns(body), NOW_US)) == expected


def test_a_program_s_spans_are_read_in_columns_but_for_those_that_differ() -> None:
    spans = []
    for number in range(64):
        span = Span(trace_id=(number + 1).to_bytes(16), span_id=(number + 1).to_bytes(8), name="chat m")
        span.start_time_unix_nano = START_NS + number
        span.end_time_unix_nano = START_NS + number + 2_000_000
        span.attributes.add(key="gen_ai.operation.name").value.string_value = "chat"
        span.attributes.add(key="gen_ai.response.id").value.string_value = "r" * (number + 100)  # lengths of two bytes
        span.attributes.add(key="gen_ai.usage.input_tokens").value.int_value = 100 * number
        spans.append(span)
    spans[7].attributes.add(key="error.type").value.string_value = "timeout"
    export = read_spans(body_of(spans), PROTOBUF, WANTED)
    assert ([len(group) for group in export.alike], [span.span_id for span in export.spans]) == ([63], [f"{8:016x}"])
    read = read_calls(export, NOW_US)
    by_span = {call.span_id: call for call in read.calls}
    last = by_span[f"{64:016x}"]
    assert (last.response_id, last.input_uncached_tokens, last.duration_us) == ("r" * 163, 6_300, 2_000)
    assert (by_span[f"{8:016x}"].status, last.status, len(read.spans)) == ("error", "ok", 64)
