"""Spans as the real senders sent them. Every chat used 1,000 input tokens, 600 of them cached, and 250 output tokens, 120 of
them reasoning; the fake API gave both streamed chats the same response id."""

import json
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from ingest.calls import ApiCall
from ingest.content_encoding import decoded
from ingest.receivers.gen_ai import Read, read_calls
from ingest.receivers.gen_ai_names import WANTED
from ingest.receivers.otlp import JSON, PROTOBUF, media_type
from ingest.receivers.otlp_spans import read_spans

pytestmark = pytest.mark.contract

NOW_US = 1_900_000_000_000_000


def captured(shared: Path, sender: str, number: int = 1) -> Read:
    folder = shared / "captures" / "otlp" / sender
    headers = {
        name.lower(): value
        for name, value in json.loads((folder / f"traces-{number}.headers.json").read_text()).items()
    }
    body = decoded((folder / f"traces-{number}.raw.bin").read_bytes(), headers.get("content-encoding"), 10_000_000)
    return read_calls(read_spans(body, media_type(headers["content-type"]), WANTED), NOW_US)


def parts(call: ApiCall) -> tuple[int | None, ...]:
    return (
        call.input_uncached_tokens,
        call.cache_read_tokens,
        call.cache_write_tokens,
        call.output_text_tokens,
        call.reasoning_tokens,
    )


FULL = (400, 600, None, 130, 120)  # 1,000 - 600 cached, 250 - 120 reasoning
CACHED = (400, 600, None, 250, None)
TOTALS = (1_000, None, None, 250, None)
UNKNOWN = (None,) * 5
EMBEDDED = (8, None, None, None, None)
EMBEDDED_UNCACHED = (8, 0, None, None, None)
R429 = (None, UNKNOWN, "error")
# (response id, parts, status) of each call, in the order in which they were sent.
SENT: dict[str, list[tuple[str | None, tuple[int | None, ...], str]]] = {
    "openllmetry-openai": [
        ("chatcmpl-lab1", FULL, "ok"),
        ("chatcmpl-lab2", CACHED, "ok"),  # a stream does not report reasoning to it
        ("chatcmpl-lab2", UNKNOWN, "ok"),
        ("resp_lab1", FULL, "ok"),
        (None, EMBEDDED_UNCACHED, "ok"),
        R429,
    ],
    "traceloop-sdk": [
        ("chatcmpl-lab1", FULL, "ok"),
        ("chatcmpl-lab2", CACHED, "ok"),
        ("chatcmpl-lab2", UNKNOWN, "ok"),
        ("resp_lab1", FULL, "ok"),
        (None, EMBEDDED_UNCACHED, "ok"),
        R429,
    ],
    "traceloop-sdk-0.45-legacy": [
        ("chatcmpl-lab1", CACHED, "ok"),
        ("chatcmpl-lab2", CACHED, "ok"),
        ("chatcmpl-lab2", UNKNOWN, "ok"),
        ("resp_lab1", CACHED, "ok"),
        (None, EMBEDDED_UNCACHED, "ok"),
        R429,
    ],
    "otel-openai-v2": [
        ("chatcmpl-lab1", TOTALS, "ok"),
        ("chatcmpl-lab2", TOTALS, "ok"),
        ("chatcmpl-lab2", UNKNOWN, "ok"),
        R429,
        (None, EMBEDDED, "ok"),
    ],
    "otel-openai-v2-latest": [
        ("chatcmpl-lab1", TOTALS, "ok"),
        ("chatcmpl-lab2", TOTALS, "ok"),
        ("chatcmpl-lab2", UNKNOWN, "ok"),
        R429,
        (None, EMBEDDED, "ok"),
    ],
    "openinference-openai": [
        ("chatcmpl-lab1", FULL, "ok"),
        (None, FULL, "ok"),
        (None, UNKNOWN, "ok"),
        ("resp_lab1", FULL, "ok"),
        (None, EMBEDDED, "ok"),
        R429,
    ],
    "node-otlp-json": [(None, TOTALS, "ok")],
    "rotel-collector": [(None, (10, None, None, 5, None), "ok")],
}


@pytest.mark.parametrize("sender", SENT)
def test_each_call_of_a_capture_has_the_tokens_its_sender_gives(shared: Path, sender: str) -> None:
    read = captured(shared, sender)
    assert [(call.response_id, parts(call), call.status) for call in read.calls] == SENT[sender]
    assert all(call.usage_known == (parts(call) != UNKNOWN) for call in read.calls)
    assert read.refused == {}


def test_every_captured_sender_is_in_the_table(shared: Path) -> None:
    captures = {path.parent.name for path in (shared / "captures" / "otlp").glob("*/traces-*.raw.bin")}
    assert captures == set(SENT)


def test_what_else_a_call_says(shared: Path) -> None:
    plain, stream, *_ = captured(shared, "openllmetry-openai").calls
    assert (plain.provider, plain.model, plain.api_key) == ("openai", "gpt-5-mini-2025-08-07", "lab-app")
    assert (plain.streamed, stream.streamed) == (False, True)
    assert stream.time_to_first_token_us is not None
    openinference = captured(shared, "openinference-openai").calls
    assert [call.streamed for call in openinference] == [None, True, True, None, None, None]
    legacy = captured(shared, "traceloop-sdk-0.45-legacy").calls
    assert {call.api_key for call in legacy} == {"u1"}


def test_a_workflow_is_a_step_of_the_trace_and_no_call(shared: Path) -> None:
    read = captured(shared, "traceloop-sdk")
    assert (len(read.calls), len(read.spans), read.other_spans) == (6, 7, 0)
    (workflow,) = [span for span in read.spans if span.kind == "invoke_workflow"]
    assert (workflow.name, workflow.parent_span_id, workflow.model) == ("lab_workflow.workflow", None, None)
    assert {span.parent_span_id for span in read.spans} == {None, workflow.span_id}
    assert workflow.attributes["gen_ai.workflow.name"] == "lab_workflow"


def test_json_from_node_reads_like_protobuf(shared: Path) -> None:
    (call,) = captured(shared, "node-otlp-json").calls
    assert call.trace_id == "71326064daf2735bd9c884e423b39641"
    assert call.dedupe_key == "span/71326064daf2735bd9c884e423b39641/45499f67063fdf58"
    assert call.called_at_us == 1_795_255_064_555_000
    assert call.duration_us == 226


def test_a_collectors_span_without_a_model_is_named_by_its_span(shared: Path) -> None:
    (call,) = captured(shared, "rotel-collector").calls
    assert (call.provider, call.model) == ("openai", "gpt-5-mini")


@pytest.mark.parametrize("sender", SENT)
def test_no_message_content_survives(shared: Path, sender: str) -> None:
    said = repr(captured(shared, sender))
    assert "Paris" not in said
    assert "Capital" not in said


def exported(shared: Path, name: str) -> Read:
    """Read a trace as Langfuse exports it, put back into the OTLP/JSON it came in."""
    (path,) = (shared / "data" / "fixtures" / "genai-traces-langfuse").glob(f"{name}*.json")
    spans = []
    for observation in json.loads(path.read_text())["observations"]:
        kept = observation["metadata"]
        kept = json.loads(kept) if isinstance(kept, str) else kept
        spans.append(
            {
                "traceId": observation["traceId"],
                "spanId": observation["id"],
                "parentSpanId": observation["parentObservationId"] or "",
                "name": observation["name"],
                "startTimeUnixNano": "1795255064555000000",
                "endTimeUnixNano": "1795255064556000000",
                "attributes": [
                    {"key": key, "value": any_value(value)} for key, value in kept.get("attributes", {}).items()
                ],
            }
        )
    return read_calls(read_spans(export_of(*spans), JSON, WANTED), NOW_US)


def any_value(value: Any) -> dict[str, Any]:
    """Langfuse exports each attribute as text; a number was one before."""
    text = value if isinstance(value, str) else json.dumps(value)
    return {"intValue": text} if text.isdigit() else {"stringValue": text}


def export_of(*spans: dict[str, Any]) -> bytes:
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}).encode()


def test_vercels_steps_are_calls_and_what_adds_them_up_is_not(shared: Path) -> None:
    read = exported(shared, "vercel")
    (call,) = read.calls
    assert (call.provider, call.model, parts(call)) == ("openai", "gpt-5-2025-08-07", (62, None, None, 85, None))
    assert call.response_id == "resp_097184780dc1e1bc00691b3756e6848195a954cd789a29c378"
    assert sorted(
        (span.kind, span.attributes.get("gen_ai.tool.name")) for span in read.spans if span.kind != "chat"
    ) == [
        ("execute_tool", "getWeather"),
        ("invoke_agent", None),
    ]


def test_pydantic_ais_agents_repeat_the_usage_of_their_calls(shared: Path) -> None:
    read = exported(shared, "pydantic")
    assert sorted(parts(call)[0::3] for call in read.calls) == [(131, 69), (265, 73), (417, 53), (502, 14)]
    kinds = sorted(span.kind for span in read.spans)
    # The span around all, and the one around three tools, are none of these; the trace is whole with them.
    assert kinds == ["chat"] * 4 + ["execute_tool"] * 3 + ["invoke_agent"] * 3 + ["other"] * 2


def test_microsofts_agent_has_the_response_id_of_its_last_call(shared: Path) -> None:
    read = exported(shared, "microsoft")
    assert [parts(call)[0::3] for call in read.calls] == [(77, 86), (216, 20)]
    assert [span.kind for span in read.spans] == ["invoke_agent", "chat", "chat", "execute_tool"]
    assert "helpful assistant" not in repr(read)


def span_json(*, named: str = "", **attributes: object) -> dict[str, Any]:
    def spelled(value: object) -> dict[str, object]:
        if isinstance(value, float):
            return {"doubleValue": value}
        return {"stringValue" if isinstance(value, str) else "intValue": value}

    return {
        "traceId": "0" * 31 + "1",
        "spanId": "0" * 15 + "1",
        "name": named,
        "startTimeUnixNano": "1795255064555000000",
        "endTimeUnixNano": "1795255064556000000",
        "attributes": [{"key": key.replace("__", "."), "value": spelled(value)} for key, value in attributes.items()],
    }


def only_call(**attributes: object) -> ApiCall:
    given: dict[str, Any] = {
        "gen_ai__operation__name": "chat",
        "gen_ai__system": "x",
        "gen_ai__request__model": "m",
        **attributes,
    }
    (call,) = read_calls(read_spans(export_of(span_json(**given)), JSON, WANTED), NOW_US).calls
    return call


def test_cache_tokens_beside_the_input_leave_it_whole() -> None:
    call = only_call(gen_ai__usage__input_tokens="7", gen_ai__usage__cache_read__input_tokens=600)
    assert call.input_uncached_tokens is None  # a text is no number, and a guess would be billed
    call = only_call(gen_ai__usage__input_tokens=7, gen_ai__usage__cache_read__input_tokens=600)
    assert (call.input_uncached_tokens, call.cache_read_tokens) == (7, 600)


@pytest.mark.parametrize(
    ("total", "uncached", "text"),
    [
        (1_250, 400, 130),  # both inside: 1,000 + 250
        (1_850, 1_000, 130),  # cached beside: 1,000 + 600 + 250
        (1_370, 400, 250),  # reasoning beside: 1,000 + 250 + 120
        (1_970, 1_000, 250),  # both beside
        (9_999, 400, 130),  # no way to add up to it: the convention holds
    ],
)
def test_the_total_tells_what_is_counted_beside(total: int, uncached: int, text: int) -> None:
    call = only_call(
        gen_ai__usage__input_tokens=1_000,
        gen_ai__usage__output_tokens=250,
        gen_ai__usage__cache_read__input_tokens=600,
        gen_ai__usage__reasoning_tokens=120,
        gen_ai__usage__total_tokens=total,
    )
    assert (call.input_uncached_tokens, call.output_text_tokens) == (uncached, text)


@pytest.mark.parametrize(("version", "uncached"), [("5.0.76", 1_000), ("6.0.1", 400)])
def test_vercel_before_version_6_passes_on_what_anthropic_counts(version: str, uncached: int) -> None:
    call = only_call(
        gen_ai__system="anthropic.messages",
        ai__operationId="ai.streamText.doStream",
        **{"ai.request.headers.user-agent": f"ai/{version}"},
        ai__usage__inputTokens=1_000.0,  # JavaScript has no integers
        ai__usage__cachedInputTokens=600,
    )
    assert (call.provider, call.streamed, call.input_uncached_tokens) == ("anthropic", True, uncached)


def test_a_secret_in_place_of_a_name_is_not_kept() -> None:
    call = only_call(wattledger__api_key="sk-proj-abcdefghijklmnopqrstuvwxyz")
    assert call.api_key is not None
    assert call.api_key.startswith("fingerprint:")
    assert only_call(wattledger__api_key="team-a-prod").api_key == "team-a-prod"


def test_a_call_that_was_given_up_is_cancelled() -> None:
    assert only_call(error__type="asyncio.CancelledError").status == "cancelled"
    assert only_call(error__type="RateLimitError").status == "error"


def test_spans_with_impossible_times_or_ids_are_counted_not_kept() -> None:
    early = span_json(gen_ai__operation__name="chat") | {"startTimeUnixNano": "5"}
    nameless = span_json(gen_ai__operation__name="chat") | {"traceId": ""}
    read = read_calls(read_spans(export_of(early, nameless), JSON, WANTED), NOW_US)
    assert (len(read.calls), len(read.spans)) == (0, 0)
    assert read.refused == {"before_2000": 1, "no_ids": 1}


@pytest.mark.parametrize("many", [1, 40])
def test_ids_of_zeros_are_none_and_spans_before_the_window_are_too_old(many: int) -> None:
    call = span_json(gen_ai__operation__name="chat")
    at_ns = int(call["startTimeUnixNano"])
    oldest_us = at_ns // 1_000

    def spans(**changes: Any) -> list[dict[str, Any]]:
        return [call | {"traceId": f"{n:032x}", "spanId": f"{n:016x}"} | changes for n in range(1, many + 1)]

    told = [
        *spans(traceId="0" * 32),
        *spans(spanId="0" * 16),
        *spans(startTimeUnixNano=str(at_ns - 1_000)),
        *spans(),
    ]
    in_protobuf = ExportTraceServiceRequest()
    scope = in_protobuf.resource_spans.add().scope_spans.add()
    for given in told:
        ids = {"trace_id": bytes.fromhex(given["traceId"]), "span_id": bytes.fromhex(given["spanId"])}
        span = scope.spans.add(**ids, start_time_unix_nano=int(given["startTimeUnixNano"]))
        span.attributes.add(key="gen_ai.operation.name").value.string_value = "chat"
    for media, body in ((JSON, export_of(*told)), (PROTOBUF, in_protobuf.SerializeToString())):
        read = read_calls(read_spans(body, media, WANTED), NOW_US, oldest_us)
        assert (len(read.calls), read.refused) == (many, {"no_ids": 2 * many, "too_old": many})


@pytest.mark.parametrize(
    ("changes", "reason", "why"),
    [
        ({"traceId": "abc"}, "bad_ids", "an id must be 32 hex digits, got 'abc'"),
        ({"spanId": "g" * 16}, "bad_ids", "an id must be 16 hex digits, got 'gggggggggggggggg'"),
        ({"attributes": "none"}, "malformed", "attributes must be a list, got 'none'"),
        ({"attributes": [7]}, "malformed", "an attribute must be an object, got 7"),
        ({"events": {"name": "x"}}, "malformed", "events must be a list, got {'name': 'x'}"),
        ({"startTimeUnixNano": "soon"}, "malformed", "startTimeUnixNano must be a number, got 'soon'"),
        (
            {"attributes": [{"key": "gen_ai.usage.input_tokens", "value": {"intValue": "x"}}]},
            "malformed",
            "intValue of gen_ai.usage.input_tokens must be a number, got 'x'",
        ),
        ({"status": "ok"}, "malformed", "status must be an object, got 'ok'"),
    ],
)
def test_a_span_of_json_that_cannot_be_read_costs_only_itself_and_says_why(
    changes: dict[str, Any], reason: str, why: str
) -> None:
    good = span_json(gen_ai__operation__name="chat", gen_ai__request__model="m")
    export = read_spans(export_of(good | changes, good), JSON, WANTED)
    assert (len(export.spans), export.refused, export.why) == (1, {reason: 1}, {reason: why})


def test_members_that_have_their_default_are_left_out_of_json_and_are_no_fault() -> None:
    event = {"timeUnixNano": "1"}
    odd = span_json(gen_ai__operation__name="chat", gen_ai__request__model="m") | {"events": [event]}
    odd["attributes"].append({"value": {"stringValue": "x"}})
    export = read_spans(export_of(odd), JSON, WANTED)
    assert (len(export.spans), export.refused) == (1, {})


def test_a_span_of_protobuf_that_cannot_be_read_costs_only_itself() -> None:
    good = SpanMessage(trace_id=b"1" * 16, span_id=b"1" * 8, name="chat").SerializeToString()
    bad = good.replace(b"chat", b"ch\xff\xff")
    body = b"".join(bytes((0x12, len(span))) + span for span in (good, bad))
    body = bytes((0x12, len(body))) + body
    export = read_spans(bytes((0x0A, len(body))) + body, PROTOBUF, WANTED)
    assert (len(export.spans), export.refused) == (1, {"malformed": 1})


def test_spans_of_traces_without_an_llm_are_not_kept() -> None:
    read = read_calls(read_spans(export_of(span_json(named="GET /", http__method="GET")), JSON, WANTED), NOW_US)
    assert (len(read.calls), len(read.spans), read.other_spans, read.refused) == (0, 0, 1, {})
