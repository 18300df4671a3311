"""Half of an hour in a second child: a thread has it done there and carries the answer to the child that asked for it.

What travels is not opened here. It decides nothing: a half that was not done is answered with nothing, and done by whoever asked.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Protocol

from analytics.closing.request import Share, Shared


class Other(Protocol):
    """A child that can be asked."""

    def half(self, asked: Share) -> bytes | None:
        """Return what was made of half an hour; null where it was not done."""

    def keep(self) -> None:
        """Have it keep the rows of the half that it did last."""


class Beside:
    """Has one child do the half of an hour that another asks for, in a thread that carries the answer over."""

    def __init__(self, child: Other, give_up: threading.Event) -> None:
        """Nothing is asked yet. ``give_up``: has the child stop."""
        self._child = child
        self._give_up = give_up
        self._thread: threading.Thread | None = None

    def begin(self, asked: Share, answer_to: Connection) -> None:
        """Have the child begin; the answer goes to whoever asked."""
        self._thread = threading.Thread(target=self._do, args=(asked, answer_to), name="half an hour")
        self._thread.start()

    def keep(self) -> None:
        """Have the child keep what it read."""
        if self._thread is not None:
            self._thread.join()
            self._child.keep()

    def end(self) -> None:
        """Return once nothing goes on any more; what nobody waits for is given up."""
        if self._thread is not None:
            self._give_up.set()
            self._thread.join()
            self._give_up.clear()

    def _do(self, asked: Share, answer_to: Connection) -> None:
        made = self._child.half(asked)
        with suppress(OSError):  # who asked has ended
            answer_to.send(Shared(asked.number, made))
