"""The stand of the ingest benchmarks: an embedded PostgreSQL of its own, a site, and the server in its own process."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from ingest.app import create_app
from ingest.settings import Settings
from ingest.store import identities, tokens
from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import Database
from ingest.store.identities import NodeKey
from ingest.store.migrate import upgrade
from ingest.store.tokens import Scope

_START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Stand:
    """A migrated database and where the server for it listens."""

    database: Database
    socket_dir: Path
    port: int
    server: EmbeddedServer

    def restart(self, between: Callable[[Path], None]) -> None:
        """Stop the database, do something to the folder of its files, and start it again."""
        self.server.stop()
        between(self.server.placement.data)
        self.server.start()


@contextmanager
def stand() -> Iterator[Stand]:
    """Start everything in a temporary folder; stop and delete it afterwards."""
    home = Path(tempfile.mkdtemp(prefix="wl-bench-"))
    home.chmod(0o711)
    server = EmbeddedServer.in_home(home)
    try:
        server.start()
        database = server.database()
        upgrade(database.url)
        yield Stand(database, server.placement.socket_dir, _free_port(), server)
    finally:
        server.destroy()
        shutil.rmtree(home)


@contextmanager
def ingest_process(on: Stand) -> Iterator[int]:
    """Run the ingest server in its own process; yield its process id. Settings come from the environment."""
    process = subprocess.Popen([sys.executable, "-m", "bench.stand", str(on.socket_dir), str(on.port)])
    try:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", on.port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise
                time.sleep(0.1)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def agent_tokens(database: Database, nodes: list[str]) -> dict[str, str]:
    """Make a site with these nodes; return an agent token bound to each."""
    engine = database.create_engine("admin")
    with engine.begin() as conn:
        site_id = identities.site_ids(conn, ["bench"])["bench"]
        node_ids = identities.node_ids(conn, [NodeKey(site_id, node) for node in nodes])
        secrets = {
            key.name: tokens.create(
                conn, key.name, [Scope.AGENT], actor="bench", site_id=site_id, node_id=node_id
            ).secret
            for key, node_id in node_ids.items()
        }
    engine.dispose()
    return secrets


def empty_samples(database: Database) -> None:
    """Start each round with the same empty tables and a clean write-ahead log."""
    with database.connect("admin", autocommit=True) as conn:
        conn.execute("TRUNCATE device_samples, changes")
        conn.execute("CHECKPOINT")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def serve(socket_dir: str, port: int) -> None:
    settings = Settings.from_env(os.environ, Database.on_socket(Path(socket_dir)))
    uvicorn.run(
        create_app(settings),
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
        backlog=4096,
        timeout_keep_alive=120,
    )


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
