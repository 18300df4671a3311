"""Real senders: the OpenTelemetry SDK's OTLP exporter, and a real collector that forwards what it gets."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from pathlib import Path

import httpx
import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from ingest.receivers.otlp import TRACES_PATH
from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import Database
from tests.db import ingest_server
from tests.db.ingest_harness import make_site

pytestmark = pytest.mark.db

PATIENCE_S = 30.0


@contextmanager
def serving(server: EmbeddedServer, db: Database) -> Iterator[str]:
    port = ingest_server.free_port()
    process = ingest_server.start(server.placement.socket_dir, db.name, port)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def spoken(exporter: SpanExporter) -> None:
    """An agent that calls a model and a tool, as an instrumented program has it."""
    provider = TracerProvider(resource=Resource.create({"service.name": "chat-backend"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    agent: dict[str, str | int] = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "weather"}
    call: dict[str, str | int] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5-mini",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.usage.input_tokens": 1_000,
        "gen_ai.usage.cache_read.input_tokens": 600,
        "gen_ai.usage.output_tokens": 250,
        "gen_ai.input.messages": "Capital of France?",
    }
    with tracer.start_as_current_span("invoke_agent weather", attributes=agent):
        with tracer.start_as_current_span("chat gpt-5-mini", attributes=call):
            pass
        with tracer.start_as_current_span("execute_tool now", attributes={"gen_ai.operation.name": "execute_tool"}):
            pass
    provider.shutdown()


def kept(db: Database) -> tuple[list[tuple[object, ...]], int]:
    with db.connect("admin") as conn:
        calls = conn.execute(
            "SELECT model, api_key, input_uncached_tokens, cache_read_tokens, output_text_tokens FROM api_calls"
        ).fetchall()
        spans = conn.execute("SELECT count(*) FROM spans").fetchone()
    assert spans is not None
    return calls, int(str(spans[0]))


EXPECTED = [("gpt-5-mini", "chat-backend", 400, 600, 250)]


class Listening(SpanExporter):
    """The real exporter, and what it says of each export."""

    def __init__(self, real: OTLPSpanExporter) -> None:
        self.real = real
        self.results: list[SpanExportResult] = []

    def export(self, spans: object) -> SpanExportResult:
        self.results.append(self.real.export(spans))  # type: ignore[arg-type]
        return self.results[-1]


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_the_sdks_exporter_is_answered_with_success(
    db: Database, server: EmbeddedServer, compression: Compression
) -> None:
    site = make_site(db)
    with serving(server, db) as url:
        exporter = Listening(
            OTLPSpanExporter(
                f"{url}{TRACES_PATH}",
                headers={"Authorization": f"Bearer {site.site_token}"},
                compression=compression,
            )
        )
        spoken(exporter)
        assert exporter.results == [SpanExportResult.SUCCESS] * 3
        # Each span of its own export: the workflow around the call came last.
        assert kept(db) == (EXPECTED, 3)
        refused = Listening(OTLPSpanExporter(f"{url}{TRACES_PATH}", headers={"Authorization": "Bearer wrong"}))
        spoken(refused)
        assert refused.results == [SpanExportResult.FAILURE] * 3


def test_a_real_collector_forwards_what_an_sdk_sends_it(db: Database, server: EmbeddedServer, tmp_path: Path) -> None:
    site = make_site(db)
    found = util.find_spec("rotel")
    assert found is not None
    assert found.origin is not None
    grpc_port, http_port = ingest_server.free_port(), ingest_server.free_port()
    with serving(server, db) as url:
        command = [
            str(Path(found.origin).parent / "rotel-agent"),
            "start",
            *("--otlp-grpc-endpoint", f"127.0.0.1:{grpc_port}"),
            *("--otlp-http-endpoint", f"127.0.0.1:{http_port}"),
            *("--exporter", "otlp", "--otlp-exporter-protocol", "http", "--otlp-exporter-endpoint", url),
            *("--otlp-exporter-custom-headers", f"Authorization=Bearer {site.site_token}"),
            *("--batch-timeout", "200ms"),
        ]
        with (tmp_path / "rotel.log").open("wb") as log:
            # Not to be led astray by a proxy of the machine's.
            environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
            collector = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=tmp_path)
        try:
            sent_to = f"http://127.0.0.1:{http_port}{TRACES_PATH}"
            _await_listening(sent_to)
            spoken(OTLPSpanExporter(sent_to))
            deadline = time.monotonic() + PATIENCE_S
            while kept(db) != (EXPECTED, 3):
                assert time.monotonic() < deadline, (kept(db), (tmp_path / "rotel.log").read_text()[-2_000:])
                time.sleep(0.1)
        finally:
            collector.terminate()
            collector.wait(10)


def _await_listening(url: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            httpx.post(url, content=b"", headers={"content-type": "application/x-protobuf"}, timeout=1)
        except httpx.TransportError:
            assert time.monotonic() < deadline, f"nothing listens at {url}"
            time.sleep(0.1)
        else:
            return
