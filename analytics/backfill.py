"""Makes the minutes by tenant of hours that were closed before there were any, a few hours a step. It touches no books.

Which hours those are the tables say, so a worker that ends in the middle, or another one, goes on where it was. Each hour is
read as it was known when it was closed, and its jobs' tenants are those of its books: the minutes sum to what was billed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import dataframely as dy
import polars as pl
import psycopg

from analytics.errors import AnalyticsError
from analytics.frames import TenantMinutes
from analytics.io.load import load_batch
from analytics.io.missing_minutes import MissingHour, job_tenants, missing_hours, write_minutes
from analytics.jobs import PATIENCE, WorkerSettings
from analytics.pipeline import Window, read_meters, roll_minutes, roll_tenants
from ingest.store.engine import Database
from ingest.store.segments import SegmentError, Segments, SegmentUnreachableError

log = logging.getLogger(__name__)
STEP_S: Final = 5.0
"""A step begins no hour after so long: budgets and open hours wait for it."""
AGAIN_AFTER_S: Final = 3_600.0
"""An hour that cannot be made is tried again so much later: its bucket may answer by then. As often a worker with nothing to do
looks whether there is something."""


@dataclass(frozen=True, slots=True)
class Backfilled:
    """What one step did. ``left``: hours still without minutes, those put off included."""

    made: int = 0
    left: int = 0
    put_off: int = 0


class MinutesBackfill:
    """Goes through hours without minutes, the newest first. For one thread."""

    def __init__(
        self,
        database: Database,
        settings: WorkerSettings,
        segments: Segments | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._settings = settings
        self._segments = segments
        self._clock_s = clock_s
        self._waiting: list[MissingHour] = []
        """Found and not yet made, the next one last: to find them takes a second for each 40,000 hours of books."""
        self._put_off: dict[MissingHour, float] = {}
        """Until when, by ``clock_s``."""
        self._rests_until_s = clock_s()

    def step(self, within_s: float = STEP_S) -> Backfilled | None:
        """Make the minutes of some hours; one that fails is put off, and others go on. None: it rests, having nothing to do."""
        began_s, made = self._clock_s(), 0
        if began_s < self._rests_until_s:
            return None
        with self._database.connect("worker", autocommit=True, application=self._settings.session) as connection:
            connection.execute(PATIENCE, (f"{self._settings.standstill_s}s", f"{self._settings.row_wait_s}s"))
            if not self._waiting:
                self._put_off = {hour: until_s for hour, until_s in self._put_off.items() if until_s > began_s}
                self._waiting = [hour for hour in missing_hours(connection) if hour not in self._put_off][::-1]
                if not self._waiting:
                    self._rests_until_s = began_s + AGAIN_AFTER_S
            while self._waiting and self._clock_s() - began_s < within_s:
                made += self._one(connection, self._waiting.pop())
        return Backfilled(made, len(self._waiting) + len(self._put_off), len(self._put_off))

    def _one(self, connection: psycopg.Connection[Any], hour: MissingHour) -> bool:
        why: object = "its samples give no minute"
        try:
            minutes = self._minutes(connection, hour)
            if not minutes.is_empty():
                # Where it was closed again meanwhile, that wrote its minutes.
                return write_minutes(connection, hour, minutes)
        except (SegmentError, SegmentUnreachableError, AnalyticsError, pl.exceptions.PolarsError) as error:
            why = error
        except psycopg.errors.LockNotAvailable as error:
            why = error
        log.warning("site %s, hour %s: no minutes by tenant for now: %s", hour.site_id, hour.hour_at, why)
        self._put_off[hour] = self._clock_s() + AGAIN_AFTER_S
        return False

    def _minutes(self, connection: psycopg.Connection[Any], hour: MissingHour) -> dy.DataFrame[TenantMinutes]:
        settings, end_at = self._settings, hour.hour_at + timedelta(hours=1)
        window = Window(from_at=hour.hour_at, to_at=end_at, closed_before_at=end_at)
        loaded = load_batch(
            self._database,
            connection,
            hour.site_id,
            window,
            settings.policy,
            settings.currency,
            as_of=hour.as_of,
            segments=self._segments,
        )
        usage = loaded.inputs.usage
        metered = read_meters(usage, settings.policy)
        rollups = roll_minutes(usage, settings.policy, metered)
        return roll_tenants(usage, rollups, job_tenants(connection, hour), metered)
