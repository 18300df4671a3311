"""The service process: ingest with the read API mounted into the same application, under one uvicorn."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from analytics.api.app import mount
from analytics.api.service import Service
from ingest.app import create_app
from ingest.settings import Settings
from ingest.store.engine import Database
from wattledger.home import Home
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


def run_service(home: Home, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; requests in hand are finished first."""
    data_paths = () if Database.from_env(os.environ) is not None else (home.root,)
    uvicorn.run(
        create_service(ready_database(home), os.environ, data_paths=data_paths),
        host=host,
        port=port,
        http="httptools",
        loop="uvloop",
        access_log=False,
        log_level="info",
        timeout_graceful_shutdown=10,
        server_header=False,
        proxy_headers=False,  # nobody asks where a request came from, and looking costs a tenth of a small body
    )
