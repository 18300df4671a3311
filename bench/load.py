"""A lean HTTP/1.1 load generator: kept-alive connections, requests prepared as bytes, so that it costs the server's cores little."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, cast

from collector.wire import CONTENT_ENCODING, CONTENT_TYPE, SAMPLES_PATH, SENT_AT_HEADER


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer: status, and seconds from when the request was due to leave to the answer."""

    status: int
    latency_s: float
    at_s: float
    body: bytes


class Connection(asyncio.Protocol):
    """One sender: one request at a time, in the order they fall due. It costs no task and no future per request."""

    def __init__(self, token: str, path: str, headers: str) -> None:
        self.answers: list[Answered] = []
        self.idle = asyncio.Event()
        """Set while nothing waits to be sent or answered."""
        self.idle.set()
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n{headers}{SENT_AT_HEADER}: "
        ).encode()
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._due: deque[tuple[bytes, float | None]] = deque()
        self._sent_due_s: float | None = None
        self._lost: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # what TCP gives; uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0 or self._sent_due_s is None:
            return
        at = self._received[:end].lower().find(b"content-length: ") + 16
        # An answer without content, as 204 is, names no length.
        length = int(self._received[at : self._received.find(b"\r", at)]) if at >= 16 else 0
        if len(self._received) < end + 4 + length:
            return
        now_s = time.perf_counter()
        status, body = int(self._received[9:12]), self._received[end + 4 :]
        self.answers.append(Answered(status, now_s - self._sent_due_s, now_s, body))
        self._received, self._sent_due_s = b"", None
        self._send_next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = exc or ConnectionError("the server closed the connection")
        self.idle.set()

    def send(self, body: bytes, due_s: float | None = None) -> None:
        """Send a body, or queue it behind those that wait; it was due at ``due_s``, None = when its turn comes."""
        self.idle.clear()
        self._due.append((body, due_s))
        if self._sent_due_s is None:
            self._send_next()

    async def answered(self) -> list[Answered]:
        """Wait until everything is answered; return the answers since asked last. Raises what broke the connection."""
        await self.idle.wait()
        if self._lost is not None:
            raise self._lost
        answers, self.answers = self.answers, []
        return answers

    @property
    def waiting_since_s(self) -> float | None:
        """When the request that waits for its answer was due; None while none does."""
        return self._sent_due_s

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _send_next(self) -> None:
        if not self._due:
            self.idle.set()
        elif self._transport is not None and self._lost is None:
            body, due_s = self._due.popleft()
            self._sent_due_s = time.perf_counter() if due_s is None else due_s
            tail = f"{time.time_ns() // 1_000}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            self._transport.write(self._head + tail + body)


_NATIVE: Final = f"Content-Type: {CONTENT_TYPE}\r\nContent-Encoding: {CONTENT_ENCODING}\r\n"


async def connect(
    port: int, tokens: Sequence[str], path: str = SAMPLES_PATH, headers: str = _NATIVE
) -> list[Connection]:
    """Open a connection per token, for bodies to ``path`` with these headers, each ended by CRLF."""
    loop = asyncio.get_running_loop()
    connections = []
    for token in tokens:
        made = partial(Connection, token, path, headers)
        _, protocol = await loop.create_connection(made, "127.0.0.1", port)
        connections.append(protocol)
    return connections


async def paced(
    connections: Sequence[Connection], bodies: Sequence[Sequence[bytes]], interval_s: float
) -> list[Answered]:
    """Let each connection send its bodies, one per interval, the connections spread evenly over it.

    Latency counts from when a request was due, so a server that falls behind cannot hide it.
    """
    start_s = time.perf_counter() + 0.5
    with _uncollected():
        for turn in range(max(map(len, bodies))):
            for number, connection in enumerate(connections):
                due_s = start_s + interval_s * (turn + number / len(connections))
                early_s = due_s - time.perf_counter()
                if early_s > 0:
                    await asyncio.sleep(early_s)
                if turn < len(bodies[number]):
                    connection.send(bodies[number][turn], due_s)
        return await _all_answered(connections)


async def flat_out(connections: Sequence[Connection], bodies: Sequence[Sequence[bytes]]) -> list[Answered]:
    """Let each connection send its bodies one after the other as fast as they are answered."""
    with _uncollected():
        for connection, queue in zip(connections, bodies, strict=True):
            for body in queue:
                connection.send(body)
        return await _all_answered(connections)


async def _all_answered(connections: Sequence[Connection]) -> list[Answered]:
    return [answer for connection in connections for answer in await connection.answered()]


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep this process's collector quiet: a pause of the load generator would count as the server's latency."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
