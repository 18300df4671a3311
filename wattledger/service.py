"""The service process: ingest with the read API mounted into the same application, under one uvicorn."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI

from analytics.api.app import mount
from analytics.api.metrics import ApiMetrics
from analytics.api.service import Service
from ingest.app import create_app
from ingest.settings import Settings
from ingest.store.engine import Database
from wattledger import first_token, logins
from wattledger.connections import ConnectionLimits, guarded, room_for_connections
from wattledger.errors import WattledgerError
from wattledger.home import Home
from wattledger.listening import LOOPBACK, Certificates, Listening
from wattledger.readiness import NO_GUARD, Cached, disk_guard_watch, segments_watch, worker_watch
from wattledger.runtime import SEGMENTS_VARIABLE, code_version, ready_database
from wattledger.tracing import traces_of

_LOG = logging.getLogger(__name__)
_MIB: Final = 1024 * 1024
DRAIN_VARIABLE: Final = "WATTLEDGER_DRAIN_S"
_LONGEST_DRAIN_S: Final = 300
_STARTUP_FAILED: Final = 3


def create_service(database: Database, env: Mapping[str, str], *, data_paths: tuple[Path, ...] = ()) -> FastAPI:
    """Return the application of one installation; its lifespan opens and closes what both halves hold.

    ``data_paths``: where the database keeps its files, if that is on this machine.
    """
    traces = traces_of(env, "wattledger-serve", code_version())
    settings = Settings.from_env(env, database, data_paths=data_paths)
    application = create_app(settings, None if traces is None else traces.tracer("wattledger.ingest"))
    service = Service.open(database)
    metrics = ApiMetrics(application.state.ingest.metrics.meters.meter("wattledger.api"))
    mount(application, service, metrics, None if traces is None else traces.tracer("wattledger.api"))
    where = env.get(SEGMENTS_VARIABLE) or next((path / "segments" for path in data_paths), None)
    watches = [
        worker_watch(database),
        disk_guard_watch(application.state.ingest.disk),
        *([] if where is None else [segments_watch(where, settings.min_free_mib * _MIB)]),
    ]
    if not application.state.ingest.disk.is_watching:
        _LOG.warning("no disk guard: %s", NO_GUARD)
    application.state.ingest.watches += [Cached(watch) for watch in watches]
    ingest_lifespan = application.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            async with ingest_lifespan(app):
                yield
        finally:
            service.close()
            if traces is not None:
                traces.close()

    application.router.lifespan_context = lifespan
    return application


def run_service(home: Home, listening: Listening, *, allow_no_tokens_yet: bool = False) -> None:
    """Serve until SIGTERM or SIGINT; requests in hand are finished first. Raises ListeningError before anything starts.

    ``allow_no_tokens_yet``: others may reach it while nobody has a token, and are let in once somebody has.
    """
    listening.check()
    env = logins.env_of("serve", os.environ)
    data_paths = () if Database.from_env(env) is not None else (home.root,)
    database = ready_database(home, env)
    logins.warn_of_an_owner("serve", database)
    if not allow_no_tokens_yet:
        first_token.check(
            database,
            listening,
            "make one (`wattledger token create --help`), or say --allow-no-tokens-yet where tokens are made later",
        )
    application = create_service(database, env, data_paths=data_paths)
    certificates = Certificates.of(listening) if listening.is_tls else None
    _beside(application, listening, certificates)
    config = uvicorn.Config(
        application,
        host=listening.host,
        port=listening.port,
        ssl_context_factory=None if certificates is None else lambda *_: certificates.context,
        http=guarded(room_for_connections(ConnectionLimits())),
        loop="uvloop",
        access_log=False,
        log_level="info",
        timeout_graceful_shutdown=10,
        server_header=False,
        proxy_headers=False,  # nobody asks where a request came from, and looking costs a tenth of a small body
    )
    server = Draining(config, application.state.ingest.drain, drain_s(env))
    with suppress(KeyboardInterrupt):  # Ctrl-C is raised again once all is finished
        server.run()
    if not server.started:
        raise SystemExit(_STARTUP_FAILED)


def _beside(application: FastAPI, listening: Listening, certificates: Certificates | None) -> None:
    """Give the application's lifespan what runs beside TLS: a watch on the files, and this machine's own way in."""
    inner = application.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(inner(app))
            if certificates is not None:
                await stack.enter_async_context(certificates.followed())
            if listening.internal_port:
                await stack.enter_async_context(_on_loopback(app, listening.internal_port))
            yield

    application.router.lifespan_context = lifespan


def drain_s(env: Mapping[str, str]) -> int:
    """Return for how long a server that is told to stop still listens, saying 503; raises WattledgerError."""
    text = env.get(DRAIN_VARIABLE) or "0"
    if not text.isdigit() or int(text) > _LONGEST_DRAIN_S:
        raise WattledgerError(f"{DRAIN_VARIABLE} must be whole seconds from 0 to {_LONGEST_DRAIN_S}, got {text!r:.40}")
    return int(text)


class Draining(uvicorn.Server):
    """A server that says it is not ready before it stops listening, so that load balancers look elsewhere first."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], None], listens_s: int) -> None:
        """``drain`` is called at the first signal; ``listens_s`` later the server stops. A second signal stops it at once."""
        super().__init__(config)
        self._drain = drain
        self._listens_s = listens_s
        self._told = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._drain()
        if self._told or not self._listens_s:
            super().handle_exit(sig, frame)
            return
        self._told = True
        stop = threading.Timer(self._listens_s, super().handle_exit, (sig, frame))
        stop.daemon = True
        stop.start()


class _Silent(uvicorn.Server):
    """A server that leaves signals to the one it runs beside."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def _on_loopback(app: FastAPI, port: int) -> AsyncIterator[None]:
    """Serve the same application in the clear on loopback: the dashboard and commands of this machine hold no certificate."""
    listener = socket.create_server((LOOPBACK, port))
    config = uvicorn.Config(
        app,
        http="httptools",
        lifespan="off",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_config=None,
    )
    server = _Silent(config)
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await task
        listener.close()
