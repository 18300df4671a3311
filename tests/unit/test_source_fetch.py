"""Bounded reads over HTTP from servers that do all they can to be unbounded."""

from __future__ import annotations

import gzip
import socket
import threading
import time

import httpx
import pytest

from collector.source.fetch import Fetcher, FetchError
from tests.fakes.rude_server import Serve, answer, server, silence, trickle


@pytest.mark.contract
@pytest.mark.parametrize(
    ("serve", "kind"),
    [
        (silence, "timeout"),
        (trickle(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), "timeout"),  # headers without end
        (trickle(b"HTTP/1.1 200 OK\r\n\r\n", b"x"), "timeout"),  # a body without end, slowly
        (trickle(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 50_000), "too_large"),  # and fast
        (answer(b"200 OK\r\nContent-Encoding: gzip", gzip.compress(b"x" * 1_000_000)), "encoding"),
        (answer(b"302 Found\r\nLocation: http://127.0.0.1:1/", b""), "status_302"),
        (answer(b"503 Service Unavailable", b""), "status_503"),
        (answer(b"200 OK\r\nContent-Length: 10", b"short"), "connect"),
        (answer(b"nonsense", b""), "connect"),
    ],
)
def test_a_server_that_misbehaves_is_given_up_in_time(serve: Serve, kind: str) -> None:
    with server(serve) as url:
        fetcher = Fetcher(timeout_s=0.3, max_bytes=100_000)
        began = time.monotonic()
        with pytest.raises(FetchError) as failure:
            fetcher.get(url)
        assert failure.value.kind == kind
        assert time.monotonic() - began < 5
        fetcher.close()


@pytest.mark.contract
def test_after_a_server_that_was_given_up_the_next_answer_is_read() -> None:
    calls = []

    def serve(connection: socket.socket, stop: threading.Event) -> None:
        calls.append(1)
        if len(calls) == 1:
            trickle(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n")(connection, stop)
        else:
            answer(b"200 OK", b"up 1\n")(connection, stop)

    with server(serve) as url:
        fetcher = Fetcher(timeout_s=0.3, max_bytes=100_000)
        with pytest.raises(FetchError):
            fetcher.get(url)
        assert fetcher.get(url).body == b"up 1\n"
        fetcher.close()


@pytest.mark.contract
def test_nobody_listening_is_a_refusal() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(FetchError) as failure:
        Fetcher(timeout_s=1, max_bytes=10).get(f"http://127.0.0.1:{port}/")
    assert failure.value.kind == "connect"


@pytest.mark.unit
def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with server(answer(b"200 OK", b"direct")) as url:
        fetcher = Fetcher(timeout_s=2, max_bytes=100)
        assert fetcher.get(url).body == b"direct"
        fetcher.close()


@pytest.mark.unit
def test_headers_come_back_in_lower_case() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers={"X-Auth-Token": "t"}, content=b"{}"))
    assert Fetcher(timeout_s=1, max_bytes=10, transport=transport).get("http://a/").headers["x-auth-token"] == "t"
