"""How many bytes of request bodies a process holds at a time, as sent and as unpacked, over all connections.

A bound on each body bounds nothing while thousands may be in flight. Beyond the budget a sender is told to come again;
bytes are counted as they arrive, so that who claims much and sends nothing holds nothing. For any thread.
"""

from __future__ import annotations

import threading
from typing import Final

from ingest.errors import UnavailableError

_RETRY_S: Final = 2


class BodyBudget:
    """The bytes all requests in hand may hold together."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self.held_bytes = 0
        """What requests hold now."""

    def hold(self) -> Held:
        """Return what a new request holds: nothing yet."""
        return Held(self)

    def move(self, held: Held, size: int) -> None:
        """Add to what a request holds; raises UnavailableError, adding nothing, where there is no room or it is over."""
        with self._lock:
            # Of the only request in hand everything is taken: it is bounded by itself, and would else never be.
            full = self.held_bytes + size > self._most_bytes and self.held_bytes > held.size_bytes
            if full or held.is_over:
                raise UnavailableError(
                    "bodies_full", "more bodies are in hand than memory is set aside for; send it again", _RETRY_S
                )
            self.held_bytes += size
            held.size_bytes += size

    def end(self, held: Held) -> None:
        """Take back what a request holds: it is over."""
        with self._lock:
            self.held_bytes -= held.size_bytes
            held.size_bytes, held.is_over = 0, True


class Held:
    """What one request holds of a budget."""

    __slots__ = ("_budget", "is_over", "size_bytes")

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.size_bytes = 0
        self.is_over = False

    def take(self, size: int) -> None:
        """Hold so many bytes more; raises UnavailableError, holding no more, where there is no room.

        Also when the request is over, as it is for a thread that still unpacks what nobody waits for any more.
        """
        self._budget.move(self, size)

    def release(self) -> None:
        """Give all of it back, for good."""
        self._budget.end(self)
