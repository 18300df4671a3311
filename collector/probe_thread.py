"""Keeps one device probe in a thread of its own, so that a driver call that hangs stops neither the loop nor other probes.

All calls into a probe happen in its thread, one after the other. The loop asks and waits a bounded time; what comes later
is handed over with the next tick, and nothing piles up behind a call that does not return. It interprets no reading.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, Final, Generic, Protocol, TypeVar

from collector.probe import Probe, Sweep

T = TypeVar("T")

_CLOSE_PATIENCE_S: Final = 1.0
_OWED_S: Final = 0.5
"""How often a probe that could not let go of its driver at the end is asked again."""


class ExactReader(Protocol):
    """A probe that can read some devices at once, for an event."""

    def read_exact(self, device_uuids: Sequence[str]) -> Sweep:
        """Read the named devices now."""
        ...


def undated(sweep: Sweep) -> Sweep:
    """Return what is left of a sweep during which the clock was set: what happened, and no reading nobody can date."""
    return replace(sweep, readings=(), rows={})


class _Call(Generic[T]):
    """One call, from when it is asked for to when its result was fetched."""

    __slots__ = ("_ask", "_done", "_fault", "_result")

    def __init__(self, ask: Callable[[], T]) -> None:
        self._ask = ask
        self._done = threading.Event()
        self._result: T | None = None
        self._fault: BaseException | None = None

    def make(self) -> None:
        try:
            self._result = self._ask()
        except BaseException as fault:  # noqa: BLE001  it belongs to whoever asked
            self._fault = fault
        self._done.set()

    def result(self, patience_s: float) -> T | None:
        """Return the result, None while there is none; raises what the call raised."""
        if not self._done.wait(patience_s):
            return None
        if self._fault is not None:
            raise self._fault
        return self._result

    @property
    def done(self) -> bool:
        return self._done.is_set()


class ProbeThread:
    """One probe and its thread. Methods without another word belong to the main thread."""

    def __init__(self, name: str, probe: Probe, *, before: Sequence[ProbeThread] = ()) -> None:
        """Start the thread; the probe opens nothing before it is read.

        ``before`` are the closed ones of this name that may still hold the driver: while one does, this one has not let go of it.
        """
        self._before = tuple(before)
        self.name = name
        self.probe = probe
        self.released = False
        """While set nothing is read, and the probe stays closed."""
        self._calls: SimpleQueue[_Call[Any] | None] = SimpleQueue()
        self._sweep: _Call[Sweep] | None = None
        self._closing: _Call[None] | None = None
        self._stale = False
        self._ended = False
        self._thread = threading.Thread(target=self._work, name=f"probe-{name}", daemon=True)
        self._thread.start()

    @property
    def finished(self) -> bool:
        """Whether the probe has no more to give: a trace that was replayed."""
        return bool(getattr(self.probe, "finished", False))

    def ask(self) -> bool:
        """Have the devices read; False where nothing new is asked, as the reading before still runs or the probe is released."""
        if self.released or self._sweep is not None:
            return False
        self._sweep = self._submit(self.probe.read)
        return True

    def sweep(self, patience_s: float) -> Sweep | None:
        """Return the sweep that was asked for, once; None while it is not there. Raises what the probe raised."""
        call = self._sweep
        if call is None:
            return None
        try:
            found = call.result(patience_s)
        except BaseException:
            self._sweep, self._stale = None, False
            raise
        if found is None:
            return None
        stale, self._sweep, self._stale = self._stale, None, False
        return undated(found) if stale else found

    @property
    def overdue(self) -> bool:
        """Whether a reading was asked for and is not there: no use to wait for it."""
        return self._sweep is not None and not self._sweep.done

    def discard(self) -> None:
        """Let the readings under way be thrown away: the clock that dates them was set meanwhile. Events are kept."""
        self._stale = self._sweep is not None

    def exact(self, device_uuids: Sequence[str], patience_s: float) -> Sweep | None:
        """Read the named devices now; None where the probe cannot, is released, or does not answer in time."""
        read_exact: Callable[[Sequence[str]], Sweep] | None = getattr(self.probe, "read_exact", None)
        if read_exact is None or self.overdue:
            return None
        return self.call(lambda: read_exact(device_uuids), patience_s)

    def call(self, ask: Callable[[], T], patience_s: float) -> T | None:
        """Have something else asked of the probe, from any thread; None where it is released or does not answer in time."""
        if self.released:
            return None
        # The thread may get to it after a release; the question must not open the driver again.
        return self._submit(lambda: None if self.released else ask()).result(patience_s)

    def release(self) -> bool:
        """Have the probe let go of the driver; say whether it did in time."""
        self.released = True
        self._closing = self._submit(self.probe.close)
        return self.closed()

    def let_go(self) -> bool:
        """Say whether a released probe has let go by now; where it still owes that to a call that hung, it is asked again."""
        if self._closing is not None and not self._closing.done:
            return False
        if self._lets_go:
            return self._alone
        if not self._ended:
            self._closing = self._submit(self.probe.close)
        return False

    def begin_close(self) -> None:
        """Let go of the driver and end the thread, without waiting for either; a call that never returns is left behind.

        Where the probe owes that to a call that hangs, the thread goes on asking it, however long: nobody else does any more.
        """
        self._closing = self._submit(self.probe.close)
        self._ended = True
        self._calls.put(None)

    def closed(self, patience_s: float = _CLOSE_PATIENCE_S) -> bool:
        """Say whether the driver is let go of, after waiting for it so long."""
        if self._closing is None:
            return False
        with suppress(Exception):  # a probe that cannot close has let go of nothing, which is the answer
            self._closing.result(patience_s)
        self._sweep, self._stale = None, False
        return self.gone and self._alone

    @property
    def gone(self) -> bool:
        """Whether it was closed, or released, and its own probe holds the driver no more."""
        return self._closing is not None and self._closing.done and self._lets_go

    @property
    def _lets_go(self) -> bool:
        return bool(getattr(self.probe, "released", True))

    @property
    def _alone(self) -> bool:
        return all(earlier.gone for earlier in self._before)

    def _submit(self, ask: Callable[[], T]) -> _Call[T]:
        call = _Call(ask)
        self._calls.put(call)
        return call

    def _work(self) -> None:
        while True:
            call = self._calls.get()
            if call is None:
                break
            call.make()
        while not self._lets_go:
            time.sleep(_OWED_S)
            with suppress(Exception):  # asked again
                self.probe.close()
