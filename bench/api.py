"""The read API in a process of its own beside a benchmark's database, asked over HTTP with a token for all tenants."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
import uvicorn

from analytics.api.app import create_api
from bench.stand import Stand
from ingest.store import tokens
from ingest.store.engine import Database
from ingest.store.tokens import Scope

_START_TIMEOUT_S: Final = 60.0


@contextmanager
def api(on: Stand) -> Iterator[httpx.Client]:
    """Run the API in a process of its own; yield a client with a token for all tenants."""
    engine = on.database.create_engine("admin")
    with engine.begin() as conn:
        secret = tokens.create(conn, "bench", [Scope.READ], actor="bench", tenant_path="*").secret
    engine.dispose()
    process = subprocess.Popen([sys.executable, "-m", "bench.api", str(on.socket_dir), str(on.port)])
    headers = {"Authorization": f"Bearer {secret}"}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{on.port}", headers=headers, timeout=60) as client:
            _await(client, process)
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _await(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            client.get("/openapi.json")
        except httpx.TransportError:
            if time.monotonic() > deadline or process.poll() is not None:
                raise
            time.sleep(0.1)
        else:
            return


if __name__ == "__main__":
    uvicorn.run(
        create_api(Database.on_socket(Path(sys.argv[1]))),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
