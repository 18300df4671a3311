"""ingest.otlp: LLM spans a second, from an OTLP/HTTP body to calls and steps of traces committed.

Bodies as SDKs send them: protobuf, 512 spans each, fourteen attributes a span, a message of 300 characters among them, of four
programs that take turns. Every call is a new one. The target is one small machine's: two cores for ingest, PostgreSQL and the senders together.
"""

from __future__ import annotations

import os
import time
from typing import Any, Final

import uvloop
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from bench import load
from bench.cpu import Spent
from bench.report import Result
from bench.stand import Stand, agent_tokens, ingest_process, stand
from ingest.receivers.otlp import PROTOBUF, TRACES_PATH

SPANS: Final = 512
"""OpenTelemetry's own batch size."""
PROGRAMS: Final = 4
"""Models by turns, and every other one says its port: spans of each are alike."""
BODIES: Final = 240
SENDERS: Final = 12
ROUNDS: Final = 3
TARGET: Final = 20_000.0
_MESSAGE: Final = "x" * 300


def run() -> list[Result]:
    with stand() as on:
        names = [f"sender-{number}" for number in range(SENDERS)]
        tokens = list(agent_tokens(on.database, names).values())
        rates: list[float] = []
        with ingest_process(on) as ingest_pid:
            spent = Spent(on, ingest_pid)
            _send(on, tokens, 2, Spent(on, ingest_pid))  # partitions, plans and caches
            for _ in range(ROUNDS):
                _empty(on)
                rates.append(_send(on, tokens, BODIES // SENDERS, spent))
            _check(on)
    sent = ROUNDS * BODIES * SPANS
    detail: dict[str, Any] = {
        "spans_per_body": SPANS,
        "rounds": [round(rate) for rate in rates],
        "cpu_us_per_span": spent.us_per_row(sent),
    }
    value = max(rates)
    return [Result("ingest.otlp spans", value, "spans/s", f">= {TARGET:,.0f}", value >= TARGET, TARGET, detail)]


def _send(on: Stand, tokens: list[str], each: int, spent: Spent) -> float:
    """Send ``each`` bodies per sender flat out; return committed spans per second."""
    bodies = [[body(time.time_ns()) for _ in range(each)] for _ in tokens]

    async def main() -> float:
        connections = await load.connect(on.port, tokens, TRACES_PATH, f"Content-Type: {PROTOBUF}\r\n")
        with spent.during():
            started_s = time.perf_counter()
            answers = await load.flat_out(connections, bodies)
            elapsed_s = time.perf_counter() - started_s
        for connection in connections:
            connection.close()
        failed = [answer for answer in answers if answer.status != 200 or answer.body]
        if failed:
            raise RuntimeError(
                f"{len(failed)} bodies not taken whole, first: {failed[0].status} {failed[0].body!r:.200}"
            )
        return len(answers) * SPANS / elapsed_s

    return uvloop.run(main())


def body(at_ns: int, spans: int = SPANS) -> bytes:
    """Return an export of calls nobody has told of before, a millisecond apart up to ``at_ns``."""
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    group.resource.attributes.append(KeyValue(key="service.name", value=AnyValue(string_value="chat-backend")))
    scope = group.scope_spans.add()
    for number in range(spans):
        name, program = os.urandom(12).hex(), number % PROGRAMS
        span = scope.spans.add(
            trace_id=os.urandom(16), span_id=os.urandom(8), parent_span_id=b"p" * 8, name="chat gpt-5-mini"
        )
        span.start_time_unix_nano = at_ns - number * 1_000_000 - 2_000_000_000
        span.end_time_unix_nano = span.start_time_unix_nano + 1_900_000_000
        texts = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": f"gpt-5-{program}",
            "gen_ai.response.model": f"gpt-5-{program}-2025-08-07",
            "gen_ai.response.id": f"chatcmpl-{name}",
            "gen_ai.input.messages": _MESSAGE,
            "server.address": "api.openai.com",
            "openai.response.service_tier": "default",
        }
        numbers = {
            "gen_ai.request.max_tokens": 1_000,
            "gen_ai.usage.input_tokens": 1_000,
            "gen_ai.usage.cache_read.input_tokens": 600,
            "gen_ai.usage.output_tokens": 250,
            "gen_ai.usage.reasoning_tokens": 120,
            "gen_ai.usage.total_tokens": 1_250,
        }
        if program % 2:
            numbers["server.port"] = 443
        for key, text in texts.items():
            span.attributes.append(KeyValue(key=key, value=AnyValue(string_value=text)))
        for key, count in numbers.items():
            span.attributes.append(KeyValue(key=key, value=AnyValue(int_value=count)))
    return request.SerializeToString()


def _empty(on: Stand) -> None:
    with on.database.connect("admin", autocommit=True) as conn:
        conn.execute("TRUNCATE api_calls, call_keys, call_reports, spans, changes")
        conn.execute("CHECKPOINT")


def _check(on: Stand) -> None:
    """What the last round sent is there: each call once, with its tokens, and each span."""
    with on.database.connect("admin") as conn:
        row = conn.execute(
            "SELECT count(*), sum(input_uncached_tokens), (SELECT count(*) FROM spans) FROM api_calls"
        ).fetchone()
    if row != (BODIES * SPANS, BODIES * SPANS * 400, BODIES * SPANS):
        raise RuntimeError(f"{BODIES * SPANS} spans were sent; calls, uncached tokens and spans kept: {row}")
