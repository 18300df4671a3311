"""The raw edge of ingest's endpoints: bodies read with a cap, refusals as problem+json or in the wire's own words.

FastAPI's request handling costs more than a body of 80 rows; these endpoints are plain ASGI and see the request once.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import orjson
import zstandard
from starlette.types import Receive, Scope, Send

from ingest.errors import PROBLEM_TYPE, BadBodyError, IngestError, SlowError, TooLargeError, UnsupportedError

_LOG = logging.getLogger(__name__)
JSON: Final = "application/json"
_ZSTD_WINDOW_BYTES: Final = 8 * 1024 * 1024
"""What RFC 8878 asks every decoder to take; a frame that wants more memory is refused."""
_ZSTD_STEP_BYTES: Final = 1024
"""Compressed bytes a step: at the format's best ratio these are 32 MiB, so a bomb is noticed after that."""
_NO_CONTENT: Final = 204
BODY_WITHIN_S: Final = 60.0
"""From the end of a request's headers to the end of its body: 8 MiB at 140 kB/s. Who dribbles keeps a connection, not for ever."""
Answered = Counter[tuple[str, str]]
"""Bodies answered by (endpoint, outcome): counted in place, as an instrument call costs a tenth of a small body."""


@dataclass(frozen=True, slots=True)
class Request:
    """Headers (lower case) and the whole body of one request."""

    headers: Mapping[bytes, bytes]
    body: bytes

    def text(self, name: bytes) -> str | None:
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. ``outcome`` labels the counter of bodies."""

    status: int
    body: bytes
    content_type: str = JSON
    outcome: str = "accepted"


Failure = Callable[[str | None, IngestError], Answer]
"""Words a refusal for a sender that sent this content type."""


def problem(_: str | None, error: IngestError) -> Answer:
    """Return a refusal as problem+json."""
    return Answer(error.status, orjson.dumps(error.problem()), PROBLEM_TYPE, error.reason)


class Endpoint:
    """A POST endpoint that reads at most ``max_body_bytes`` and words refusals as ``failure`` does."""

    def __init__(
        self,
        name: str,
        handle: Callable[[Request], Awaitable[Answer]],
        max_body_bytes: int,
        answered: Answered,
        failure: Failure = problem,
        *,
        body_within_s: float = BODY_WITHIN_S,
    ) -> None:
        self._body_within_s = body_within_s
        self._name = name
        self._handle = handle
        self._max_body_bytes = max_body_bytes
        self._answered = answered
        self._failure = failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        extra: dict[str, str] = {}
        try:
            answer = await self._handle(Request(headers, await self._in_time(headers, receive)))
        except IngestError as error:
            content_type = headers.get(b"content-type")
            answer = self._failure(None if content_type is None else content_type.decode("latin-1"), error)
            extra = error.headers()
        self._answered[self._name, answer.outcome] += 1
        fields = [(name.encode(), value.encode()) for name, value in extra.items()]
        if answer.status != _NO_CONTENT:  # such an answer has neither type nor length (RFC 9110)
            fields.append((b"content-type", answer.content_type.encode()))
            fields.append((b"content-length", str(len(answer.body)).encode()))
        await send({"type": "http.response.start", "status": answer.status, "headers": fields})
        await send({"type": "http.response.body", "body": answer.body})

    async def _in_time(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        try:
            async with asyncio.timeout(self._body_within_s):
                return await self._read(headers, receive)
        except TimeoutError:
            raise SlowError(self._body_within_s) from None

    async def _read(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        claimed = headers.get(b"content-length", b"0")
        if claimed.isdigit() and int(claimed) > self._max_body_bytes:
            raise TooLargeError(f"{int(claimed)} bytes; at most {self._max_body_bytes} are taken")
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            return bytes(message.get("body", b""))
        parts: list[bytes] = []
        size = 0
        while message["type"] == "http.request":
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_body_bytes:
                raise TooLargeError(f"more than {self._max_body_bytes} bytes")
            if not message.get("more_body"):
                return b"".join(parts)
            message = await receive()
        raise BadBodyError("malformed", "the sender hung up before the end of the body")


def decoded(body: bytes, encoding: str | None, max_bytes: int) -> bytes:
    """Undo Content-Encoding gzip, zstd or identity within a cap on the result."""
    name = (encoding or "identity").strip().lower()
    if name == "identity":
        return body
    if name in ("gzip", "x-gzip"):
        return _gunzipped(body, max_bytes)
    if name == "zstd":
        return _unzstd(body, max_bytes)
    raise UnsupportedError(f"content encoding {name!r:.40}; send gzip, zstd or none")


def _gunzipped(body: bytes, max_bytes: int) -> bytes:
    decompressor = zlib.decompressobj(wbits=31)
    try:
        data = decompressor.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise BadBodyError("malformed", f"damaged gzip: {error}") from error
    if len(data) > max_bytes:
        raise TooLargeError(f"more than {max_bytes} bytes when decompressed")
    if not decompressor.eof:
        raise BadBodyError("malformed", "truncated gzip")
    return data


def _unzstd(body: bytes, max_bytes: int) -> bytes:
    # An object each: a decompressor is not shared between threads. The frame's own claim of its size is not believed.
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()
    parts: list[bytes] = []
    size = 0
    try:
        for at in range(0, len(body), _ZSTD_STEP_BYTES):
            parts.append(decompressor.decompress(body[at : at + _ZSTD_STEP_BYTES]))
            size += len(parts[-1])
            if size > max_bytes:
                raise TooLargeError(f"more than {max_bytes} bytes when decompressed")
    except zstandard.ZstdError as error:
        raise BadBodyError("malformed", f"damaged zstd: {error}") from error
    if not decompressor.eof:
        raise BadBodyError("malformed", "truncated zstd")
    return b"".join(parts)
