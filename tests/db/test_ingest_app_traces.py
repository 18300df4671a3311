"""Traces over HTTP to committed calls: each once, whatever is sent twice."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from ingest.receivers.otlp import PROTOBUF, TRACES_PATH
from ingest.settings import Settings
from ingest.store import tokens
from ingest.store.engine import Database
from tests.db.ingest_harness import make_site, now_us, run

pytestmark = pytest.mark.db


def export(*spans: tuple[int, int, dict[str, str | int]]) -> bytes:
    """An export of chat spans, each (number, start in µs, attributes)."""
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    group.resource.attributes.append(KeyValue(key="wattledger.origin", value=AnyValue(string_value="simulated")))
    scope = group.scope_spans.add()
    for number, start_us, attributes in spans:
        span = scope.spans.add(trace_id=number.to_bytes(16, "big"), span_id=number.to_bytes(8, "big"))
        span.start_time_unix_nano, span.end_time_unix_nano = start_us * 1_000, start_us * 1_000 + 2_000_000_000
        given = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "m",
            **attributes,
        }
        for key, value in given.items():
            kind = "string_value" if isinstance(value, str) else "int_value"
            span.attributes.append(KeyValue(key=key, value=AnyValue(**{kind: value})))  # type: ignore[arg-type]
    return request.SerializeToString()


async def send(client: httpx.AsyncClient, body: bytes, secret: str, **headers: str) -> httpx.Response:
    sent = {"authorization": f"Bearer {secret}", "content-type": PROTOBUF, **headers}
    return await client.post(TRACES_PATH, content=body, headers=sent)


def rows(db: Database, query: str) -> list[tuple[Any, ...]]:
    with db.connect("admin") as conn:
        return conn.execute(query).fetchall()  # type: ignore[return-value,call-overload,unused-ignore]


USED: dict[str, str | int] = {
    "gen_ai.usage.input_tokens": 1_000,
    "gen_ai.usage.cache_read.input_tokens": 600,
    "gen_ai.usage.output_tokens": 250,
    "wattledger.api_key": "team-a",
}


def test_a_call_is_kept_once_however_often_and_by_whomever_it_is_reported(db: Database) -> None:
    site = make_site(db)
    at_us = now_us() - 3_000_000
    first = export((1, at_us, {**USED, "gen_ai.response.id": "r-1"}), (2, at_us, {}))
    # Another library saw the same response 40 ms later, in a span of its own.
    second = export((3, at_us + 40_000, {**USED, "gen_ai.response.id": "r-1"}))

    async def scenario(client: httpx.AsyncClient) -> None:
        answers = await asyncio.gather(*(send(client, body, site.site_token) for body in [first, second] * 5))
        assert [answer.status_code for answer in answers] == [200] * 10
        assert ExportTraceServiceResponse.FromString(answers[0].content).partial_success.rejected_spans == 0

    run(Settings(db), scenario)
    assert rows(
        db,
        "SELECT response_id, usage_known, input_uncached_tokens, cache_read_tokens, output_text_tokens, api_key, origin "
        "FROM api_calls ORDER BY response_id NULLS LAST",
    ) == [
        ("r-1", True, 400, 600, 250, "team-a", 4),
        (None, False, None, None, None, None, 4),
    ]
    assert rows(db, "SELECT DISTINCT kind, to_at - from_at = interval '1 hour' FROM changes") == [("api_calls", True)]


def test_steps_that_come_again_beside_new_calls_are_kept_once(db: Database) -> None:
    site = make_site(db)
    at_us = now_us() - 3_000_000
    step: dict[str, str | int] = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search"}
    bodies = [export((1, at_us, step), (number, at_us, USED)) for number in (2, 3)]
    # Seventy alike, read in columns, and then the same with one more.
    bodies += [export(*((number, at_us, USED) for number in range(10, last))) for last in (80, 81)]

    async def scenario(client: httpx.AsyncClient) -> None:
        for body in bodies:
            assert (await send(client, body, site.site_token)).status_code == 200

    run(Settings(db), scenario)
    assert rows(db, "SELECT (SELECT count(*) FROM api_calls), (SELECT count(*) FROM spans)") == [(73, 74)]
    assert rows(db, "SELECT DISTINCT input_uncached_tokens, cache_read_tokens, api_key FROM api_calls") == [
        (400, 600, "team-a")
    ]


def test_bad_spans_are_told_and_the_rest_is_kept(db: Database) -> None:
    site = make_site(db)
    body = export((1, now_us(), USED), (2, 5, USED), (3, now_us() + 3_600_000_000, USED))

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await send(client, gzip.compress(body), site.site_token, **{"content-encoding": "gzip"})
        partial = ExportTraceServiceResponse.FromString(answer.content).partial_success
        assert (answer.status_code, partial.rejected_spans) == (200, 2)
        assert partial.error_message == "1 spans before_2000; 1 spans from_the_future"

    run(Settings(db), scenario)
    assert rows(db, "SELECT (SELECT count(*) FROM api_calls), (SELECT count(*) FROM spans)") == [(1, 1)]


def test_a_token_that_only_reads_may_not_write_traces(db: Database) -> None:
    make_site(db)
    admin = db.create_engine("admin")
    with admin.begin() as conn:
        reader = tokens.create(conn, "reader", [tokens.Scope.READ], actor="t", tenant_path="*").secret
    admin.dispose()

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await send(client, export((1, now_us(), USED)), reader)
        # A google.rpc.Status: code 7, permission denied, and a message.
        assert (answer.status_code, answer.headers["content-type"], answer.content[:3]) == (
            403,
            PROTOBUF,
            b"\x08\x07\x12",
        )
        answer = await send(client, b"{}", reader, **{"content-type": "application/json"})
        assert (answer.json()["code"], answer.json()["type"]) == (7, "urn:wattledger:problem:scope_missing")

    run(Settings(db), scenario)


def test_texts_and_times_no_database_holds_become_such_as_it_does(db: Database) -> None:
    site = make_site(db)
    nano = now_us() * 1_000
    texts = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "open\0ai",
        "gen_ai.request.model": "m\n\0",
        "gen_ai.response.id": "r\0" + "x" * 3_000,
        "wattledger.api_key": "team\x1b-a",
    }
    span = {
        "traceId": "1" * 32,
        "spanId": "2" * 16,
        "startTimeUnixNano": str(nano),
        "endTimeUnixNano": "9" * 30,
        "attributes": [{"key": key, "value": {"stringValue": text}} for key, text in texts.items()],
        "events": [{"name": "first token", "timeUnixNano": "9" * 30}],
    }
    body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}).encode()

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await send(client, body, site.site_token, **{"content-type": "application/json"})
        assert answer.status_code == 200, answer.text
        lone = await send(
            client, body.replace(b"team", b"\\ud800"), site.site_token, **{"content-type": "application/json"}
        )
        assert lone.status_code == 400

    run(Settings(db), scenario)
    assert rows(
        db,
        "SELECT provider, model, api_key, length(response_id), duration_us, time_to_first_token_us FROM api_calls",
    ) == [("openai", "m", "team-a", 255, None, None)]


CONTENT = ("Paris", "Capital of France", "hello", "Budget has been exceeded")


def test_captured_bodies_are_taken_and_their_content_is_in_no_column(db: Database, shared: Path) -> None:
    site = make_site(db)
    folders = sorted((shared / "captures" / "otlp").glob("*/traces-1.raw.bin"))

    async def scenario(client: httpx.AsyncClient) -> None:
        for path in folders:
            told = json.loads(path.with_name("traces-1.headers.json").read_text())
            sent = {name: value for name, value in told.items() if name.lower() in ("content-type", "content-encoding")}
            body = path.read_bytes()
            for _ in range(2):  # the same again changes nothing
                answer = await client.post(
                    TRACES_PATH, content=body, headers={**sent, "authorization": f"Bearer {site.site_token}"}
                )
                assert answer.status_code == 200, (path, answer.content)
                assert answer.content in (b"", b"{}")

    run(Settings(db), scenario)
    # All senders spoke to one API, so the ids are the same everywhere; what has none counts by itself.
    ids = rows(db, "SELECT response_id, count(*) FROM api_calls WHERE response_id IS NOT NULL GROUP BY 1 ORDER BY 1")
    assert ids == [("chatcmpl-lab1", 1), ("chatcmpl-lab2", 1), ("resp_lab1", 1)]
    # Of the first, told by six senders, the best knows all parts: 1,000 - 600 and 250 - 120.
    assert rows(
        db,
        "SELECT input_uncached_tokens, cache_read_tokens, output_text_tokens, reasoning_tokens FROM api_calls "
        "WHERE response_id = 'chatcmpl-lab1'",
    ) == [(400, 600, 130, 120)]
    # Six embeddings and six refused calls; two streams of OpenInference; a call each of Node and the collector.
    assert rows(db, "SELECT count(*) FROM api_calls WHERE response_id IS NULL") == [(16,)]
    for table in ("api_calls", "call_reports", "call_keys", "spans"):
        kept = rows(db, f"SELECT row_to_json(kept)::text FROM {table} AS kept")
        assert kept
        assert [word for (row,) in kept for word in CONTENT if word in row] == []


def test_zstd_and_json_in_pieces_are_taken(db: Database) -> None:
    site = make_site(db)
    span = {
        "traceId": "AB" * 16,
        "spanId": "CD" * 8,
        "startTimeUnixNano": now_us() * 1_000,
        "attributes": [
            {"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}},
            {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "7"}},
            {"key": "gen_ai.usage.output_tokens", "value": {"intValue": 5}},
        ],
    }
    body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 50):
            yield body[at : at + 50]

    async def scenario(client: httpx.AsyncClient) -> None:
        packed = zstandard.compress(export((1, now_us(), USED)))
        answer = await send(client, packed, site.site_token, **{"content-encoding": "zstd"})
        assert (answer.status_code, answer.content) == (200, b"")
        sent = {"authorization": f"Bearer {site.site_token}", "content-type": "application/json"}
        chunked = await client.post(TRACES_PATH, content=pieces(), headers=sent)
        assert (chunked.status_code, chunked.content) == (200, b"{}")

    run(Settings(db), scenario)
    assert rows(db, "SELECT trace_id, input_uncached_tokens, output_text_tokens FROM api_calls ORDER BY 1 DESC") == [
        ("ab" * 16, 7, 5),
        ("0" * 31 + "1", 400, 250),
    ]


def test_logs_are_declined_each_record_of_them(db: Database) -> None:
    site = make_site(db)
    request = ExportLogsServiceRequest()
    request.resource_logs.add().scope_logs.add().log_records.add(severity_text="INFO")

    async def scenario(client: httpx.AsyncClient) -> None:
        sent = {"authorization": f"Bearer {site.site_token}", "content-type": PROTOBUF}
        answer = await client.post("/v1/logs", content=request.SerializeToString(), headers=sent)
        partial = ExportLogsServiceResponse.FromString(answer.content).partial_success
        assert (answer.status_code, partial.rejected_log_records) == (200, 1)
        assert "no logs" in partial.error_message
        empty = await client.post("/v1/logs", content=b"", headers=sent)
        assert (empty.status_code, empty.content) == (200, b"")
        assert (await client.post("/v1/logs", content=b"")).status_code == 401

    run(Settings(db), scenario)


def test_steps_of_a_trace_are_kept_with_what_tells_them_apart(db: Database) -> None:
    site = make_site(db)
    tool: dict[str, str | int] = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "now"}

    async def scenario(client: httpx.AsyncClient) -> None:
        for _ in range(2):
            assert (
                await send(client, export((1, now_us_once, USED), (2, now_us_once, tool)), site.site_token)
            ).is_success

    now_us_once = now_us()
    run(Settings(db), scenario)
    assert rows(db, "SELECT kind, model, status, duration_us, attributes FROM spans ORDER BY kind") == [
        ("chat", "m", "ok", 2_000_000, {}),
        ("execute_tool", None, "ok", 2_000_000, {"gen_ai.tool.name": "now"}),
    ]


def test_spans_of_long_ago_are_refused_and_make_no_tables_while_those_of_the_window_do(db: Database) -> None:
    site = make_site(db)
    day_us = 86_400_000_000
    today = now_us() - 3_000_000
    # A replayed archive: a span of each of 700 days; and one of a month ago.
    archive = export(*((number, 946_684_800_000_000 + number * day_us, {}) for number in range(1, 701)))
    late = export((1_000, today - 34 * day_us, {}), (1_001, today - 36 * day_us, {}), (1_002, today, {}))
    tables = "SELECT count(*) FROM stored_days() WHERE parent IN ('api_calls', 'spans')"

    async def scenario(client: httpx.AsyncClient) -> None:
        ((before,),) = rows(db, tables)
        answer = await send(client, archive, site.site_token)
        told = ExportTraceServiceResponse.FromString(answer.content).partial_success
        assert (answer.status_code, told.rejected_spans) == (200, 700)
        assert told.error_message == "700 spans too_old (more than 35 days ago; WATTLEDGER_INGEST_TRACE_DAYS)"
        assert rows(db, tables) == [(before,)]
        answer = await send(client, late, site.site_token)
        assert ExportTraceServiceResponse.FromString(answer.content).partial_success.rejected_spans == 1
        assert rows(db, tables) == [(before + 2,)]
        shown = (await client.get("/metrics")).text
        assert 'wattledger_ingest_refused_rows_total{reason="too_old",stream="spans"} 701' in shown

    run(Settings(db), scenario)
    assert rows(db, "SELECT count(*) FROM api_calls") == [(2,)]


def test_evaluations_that_are_refused_do_not_refuse_the_spans_that_are_kept(db: Database) -> None:
    site = make_site(db)
    admin = db.create_engine("admin")
    with admin.begin() as conn:
        nobody = tokens.create(
            conn, "t", [tokens.Scope.WRITE], actor="test", site_id=site.site_id, tenant_path="not/known"
        ).secret
    admin.dispose()
    request = ExportTraceServiceRequest.FromString(export((1, now_us() - 3_000_000, {})))
    span = request.resource_spans[0].scope_spans[0].spans[0]
    judged = span.events.add(name="gen_ai.evaluation.result", time_unix_nano=span.start_time_unix_nano)
    judged.attributes.add(key="gen_ai.evaluation.name").value.string_value = "thumbs"
    judged.attributes.add(key="gen_ai.evaluation.score.label").value.string_value = "up"

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await send(client, request.SerializeToString(), nobody)
        told = ExportTraceServiceResponse.FromString(answer.content).partial_success
        assert (answer.status_code, told.rejected_spans) == (200, 0)
        assert told.error_message.startswith("1 evaluations are not kept: this token writes for 'not/known'")

    run(Settings(db), scenario)
    assert rows(db, "SELECT count(*) FROM api_calls") == [(1,)]


def test_a_day_that_was_dropped_since_it_was_seen_is_made_again(db: Database) -> None:
    site = make_site(db)
    day_us = 86_400_000_000
    at_us = now_us() - 20 * day_us
    drop = (
        "DO $$ DECLARE child text; BEGIN FOR child IN SELECT format('%I.%I', namespace, relation) FROM stored_days() "
        "WHERE parent IN ('api_calls', 'spans') AND day < now() - interval '10 days' LOOP EXECUTE 'DROP TABLE ' || child; "
        "END LOOP; END $$"
    )

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await send(client, export((1, at_us, {})), site.site_token)).status_code == 200
        with db.connect("admin", autocommit=True) as admin:
            admin.execute(drop)
        answer = await send(client, export((2, at_us, {})), site.site_token)
        assert (answer.status_code, answer.content) == (200, b"")

    run(Settings(db), scenario)
    assert rows(db, "SELECT count(*) FROM spans") == [(1,)]
