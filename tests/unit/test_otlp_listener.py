"""Traces taken in on loopback: answered once they are on the disk, and bounded in every way a neighbour could abuse."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from collector import otlp_listener
from collector.errors import AgentError, SpoolError
from collector.otlp_listener import MAX_BODIES_BYTES, MAX_BODY_BYTES, MAX_CONNECTIONS, OtlpListener
from collector.spool import Lane, Spool

pytestmark = pytest.mark.unit

PROTOBUF = {"Content-Type": "application/x-protobuf"}


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool.db", max_bytes=1 << 16)
    yield spool
    spool.close()


@pytest.fixture
def listener(spool: Spool) -> Iterator[OtlpListener]:
    listener = OtlpListener("127.0.0.1:0", spool, lambda: 77)
    listener.start()
    yield listener
    listener.close()


def post(
    listener: OtlpListener, body: bytes, headers: dict[str, str], path: str = "/v1/traces", method: str = "POST"
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", listener.port, timeout=5)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read(), dict(response.headers)
    finally:
        connection.close()


def test_a_body_is_in_the_spool_unparsed_before_it_is_answered(listener: OtlpListener, spool: Spool) -> None:
    code, answer, headers = post(listener, b"\x0a\x00any", {**PROTOBUF, "Content-Encoding": "gzip"})
    assert (code, answer, headers["Content-Type"]) == (200, b"", "application/x-protobuf")
    kept = spool.oldest(lane=Lane.FORWARDS)
    assert kept is not None
    assert (kept.body, kept.stored_at_us) == (b"\x0a\x00any", 77)
    assert (kept.envelope.path, kept.envelope.content_type, kept.envelope.content_encoding) == (
        "/v1/traces",
        "application/x-protobuf",
        "gzip",
    )


def test_json_is_answered_in_json_and_a_connection_serves_many_bodies(listener: OtlpListener, spool: Spool) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", listener.port, timeout=5)
    for _ in range(3):
        connection.request("POST", "/v1/traces", b"{}", {"Content-Type": "application/json; charset=utf-8"})
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"{}")
    connection.close()
    assert spool.state().batches == 3
    assert listener.counts["taken"] == 3


@pytest.mark.parametrize(
    ("code", "headers", "path", "method"),
    [
        (404, PROTOBUF, "/v1/metrics", "POST"),
        (404, PROTOBUF, "/v1/traces/", "POST"),
        (405, PROTOBUF, "/v1/traces", "GET"),
        (405, PROTOBUF, "/v1/traces", "DELETE"),
        (415, {"Content-Type": "text/plain"}, "/v1/traces", "POST"),
        (415, {**PROTOBUF, "Content-Encoding": "br"}, "/v1/traces", "POST"),
        (400, {**PROTOBUF, "Transfer-Encoding": "gzip, chunked"}, "/v1/traces", "POST"),
        (400, {**PROTOBUF, "Transfer-Encoding": "chunked", "Content-Length": "3"}, "/v1/traces", "POST"),
        (413, {**PROTOBUF, "Content-Length": "9" * 5_000}, "/v1/traces", "POST"),
        (413, {**PROTOBUF, "Content-Length": str(MAX_BODY_BYTES + 1)}, "/v1/traces", "POST"),
        (411, {**PROTOBUF, "Content-Length": "-1"}, "/v1/traces", "POST"),
    ],
)
def test_everything_else_is_refused_and_nothing_kept(
    code: int, headers: dict[str, str], path: str, method: str, listener: OtlpListener, spool: Spool
) -> None:
    found, answer, told = post(listener, b"", headers, path, method)
    assert (found, told["Connection"]) == (code, "close")
    # A google.rpc.Status: field 2 is the message.
    assert answer[:1] == b"\x12"
    assert answer[2:].decode().isprintable()
    assert spool.state().batches == 0
    assert listener.counts[str(code)] == 1


def test_when_the_share_of_the_spool_is_full_or_the_disk_fails_the_sender_is_asked_to_come_again(
    listener: OtlpListener, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert post(listener, b"x" * 16_000, PROTOBUF)[0] == 200
    code, _, headers = post(listener, b"x" * 1_000, PROTOBUF)  # a quarter of 64 KiB is the share
    assert (code, headers["Retry-After"]) == (503, "30")

    def failing(*_: object) -> int:
        raise SpoolError("disk full")

    monkeypatch.setattr(spool, "put_forward", failing)
    assert post(listener, b"x", PROTOBUF)[0] == 503


def test_connections_beyond_the_bound_are_closed_and_the_others_go_on(listener: OtlpListener) -> None:
    idle = [socket.create_connection(("127.0.0.1", listener.port), timeout=5) for _ in range(MAX_CONNECTIONS)]
    until_s = time.monotonic() + 5
    while time.monotonic() < until_s and not listener.counts["busy"]:
        with socket.create_connection(("127.0.0.1", listener.port), timeout=5) as extra:
            extra.settimeout(0.2)
            try:
                extra.recv(1)
            except TimeoutError:
                continue
    assert listener.counts["busy"] >= 1
    for connection in idle:
        connection.close()
    until_s = time.monotonic() + 5
    while time.monotonic() < until_s:
        try:
            if post(listener, b"x", PROTOBUF)[0] == 200:
                return
        except (ConnectionError, http.client.HTTPException):
            time.sleep(0.05)
    pytest.fail("the listener did not recover")


def test_garbage_and_a_body_that_ends_early_are_survived(listener: OtlpListener, spool: Spool) -> None:
    for garbage in (b"\x16\x03\x01\x02\x00" * 20 + b"\r\n\r\n", b"POST /v1/traces HTTP/9.9\r\n\r\n", b"\r\n"):
        with socket.create_connection(("127.0.0.1", listener.port), timeout=5) as connection:
            connection.sendall(garbage)
    with socket.create_connection(("127.0.0.1", listener.port), timeout=5) as connection:
        connection.sendall(
            b"POST /v1/traces HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
        )
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(200).startswith(b"HTTP/1.1 400")
    assert spool.state().batches == 0
    assert post(listener, b"{}", {"Content-Type": "application/json"})[0] == 200


def chunked(listener: OtlpListener, body: bytes) -> tuple[int, bytes]:
    """Post what stands on the wire after the head."""
    head = b"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", listener.port), timeout=5) as connection:
        connection.sendall(head + body)
        connection.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, response.read()


def test_a_body_in_chunks_is_kept_as_one(listener: OtlpListener, spool: Spool) -> None:
    # Two chunks, one with an extension, and a trailer: what Node's HTTP client may send.
    assert chunked(listener, b'6\r\n{"reso\r\nB;a=b\r\nurceSpans":\r\n3\r\n[]}\r\n0\r\nX: y\r\n\r\n') == (200, b"{}")
    kept = spool.oldest(lane=Lane.FORWARDS)
    assert kept is not None
    assert kept.body == b'{"resourceSpans":[]}'


@pytest.mark.parametrize(
    ("code", "body"),
    [
        (400, b"zz\r\n{}\r\n0\r\n\r\n"),
        (400, b"-2\r\n{}\r\n0\r\n\r\n"),
        (400, b"\r\n{}\r\n0\r\n\r\n"),
        (400, b"1\r\n{}\r\n0\r\n\r\n"),
        (400, b"5\r\n{}"),
        (400, b"2\r\n{}\r\n"),
        (400, b"2;" + b"x" * 5_000 + b"\r\n{}\r\n0\r\n\r\n"),
        (400, b"2\r\n{}\r\n0\r\n" + b"X: y\r\n" * 40 + b"\r\n"),
        (413, b"%x\r\n" % (MAX_BODY_BYTES + 1)),
        (413, b"400000\r\n" + bytes(MAX_BODY_BYTES) + b"\r\n1\r\n"),
        (413, b"1\r\n \r\n" * 20_000),
    ],
)
def test_chunks_that_are_wrong_or_too_many_are_refused_and_hold_no_memory(
    listener: OtlpListener, spool: Spool, code: int, body: bytes
) -> None:
    with suppress(ConnectionError):
        assert chunked(listener, body)[0] == code
    assert spool.state().batches == 0
    assert listener._server.under_way_bytes == 0


def begun(listener: OtlpListener, length: int) -> socket.socket:
    """Send the head of a body of that length and nothing of it."""
    connection = socket.create_connection(("127.0.0.1", listener.port), timeout=5)
    head = "POST /v1/traces HTTP/1.1\r\nHost: localhost:4318\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    connection.sendall((head % length).encode())
    return connection


def test_a_body_that_comes_byte_by_byte_gets_the_time_of_one_request(
    listener: OtlpListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp_listener, "MAX_REQUEST_S", 0.4)
    began_s = time.monotonic()
    with begun(listener, 1_000) as slow:
        slow.settimeout(0.1)
        answer = b""
        while not answer and time.monotonic() - began_s < 5:
            slow.sendall(b"{")
            with suppress(TimeoutError):
                answer = slow.recv(200)
    assert answer.startswith(b"HTTP/1.1 408")
    assert 0.4 <= time.monotonic() - began_s < 2
    assert post(listener, b"{}", {"Content-Type": "application/json"})[0] == 200


def test_bodies_under_way_share_their_memory_and_one_more_is_asked_to_come_again(listener: OtlpListener) -> None:
    held = [begun(listener, MAX_BODY_BYTES), begun(listener, MAX_BODIES_BYTES - MAX_BODY_BYTES)]
    until_s = time.monotonic() + 5
    while listener._server.under_way_bytes < MAX_BODIES_BYTES and time.monotonic() < until_s:
        time.sleep(0.01)
    code, _, headers = post(listener, b"{}", {"Content-Type": "application/json"})
    assert (code, headers["Retry-After"]) == (503, "30")
    for connection in held:
        connection.close()
    while listener._server.under_way_bytes and time.monotonic() < until_s:
        time.sleep(0.01)
    assert post(listener, b"{}", {"Content-Type": "application/json"})[0] == 200


def test_only_who_names_this_node_itself_may_post(listener: OtlpListener) -> None:
    for host in ("localhost", "LOCALHOST:4318", "127.0.0.1:4318", "127.1.2.3", "[::1]:4318"):
        assert post(listener, b"x", {**PROTOBUF, "Host": host})[0] == 200, host
    for host in ("evil.example", "evil.example:4318", "127.0.0.1.evil.example", "10.0.0.7", ""):
        assert post(listener, b"x", {**PROTOBUF, "Host": host})[0] == 403, host


def test_an_address_that_is_taken_is_a_clear_error(listener: OtlpListener, spool: Spool) -> None:
    with pytest.raises(AgentError, match="cannot listen for traces at"):
        OtlpListener(f"192.0.2.1:{listener.port}", spool, lambda: 0)
