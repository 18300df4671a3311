"""The ingest server as a process of its own, to be killed: ``python -m tests.db.ingest_server SOCKET_DIR DATABASE PORT``."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import uvicorn

from ingest.app import create_app
from ingest.settings import Settings
from ingest.store.engine import Database


def start(socket_dir: Path, database: str, port: int) -> subprocess.Popen[bytes]:
    """Start it and wait until it listens."""
    process = subprocess.Popen([sys.executable, "-m", "tests.db.ingest_server", str(socket_dir), database, str(port)])
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert process.poll() is None, "the server ended before it listened"
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.05)
        else:
            return process


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    found = Database.on_socket(Path(sys.argv[1]), sys.argv[2])
    uvicorn.run(
        create_app(Settings.from_env(os.environ, found)), host="127.0.0.1", port=int(sys.argv[3]), log_level="warning"
    )
