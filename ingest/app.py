"""The ingest application: routes, and what runs behind them. Built by :func:`create_app`, nothing happens at import.

`/v1/samples` takes the native wire, `/v1/traces` OTLP; `/healthz` says that the process lives, `/readyz` that it can keep
data, `/metrics` how it fares. The read API is mounted into the same application by the command line, not here.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson
from fastapi import FastAPI
from starlette.requests import Request as StarletteRequest
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.types import Receive, Send
from starlette.types import Scope as ASGIScope

from collector.wire import COMMANDS_PATH, ENROLL_PATH, MAX_BODY_BYTES, SAMPLES_PATH, SENT_AT_HEADER
from ingest import fleet
from ingest.body_limit import BodyLimit
from ingest.http import Answer, Endpoint, Request, decoded
from ingest.metrics import CONTENT_TYPE as METRICS_TYPE
from ingest.receivers import otlp
from ingest.receivers.gen_ai import Read, read_calls
from ingest.receivers.native import check_media_type
from ingest.runtime import Runtime
from ingest.settings import Settings
from ingest.store.calls import write_calls
from ingest.store.dead_letters import DeadLetter
from ingest.store.group import Outcome
from ingest.store.prepare import Submission
from ingest.store.tokens import Scope

_SENT_AT = SENT_AT_HEADER.lower().encode()


class IngestApp(FastAPI):
    """FastAPI, but for the endpoints in ``direct``: for a body of 80 rows its middleware costs as much as reading it."""

    direct: Mapping[str, Endpoint]

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            endpoint = self.direct.get(scope["path"])
            if endpoint is not None:
                await endpoint(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


def create_app(settings: Settings) -> FastAPI:
    """Return the application; its lifespan starts and stops the writer. ``app.state.ingest`` is its Runtime."""
    runtime = Runtime(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await runtime.start()
        try:
            yield
        finally:
            await runtime.stop()

    app = IngestApp(title="Wattledger", version="1", lifespan=lifespan)
    app.add_middleware(BodyLimit)  # the endpoints in ``direct`` go around it, with bounds of their own
    app.state.ingest = runtime
    answered = runtime.metrics.answered
    app.direct = {
        SAMPLES_PATH: Endpoint("samples", lambda request: take_samples(runtime, request), MAX_BODY_BYTES, answered),
        otlp.TRACES_PATH: Endpoint(
            "traces", lambda request: take_traces(runtime, request), otlp.MAX_BODY_BYTES, answered
        ),
        ENROLL_PATH: Endpoint("enroll", lambda request: fleet.enrol(runtime, request), fleet.MAX_BODY_BYTES, answered),
    }
    commands = Endpoint("commands", lambda request: fleet.orders(runtime, request), 0, answered)
    app.router.routes.append(Route(COMMANDS_PATH, commands, methods=["GET"]))
    for path, endpoint in app.direct.items():
        # Also a route, so that another method on the path is answered as FastAPI answers it.
        app.router.routes.append(Route(path, endpoint, methods=["POST"]))

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> JSONResponse:
        faults = await runtime.in_thread(runtime.readiness)
        body: dict[str, Any] = {"status": "not ready", "faults": faults} if faults else {"status": "ready"}
        return JSONResponse(body, 503 if faults else 200)

    @app.get("/metrics", include_in_schema=False)
    async def metrics(_: StarletteRequest) -> PlainTextResponse:
        return PlainTextResponse(await runtime.in_thread(runtime.metrics.exposition), media_type=METRICS_TYPE)

    return app


async def take_samples(runtime: Runtime, request: Request) -> Answer:
    """Take one native body: answered after its commit, 202 if it went to the dead letters; raises IngestError."""
    principal = await runtime.principal(request.headers.get(b"authorization"))
    principal.require(Scope.AGENT)
    check_media_type(request.text(b"content-type"), request.text(b"content-encoding"))
    body = await runtime.read(request.body)
    principal.require_node(body.meta.node)
    for stream, _ in body.unknown_columns:
        runtime.metrics.unknown_columns.add(1, {"stream": stream.value})
    skew_us = runtime.skew_us(request.headers.get(_SENT_AT))
    if skew_us is not None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers.items()}
        detail = f"the sender's clock is {skew_us / 1e6:+.1f} s off; its times cannot be believed"
        letter = DeadLetter(
            principal.site_id, principal.token.node_id, "clock_skew", detail, request.body, headers, skew_us
        )
        await runtime.bury(letter)
        answer = {
            "dead_letter": True,
            "reason": "clock_skew",
            "skew_us": skew_us,
            "detail": detail + "; kept for replay",
        }
        return Answer(202, orjson.dumps(answer), outcome="clock_skew")
    return _answer(await runtime.keep(Submission(principal.site_id, body)))


async def take_traces(runtime: Runtime, request: Request) -> Answer:
    """Take one OTLP trace export: its LLM calls are committed before the answer; raises IngestError."""
    principal = await runtime.principal(request.headers.get(b"authorization"))
    principal.require_any(Scope.WRITE, Scope.AGENT)  # an agent forwards what its node's programs say
    media = otlp.media_type(request.text(b"content-type"))
    encoding = request.text(b"content-encoding")
    read = await runtime.in_thread(_read_calls, request.body, encoding, media)
    await runtime.in_thread(write_calls, runtime.engine, runtime.registry, principal.site_id, read.calls)
    refused = sum(read.refused.values())
    for reason, spans in read.refused.items():
        runtime.metrics.refused.add(spans, {"stream": "spans", "reason": reason})
    message = "; ".join(f"{spans} spans {reason}" for reason, spans in sorted(read.refused.items()))
    return Answer(200, otlp.response(media, refused, message), media)


def _read_calls(body: bytes, encoding: str | None, media: str) -> Read:
    spans = otlp.read_spans(decoded(body, encoding, otlp.MAX_DECODED_BYTES), media)
    return read_calls(spans, time.time_ns() // 1_000)


def _answer(outcome: Outcome) -> Answer:
    if outcome.duplicate:
        return Answer(200, b'{"accepted_rows":0,"duplicate":true,"refused":[]}', outcome="duplicate")
    refused = [
        {"stream": refusal.stream.value, "reason": refusal.reason, "rows": refusal.rows} for refusal in outcome.refusals
    ]
    return Answer(200, orjson.dumps({"accepted_rows": outcome.accepted_rows, "duplicate": False, "refused": refused}))
