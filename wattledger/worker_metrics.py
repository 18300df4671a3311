"""The worker's own metrics, for whoever scrapes it: rounds, hours, chores, sealing, and how far behind the books are.

Labels are closed sets: no site, hour or tenant becomes one. It measures and decides nothing; what is due is told by whoever
closes hours. A worker that waits for the lease shows its rounds and no backlog: that is the active one's to say.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Final

from opentelemetry.metrics import Observation

from analytics.io.runs import HourState, Saved
from analytics.jobs import Round
from analytics.minutes import MinutesMade
from ingest.exposition import WORK_SECONDS, Meters
from ingest.store.hours import SiteHour
from ingest.store.seal import Generation
from wattledger.sealing import Pass, Sealing

_HOUR: Final = timedelta(hours=1)
_CLOSE_OUTCOMES: Final = ("closed", "restated", "unchanged", "provisional", "lost_races", "failed", "refused")
_SEALING_OUTCOMES: Final = ("sealed", "merged", "busy", "failed", "expired_hours")
_PREFIX: Final = "wattledger_worker_"


def _now() -> datetime:
    return datetime.now(UTC)


class WorkerMetrics:
    """The instruments of one worker process; nothing global. Any thread may measure."""

    def __init__(self, lateness: timedelta, clock: Callable[[], datetime] = _now) -> None:
        """``lateness``: how long after its end an hour is to be closed."""
        self._lateness = lateness
        self._clock = clock
        self._lock = threading.Lock()
        self._pending: dict[tuple[int, datetime], HourState] | None = None
        self._missing: int | None = None
        self._meters = Meters("wattledger-worker", WORK_SECONDS)
        meter = self._meters.meter("wattledger.worker")
        self._rounds = meter.create_counter(f"{_PREFIX}rounds_total", description="Rounds by what they came to")
        self._round_seconds = meter.create_histogram(
            f"{_PREFIX}round_duration_seconds", description="A round, with all chores that were due in it", unit="s"
        )
        self._chore_seconds = meter.create_histogram(
            f"{_PREFIX}chore_duration_seconds", description="One run of a chore, by chore and outcome", unit="s"
        )
        self._hours = meter.create_counter(f"{_PREFIX}hours_total", description="Hours by what became of them")
        self._rebuilds = meter.create_counter(
            f"{_PREFIX}open_window_rebuilds_total",
            description="Looks at an open hour for which its rows were read from their beginning on, since none were kept",
        )
        meter.create_observable_gauge(
            f"{_PREFIX}due_hours", [lambda _: self._due()], description="Hours that are due and not yet done"
        )
        meter.create_observable_gauge(
            f"{_PREFIX}oldest_due_hour_lag_seconds",
            [lambda _: self._lag()],
            description="Since when the oldest hour that was never closed should have been; 0 when none is late",
            unit="s",
        )
        self._minutes = meter.create_counter(
            f"{_PREFIX}minutes_made_hours_total",
            description="Hours whose minutes by device and by tenant were made after their books",
        )
        meter.create_observable_gauge(
            f"{_PREFIX}minutes_missing_hours",
            [lambda _: self._without_minutes()],
            description="Hours whose minutes are not yet those of their books",
        )
        self._passes = meter.create_counter(f"{_PREFIX}sealing_passes_total", description="Passes of sealing")
        self._pass_seconds = meter.create_histogram(
            f"{_PREFIX}sealing_pass_duration_seconds", description="One pass of sealing, its rests included", unit="s"
        )
        self._sealed = meter.create_counter(f"{_PREFIX}sealing_hours_total", description="Hours by what sealing did")
        self._sealed_bytes = meter.create_counter(
            f"{_PREFIX}sealing_bytes_total", description="Bytes of segments written", unit="By"
        )

    def exposition(self) -> str:
        """Return everything measured so far as Prometheus text."""
        return self._meters.exposition()

    def close(self) -> None:
        self._meters.close()

    def round_over(self, outcome: str, duration_s: float) -> None:
        """Count a round: ``worked``, ``standby`` (another worker has the lease) or ``no_database``."""
        self._rounds.add(1, {"outcome": outcome})
        self._round_seconds.record(duration_s)
        if outcome != "worked":
            with self._lock:
                self._pending = self._missing = None

    @contextmanager
    def chore(self, name: str) -> Iterator[None]:
        """Measure one run of a chore, whether it fails or not."""
        began_s, outcome = time.monotonic(), "failed"
        try:
            yield
            outcome = "done"
        finally:
            self._chore_seconds.record(time.monotonic() - began_s, {"chore": name, "outcome": outcome})

    def due(self, hours: Sequence[HourState]) -> None:
        """Say what is due at the beginning of a round."""
        with self._lock:
            self._pending = {(hour.site_id, hour.hour_at): hour for hour in hours}

    def saved(self, hour: HourState, saved: Saved) -> None:
        """Say what became of one of them."""
        with self._lock:
            if self._pending is not None and saved is not Saved.LOST_RACE:
                self._pending.pop((hour.site_id, hour.hour_at), None)

    def closed(self, done: Round) -> None:
        """Count what a round did to hours; what it left unsettled is still due."""
        for outcome in _CLOSE_OUTCOMES:
            self._hours.add(getattr(done, outcome), {"outcome": outcome})
        self._rebuilds.add(done.read_whole)
        with self._lock:
            if self._pending is not None:
                self._pending = {key: self._pending[key] for key in done.unsettled if key in self._pending}

    def minutes(self, done: MinutesMade) -> None:
        """Count a step of making minutes of hours whose books are newer."""
        self._minutes.add(done.made)
        with self._lock:
            self._missing = done.left

    def sealing_pass(self, done: Pass | None, duration_s: float) -> None:
        """Count a pass of sealing; None: it failed."""
        self._passes.add(1, {"outcome": "failed" if done is None else "done"})
        self._pass_seconds.record(duration_s)
        for name in _SEALING_OUTCOMES if done is not None else ():
            self._sealed.add(getattr(done, name), {"outcome": name.removesuffix("_hours")})

    def sealed_file(self, generation: Generation) -> None:
        """Count the bytes of an hour's new generation."""
        self._sealed_bytes.add(generation.size_bytes)

    def _due(self) -> Iterable[Observation]:
        with self._lock:
            return [] if self._pending is None else [Observation(len(self._pending))]

    def _without_minutes(self) -> Iterable[Observation]:
        with self._lock:
            return [] if self._missing is None else [Observation(self._missing)]

    def _lag(self) -> Iterable[Observation]:
        with self._lock:
            if self._pending is None:
                return []
            # One that is closed again is late for no reader: what it says was true of what was known.
            open_ends = [at + _HOUR for (_, at), hour in self._pending.items() if hour.status != "closed"]
        late_s = (self._clock() - min(open_ends) - self._lateness).total_seconds() if open_ends else 0.0
        return [Observation(max(0.0, late_s))]


class MeasuredSealing(Sealing):
    """Sealing whose passes and files are counted."""

    def __init__(self, sealing: Sealing, metrics: WorkerMetrics) -> None:
        super().__init__(sealing.database, sealing.segments, sealing.settings, sealing.session, sealing.engine)
        self._metrics = metrics

    def once(self, now: datetime, is_ours: Callable[[], bool] = lambda: True) -> Pass:
        """Make one pass; what breaks it is counted and raised."""
        began_s = time.monotonic()
        done = None
        try:
            done = super().once(now, is_ours)
        finally:
            self._metrics.sealing_pass(done, time.monotonic() - began_s)
        return done

    def _one(self, work: Callable[[SiteHour], Generation], hour: SiteHour, done: Pass) -> Generation | None:
        made = super()._one(work, hour, done)
        if made is not None:
            self._metrics.sealed_file(made)
        return made
