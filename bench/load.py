"""A lean HTTP/1.1 load generator: kept-alive connections, requests prepared as bytes, so that it costs the server's cores little."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from collector.wire import CONTENT_ENCODING, CONTENT_TYPE, SAMPLES_PATH, SENT_AT_HEADER


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer: status, and seconds from when the request was due to leave to the answer."""

    status: int
    latency_s: float
    at_s: float
    body: bytes


class Connection(asyncio.Protocol):
    """One sender: one request at a time."""

    def __init__(self, token: str) -> None:
        self._head = (
            f"POST {SAMPLES_PATH} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\nContent-Type: {CONTENT_TYPE}\r\n"
            f"Content-Encoding: {CONTENT_ENCODING}\r\n{SENT_AT_HEADER}: "
        ).encode()
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._waiter: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # what TCP gives; uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0 or self._waiter is None:
            return
        at = self._received.find(b"content-length: ") + 16
        length = int(self._received[at : self._received.find(b"\r", at)])
        if len(self._received) >= end + 4 + length:
            status, body = int(self._received[9:12]), self._received[end + 4 :]
            self._received = b""
            self._waiter.set_result((status, body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(exc or ConnectionError("the server closed the connection"))

    async def send(self, body: bytes, due_s: float) -> Answered:
        if self._transport is None:
            raise ConnectionError("not connected")
        self._waiter = asyncio.get_running_loop().create_future()
        tail = f"{time.time_ns() // 1_000}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        self._transport.write(self._head + tail + body)
        status, answer = await self._waiter
        now_s = time.perf_counter()
        return Answered(status, now_s - due_s, now_s, answer)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def connect(port: int, tokens: Sequence[str]) -> list[Connection]:
    loop = asyncio.get_running_loop()
    connections = []
    for token in tokens:
        _, protocol = await loop.create_connection(lambda token=token: Connection(token), "127.0.0.1", port)  # type: ignore[misc]
        connections.append(protocol)
    return connections


async def paced(
    connections: Sequence[Connection], bodies: Sequence[Sequence[bytes]], interval_s: float
) -> list[Answered]:
    """Let each connection send its bodies, one per interval, the connections spread evenly over it.

    Latency counts from when a request was due, so a server that falls behind cannot hide it.
    """
    start_s = time.perf_counter() + 0.5

    async def sender(number: int) -> list[Answered]:
        answers = []
        first_s = start_s + interval_s * number / len(connections)
        for turn, body in enumerate(bodies[number]):
            due_s = first_s + turn * interval_s
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            answers.append(await connections[number].send(body, due_s))
        return answers

    return [answer for answers in await asyncio.gather(*map(sender, range(len(connections)))) for answer in answers]


async def flat_out(connections: Sequence[Connection], bodies: Sequence[Sequence[bytes]]) -> list[Answered]:
    """Let each connection send its bodies one after the other as fast as they are answered."""

    async def sender(number: int) -> list[Answered]:
        return [await connections[number].send(body, time.perf_counter()) for body in bodies[number]]

    return [answer for answers in await asyncio.gather(*map(sender, range(len(connections)))) for answer in answers]
