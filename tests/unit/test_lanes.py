"""A kind of work that is slow or stuck holds up nobody else, and what waits for it is bounded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from ingest.errors import UnavailableError
from ingest.lanes import Awaited, Lane

pytestmark = pytest.mark.unit


def silent() -> UnavailableError:
    return UnavailableError("database_silent", "later", 5)


def stuck(until: threading.Event) -> Callable[[], str]:
    def work() -> str:
        until.wait(10)
        return "late"

    return work


def test_a_lane_that_is_stuck_does_not_hold_up_another() -> None:
    async def scenario() -> None:
        awaited, until = Awaited(), threading.Event()
        slow, quick = Lane("slow", 1, 100, awaited), Lane("quick", 1, 100, awaited)
        waiting = asyncio.create_task(slow.run(10, stuck(until)))
        await asyncio.sleep(0)
        assert await quick.run(10, lambda: "at once") == "at once"
        until.set()
        assert await waiting == "late"
        slow.close()
        quick.close()

    asyncio.run(scenario())


def test_bytes_that_wait_for_a_lane_are_bounded_and_one_body_is_always_taken() -> None:
    async def scenario() -> None:
        until = threading.Event()
        lane = Lane("slow", 1, 100, Awaited())
        large = asyncio.create_task(lane.run(1_000, stuck(until)))
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="more slow wait than fit"):
            await lane.run(1, lambda: "no")
        until.set()
        assert await large == "late"
        assert await lane.run(1, lambda: "yes") == "yes"
        lane.close()

    asyncio.run(scenario())


def test_those_who_wait_can_be_told_to_come_again_while_the_thread_goes_on() -> None:
    async def scenario() -> None:
        awaited, until = Awaited(), threading.Event()
        lane = Lane("slow", 1, 100, awaited)
        waiting = asyncio.create_task(lane.run(10, stuck(until)))
        await asyncio.sleep(0.01)
        assert awaited.end(silent) == 1
        with pytest.raises(UnavailableError) as told:
            await waiting
        assert told.value.retry_after_s == 5
        assert awaited.end(silent) == 0
        until.set()
        assert await lane.run(90, lambda: "well again") == "well again"
        assert await lane.run(100, lambda: "and all of it") == "and all of it"
        lane.close()

    asyncio.run(scenario())


def test_what_goes_wrong_in_a_lane_is_raised_where_it_was_asked() -> None:
    def fails() -> None:
        raise silent()

    async def scenario() -> None:
        lane = Lane("slow", 1, 100, Awaited())
        with pytest.raises(UnavailableError):
            await lane.run(1, fails)
        lane.close()

    asyncio.run(scenario())
