"""Evaluations sent as log events, over HTTP to committed outcomes: each once, and of the rest of the logs nothing."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ingest.receivers.otlp import JSON, LOGS_PATH, PROTOBUF, TRACES_PATH
from ingest.settings import Settings
from ingest.store.engine import Database
from tests.db.ingest_harness import make_site, now_us, run
from tests.db.test_ingest_lineage import rows

pytestmark = pytest.mark.db

TRACE, SPAN = "ab" * 16, "cd" * 8
EVENT = "gen_ai.evaluation.result"
KEPT = (
    "SELECT response_id, trace_id, span_id, kind, score, label, source, origin FROM outcomes ORDER BY kind, response_id"
)


def attribute(key: str, value: Any) -> dict[str, Any]:
    kind = {str: "stringValue", float: "doubleValue", int: "intValue"}[type(value)]
    return {"key": key, "value": {kind: value}}


def record(at_ns: int, **changes: Any) -> dict[str, Any]:
    """An evaluation as the convention words it, its explanation and body included, which are content."""
    said = [
        attribute("gen_ai.evaluation.name", "relevance"),
        attribute("gen_ai.evaluation.score.value", 0.75),
        attribute("gen_ai.evaluation.score.label", "relevant"),
        attribute("gen_ai.evaluation.explanation", "the owl is secret"),
        attribute("gen_ai.response.id", "chatcmpl-7"),
    ]
    return {
        "timeUnixNano": str(at_ns),
        "eventName": EVENT,
        "body": {"stringValue": "the owl is secret"},
        "attributes": said,
        "traceId": TRACE,
        "spanId": SPAN,
    } | changes


def export(*records: dict[str, Any]) -> bytes:
    resource = {"attributes": [attribute("service.name", "judge"), attribute("wattledger.origin", "replayed")]}
    return json.dumps({"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": records}]}]}).encode()


def test_an_evaluation_is_kept_once_in_either_encoding_and_other_records_are_declined(db: Database) -> None:
    headers = {"authorization": f"Bearer {make_site(db).site_token}"}
    at_ns = now_us() * 1_000
    packed = ExportLogsServiceRequest()
    group = packed.resource_logs.add()
    group.resource.attributes.add(key="wattledger.origin").value.string_value = "replayed"
    scope = group.scope_logs.add()
    same = scope.log_records.add(time_unix_nano=at_ns, event_name=EVENT, trace_id=bytes.fromhex(TRACE))
    same.span_id = bytes.fromhex(SPAN)
    same.body.string_value = "the owl is secret"
    for key, text in (
        ("gen_ai.evaluation.name", "relevance"),
        ("gen_ai.evaluation.score.label", "relevant"),
        ("gen_ai.evaluation.explanation", "the owl is secret"),
        ("gen_ai.response.id", "chatcmpl-7"),
    ):
        same.attributes.add(key=key).value.string_value = text
    same.attributes.add(key="gen_ai.evaluation.score.value").value.double_value = 0.75
    # An SDK from before records had names of events, and without a trace.
    older = scope.log_records.add(observed_time_unix_nano=at_ns)
    for key, text in (("event.name", EVENT), ("gen_ai.evaluation.name", "tone"), ("gen_ai.response.id", "chatcmpl-8")):
        older.attributes.add(key=key).value.string_value = text
    older.attributes.add(key="gen_ai.evaluation.score.value").value.int_value = 1
    scope.log_records.add(severity_text="INFO").body.string_value = f"a text that speaks of {EVENT}"

    async def scenario(client: httpx.AsyncClient) -> None:
        for _ in range(2):
            answer = await client.post(
                LOGS_PATH, content=export(record(at_ns)), headers={**headers, "content-type": JSON}
            )
            assert (answer.status_code, answer.json()) == (200, {})
            answer = await client.post(
                LOGS_PATH, content=packed.SerializeToString(), headers={**headers, "content-type": PROTOBUF}
            )
            partial = ExportLogsServiceResponse.FromString(answer.content).partial_success
            assert (answer.status_code, partial.rejected_log_records) == (200, 1)
            assert "keeps no logs but gen_ai.evaluation.result" in partial.error_message

    run(Settings(db), scenario)
    replayed = 3
    assert rows(db, KEPT) == [
        ("chatcmpl-7", TRACE, SPAN, "relevance", 0.75, "relevant", "log", replayed),
        ("chatcmpl-8", None, None, "tone", 1.0, None, "log", replayed),
    ]
    assert rows(db, "SELECT count(*) FROM outcomes o WHERE o::text LIKE '%owl%'") == [(0,)]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"attributes": []}, "gen_ai.evaluation.name is missing"),
        ({"attributes": [attribute("gen_ai.evaluation.name", "tone")]}, "no score and no label"),
        ({"timeUnixNano": "5"}, "a time that cannot be"),
        (
            {
                "traceId": "",
                "spanId": "",
                "attributes": [
                    attribute("gen_ai.evaluation.name", "tone"),
                    attribute("gen_ai.evaluation.score.value", 0.5),
                ],
            },
            "no response id and no trace",
        ),
        ({"traceId": "xyz"}, "cannot be read"),
    ],
)
def test_an_evaluation_that_says_nothing_is_rejected_with_why_and_the_others_are_kept(
    db: Database, changes: dict[str, Any], why: str
) -> None:
    headers = {"authorization": f"Bearer {make_site(db).site_token}", "content-type": JSON}
    at_ns = now_us() * 1_000

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post(LOGS_PATH, content=export(record(at_ns, **changes), record(at_ns)), headers=headers)
        partial = answer.json()["partialSuccess"]
        assert (answer.status_code, partial["rejectedLogRecords"]) == (200, "1")
        assert why in partial["errorMessage"]

    run(Settings(db), scenario)
    assert rows(db, "SELECT count(*) FROM outcomes") == [(1,)]


def test_the_same_words_on_a_span_s_event_and_in_a_log_record_are_one_evaluation(db: Database) -> None:
    headers = {"authorization": f"Bearer {make_site(db).site_token}"}
    at_ns = now_us() * 1_000
    request = ExportTraceServiceRequest()
    span = (
        request.resource_spans.add()
        .scope_spans.add()
        .spans.add(
            trace_id=bytes.fromhex(TRACE), span_id=bytes.fromhex(SPAN), name="evaluate", start_time_unix_nano=at_ns
        )
    )
    event = span.events.add(name=EVENT, time_unix_nano=at_ns)
    for key, text in (
        ("gen_ai.evaluation.name", "relevance"),
        ("gen_ai.evaluation.score.label", "relevant"),
        ("gen_ai.response.id", "chatcmpl-7"),
    ):
        event.attributes.add(key=key).value.string_value = text
    event.attributes.add(key="gen_ai.evaluation.score.value").value.double_value = 0.75

    async def scenario(client: httpx.AsyncClient) -> None:
        sent = {**headers, "content-type": PROTOBUF}
        assert (await client.post(TRACES_PATH, content=request.SerializeToString(), headers=sent)).status_code == 200
        sent = {**headers, "content-type": JSON}
        assert (await client.post(LOGS_PATH, content=export(record(at_ns)), headers=sent)).json() == {}

    run(Settings(db), scenario)
    assert rows(db, "SELECT source FROM outcomes") == [("span",)]
