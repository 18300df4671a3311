"""The worker's schedule of hours: finds what is due, has it closed, first what is open and then the oldest, and counts what became of each.

Any number of workers may run. A lease (one row, renewed each round) lets only one of them do the work; it saves work and
guards nothing: every write swaps the row it was computed against, so a worker that stood still for a minute and wakes
up writes nothing twice. The hours themselves are closed by a :class:`~analytics.closing.request.Closing`: a worker's in a process of
its own, whose memory is bounded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import psycopg
from opentelemetry.trace import NoOpTracer, Tracer

from analytics.closing.hours import Here
from analytics.closing.request import PATIENCE, Closing, Computed, Died, Done, Task, Told, WorkerSettings
from analytics.io.awaited import awaited_hours
from analytics.io.findings import report_over_memory
from analytics.io.hours import batches, due_hours, forget_changes, remember_open
from analytics.io.runs import HourState, Saved
from ingest.store.engine import Database
from ingest.store.segments import Segments

__all__ = ["PATIENCE", "HourCloser", "Round", "WorkerSettings"]


@dataclass(slots=True)
class Round:
    """What one round did, for the log, metrics and tests."""

    closed: int = 0
    restated: int = 0
    rated: int = 0
    """Of those, hours that were rated on the usage they had."""
    unchanged: int = 0
    provisional: int = 0
    lost_races: int = 0
    failed: int = 0
    """Hours left open by an error, which the log has; they stay due."""
    died: int = 0
    """Of those, hours that ended the process they were closed in: a finding says so."""
    refused: int = 0
    """Hours whose inputs changed after their samples were past retention: a finding says so, and their books stay."""
    unsettled: list[tuple[int, datetime]] = field(default_factory=list, repr=False)
    """(site, hour) of those, and of lost races."""
    left: int = 0
    """Hours that were due and not come to in the time given; they stay due."""
    read_whole: int = field(default=0, compare=False)
    """Of ``provisional`` and ``unchanged``, open hours whose rows were read from their beginning on."""


class HourCloser:
    """Keeps the open window priced, and closes due hours of the ledger, oldest first."""

    def __init__(
        self,
        database: Database,
        settings: WorkerSettings,
        segments: Segments | None = None,
        tracer: Tracer | None = None,
        closing: Closing | None = None,
    ) -> None:
        """``segments``: where sealed hours lie; without, one that is due is left open with an error.

        ``tracer`` makes spans of hours that are closed together, and of each that is written. ``closing``: who closes; without,
        it is done in this process, which is for tests and measurements: no bound holds there.
        """
        self._tracer = tracer or NoOpTracer()
        self._database = database
        self._settings = settings
        self._segments = segments
        self._closing = closing or Here()

    def run(
        self,
        now: datetime,
        *,
        on_due: Callable[[Sequence[HourState]], None] | None = None,
        on_hour: Callable[[HourState, Saved], None] | None = None,
        within_s: float = math.inf,
    ) -> Round:
        """Bring the ledger up to date as of ``now``; an hour that fails is logged, counted and left due, others go on.

        ``within_s``: once so much time has passed no more hours are begun, but for the first that are to be closed. A correction of
        years has thousands of hours rated anew, and what is open, and budgets that hang on it, wait for none of them.
        ``on_due`` is told once what is due, ``on_hour`` of each hour that was written or found to be as it was.
        Raises only when the database is gone, or the worker is to stop: then no more hours could be written.
        """
        round_ = Round()
        settings = self._settings
        with self._database.connect("worker", autocommit=True, application=settings.session) as connection:
            connection.execute(PATIENCE, (f"{settings.standstill_s}s", f"{settings.row_wait_s}s"))
            horizon = _snapshot_xmin(connection)
            lateness = timedelta(microseconds=settings.policy.lateness_us)
            awaited = awaited_hours(connection, now, settings.policy)
            due = due_hours(connection, now, lateness, attest=self._segments is not None, awaited=awaited)
            if on_due is not None:
                on_due(due)
            # Apart, since one load has one instant from which on hours are open.
            open_, over = _parted(due, awaited, now - lateness)
            began_s, at_hand = time.monotonic(), batches(open_, 1)
            for number, batch in enumerate([*at_hand, *batches(over, settings.hours_per_pass)]):
                closed_before = now - lateness
                if number > len(at_hand) and time.monotonic() - began_s > within_s:
                    round_.left += len(batch.hours)
                    continue
                if number < len(at_hand):
                    closed_before = min(closed_before, batch.from_at)
                at_once = max(1, settings.device_hours_per_pass // len(batch.hours))
                task = Task(self._database, self._segments, settings, batch, now, closed_before, horizon, at_once)
                for told in self._closing.close(task):
                    self._note(connection, told, round_)
                    if on_hour is not None and isinstance(told, Done) and told.saved is not None:
                        on_hour(told.hour, told.saved)
            settled = _floor_hour(now - lateness)
            forget_changes(connection, horizon, settled, round_.unsettled)
        return round_

    def _note(self, connection: psycopg.Connection[Any], told: Told, round_: Round) -> None:
        """Count what became of hours, and leave their spans."""
        if isinstance(told, Computed):
            name = "rate hours" if told.is_rating else "compute hours"
            span = self._tracer.start_span(name, start_time=told.began_ns, attributes=_told(told.hours))
            span.end(told.ended_ns)
            return
        if isinstance(told, Died):
            remember_open(connection, told.hour.site_id, told.hour.hour_at)
            report_over_memory(connection, told.hour.site_id, told.hour.hour_at, told.reason)
            round_.died += 1
        elif told.saved is not None and not told.is_rating:
            attributes = _told([told.hour]) | {
                "wattledger.outcome": told.saved.name.lower(),
                "wattledger.closed": told.is_closed,
            }
            self._tracer.start_span("close hour", start_time=told.began_ns, attributes=attributes).end(told.ended_ns)
        _count(round_, told)


def _parted(
    due: Sequence[HourState], awaited: Mapping[int, datetime], closed_before: datetime
) -> tuple[list[HourState], list[HourState]]:
    """Return the hours that stay open, by the time or since they or one before them wait for a reading, and all others."""

    def is_open(hour: HourState) -> bool:
        from_at = min(awaited.get(hour.site_id, closed_before), closed_before)
        return hour.status != "closed" and hour.hour_at + timedelta(hours=1) > from_at

    return [hour for hour in due if is_open(hour)], [hour for hour in due if not is_open(hour)]


def _told(hours: Sequence[HourState]) -> dict[str, str | int]:
    first = hours[0]
    return {
        "wattledger.site_id": first.site_id,
        "wattledger.hour_at": first.hour_at.isoformat(),
        "wattledger.hours": len(hours),
    }


def _snapshot_xmin(connection: psycopg.Connection[Any]) -> str:
    row = connection.execute("SELECT pg_snapshot_xmin(pg_current_snapshot())::text").fetchone()
    if row is None:
        raise psycopg.DataError("pg_current_snapshot() returned no row")
    return str(row[0])


def _floor_hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


def _count(round_: Round, told: Done | Died) -> None:
    hour = told.hour
    if isinstance(told, Done) and told.is_refused:
        round_.refused += 1
        return
    if isinstance(told, Died) or told.saved is None:
        round_.failed += 1
        round_.unsettled.append((hour.site_id, hour.hour_at))
        return
    if told.saved is Saved.LOST_RACE:
        round_.lost_races += 1
        round_.unsettled.append((hour.site_id, hour.hour_at))
        return
    round_.rated += told.is_rating and told.saved is Saved.WRITTEN
    round_.read_whole += told.is_read_whole
    if told.saved is Saved.UNCHANGED:
        round_.unchanged += 1
    elif not told.is_closed:
        round_.provisional += 1
    elif hour.status == "closed":
        round_.restated += 1
    else:
        round_.closed += 1
