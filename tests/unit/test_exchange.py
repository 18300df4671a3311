"""One exchange over HTTP ends in time and within its bytes, whoever is at the other end."""

from __future__ import annotations

import gzip
import http.server
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from collector.errors import NoAnswerError
from collector.exchange import Exchange, http_date, no_cookies
from tests.fakes.rude_server import Serve, answer, server, silence, trickle

pytestmark = pytest.mark.contract


def hold_back(first: bytes) -> Serve:
    """Send the beginning of an answer and then nothing for a second, which is longer than anybody here waits."""

    def serve(connection: socket.socket, stop: threading.Event) -> None:
        connection.sendall(first)
        stop.wait(1)

    return serve


@pytest.mark.parametrize(
    "serve",
    [
        silence,
        trickle(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        trickle(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        trickle(b"", b"x"),
    ],
    ids=["silence", "a head without end", "to be continued without end", "no line without end"],
)
def test_without_a_status_in_time_there_is_no_answer(serve: Serve) -> None:
    with server(serve) as url, httpx.Client(timeout=30) as client:
        began_s = time.monotonic()
        with pytest.raises(NoAnswerError, match=r"no answer within 0\.3 s") as failure:
            Exchange(client, limit_s=0.3, max_bytes=100).ask("GET", url)
        assert failure.value.kind == "timeout"
        assert time.monotonic() - began_s < 3  # httpx alone would wait 30 s for each read


@pytest.mark.parametrize(
    ("serve", "fault", "body"),
    [
        (trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"x"), "does not end", None),
        (hold_back(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nabcd"), "does not end", b"abcd"),
        (trickle(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 50_000), "more than 100 bytes", b"x" * 100),
        (answer(b"200 OK\r\nContent-Length: 10", b"short"), "RemoteProtocolError", b"short"),
        (answer(b"200 OK\r\nContent-Encoding: gzip", gzip.compress(bytes(9_000_000))), "packed", b""),
        (answer(b"200 OK\r\nContent-Encoding: gzip", b"abcd"), "packed", b""),
        (answer(b"200 OK\r\nTransfer-Encoding: chunked", b"nonsense\r\n"), "RemoteProtocolError", b""),
    ],
)
def test_a_status_stands_whatever_its_body_is_and_what_is_wrong_with_that_is_said(
    serve: Serve, fault: str, body: bytes | None
) -> None:
    with server(serve) as url, httpx.Client(timeout=30) as client:
        began_s = time.monotonic()
        exchange = Exchange(client, limit_s=30, max_bytes=100, body_s=0.3)
        found = exchange.ask("POST", url, body=b"question")
        assert time.monotonic() - began_s < 3
        assert found.code == 200
        assert fault in (found.fault or "")
        assert body is None or found.body == body
        with pytest.raises(NoAnswerError, match=r"HTTP 200"):
            exchange.whole("GET", url)


@pytest.mark.parametrize("line", [b"nonsense", b"HTTP/1.1 two hundred OK"])
def test_what_is_no_http_is_no_answer(line: bytes) -> None:
    def serve(connection: socket.socket, _stop: threading.Event) -> None:
        connection.sendall(line + b"\r\n\r\n")

    with server(serve) as url, httpx.Client() as client, pytest.raises(NoAnswerError) as failure:
        Exchange(client, limit_s=5, max_bytes=100).ask("GET", url)
    assert failure.value.kind == "connect"


def test_a_header_that_cannot_be_sent_is_no_answer_either() -> None:
    with server(silence) as url, httpx.Client() as client, pytest.raises(NoAnswerError):
        Exchange(client, limit_s=5, max_bytes=100).ask("GET", url, headers={"Authorization": "Bearer tök\nen"})


class _Friendly(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/slow":
            time.sleep(0.6)
        self.send_response(200)
        self.send_header("Set-Cookie", f"visit={time.monotonic_ns()}; Path=/")
        body = f"{self.client_address[1]} {self.headers.get('Cookie')} {self.headers['Accept-Encoding']}".encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base's name
        pass


class _Calm(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of those who hung up."""


@pytest.fixture
def friendly() -> Iterator[str]:
    served = _Calm(("127.0.0.1", 0), _Friendly)
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    thread.join()
    served.server_close()


def test_a_kept_connection_is_cut_as_well_and_the_next_exchange_has_a_new_one(friendly: str) -> None:
    with httpx.Client(timeout=30, cookies=no_cookies()) as client:
        exchange = Exchange(client, limit_s=0.3, max_bytes=100)
        first, second = exchange.whole("GET", friendly).body, exchange.whole("GET", friendly).body
        assert first == second  # one connection, no cookie, and nothing packed is asked for
        assert first.endswith(b" None identity")
        with pytest.raises(NoAnswerError):
            exchange.ask("GET", friendly + "/slow")
        assert exchange.whole("GET", friendly).body.split()[0] != first.split()[0]


@pytest.mark.parametrize(
    "text",
    [None, "", "soon", "Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "Mon, 32 Jan 2026 00:00:00 GMT", "1 1 1 1 1 1"],
)
def test_a_date_that_makes_no_sense_counts_as_absent(text: str | None) -> None:
    assert http_date(text) is None
