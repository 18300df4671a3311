"""Brings rows to the disk in a thread of its own: what waits for SQLite is this thread, never the loop that measures.

Rows wait in memory, bounded, until a batch of them is committed; while the disk is slow, locked or full they go on waiting,
and those that do not fit any more are dropped and counted, what cannot be read again last. Without its thread (before
:meth:`Writer.start`) it stores where it is asked to. It knows neither devices nor the wire: encoding is its maker's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from collector.batch import RowError
from collector.clock import Clock
from collector.errors import SpoolError
from collector.probe import Epoch, Row
from collector.rows import fault_of
from collector.spool import Spool, SpoolState
from collector.wire import DeviceRef, Stream

_LOG = logging.getLogger(__name__)

MAX_PENDING_ROWS: Final = 5_000
"""Rows kept in memory while the spool fails: at most some 15 MB, an hour and a half of 8 devices."""
_AGAIN_S: Final = 5.0
_LOOK_S: Final = 0.01
# What is given up last: rows that cannot be read again and that decide who pays.
_KEPT_LONGEST: Final = (Stream.ALLOCATION, Stream.DEVICE_EVENT, Stream.NODE_EVENT)
_KEPT_LONGEST_RANK: Final = {
    stream: _KEPT_LONGEST.index(stream) + 1 if stream in _KEPT_LONGEST else 0 for stream in Stream
}


@dataclass(slots=True)
class RecorderState:
    """Counts since the start, for the agent's own health."""

    samples: int = 0
    samples_missed: int = 0
    batches: int = 0
    dropped_rows: int = 0
    spool_failures: int = 0
    refused_rows: Counter[str] = field(default_factory=Counter)
    """Rows of sources and probes that were left out, by what was wrong with them."""


Encode = Callable[["Pending", str, int], bytes]
"""Makes a body of rows, the spool's uuid and a sequence."""


@dataclass(slots=True)
class Pending:
    """Rows of one lane and epoch that are not in the spool yet."""

    lane: str
    epoch: Epoch
    devices: tuple[DeviceRef, ...]
    streams: dict[Stream, deque[Row]] = field(default_factory=dict)
    whole: bool = False
    """Whether it may be stored."""
    in_hand: bool = False
    """Whether it is being stored: nobody else may touch it."""
    noted: bool = False
    """Whether its epoch has to be remembered before it is stored."""
    encode: Encode | None = None
    """What makes a body of it: rows that were kept under other settings are told as they were meant."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return sum(map(len, self.streams.values()))

    def give_up_one(self) -> None:
        """Drop the oldest row of a stream that matters least."""
        stream = min((stream for stream, rows in self.streams.items() if rows), key=_KEPT_LONGEST_RANK.__getitem__)
        self.streams[stream].popleft()

    def give_up_unfit(self) -> list[str]:
        """Drop the rows that do not fit their streams; return what is wrong with each."""
        faults: list[str] = []
        for stream, rows in self.streams.items():
            fitting: deque[Row] = deque()
            for row in rows:
                fault = fault_of(stream, row)
                if fault is None:
                    fitting.append(row)
                else:
                    faults.append(f"{stream.value}: {fault}")
            self.streams[stream] = fitting
        return faults


class Writer:
    """The rows that wait, and the thread that stores them."""

    def __init__(self, spool: Spool, clock: Clock, encode: Encode, state: RecorderState) -> None:
        """Store in ``spool`` what ``encode`` makes of rows; count in ``state``."""
        self.spool = spool
        self.held: SpoolState | None = None
        """What the spool held when that was asked last; None until the answer is there."""
        self._clock = clock
        self._encode = encode
        self._state = state
        self._lock = threading.Lock()  # held for moments only, never while the disk is waited for
        self._pending: deque[Pending] = deque()
        self._rows = 0
        self._epochs: dict[str, tuple[str, int]] = {}
        self._wake = threading.Event()
        self._held_asked = False
        self._answered = threading.Event()
        self._ending = False
        self._leaving = False
        self._thread: threading.Thread | None = None

    @property
    def waiting_rows(self) -> int:
        """Rows in memory."""
        return self._rows

    def serve(self, clock: Clock, encode: Encode, state: RecorderState) -> None:
        """Go on for another recorder; what waits already is stored before what that one keeps."""
        with self._lock:
            self._clock, self._encode, self._state, self.held = clock, encode, state, None

    def known_epochs(self) -> dict[str, tuple[str, int]]:
        """Return boot and driver epoch of each lane that has one, the last that was kept, stored or not."""
        with self._lock:
            waiting = {
                entry.lane: (entry.epoch.boot_id, entry.epoch.driver_epoch) for entry in self._pending if entry.noted
            }
            return {**self._epochs, **waiting}

    def keep(
        self,
        lane: str,
        epoch: Epoch,
        devices: tuple[DeviceRef, ...],
        stream: Stream,
        rows: Iterable[Row],
        *,
        noted: bool,
    ) -> None:
        """Take rows of one lane over; ``noted`` tells that the lane's epoch must outlive the process."""
        rows = tuple(rows)
        with self._lock:
            last = next((entry for entry in reversed(self._pending) if entry.lane == lane), None)
            if last is None or last.in_hand or last.epoch != epoch or last.encode != self._encode:
                last = Pending(lane, epoch, devices, noted=noted, encode=self._encode)
                self._pending.append(last)
            last.devices = devices
            last.streams.setdefault(stream, deque()).extend(rows)
            self._rows += len(rows)
            while self._rows > MAX_PENDING_ROWS and self._drop_one():
                pass

    def store(self) -> None:
        """Have everything stored that was kept so far."""
        with self._lock:
            for entry in self._pending:
                entry.whole = True
        self._go()

    def ask_held(self) -> None:
        """Ask what the spool holds; :attr:`held` is None until that is known."""
        self.held = None
        self._answered.clear()
        self._held_asked = True
        self._go()

    def wait_held(self, patience_s: float) -> None:
        """Wait until what was asked is answered; for the end, when nothing is measured any more."""
        self._answered.wait(patience_s)

    def start(self) -> None:
        """Store in a thread from now on; nothing happens where that runs already."""
        if self._thread is not None:
            return
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def wait_stored(self, patience_s: float) -> bool:
        """Wait until nothing waits for the disk; False where it takes longer."""
        until_s = time.monotonic() + patience_s
        while self._rows and time.monotonic() < until_s:
            time.sleep(_LOOK_S)
        return not self._rows

    def leave(self) -> None:
        """End once all is stored, however long the disk takes, and close the spool: nothing more will be kept."""
        self.store()
        self._leaving = True
        self.start()
        self._wake.set()

    def close(self, patience_s: float) -> bool:
        """Store what may be stored and end; False where the disk did not let it in that time, and the thread is left behind."""
        if self._thread is None:
            return True
        self._ending = True
        self._wake.set()
        self._thread.join(patience_s)
        return not self._thread.is_alive()

    def _go(self) -> None:
        if self._thread is None:
            self._work()
        else:
            self._wake.set()

    def _run(self) -> None:
        ending = False
        while not ending:
            self._wake.wait(_AGAIN_S if self._leaving else None)
            self._wake.clear()
            ending = self._ending
            try:
                self._work()
            except Exception:  # noqa: BLE001  the outermost loop of the thread
                self._state.spool_failures += 1
                _LOG.exception("storing failed in a way nobody foresaw; going on")
            if self._leaving and not self._rows:
                self.spool.close()
                return

    def _work(self) -> None:
        while (entry := self._take()) is not None:
            stored = False
            try:
                stored = self._put(entry)
            finally:
                self._give_back(entry, stored=stored)
            if not stored:
                break
        if self._held_asked:
            self._held_asked = False
            try:
                self.held = self.spool.state()
            except SpoolError as error:
                _LOG.debug("what the spool holds is unknown: %s", error)
            self._answered.set()

    def _take(self) -> Pending | None:
        with self._lock:
            entry = self._pending[0] if self._pending else None
            if entry is None or not entry.whole:
                return None
            entry.in_hand = True
            return entry

    def _give_back(self, entry: Pending, *, stored: bool) -> None:
        with self._lock:
            entry.in_hand = False
            if stored:
                self._rows -= len(entry)
                self._pending.popleft()

    def _put(self, entry: Pending) -> bool:
        """Store one batch; False where the spool could not take it now."""
        try:
            self._note_epoch(entry)
            self.spool.put(partial(entry.encode or self._encode, entry), self._clock.now().wall_us)
        except SpoolError as error:
            self._state.spool_failures += 1
            _LOG.error("batch kept in memory, %d rows wait: %s", self._rows, error)
            return False
        except RowError as error:
            with self._lock:
                faults = entry.give_up_unfit()
                if not faults:
                    # Trying again would fail again and hold up all that comes after.
                    faults = [str(error)] * len(entry)
                    entry.streams.clear()
                self._state.dropped_rows += len(faults)
                self._rows -= len(faults)
            _LOG.error("%d rows dropped, they do not fit the wire: %s", len(faults), faults[0])
            return self._put(entry) if entry else True
        else:
            self._state.batches += 1
        return True

    def _note_epoch(self, entry: Pending) -> None:
        """Remember the epoch before any batch of it is stored: a restart must not give its number to another."""
        epoch = (entry.epoch.boot_id, entry.epoch.driver_epoch)
        if entry.noted and self._epochs.get(entry.lane) != epoch:
            self.spool.remember(epoch_fact(entry.lane), f"{epoch[0]} {epoch[1]}")
            self._epochs[entry.lane] = epoch

    def _drop_one(self) -> bool:
        oldest = next((entry for entry in self._pending if not entry.in_hand), None)
        if oldest is None:
            return False
        oldest.give_up_one()
        self._state.dropped_rows += 1
        self._rows -= 1
        if not oldest:
            self._pending.remove(oldest)
        return True


def epoch_fact(probe: str) -> str:
    """Return the name under which the spool remembers a probe's driver epoch."""
    return "driver_epoch" if probe == "nvml" else f"driver_epoch:{probe}"
