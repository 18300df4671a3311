"""Wakes the main loop before its next tick: a signal arrived, or a source has something to hand over.

A pipe, because it is the one thing that a signal handler, another thread and a timed wait may all use at once: a
``threading.Event`` that is set from a handler can meet its own lock in the wait it interrupted. It decides nothing; what
was rung for is asked elsewhere.
"""

from __future__ import annotations

import os
import select
import signal
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from types import FrameType
from typing import Final

_DRAIN_BYTES: Final = 4_096


class Doorbell:
    """Any thread and any signal may ring; one thread waits."""

    def __init__(self) -> None:
        """Open the pipe."""
        self._listen, self._press = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._signals: deque[int] = deque()

    def ring(self) -> None:
        """End the present wait, or the next."""
        with suppress(BlockingIOError):  # a full pipe rings already
            os.write(self._press, b"\0")

    def wait(self, duration_s: float) -> None:
        """Return after that time, or once rung."""
        ready, _, _ = select.select([self._listen], [], [], max(0.0, duration_s))
        if ready:
            with suppress(BlockingIOError):
                os.read(self._listen, _DRAIN_BYTES)

    def watch(self, numbers: Iterable[int]) -> None:
        """Collect these signals from now on instead of dying of them. Only the main thread may call this."""
        for number in numbers:
            signal.signal(number, self._note)
        # The kernel may give a signal to any thread; then nothing interrupts the wait of this one but the pipe.
        signal.set_wakeup_fd(self._press, warn_on_full_buffer=False)

    def take_signal(self) -> int | None:
        """Return the oldest signal that was not taken yet, None where there is none."""
        return self._signals.popleft() if self._signals else None

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)
        self.ring()
