"""Threads by kind of work, each kind with a bound on what waits for it; and answers that end when nobody can give them.

A lane that is slow, or stuck in a database that is silent, holds up nobody but its own kind. What waits for a lane is
bounded, and fullness is answered at once. It knows nothing of what the work is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from ingest.errors import IngestError, UnavailableError

_T = TypeVar("_T")
_MOST_WAITING: Final = 4_096
_RETRY_S: Final = 1


class Awaited:
    """The futures somebody waits for on one event loop: all can be ended at once, whatever was to resolve them."""

    def __init__(self) -> None:
        self._futures: set[asyncio.Future[Any]] = set()

    async def result(self, future: asyncio.Future[_T]) -> _T:
        """Return what the future is resolved with, or raise what :meth:`end` ends it with."""
        self._futures.add(future)
        try:
            return await future
        finally:
            self._futures.discard(future)

    def end(self, why: Callable[[], IngestError]) -> int:
        """End all that is waited for now; return how many there were. What was to resolve them may do so in vain."""
        pending = [future for future in self._futures if not future.done()]
        for future in pending:
            future.set_exception(why())
        return len(pending)


@dataclass(slots=True)
class Lane:
    """Threads for one kind of work, handed out on the event loop."""

    name: str
    threads: int
    waiting_bytes: int
    """Of bodies as sent that may be in hand or wait."""
    awaited: Awaited
    _pool: ThreadPoolExecutor | None = None
    _bytes: int = 0
    _works: int = 0

    async def run(self, size_bytes: int, work: Callable[..., _T], *args: Any) -> _T:
        """Return what ``work`` returns, when it is its turn; raises UnavailableError where too much waits already."""
        if self._works and (self._bytes + size_bytes > self.waiting_bytes or self._works >= _MOST_WAITING):
            raise UnavailableError("queue_full", f"more {self.name} wait than fit; send it again", _RETRY_S)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, self.name)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_T] = loop.create_future()
        self._bytes += size_bytes
        self._works += 1
        done = self._pool.submit(work, *args)
        # Not asyncio's own wrapper: what is waited for can be ended while the thread goes on.
        done.add_done_callback(lambda given: _back(loop, self._settle, given, answer, size_bytes))
        return await self.awaited.result(answer)

    def _settle(self, done: Future[_T], answer: asyncio.Future[_T], size_bytes: int) -> None:
        self._bytes -= size_bytes
        self._works -= 1
        if answer.done():  # whoever asked hung up, or was told to come again
            return
        fault = done.exception()
        if fault is None:
            answer.set_result(done.result())
        else:
            answer.set_exception(fault)

    def close(self) -> None:
        """Finish what is in hand."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)


def _back(loop: asyncio.AbstractEventLoop, settle: Callable[..., None], *args: Any) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(settle, *args)
