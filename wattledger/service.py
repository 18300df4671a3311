"""The service process: ingest with the read API mounted into the same application, under one uvicorn."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from analytics.api.app import mount
from analytics.api.service import Service
from ingest.app import create_app
from ingest.settings import Settings
from ingest.store.engine import Database
from wattledger.connections import ConnectionLimits, guarded, room_for_connections
from wattledger.home import Home
from wattledger.listening import LOOPBACK, Certificates, Listening
from wattledger.runtime import ready_database


def create_service(database: Database, env: Mapping[str, str], *, data_paths: tuple[Path, ...] = ()) -> FastAPI:
    """Return the application of one installation; its lifespan opens and closes what both halves hold.

    ``data_paths``: where the database keeps its files, if that is on this machine.
    """
    application = create_app(Settings.from_env(env, database, data_paths=data_paths))
    service = Service.open(database)
    mount(application, service)
    ingest_lifespan = application.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            async with ingest_lifespan(app):
                yield
        finally:
            service.close()

    application.router.lifespan_context = lifespan
    return application


def run_service(home: Home, listening: Listening) -> None:
    """Serve until SIGTERM or SIGINT; requests in hand are finished first. Raises ListeningError before anything starts."""
    listening.check()
    data_paths = () if Database.from_env(os.environ) is not None else (home.root,)
    application = create_service(ready_database(home), os.environ, data_paths=data_paths)
    certificates = Certificates.of(listening) if listening.is_tls else None
    _beside(application, listening, certificates)
    uvicorn.run(
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
