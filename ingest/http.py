"""The raw edge of ingest's endpoints: bodies read with a cap, refusals as problem+json or in the wire's own words.

FastAPI's request handling costs more than a body of 80 rows; these endpoints are plain ASGI and see the request once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import orjson
from starlette.types import Receive, Scope, Send

from ingest.body_budget import BodyBudget, Held
from ingest.content_encoding import decoded
from ingest.errors import PROBLEM_TYPE, BadBodyError, IngestError, SlowError, TooLargeError, UnavailableError

JSON: Final = "application/json"
_NO_CONTENT: Final = 204
BODY_WITHIN_S: Final = 60.0
"""From the end of a request's headers to the end of its body: 8 MiB at 140 kB/s. Who dribbles keeps a connection, not for ever."""
REFUSED_WITHIN_S: Final = 10.0
"""How long the body of a refused request may still come: most clients read no answer before they have sent all of it."""
Answered = Counter[tuple[str, str]]
"""Bodies answered by (endpoint, outcome): counted in place, as an instrument call costs a tenth of a small body."""


@dataclass(frozen=True, slots=True)
class Request:
    """Headers (lower case) and the whole body of one request; ``held`` is what it holds of the process's budget."""

    headers: Mapping[bytes, bytes]
    body: bytes
    held: Held

    def text(self, name: bytes) -> str | None:
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    def decoded(self, max_bytes: int) -> bytes:
        """Return the body without its Content-Encoding, within a cap and the budget; raises IngestError. For any thread."""
        return decoded(self.body, self.text(b"content-encoding"), max_bytes, self.held.take)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. ``outcome`` labels the counter of bodies."""

    status: int
    body: bytes
    content_type: str = JSON
    outcome: str = "accepted"


SENT_AGAIN: Final = frozenset((408, 429))
"""Refusals below 500 after which a sender that knows our pages sends again."""
Gate = Callable[[Mapping[bytes, bytes]], Awaitable[None]]
"""Says by a request's headers, before any of its body is read, whether it may be taken; raises IngestError."""
Failure = Callable[[str | None, IngestError], Answer]
"""Words a refusal for a sender that sent this content type."""


def problem(_: str | None, error: IngestError) -> Answer:
    """Return a refusal as problem+json."""
    return Answer(error.status, orjson.dumps(error.problem()), PROBLEM_TYPE, error.reason)


@dataclass(frozen=True, slots=True)
class Door:
    """What stands before the endpoints of a process: what all bodies may hold, who may send one, and for how long it may come."""

    budget: BodyBudget
    gate: Gate | None = None
    body_within_s: float = BODY_WITHIN_S


class Endpoint:
    """A POST endpoint that reads at most ``max_body_bytes`` and words refusals as ``failure`` does.

    Nothing of a body is kept before the door's gate has let its headers through, and nothing beyond its budget.
    """

    def __init__(
        self,
        name: str,
        handle: Callable[[Request], Awaitable[Answer]],
        max_body_bytes: int,
        answered: Answered,
        failure: Failure = problem,
        *,
        door: Door,
        sent_again: frozenset[int] = SENT_AGAIN,
    ) -> None:
        self._name = name
        self._handle = handle
        self._max_body_bytes = max_body_bytes
        self._answered = answered
        self._failure = failure
        self._door = door
        self._sent_again = sent_again

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        extra: dict[str, str] = {}
        coming = _Coming(receive, self._max_body_bytes)
        held = self._door.budget.hold()
        try:
            coming.check_claim(headers)
            if self._door.gate is not None:
                await self._door.gate(headers)
            answer = await self._handle(Request(headers, await self._in_time(coming, held), held))
        except IngestError as error:
            held.release()
            error = self._worded(error)
            content_type = headers.get(b"content-type")
            answer = self._failure(None if content_type is None else content_type.decode("latin-1"), error)
            extra = error.headers()
            if not await coming.let_go(headers, min(REFUSED_WITHIN_S, self._door.body_within_s)):
                extra = {**extra, "connection": "close"}  # nobody reads what may still come
        finally:
            held.release()
        self._answered[self._name, answer.outcome] += 1
        fields = [(name.encode(), value.encode()) for name, value in extra.items()]
        if answer.status != _NO_CONTENT:  # such an answer has neither type nor length (RFC 9110)
            fields.append((b"content-type", answer.content_type.encode()))
            fields.append((b"content-length", str(len(answer.body)).encode()))
        await send({"type": "http.response.start", "status": answer.status, "headers": fields})
        await send({"type": "http.response.body", "body": answer.body})

    def _worded(self, error: IngestError) -> IngestError:
        """Return a refusal for now as one after which this wire's senders send again; they would drop what is refused else."""
        if error.status not in SENT_AGAIN - self._sent_again:
            return error
        return UnavailableError(
            error.reason, error.detail, error.retry_after_s if isinstance(error, UnavailableError) else 1
        )

    async def _in_time(self, coming: _Coming, held: Held) -> bytes:
        try:
            async with asyncio.timeout(self._door.body_within_s):
                return await coming.read(held)
        except TimeoutError:
            coming.is_given_up = True
            raise SlowError(self._door.body_within_s) from None


class _Coming:
    """The body of one request while it comes."""

    __slots__ = ("_is_whole", "_max_bytes", "_receive", "is_given_up")

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._is_whole = False
        self.is_given_up = False

    def is_whole(self) -> bool:
        """Whether nothing more comes."""
        return self._is_whole

    def check_claim(self, headers: Mapping[bytes, bytes]) -> None:
        """Raise TooLargeError for a body that says it is larger than the bound."""
        claimed = headers.get(b"content-length", b"0")
        if claimed.isdigit() and int(claimed) > self._max_bytes:
            raise TooLargeError(f"{int(claimed)} bytes; at most {self._max_bytes} are taken")

    async def read(self, held: Held) -> bytes:
        """Return the body; raises BadBodyError, and UnavailableError where the budget is used up."""
        parts: list[bytes] = []
        try:
            await self._collect(held, parts)
        except BaseException:
            parts.clear()  # the refusal's traceback holds this frame for as long as what still comes takes
            raise
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _collect(self, held: Held, parts: list[bytes]) -> None:
        size = 0
        while not self._is_whole:
            part = await self._next()
            size += len(part)
            if size > self._max_bytes:
                raise TooLargeError(f"more than {self._max_bytes} bytes")
            held.take(len(part))
            parts.append(part)

    async def let_go(self, headers: Mapping[bytes, bytes], within_s: float) -> bool:
        """Read what still comes and keep none of it; return whether all of it came."""
        if self.is_whole():
            return True
        # Who asks first, and is refused, sends nothing; asking for the rest would make it send.
        if self.is_given_up or headers.get(b"expect", b"").lower() == b"100-continue":
            return False
        size = 0
        try:
            async with asyncio.timeout(within_s):
                while size <= self._max_bytes:
                    size += len(await self._next())
                    if self.is_whole():
                        return True
        except (TimeoutError, BadBodyError):
            pass
        return False

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] != "http.request":
            self._is_whole = True
            raise BadBodyError("malformed", "the sender hung up before the end of the body")
        self._is_whole = not message.get("more_body")
        return bytes(message.get("body", b""))
