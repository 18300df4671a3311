"""Takes in traces of LLM calls made on this node: an OTLP/HTTP endpoint on loopback, off by default.

A body goes unparsed into the spool and is answered once it is there, so a call is accounted for even while the server is
away. Anybody on the node may post, which is why everything is bounded: the size of a body and of all bodies under way, the
connections at a time, the seconds a request may take altogether, and the share of the spool that such bodies get. A page in
a browser on this node may not: it names another host than loopback. It understands nothing of what it takes in; what
the server refuses ends in quarantine.
"""

from __future__ import annotations

import io
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import Any, Final

from collector.errors import AgentError, SpoolError, SpoolFullError
from collector.spool import Envelope, Spool

_LOG = logging.getLogger(__name__)

PATH: Final = "/v1/traces"
PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
MAX_BODY_BYTES: Final = 4 * 1024 * 1024
MAX_BODIES_BYTES: Final = 2 * MAX_BODY_BYTES
"""All bodies under way together."""
MAX_CONNECTIONS: Final = 4
MAX_REQUEST_S: Final = 10.0
"""From a request's first byte to its last."""
IDLE_S: Final = 2.0
"""How long a connection may stay silent between two requests: its place is wanted by others."""
_RETRY_AFTER_S: Final = "30"
_MAX_REQUESTS_PER_CONNECTION: Final = 1_000
_MAX_LINE_BYTES: Final = 4_096
_MAX_CHUNKS: Final = 16_384
_MAX_TRAILERS: Final = 32
_MAX_DIGITS: Final = 9
_HEX_DIGITS: Final = frozenset(b"0123456789abcdefABCDEF")
_TOO_LARGE: Final = f"a body may have {MAX_BODY_BYTES} bytes; export smaller batches"
_LOOPBACK_NAMES: Final = frozenset({"localhost", "[::1]"})
_ENCODINGS: Final = frozenset({"", "identity", "gzip"})


class OtlpListener:
    """The endpoint and its thread."""

    def __init__(self, address: str, spool: Spool, now_us: Callable[[], int]) -> None:
        """Listen at ``host:port`` of loopback. Raises AgentError where that cannot be."""
        host, _, port = address.rpartition(":")
        self.counts: Counter[str] = Counter()
        """Bodies by what became of them: taken, or the code of the refusal."""
        try:
            self._server = _Server((host.strip("[]"), int(port)), spool, now_us, self.counts)
        except (OSError, ValueError) as error:
            raise AgentError(f"cannot listen for traces at {address}: {error}; change otlp_listen") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="otlp", daemon=True)

    @property
    def port(self) -> int:
        """The port it listens at."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening; bodies that are not in the spool yet are answered by the closed connection."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingMixIn, HTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, at: tuple[str, int], spool: Spool, now_us: Callable[[], int], counts: Counter[str]) -> None:
        self.spool = spool
        self.now_us = now_us
        self.counts = counts
        self.free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.counting = threading.Lock()
        self.under_way_bytes = 0
        if ":" in at[0]:
            self.address_family = socket.AF_INET6
        super().__init__(at, _Handler)

    def server_bind(self) -> None:
        """Bind without asking a name server for this host's name, as the base class would."""
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Refuse what is beyond the bound by closing it: no thread is spent on an answer."""
        if not self.free.acquire(blocking=False):
            self.count("busy")
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one connection, and free its place."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Count what went wrong with a connection; its client knows best what it did."""
        del request, client_address
        self.count("broken")

    def count(self, what: str) -> None:
        with self.counting:
            self.counts[what] += 1

    @contextmanager
    def room(self) -> Iterator[Callable[[int], None]]:
        """Give a function that holds memory for one body until it is kept; it raises where the bodies under way have it all."""
        held_bytes = 0

        def take(needed: int) -> None:
            nonlocal held_bytes
            if held_bytes + needed > MAX_BODY_BYTES:
                raise _RefusedError(413, _TOO_LARGE)
            with self.counting:
                if self.under_way_bytes + needed > MAX_BODIES_BYTES:
                    raise _RefusedError(503, "too many bodies at a time")
                self.under_way_bytes += needed
            held_bytes += needed

        try:
            yield take
        finally:
            with self.counting:
                self.under_way_bytes -= held_bytes


class _RefusedError(Exception):
    """The request is answered with a code and a reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class _Timed(io.RawIOBase):
    """What a connection sends, until the time of the request is over, however slowly it comes."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._until_s = 0.0
        self._silent = True

    def begin(self) -> None:
        """Give the next request its time, from its first byte on."""
        self._until_s = time.monotonic() + IDLE_S
        self._silent = True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left_s = self._until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the request took too long")
        self._connection.settimeout(left_s)
        got = self._connection.recv_into(buffer)
        if self._silent:
            self._silent = False
            self._until_s = time.monotonic() + MAX_REQUEST_S
        return got


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    _answered = 0

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._timed = _Timed(self.connection)
        self.rfile = io.BufferedReader(self._timed)

    def handle_one_request(self) -> None:
        self._timed.begin()
        super().handle_one_request()

    def do_POST(self) -> None:
        try:
            envelope, length = self._judge()
            with self.server.room() as take:
                body = self._chunks(take) if length is None else self._body(length, take)
                self._keep(envelope, body)
        except TimeoutError:
            self._refuse(408, f"a request may take {MAX_REQUEST_S:g} s")
            return
        except _RefusedError as refused:
            self._refuse(refused.code, str(refused))
            return
        # Success is an ExportTraceServiceResponse with nothing to say: no bytes in protobuf, an empty object in JSON.
        self.server.count("taken")
        self._answer(200, b"{}" if envelope.content_type == JSON else b"", envelope.content_type)

    def do_GET(self) -> None:
        self._refuse(405 if self.path == PATH else 404, f"only POST {PATH} is answered here")

    # Names the base class looks up.
    do_PUT = do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = do_GET  # noqa: N815

    def _judge(self) -> tuple[Envelope, int | None]:
        """Return what the head says: how the body is to be sent on, and its length; None where it comes in chunks."""
        if not _is_loopback(self.headers.get("Host", "")):
            raise _RefusedError(403, "Host must be localhost or a loopback address")
        if self.path != PATH:
            raise _RefusedError(404, f"only POST {PATH} is answered here")
        content_type = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if content_type not in (PROTOBUF, JSON):
            raise _RefusedError(415, f"Content-Type must be {PROTOBUF} or {JSON}")
        encoding = self.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in _ENCODINGS:
            raise _RefusedError(415, "Content-Encoding must be gzip or absent")
        return Envelope(PATH, content_type, "gzip" if encoding == "gzip" else ""), self._length()

    def _length(self) -> int | None:
        lengths = self.headers.get_all("Content-Length", [])
        codings = self.headers.get_all("Transfer-Encoding", [])
        if codings:
            if lengths or [coding.strip().lower() for coding in codings] != ["chunked"]:
                raise _RefusedError(400, "a body has a Content-Length, or comes in chunks")
            return None
        if len(lengths) != 1 or not lengths[0].isdecimal():
            raise _RefusedError(411, "a Content-Length is needed, or a body in chunks")
        return int(lengths[0].lstrip("0")[:_MAX_DIGITS] or "0")

    def _body(self, length: int, take: Callable[[int], None]) -> bytes:
        take(length)
        body = self.rfile.read(length)
        if len(body) != length:
            raise _RefusedError(400, "the body ended early")
        return body

    def _chunks(self, take: Callable[[int], None]) -> bytes:
        """Return a body that comes in chunks (RFC 9112 §7.1), as Node's exporters send theirs; what is said beside is dropped."""
        body = bytearray()
        for _ in range(_MAX_CHUNKS):
            size = self._chunk_size()
            if not size:
                break
            body += self._body(size, take)
            if self._line():
                raise _RefusedError(400, "a chunk is longer than it says")
        else:
            raise _RefusedError(413, f"a body may come in {_MAX_CHUNKS} chunks")
        for _ in range(_MAX_TRAILERS):
            if not self._line():
                return bytes(body)
        raise _RefusedError(400, "too many trailers")

    def _chunk_size(self) -> int:
        digits = self._line().partition(b";")[0].strip()
        if not digits or len(digits) > _MAX_DIGITS or not set(digits) <= _HEX_DIGITS:
            raise _RefusedError(400, "a chunk does not begin with its size")
        return int(digits, 16)

    def _line(self) -> bytes:
        line = self.rfile.readline(_MAX_LINE_BYTES)
        if not line.endswith(b"\n"):
            raise _RefusedError(400, "the body ended early, or a line of it is too long")
        return line.rstrip(b"\r\n")

    def _keep(self, envelope: Envelope, body: bytes) -> None:
        try:
            self.server.spool.put_forward(body, envelope, self.server.now_us())
        except SpoolFullError as error:
            raise _RefusedError(503, str(error)) from error
        except SpoolError as error:
            _LOG.error("a body of traces could not be kept: %s", error)
            raise _RefusedError(503, "the spool cannot keep it now") from error

    def _refuse(self, code: int, reason: str) -> None:
        self.server.count(str(code))
        self.close_connection = True  # what is left of the body would be read as the next request
        as_json = self.headers.get("Content-Type", "").startswith(JSON)
        # A google.rpc.Status, as OTLP asks for: its message is field 2.
        text = reason.encode()[:100]
        body = b'{"message": "%s"}' % text if as_json else b"\x12" + bytes([len(text)]) + text
        self._answer(code, body, JSON if as_json else PROTOBUF)

    def _answer(self, code: int, body: bytes, content_type: str) -> None:
        self._answered += 1
        if self._answered >= _MAX_REQUESTS_PER_CONNECTION:
            self.close_connection = True
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if code == 503:
            self.send_header("Retry-After", _RETRY_AFTER_S)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        """Say who answers, and not on which Python."""
        return "wattledger-agent"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
        """Say nothing: requests are counted."""


def _is_loopback(host: str) -> bool:
    """Say whether a Host header names this node itself: a page whose name was rebound to loopback names its own."""
    name = host.strip().lower()
    if not name.endswith("]"):
        name = name.rpartition(":")[0] or name
    parts = name.split(".")
    return name in _LOOPBACK_NAMES or (len(parts) == 4 and parts[0] == "127" and all(map(str.isdecimal, parts)))
