"""What connections can make a server hold: nothing without a token, and with one no more than the budget."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from ingest.receivers.otlp import MAX_BODY_BYTES, PROTOBUF, TRACES_PATH
from ingest.store.engine import Database
from tests.db import ingest_server
from tests.db.ingest_harness import make_site

pytestmark = pytest.mark.db
_MIB = 1024 * 1024
_SENDERS = 24
_BUDGET_MIB = 48


@pytest.fixture
def port(db: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    monkeypatch.setenv("WATTLEDGER_INGEST_BODIES_MIB", str(_BUDGET_MIB))
    port = ingest_server.free_port()
    folder = Path(str(psycopg.conninfo.conninfo_to_dict(db.url)["host"]))
    process = ingest_server.start(folder, db.name, port)
    try:
        yield process, port
    finally:
        process.terminate()
        process.wait(30)


def resident_mib(process: subprocess.Popen[bytes]) -> int:
    pages = int(Path(f"/proc/{process.pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGESIZE") // _MIB


def all_but_ten_bytes(port: int, secret: str | None) -> socket.socket:
    """Send a body of the largest size but for its end, as far as it is taken."""
    sender = socket.create_connection(("127.0.0.1", port))
    bearer = "" if secret is None else f"Authorization: Bearer {secret}\r\n"
    head = f"POST {TRACES_PATH} HTTP/1.1\r\nHost: a\r\n{bearer}Content-Type: {PROTOBUF}\r\n"
    sender.sendall(f"{head}Content-Length: {MAX_BODY_BYTES}\r\n\r\n".encode())
    piece = bytes(_MIB)
    for number in range(MAX_BODY_BYTES // _MIB):
        sender.sendall(piece[: -10 if number == 15 else None])
    return sender


@pytest.mark.parametrize(("with_token", "status"), [(False, b"401"), (True, b"503")])
def test_many_large_bodies_are_not_held_beyond_the_budget(
    db: Database, port: tuple[subprocess.Popen[bytes], int], *, with_token: bool, status: bytes
) -> None:
    secret = make_site(db).site_token if with_token else None
    process, number = port
    all_but_ten_bytes(number, secret).close()  # what the first request makes the process load is not what is asked
    time.sleep(0.2)
    before_mib = resident_mib(process)
    senders = [all_but_ten_bytes(number, secret) for _ in range(_SENDERS)]
    try:
        grown_mib = resident_mib(process) - before_mib
        # 24 bodies of 16 MiB are 384 MiB.
        assert grown_mib < (_BUDGET_MIB + 24 if with_token else 40)
        last = senders[-1]
        last.settimeout(20)
        last.sendall(bytes(10))
        assert last.recv(4_096).split(b" ", 2)[1] == status
    finally:
        for sender in senders:
            sender.close()
