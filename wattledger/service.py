"""The service process: ingest with the read API mounted into the same application, under one uvicorn."""

from __future__ import annotations

import os

import uvicorn
from fastapi import FastAPI

from ingest.app import create_app
from ingest.settings import Settings
from ingest.store.engine import Database
from wattledger.home import Home
from wattledger.runtime import ready_database


def create_service(home: Home, database: Database) -> FastAPI:
    """Return the application of one installation; nothing is opened before its lifespan starts."""
    return create_app(Settings.from_env(os.environ, database))


def run_service(home: Home, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; requests in hand are finished first."""
    application = create_service(home, ready_database(home))
    uvicorn.run(
        application,
        host=host,
        port=port,
        http="httptools",
        loop="uvloop",
        access_log=False,
        log_level="info",
        timeout_graceful_shutdown=10,
        server_header=False,
    )
