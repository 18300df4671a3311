"""A bound on request bodies for everything behind the framework, which reads a body before anybody asks for a token.

The two endpoints that take large bodies read and bound their own (``ingest.http``) and never come here. It buffers nothing
and decides nothing about what a body says.
"""

from __future__ import annotations

import asyncio
from typing import Final

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ingest.errors import PROBLEM_TYPE, IngestError, SlowError, TooLargeError
from ingest.http import BODY_WITHIN_S

MAX_REQUEST_BYTES: Final = 1024 * 1024


class BodyLimit:
    """ASGI middleware: a request whose body is, or claims to be, longer than the bound is answered 413; one too slow 408."""

    def __init__(
        self, app: ASGIApp, max_body_bytes: int = MAX_REQUEST_BYTES, body_within_s: float = BODY_WITHIN_S
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._body_within_s = body_within_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        claimed = dict(scope["headers"]).get(b"content-length", b"0")
        if claimed.isdigit() and int(claimed) > self._max_body_bytes:
            await _refuse(send, TooLargeError(f"{int(claimed)} bytes; at most {self._max_body_bytes} are taken"))
            return
        size = 0
        refusal: IngestError | None = None
        whole = answering = False
        late_at = asyncio.get_running_loop().time() + self._body_within_s

        async def bounded() -> Message:
            nonlocal size, refusal, whole
            if whole:  # what is waited for now is that the sender hangs up
                return await receive()
            try:
                async with asyncio.timeout_at(late_at):
                    message = await receive()
            except TimeoutError:
                refusal = SlowError(self._body_within_s)
                raise refusal from None
            size += len(message.get("body", b""))
            whole = not message.get("more_body")
            if size > self._max_body_bytes:
                refusal = TooLargeError(f"more than {self._max_body_bytes} bytes")
                raise refusal
            return message

        async def unless_refused(message: Message) -> None:
            nonlocal answering
            # What the application makes of a body that breaks off (a 400, say) is not what happened.
            if refusal is not None and not answering:
                return
            answering = True
            await send(message)

        try:
            await self._app(scope, bounded, unless_refused)
        except IngestError:
            if answering or refusal is None:
                raise
        if refusal is not None and not answering:
            await _refuse(send, refusal)


async def _refuse(send: Send, error: IngestError) -> None:
    body = orjson.dumps(error.problem())
    fields = [(name.encode(), value.encode()) for name, value in error.headers().items()]
    fields += [(b"content-type", PROBLEM_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
