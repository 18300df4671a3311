"""A bound on request bodies for everything behind the framework, which reads a body before anybody asks for a token.

The two endpoints that take large bodies read and bound their own (``ingest.http``) and never come here. It buffers nothing
and decides nothing about what a body says.
"""

from __future__ import annotations

from typing import Final

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ingest.errors import PROBLEM_TYPE, TooLargeError

MAX_REQUEST_BYTES: Final = 1024 * 1024


class BodyLimit:
    """ASGI middleware: a request whose body is, or claims to be, longer than the bound is answered 413."""

    def __init__(self, app: ASGIApp, max_body_bytes: int = MAX_REQUEST_BYTES) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        claimed = dict(scope["headers"]).get(b"content-length", b"0")
        if claimed.isdigit() and int(claimed) > self._max_body_bytes:
            await _refuse(send, f"{int(claimed)} bytes; at most {self._max_body_bytes} are taken")
            return
        size = 0
        too_large = answering = False

        async def bounded() -> Message:
            nonlocal size, too_large
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_body_bytes:
                too_large = True
                raise TooLargeError(f"more than {self._max_body_bytes} bytes")
            return message

        async def unless_refused(message: Message) -> None:
            nonlocal answering
            # What the application makes of a body that breaks off (a 400, say) is not what happened.
            if too_large and not answering:
                return
            answering = True
            await send(message)

        try:
            await self._app(scope, bounded, unless_refused)
        except TooLargeError:
            if answering:
                raise
        if too_large and not answering:
            await _refuse(send, f"more than {self._max_body_bytes} bytes")


async def _refuse(send: Send, detail: str) -> None:
    body = orjson.dumps(TooLargeError(detail).problem())
    fields = [(b"content-type", PROBLEM_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": TooLargeError.status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
