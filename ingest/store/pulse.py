"""Whether the database answers: asked once a second, in a thread and over a connection that nobody else waits for.

A database that is frozen, or whose network went away without a word, gives no error: whoever asks it waits, and so would
everybody behind. The pulse is what notices, since of its own question it knows that the answer takes no time. It also
looks whether today's and tomorrow's rows have a place. It decides nothing: what follows from silence is the runtime's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

import psycopg
import sqlalchemy as sa

from ingest.store import partitions
from ingest.store.engine import Database

_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Beat:
    """What the database answered: ``fault`` if it did not, and of today and tomorrow the days it has no place for."""

    fault: str | None
    missing_days: tuple[date, ...] = ()


class Pulse:
    """Asks until it is stopped. :meth:`ask` blocks, for as long as it is told; everything else answers at once."""

    def __init__(
        self, database: Database, silent_after_s: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = database.create_engine("writer", pool_size=1, application="wattledger-pulse")
        self._silent_after_s = silent_after_s
        self._clock = clock
        self._changed = threading.Condition()
        self._asked_at_s: float | None = None
        self._begun = self._ended = 0
        self._wanted = self._stopping = False
        self._beat = Beat("nobody has asked yet")
        # The process does not wait for it at its end: it may be stuck.
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, if the database lets it."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(self._silent_after_s)
        if not self._thread.is_alive():
            self._engine.dispose()

    @property
    def silent_for_s(self) -> float:
        """Seconds for which a question has had no answer, 0 if none is open."""
        asked_at_s = self._asked_at_s
        return 0.0 if asked_at_s is None else max(0.0, self._clock() - asked_at_s)

    @property
    def is_silent(self) -> bool:
        """Whether a question has been open for longer than any answer takes."""
        return self.silent_for_s > self._silent_after_s

    def ask(self, within_s: float) -> Beat:
        """Return the answer to a question asked from now on; a fault where there is none ``within_s``."""
        with self._changed:
            wanted = self._begun + 1
            self._wanted = True
            self._changed.notify_all()
            if self._changed.wait_for(lambda: self._ended >= wanted, within_s):
                return self._beat
        return Beat(f"the database has not answered for {max(within_s, self.silent_for_s):.1f} s")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._stopping, _EVERY_S)
                if self._stopping:
                    return
                self._wanted = False
                self._begun += 1
                self._asked_at_s = self._clock()
            beat = self._answer()
            with self._changed:
                self._asked_at_s = None
                self._beat, self._ended = beat, self._begun
                self._changed.notify_all()

    def _answer(self) -> Beat:
        today = datetime.now(UTC).date()
        try:
            with self._engine.begin() as conn:
                return Beat(None, partitions.missing(conn, "device_samples", (today, today + timedelta(days=1))))
        except (sa.exc.SQLAlchemyError, psycopg.Error) as error:
            return Beat(f"the database does not answer: {type(error).__name__}")
