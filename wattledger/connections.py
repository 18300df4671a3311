"""Bounds on connections that the web server itself does not have: time and size of a request's head, and how many may idle.

uvicorn waits for ever for the first byte and the last header of a request, and keeps headers of any size. Whoever opens
connections and says little would take them all from the agents. What follows a head, the body, has bounds of its own
(``ingest.http``, ``ingest.body_limit``). It decides nothing about what a request says.
"""

from __future__ import annotations

import asyncio
import resource
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_SPARE_FILES: Final = 512
"""Descriptors left for the database's connections, segments and logs."""
_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What a connection may cost before it has said what it wants."""

    head_s: float = 20.0
    """From the connection's beginning, or the first byte after an answer, to the end of the headers."""
    head_bytes: int = 64 * 1024
    connections: int = 16_384
    """Beyond it the one that has waited longest without a whole head is closed; requests in hand never are."""


def room_for_connections(limits: ConnectionLimits) -> ConnectionLimits:
    """Raise this process's limit on open files as far as it may, and return limits that fit into it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.connections + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return limits
    return ConnectionLimits(limits.head_s, limits.head_bytes, max(64, soft - _SPARE_FILES))


class Guarded(HttpToolsProtocol):
    """A connection that is closed when it waits too long for a head, or gets too large a one."""

    limits: ClassVar[ConnectionLimits]
    waiting: ClassVar[OrderedDict[Guarded, None]]
    """Connections without a whole head, the longest waiting first; shared by those of one server."""
    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()
        if len(self.connections) > self.limits.connections and self.waiting:
            longest, _ = self.waiting.popitem(last=False)
            longest.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and self._is_idle():
            self._await_head()
        if self._deadline is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        # A whole head has taken the deadline away: what is counted of it may be its body.
        if self._deadline is not None and self._head_bytes > self.limits.head_bytes and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

    def _is_idle(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._deadline = self.loop.call_later(self.limits.head_s, self._give_up)
        self.waiting[self] = None

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self.waiting.pop(self, None)

    def _give_up(self) -> None:
        self._stop_waiting()
        if not self.transport.is_closing():
            self.transport.close()


def guarded(limits: ConnectionLimits) -> type[Guarded]:
    """Return the protocol of one server."""
    return type("Guarded", (Guarded,), {"limits": limits, "waiting": OrderedDict()})
