"""The ingest application: routes, and what runs behind them. Built by :func:`create_app`, nothing happens at import.

`/v1/samples` takes the native wire, `/v1/traces` OTLP, `/v1/logs` declines it; `/healthz` says that the process lives, `/readyz` that it can keep
data, `/metrics` how it fares. The read API is mounted into the same application by the command line, not here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from fastapi import FastAPI
from opentelemetry.trace import Tracer
from starlette.requests import Request as StarletteRequest
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from collector.wire import COMMANDS_PATH
from ingest.body_limit import BodyLimit
from ingest.endpoints import fleet, lineage, logs, metrics, outcomes, remote_write, samples, traces, work
from ingest.endpoints.post import Post
from ingest.exposition import CONTENT_TYPE as METRICS_TYPE
from ingest.http import Answer, Door, Endpoint, Request
from ingest.openapi import describe
from ingest.runtime import Runtime
from ingest.settings import Settings
from ingest.tracing import Handle, traced

_MODULES: Final = (samples, remote_write, traces, logs, metrics, work, fleet, lineage, outcomes)
"""Each names what may be posted in its ``ENDPOINTS``."""


class IngestApp(FastAPI):
    """FastAPI, but for the endpoints in ``direct``: for a body of 80 rows its middleware costs as much as reading it."""

    direct: Mapping[str, Endpoint]

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, with what ``direct`` takes."""
        if self.openapi_schema is None:
            describe(super().openapi(), (post for module in _MODULES for post in module.ENDPOINTS))
        return super().openapi()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            path = scope["path"]
            # A slash at the end is the same path: exporters do not follow the redirection that would be answered otherwise.
            endpoint = self.direct.get(path) or self.direct.get(path.removesuffix("/"))
            if endpoint is not None:
                await endpoint(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


def create_app(settings: Settings, tracer: Tracer | None = None) -> FastAPI:
    """Return the application; its lifespan starts and stops the writer. ``app.state.ingest`` is its Runtime.

    ``tracer`` makes spans of bodies and of groups' commits; without, nothing does.
    """
    runtime = Runtime(settings)
    runtime.writer.tracer = tracer

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await runtime.start()
        try:
            yield
        finally:
            await runtime.stop()

    # A redirection for a slash too many has no body, and few clients that post follow one: a 404 says what is wrong.
    app = IngestApp(title="Wattledger", version="1", lifespan=lifespan, redirect_slashes=False)
    # The endpoints in ``direct`` go around it, with bounds of their own.
    app.add_middleware(BodyLimit, body_within_s=settings.body_s)
    app.state.ingest = runtime
    answered = runtime.metrics.answered
    door = Door(runtime.budget, runtime.admit, settings.body_s)
    app.direct = {
        post.path: Endpoint(
            post.name,
            _handler(runtime, post, tracer),
            post.max_body_bytes,
            answered,
            post.failure,
            door=door,
            sent_again=post.sent_again,
        )
        for module in _MODULES
        for post in module.ENDPOINTS
    }
    commands = Endpoint("commands", partial(fleet.orders, runtime), 0, answered, door=Door(runtime.budget))
    app.router.routes.append(Route(COMMANDS_PATH, commands, methods=["GET"]))
    for path, endpoint in app.direct.items():
        # Also a route, so that another method on the path is answered as FastAPI answers it.
        app.router.routes.append(Route(path, endpoint, methods=["POST"]))

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> JSONResponse:
        status, body = await runtime.readiness()
        return JSONResponse(body, status)

    @app.get("/metrics", include_in_schema=False)
    async def own_metrics(_: StarletteRequest) -> PlainTextResponse:
        return PlainTextResponse(await runtime.exposition(), media_type=METRICS_TYPE)

    return app


def _handler(runtime: Runtime, post: Post, tracer: Tracer | None) -> Handle:
    handle: Handle = partial(_admitted, runtime, post)
    return handle if tracer is None or post in traces.ENDPOINTS else traced(tracer, post.path, handle)


async def _admitted(runtime: Runtime, post: Post, request: Request) -> Answer:
    await runtime.admit_unclaimed(request.headers, len(request.body))
    return await post.handle(runtime, request)
