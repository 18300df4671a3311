"""Undoes orders when their time is up, in a thread of its own, so that no server and no network can hold a limit beyond its expiry.

It begins with what a crash left in the journal. It asks nobody for orders, and runs without the command channel as well: where orders
were switched off while some were in force.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from typing import Final

from collector.commands.orders import Orders, Tell
from collector.errors import AgentError

_LOG = logging.getLogger(__name__)

TICK_S: Final = 1.0
_RETRY_S: Final = 30.0
"""How often what could not be undone is tried again, and a journal that cannot be used."""
_JOIN_S: Final = 0.2


class Expiry:
    """Looks each second. Faults are told as an event of the node once a kind, and counted."""

    def __init__(
        self, orders: Orders, tell: Tell, *, no_more: bool = False, tick_s: float = TICK_S, retry_s: float = _RETRY_S
    ) -> None:
        """Start nothing yet. ``no_more``: no orders come, so there is no more to do once the last is undone."""
        self.working = threading.Lock()
        """Held by whoever uses the orders or their journal."""
        self.counts: Counter[str] = Counter()
        self._orders = orders
        self._tell = tell
        self._no_more = no_more
        self._tick_s = tick_s
        self._retry_s = retry_s
        self._again_at_s = 0.0
        self._begun = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="orders", daemon=True)

    def start(self) -> None:
        """Undo what a crash left, then look for what expires."""
        self._thread.start()

    def close(self) -> None:
        """Stop and undo every order; what cannot be undone in time is undone by the next start."""
        self._stop.set()
        if self.working.acquire(timeout=_JOIN_S):
            try:
                self._orders.undo_all("the agent stops")
            except AgentError as error:
                _LOG.error("orders are undone at the next start: %s", error)
            finally:
                self.working.release()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)

    def turn(self) -> None:
        """Undo what is due. Raises JournalError."""
        with self.working:
            if self._stop.is_set():
                return
            now_s = time.monotonic()
            again = now_s >= self._again_at_s
            if again:
                self._again_at_s = now_s + self._retry_s
            if not self._begun:
                self._orders.undo_all("found after a restart")
                self._begun = True
            self._orders.undo_due(again=again)

    def failed(self, kind: str, why: str) -> None:
        """Count a fault of orders and tell the first of its kind."""
        self.counts[kind] += 1
        if self.counts[kind] == 1:
            self._tell("commands_unavailable", detail=why)

    def _run(self) -> None:
        while not self._stop.is_set():
            wait_s = self._tick_s
            try:
                self.turn()
                if self._no_more and not self._orders.in_force:
                    return
            except AgentError as error:
                self.failed(type(error).__name__, str(error))
                wait_s = self._retry_s
            except Exception as error:  # noqa: BLE001  the outermost loop of the thread
                _LOG.exception("undoing orders failed in a way nobody foresaw; it goes on")
                self.failed(type(error).__name__, str(error))
                wait_s = self._retry_s
            self._stop.wait(wait_s)
