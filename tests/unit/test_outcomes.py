"""Outcomes as programs post them, and the evaluations that traces carry."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from ingest.receivers.gen_ai_names import WANTED
from ingest.receivers.otlp import JSON, PROTOBUF
from ingest.receivers.otlp_spans import read_spans
from ingest.receivers.outcomes import evaluations, read_outcomes

NOW_US = 1_795_000_000_000_000
GOOD: dict[str, Any] = {"response_id": "r-1", "kind": "thumbs", "label": "up", "at": "2026-11-18T08:00:00Z"}


def read(*given: dict[str, Any]) -> Any:
    return read_outcomes(json.dumps(given).encode(), NOW_US)


def test_an_outcome_keeps_value_exactly_with_its_unit_and_the_ids_of_each_hop() -> None:
    whole = {
        **GOOD,
        "value": "12.30",
        "value_unit": "EUR",
        "score": 0.5,
        "serving_id": "c1/77",
        "model": "nlp-7b-sft",
        "fine_tune_id": "c1/4711",
        "dataset_ids": ["s3://data:chats"],
    }
    (found,) = read(whole).outcomes
    assert (found.value, found.value_unit, found.score, found.label) == (Decimal("12.30"), "EUR", 0.5, "up")
    assert (found.serving_id, found.fine_tune_id, found.dataset_ids) == ("c1/77", "c1/4711", ("s3://data:chats",))


def test_the_same_outcome_has_the_same_key_and_another_one_another() -> None:
    first, again, other, named = read(
        GOOD, dict(reversed(GOOD.items())), {**GOOD, "label": "down"}, {**GOOD, "id": "o-1"}
    ).outcomes
    assert first.dedupe_key == again.dedupe_key
    assert len({first.dedupe_key, other.dedupe_key, named.dedupe_key}) == 3
    # 1 and 1.0 are one value, whatever a sender's serializer makes of it.
    one, same = read({**GOOD, "value": 1}, {**GOOD, "value": 1.0}).outcomes
    assert one.dedupe_key == same.dedupe_key


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"response_id": None}, "is of a response"),
        ({"label": None}, "says nothing"),
        ({"label": None, "score": "high"}, "score 'high' is no number"),
        ({"value": "1e40"}, "out of range"),
        ({"value": "NaN"}, "out of range"),
        ({"value": [1]}, "is no number"),
        ({"value": True}, "is no number"),
        ({"kind": ""}, "kind is missing"),
        ({"at": None}, "no RFC 3339 instant"),
        ({"trace_id": "xyz"}, "is not 32 hex digits"),
        ({"comment": "the answer said …"}, "no field of an outcome"),
        ({"dataset_ids": "one"}, "dataset_ids is no array"),
        ({"origin": "dreamt"}, "origin 'dreamt' is none of"),
        ({"label": "x" * 300}, "at most 255 characters"),
    ],
)
def test_a_bad_outcome_says_why_and_the_others_are_kept(changes: dict[str, Any], reason: str) -> None:
    got = read({**GOOD, **changes}, GOOD)
    assert len(got.outcomes) == 1
    assert got.refused[0].index == 0
    assert reason in got.refused[0].reason


RESULT = {
    "gen_ai.evaluation.name": "helpfulness",
    "gen_ai.evaluation.score.value": 0.92,
    "gen_ai.evaluation.explanation": "the customer's words",
}
LABEL = {"gen_ai.evaluation.name": "safety", "gen_ai.evaluation.score.label": "pass"}
END_NS = 1_794_000_000_000_000_000


def exported(form: str, attributes: dict[str, Any], *events: tuple[str, int, dict[str, Any]]) -> Any:
    """Spans as the receiver reads them of an export with one span of two seconds."""
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(trace_id=b"\xab" * 16, span_id=b"\xcd" * 8)
    span.start_time_unix_nano, span.end_time_unix_nano = END_NS - 2_000_000_000, END_NS

    def fill(target: Any, values: dict[str, Any]) -> None:
        for key, value in values.items():
            kind = (
                "double_value"
                if isinstance(value, float)
                else "string_value"
                if isinstance(value, str)
                else "int_value"
            )
            target.append(KeyValue(key=key, value=AnyValue(**{kind: value})))

    fill(span.attributes, attributes)
    for name, at_ns, values in events:
        fill(span.events.add(name=name, time_unix_nano=at_ns).attributes, values)
    if form == PROTOBUF:
        return read_spans(request.SerializeToString(), PROTOBUF, WANTED).spans
    sent = MessageToDict(request)
    sent["resourceSpans"][0]["scopeSpans"][0]["spans"][0] |= {"traceId": "ab" * 16, "spanId": "cd" * 8}
    return read_spans(json.dumps(sent).encode(), JSON, WANTED).spans


@pytest.mark.parametrize("form", [PROTOBUF, JSON])
def test_evaluations_on_a_span_and_on_its_events_are_outcomes_without_their_explanation(form: str) -> None:
    spans = exported(
        form,
        {"gen_ai.response.id": "r-1", **LABEL},
        ("gen_ai.evaluation.result", END_NS - 1_000_000_000, {**RESULT, "gen_ai.response.id": "r-2"}),
        ("gen_ai.evaluation.result", END_NS, RESULT),
        ("other", END_NS, RESULT),
    )
    found = evaluations(spans, NOW_US)
    end_us = END_NS // 1_000
    assert [(each.kind, each.score, each.label, each.response_id, each.judged_at_us) for each in found] == [
        ("helpfulness", 0.92, None, "r-2", end_us - 1_000_000),
        ("helpfulness", 0.92, None, "r-1", end_us),
        ("safety", None, "pass", "r-1", end_us),
    ]
    assert (found[0].trace_id, found[0].span_id, found[0].source) == ("ab" * 16, "cd" * 8, "span")
    assert "customer" not in repr(found)
    assert evaluations(spans, NOW_US) == found


@pytest.mark.parametrize(
    "values",
    [
        {"gen_ai.evaluation.name": "x"},
        {"gen_ai.evaluation.name": 7, "gen_ai.evaluation.score.value": 1.0},
        {"gen_ai.evaluation.name": "x", "gen_ai.evaluation.score.value": "1"},
        {"gen_ai.evaluation.name": "x" * 300, "gen_ai.evaluation.score.value": 1.0},
        {"gen_ai.evaluation.score.value": 1.0},
    ],
)
def test_an_evaluation_that_says_nothing_is_left_out(values: dict[str, Any]) -> None:
    assert evaluations(exported(PROTOBUF, values, ("gen_ai.evaluation.result", END_NS, values)), NOW_US) == ()


def test_an_evaluation_from_the_future_is_left_out() -> None:
    later = ("gen_ai.evaluation.result", 1_000 * NOW_US + 3_600_000_000_000, LABEL)
    assert evaluations(exported(PROTOBUF, {}, later), NOW_US) == ()
