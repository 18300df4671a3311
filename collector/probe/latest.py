"""Runs something slow again and again beside the sampling loop and hands over its newest result, at once or not at all.

For probes that ask another process: the loop that samples must not wait for a web server or a command. It keeps one result;
one that nobody took is replaced.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

_LOG = logging.getLogger(__name__)

T = TypeVar("T")


class Latest(Generic[T]):
    """The newest result of a function that is called every ``period_s``; None counts as no result."""

    def __init__(
        self,
        fetch: Callable[[], T | None],
        *,
        period_s: float,
        name: str,
        background: bool = True,
        finish: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start nothing yet. ``fetch`` must come back within its own timeouts and tell its faults by itself.

        ``finish`` lets go of what it holds open, and is called where nothing can be in use. With ``background=False`` it is
        called inside :meth:`take`, for one look at it.
        """
        self._fetch = fetch
        self._period_s = period_s
        self._name = name
        self._background = background
        self._finish = finish
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._result: T | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._next_s = float("-inf")

    def take(self) -> T | None:
        """Return what came since the last call, if anything did; never waits in the background mode."""
        if not self._background:
            if self._monotonic() < self._next_s:
                return None
            self._next_s = self._monotonic() + self._period_s
            return self._fetch()
        if self._thread is None:
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(self._stop,), name=self._name, daemon=True)
            self._thread.start()
        with self._lock:
            result, self._result = self._result, None
        return result

    def close(self) -> None:
        """Ask the thread to end, without waiting for it; the next :meth:`take` starts another."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is None:
            self._finish()

    def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            result = None
            try:
                result = self._fetch()
            except Exception:  # noqa: BLE001  the outermost loop of this thread
                _LOG.exception("%s: one turn failed; going on", self._name)
            if result is not None and not stop.is_set():
                with self._lock:
                    self._result = result
            stop.wait(self._period_s)
        self._finish()
