"""Spans of the service and the worker, as a collector on loopback gets them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from analytics.jobs import WorkerSettings
from collector.wire import SAMPLES_PATH
from ingest.store.engine import Database
from tests.db.ingest_harness import batch_meta, body_of, device_row, headers, make_site, now_us
from tests.db.ledger_fixture import HOUR, HOUR_AT, small_fleet
from tests.fakes.serving import serving
from wattledger.errors import WattledgerError
from wattledger.home import Home
from wattledger.service import create_service
from wattledger.tracing import traces_of
from wattledger.work import Worker

pytestmark = pytest.mark.db


@dataclass
class Collector:
    """Keeps the spans it is sent, by service."""

    url: str = ""
    spans: list[tuple[str, Span]] = field(default_factory=list)

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            (service,) = (
                each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
            )
            self.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]

    def named(self, name: str) -> list[Span]:
        return [span for _, span in self.spans if span.name == name]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    yield collector
    server.shutdown()
    thread.join()
    server.server_close()


def values(span: Span) -> dict[str, str | int]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


def test_a_group_s_commit_links_to_the_span_of_its_body(db: Database, collector: Collector) -> None:
    site = make_site(db)
    body = body_of(batch_meta(), device_row(now_us()))
    with serving(create_service(db, os.environ)) as url, httpx.Client(base_url=url) as client:
        sent = client.post(SAMPLES_PATH, content=body, headers=headers(site.node_tokens["node-1"]))
        assert sent.status_code == 200
    (taken,), (commit,) = collector.named("POST /v1/samples"), collector.named("commit group")
    assert [link.span_id for link in commit.links] == [taken.span_id]
    assert values(taken)["http.response.status_code"] == 200
    assert values(taken)["http.request.body.size"] == len(body)
    assert (values(commit)["wattledger.bodies"], values(commit)["wattledger.rows"]) == (1, 1)
    assert {service for service, _ in collector.spans} == {"wattledger-serve"}


def test_a_refusal_is_answered_as_without_spans_and_is_no_error_of_ours(db: Database, collector: Collector) -> None:
    site = make_site(db)
    with serving(create_service(db, os.environ)) as url, httpx.Client(base_url=url) as client:
        refused = client.post(SAMPLES_PATH, content=b"{}", headers=headers(site.node_tokens["node-1"]))
        assert refused.status_code == 400
        # At the door, where nothing is kept, nor told.
        assert client.post(SAMPLES_PATH, content=b"{}").status_code == 401
    (span,) = collector.named("POST /v1/samples")
    assert (values(span)["error.type"], span.status.code, len(span.events)) == ("malformed", 0, 0)


def test_a_request_of_the_api_is_named_by_its_route_and_spans_sent_to_us_make_none(
    db: Database, collector: Collector
) -> None:
    with serving(create_service(db, os.environ)) as url, httpx.Client(base_url=url) as client:
        client.get("/v1/budgets/acme%2Fsecret-project")
        client.get("/readyz")
        client.post("/v1/traces", content=b"", headers={"content-type": "application/x-protobuf"})
    ((_, span),) = collector.spans
    assert span.name == "GET /v1/budgets/{path:path}"
    assert b"secret-project" not in span.SerializeToString()


def test_hours_that_are_closed_are_spans_of_the_worker(db: Database, collector: Collector, tmp_path: Path) -> None:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + HOUR)
    traces = traces_of(os.environ, "wattledger-worker", "test")
    with closing(
        Worker(
            db,
            WorkerSettings(code_version="test"),
            Home(tmp_path, "test"),
            enforced=False,
            clock=lambda: HOUR_AT + 8 * HOUR,
            traces=traces,
        )
    ) as worker:
        worker.round()
    spans = [values(span) for span in collector.named("close hour")]
    assert HOUR_AT.isoformat() in [span["wattledger.hour_at"] for span in spans]
    assert {span["wattledger.outcome"] for span in spans} == {"written"}
    assert len(collector.named("compute hours")) == 1
    assert {service for service, _ in collector.spans} == {"wattledger-worker"}


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nobody_who_did_not_ask_for_spans_has_a_tracer(env: dict[str, str]) -> None:
    assert traces_of(env, "s", "1") is None


def test_a_protocol_that_is_not_spoken_stops_the_start() -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with pytest.raises(WattledgerError, match="'grpc'; spans are sent as http/protobuf only"):
        traces_of(env, "s", "1")
