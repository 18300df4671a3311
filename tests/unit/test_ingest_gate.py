"""No byte of a body is kept before its sender is known, and all bodies in hand share one budget."""

from __future__ import annotations

import asyncio
import gzip
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.types import Message

from ingest.body_budget import BodyBudget
from ingest.errors import IngestError, SlowError, TooManyError, UnauthorizedError, UnavailableError
from ingest.http import Answer, Door, Endpoint, Request

pytestmark = pytest.mark.unit
_KIB = 1024


class Sender:
    """A connection that gives a body in pieces and hears the answer."""

    def __init__(self, *pieces: bytes, hangs: bool = False, **headers: str) -> None:
        self.headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        self._pieces = list(pieces)
        self._hangs = hangs
        self.status = 0
        self.told: dict[bytes, bytes] = {}

    @property
    def left(self) -> int:
        return len(self._pieces)

    async def receive(self) -> Message:
        if not self._pieces:
            await asyncio.sleep(60)
        piece = self._pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(self._pieces) or self._hangs}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.told = message["status"], dict(message["headers"])

    async def post_to(self, endpoint: Endpoint) -> None:
        await endpoint({"type": "http", "headers": self.headers}, self.receive, self.send)


async def knows_nobody(_: Mapping[bytes, bytes]) -> None:
    raise UnauthorizedError("token_missing", "send a token")


async def never(_: Request) -> Answer:
    raise AssertionError("the body of somebody unknown was taken")


def endpoint(budget: BodyBudget, handle: Any = never, **more: Any) -> Endpoint:
    return Endpoint("test", handle, 64 * _KIB, Counter(), door=Door(budget, **more))


def test_a_sender_that_is_not_known_is_refused_with_nothing_of_its_body_held() -> None:
    budget = BodyBudget(16 * _KIB)
    most = 0

    class Watching(Sender):
        async def receive(self) -> Message:
            nonlocal most
            most = max(most, budget.held_bytes)
            return await super().receive()

    sender = Watching(*[b"x" * 8 * _KIB] * 8)
    asyncio.run(sender.post_to(endpoint(budget, gate=knows_nobody)))
    assert (sender.status, sender.left, most) == (401, 0, 0)
    assert b"connection" not in sender.told  # all of it came: the connection may be used again


def test_who_is_refused_and_goes_on_sending_is_hung_up_on() -> None:
    asking = Sender(b"x", expect="100-continue")
    endless = Sender(*[b"x" * _KIB] * 200)
    slow = Sender(b"x", hangs=True)

    async def scenario() -> None:
        refusing = endpoint(BodyBudget(1), gate=knows_nobody, body_within_s=0.05)
        await asyncio.gather(*(sender.post_to(refusing) for sender in (asking, endless, slow)))

    asyncio.run(scenario())
    for sender in (asking, endless, slow):
        assert (sender.status, sender.told[b"connection"]) == (401, b"close")
    assert asking.left == 1  # nothing was asked of it
    assert endless.left > 100


def test_all_bodies_in_hand_share_a_budget_and_who_is_too_many_comes_again() -> None:
    budget = BodyBudget(100 * _KIB)
    let_go = asyncio.Event()

    async def slow(request: Request) -> Answer:
        await let_go.wait()
        return Answer(200, b"")

    async def scenario() -> None:
        taking = endpoint(budget, slow)
        first, second, third = (Sender(b"x" * 30 * _KIB, b"y" * 15 * _KIB) for _ in range(3))
        waiting = [asyncio.create_task(sender.post_to(taking)) for sender in (first, second)]
        await asyncio.sleep(0)
        await third.post_to(taking)
        assert (third.status, third.told[b"retry-after"]) == (503, b"2")
        assert budget.held_bytes == 90 * _KIB
        let_go.set()
        await asyncio.gather(*waiting)
        assert (first.status, second.status, budget.held_bytes) == (200, 200, 0)

    asyncio.run(scenario())


def test_what_a_body_unpacks_to_counts_as_well_and_a_single_one_is_always_taken() -> None:
    budget = BodyBudget(100)
    packed = gzip.compress(b"x" * 10_000)

    async def unpacks(request: Request) -> Answer:
        assert len(request.decoded(20_000)) == 10_000
        assert budget.held_bytes == 10_000 + len(packed)
        return Answer(200, b"")

    sender = Sender(packed, content_encoding="gzip")
    asyncio.run(sender.post_to(endpoint(budget, unpacks)))
    assert (sender.status, budget.held_bytes) == (200, 0)
    others = budget.hold()
    others.take(90)
    again = Sender(packed, content_encoding="gzip")
    asyncio.run(again.post_to(endpoint(budget, unpacks)))
    assert (again.status, budget.held_bytes) == (503, 90)


def test_a_request_that_is_over_holds_nothing_more() -> None:
    budget = BodyBudget(100)
    held = budget.hold()
    held.take(60)
    held.release()
    with pytest.raises(UnavailableError):  # a thread that still unpacks what nobody waits for
        held.take(1)
    assert budget.held_bytes == 0


@pytest.mark.parametrize(
    ("sent_again", "statuses"), [((408, 429), [408, 429, 401]), ((429,), [503, 429, 401]), ((), [503, 503, 401])]
)
def test_what_is_refused_for_now_is_answered_so_that_the_wires_senders_send_it_again(
    sent_again: tuple[int, ...], statuses: list[int]
) -> None:
    async def refuses(error: IngestError) -> Sender:
        async def gate(_: Mapping[bytes, bytes]) -> None:
            raise error

        door = Door(BodyBudget(1), gate)
        sender = Sender(b"x")
        taking = Endpoint("test", never, _KIB, Counter(), door=door, sent_again=frozenset(sent_again))
        await sender.post_to(taking)
        return sender

    errors = (SlowError(60), TooManyError("rate_limited", "slower", 7), UnauthorizedError("token_missing", "who"))
    told = [asyncio.run(refuses(error)) for error in errors]
    assert [sender.status for sender in told] == statuses
    assert told[1].told[b"retry-after"] == b"7"
