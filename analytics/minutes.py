"""The worker's chore of minutes: has those of hours made whose books are newer than their minutes, a few hours a step. It touches no books.

Which hours those are the tables say, so a worker that ends in the middle, or another one, goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from analytics.closing.hours import Here
from analytics.closing.request import Closing, MinutesTask, WorkerSettings
from analytics.io.due_minutes import DueHour, due_minutes
from ingest.store.engine import Database
from ingest.store.segments import Segments

STEP_S: Final = 5.0
"""A step begins no hour after so long: budgets and open hours wait for it."""
AGAIN_AFTER_S: Final = 3_600.0
"""An hour that cannot be made is tried again so much later: its bucket may answer by then."""
OPEN_AGAIN_AFTER_S: Final = 60.0
"""The hour at hand has one minute more so much later; its books are newer every round."""


@dataclass(frozen=True, slots=True)
class MinutesMade:
    """What one step did. ``left``: hours whose minutes are still to be made, those put off included."""

    made: int = 0
    left: int = 0
    put_off: int = 0


def _now() -> datetime:
    return datetime.now(UTC)


class MinutesMaker:
    """Goes through hours whose minutes are due, the newest first. For one thread."""

    def __init__(
        self,
        database: Database,
        settings: WorkerSettings,
        segments: Segments | None = None,
        clock_s: Callable[[], float] = time.monotonic,
        closing: Closing | None = None,
    ) -> None:
        """``closing``: who makes them; without, this process, as with :class:`~analytics.jobs.HourCloser`."""
        self._database = database
        self._settings = settings
        self._segments = segments
        self._clock_s = clock_s
        self._closing = closing or Here()
        self._put_off: dict[tuple[int, datetime], float] = {}
        """Until when, by ``clock_s``: hours that failed, and open ones that have their minutes for now."""

    def step(self, now: datetime | None = None, within_s: float = STEP_S) -> MinutesMade:
        """Make the minutes of some hours; one that fails is put off, and others go on.

        ``now``: where open hours end for now. Raises psycopg.OperationalError where the database is gone.
        """
        at, began_s, made = now or _now(), self._clock_s(), 0
        self._put_off = {hour: until_s for hour, until_s in self._put_off.items() if until_s > began_s}
        with self._database.connect("worker", autocommit=True, application=self._settings.session) as connection:
            due = due_minutes(connection)
        left = dict.fromkeys((hour.site_id, hour.hour_at) for hour in due)
        for hour in due:
            key = hour.site_id, hour.hour_at
            if key in self._put_off:
                continue
            if self._clock_s() - began_s >= within_s:
                break
            if self._make(hour, at):
                del left[key]
                made += 1
                if hour.status != "closed":
                    self._put_off[key] = self._clock_s() + OPEN_AGAIN_AFTER_S
            else:
                self._put_off[key] = self._clock_s() + AGAIN_AFTER_S
        return MinutesMade(made, len(left), sum(key in self._put_off for key in left))

    def _make(self, hour: DueHour, now: datetime) -> bool:
        settings = self._settings
        task = MinutesTask(self._database, self._segments, settings, hour, now, settings.device_hours_per_pass)
        return self._closing.make_minutes(task)
