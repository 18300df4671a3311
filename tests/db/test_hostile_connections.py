"""What strangers do to a listening port: little, slowly, too much, or nonsense. Agents are answered all the while."""

from __future__ import annotations

import gzip
import itertools
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
import zstandard

from collector.wire import SAMPLES_PATH
from ingest.app import create_app
from ingest.settings import Settings
from ingest.store.engine import Database
from tests.db.ingest_harness import Site, batch_meta, body_of, device_row, headers, make_site, now_us
from tests.db.served import WAIT_S, serving
from wattledger.connections import ConnectionLimits

pytestmark = pytest.mark.db
LIMITS = ConnectionLimits(head_s=1.0, head_bytes=16 * 1024, connections=60)


@dataclass(frozen=True)
class Server:
    port: int
    site: Site

    def connect(self, sent: bytes = b"") -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)
        made.sendall(sent)
        return made

    def takes_a_batch(self) -> bool:
        """Whether an agent's batch is taken, as fast as it should be."""
        body = body_of(batch_meta(), device_row(now_us()))
        url = f"http://127.0.0.1:{self.port}{SAMPLES_PATH}"
        answer = httpx.post(url, content=body, headers=headers(self.site.node_tokens["node-1"]), timeout=WAIT_S)
        return answer.status_code == 200 and answer.json()["accepted_rows"] == 1


@pytest.fixture
def served(db: Database) -> Iterator[Server]:
    site = make_site(db)
    with serving(create_app(Settings(db, body_s=1)), LIMITS) as port:
        yield Server(port, site)


def answered(connection: socket.socket) -> bytes:
    """Read until the server hangs up."""
    parts = []
    try:
        while part := connection.recv(65_536):
            parts.append(part)
    except ConnectionResetError:  # it hung up while more was coming
        pass
    connection.close()
    return b"".join(parts)


def post(length: str, token: str, path: str = SAMPLES_PATH) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n{length}\r\n\r\n".encode()


def test_a_head_that_does_not_end_is_hung_up_on(served: Server) -> None:
    silent, dribbling, blank = served.connect(), served.connect(b"POST / HT"), served.connect(b"\r\n")
    for _ in range(3):
        time.sleep(0.2)
        dribbling.sendall(b"T")
        blank.sendall(b"\r\n")
    assert served.takes_a_batch()
    for connection in (silent, dribbling, blank):
        began = time.monotonic()
        assert b"200" not in answered(connection)
        assert time.monotonic() - began < WAIT_S - 1


def test_a_body_that_does_not_come_is_answered_and_hung_up_on(served: Server) -> None:
    token = served.site.node_tokens["node-1"]
    for length, some in (
        ("Content-Length: 1000", b"abc"),
        ("Transfer-Encoding: chunked", b"3\r\nabc\r\n"),
        ("Content-Length: 5", b""),
    ):
        for path in (SAMPLES_PATH, "/v1/traces", "/v1/gate/evaluate"):
            connection = served.connect(post(length, token, path) + some)
            head = answered(connection).lower()
            # OTLP's exporters drop what is answered 408. A path that is none needs no body to be answered; then the silence
            # afterwards ends the connection.
            wanted = b"503" if path == "/v1/traces" else b"408"
            assert head.split(b" ", 2)[1] in (wanted, b"404"), (path, length)
            assert b"connection: close" in head or b" 404 " in head
    assert served.takes_a_batch()


def test_a_head_without_measure_is_refused(served: Server) -> None:
    for head in (b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 200_000, b"GET /" + b"a" * 200_000, b"X-Y: z\r\n" * 20_000):
        connection = served.connect()
        try:
            connection.sendall(b"GET /healthz HTTP/1.1\r\n" + head if head.startswith(b"X-Y") else head)
        except (BrokenPipeError, ConnectionResetError):
            continue  # refused before it was told whole
        said = answered(connection)
        assert said.startswith(b"HTTP/1.1 4") or not said
    assert served.takes_a_batch()


def test_idle_connections_give_way_to_those_that_speak(served: Server) -> None:
    idle = [served.connect() for _ in range(3 * LIMITS.connections)]
    assert served.takes_a_batch()
    for connection in idle:
        connection.close()


def test_other_methods_and_versions_are_answered(served: Server) -> None:
    methods = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "BREW", "PRI")
    for method, version in itertools.product(methods, ("1.0", "1.1")):
        said = answered(
            served.connect(f"{method} {SAMPLES_PATH} HTTP/{version}\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        )
        assert said.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), (method, version, said[:200])
    assert served.takes_a_batch()


def test_lengths_that_lie_are_refused_or_cut(served: Server) -> None:
    token = served.site.node_tokens["node-1"]
    for length in (
        "Content-Length: -1",
        "Content-Length: 99999999999999999999999",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked, identity",
        "Content-Length: 0x10",
    ):
        said = answered(served.connect(post(length, token) + b"abc")).partition(b"\r\n")[0]
        assert said.startswith(b"HTTP/1.1 4"), (length, said)
    oversized = post("Transfer-Encoding: chunked", token) + b"FFFFFFFFFFFFFFFFFF\r\nabc"
    assert answered(served.connect(oversized)).startswith(b"HTTP/1.1 4")
    assert served.takes_a_batch()


def test_bombs_in_bombs_are_refused(served: Server) -> None:
    inner = bytes(40_000_000)
    bombs = {"gzip": gzip.compress(inner), "zstd": zstandard.compress(inner)}
    nested = {"gzip": gzip.compress(zstandard.compress(inner)), "zstd": zstandard.compress(gzip.compress(inner[:1000]))}
    secret = served.site.site_token
    for path in ("/v1/traces", "/v1/metrics", "/v1/logs", "/v1/jobs/events", "/v1/outcomes", "/api/v1/lineage"):
        for encoding in ("gzip", "zstd"):
            for body, allowed in ((bombs[encoding], {413}), (nested[encoding], {400})):
                told = {
                    "authorization": f"Bearer {secret}",
                    "content-encoding": encoding,
                    "content-type": "application/json",
                }
                answer = httpx.post(f"http://127.0.0.1:{served.port}{path}", content=body, headers=told, timeout=WAIT_S)
                assert answer.status_code in allowed, (path, encoding, answer.text)
    both = {"authorization": f"Bearer {secret}", "content-encoding": "gzip, zstd", "content-type": "application/json"}
    answer = httpx.post(f"http://127.0.0.1:{served.port}/v1/traces", content=b"", headers=both, timeout=WAIT_S)
    assert answer.status_code == 415
    assert served.takes_a_batch()
