"""The worker's round: close what is due, price the open window, decide on budgets, deliver messages, keep house.

Any number of workers may run. A lease (one row, renewed each round) lets only one of them do the work; it saves work and
guards nothing: every write swaps the row it was computed against, so a worker that stood still for a minute and wakes
up writes nothing twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import polars as pl
import psycopg
from opentelemetry.trace import NoOpTracer, Tracer

from analytics.errors import BooksError
from analytics.io.findings import report_attest, report_unbalanced
from analytics.io.hours import Batch, batches, due_hours, forget_changes, hours_at_once, remember_open, settle
from analytics.io.load import Loaded, load_batch
from analytics.io.load_rating import load_rating
from analytics.io.runs import HourState, Run, Saved
from analytics.io.save import HourBooks, remember_silences, save_hour
from analytics.io.save_rated import RatedBooks, save_rated
from analytics.io.segments import raise_refused
from analytics.pipeline import (
    HourResult,
    Rated,
    Window,
    close_hours,
    rate_hours,
    read_meters,
    roll_minutes,
    roll_tenants,
)
from analytics.policy import Policy
from ingest.store.engine import Database
from ingest.store.segments import SegmentExpiredError, Segments

log = logging.getLogger(__name__)

PATIENCE: Final = (
    "SELECT set_config('idle_in_transaction_session_timeout', %s, false), set_config('lock_timeout', %s, false)"
)
"""Of a worker's session, with ``standstill_s`` and ``row_wait_s`` of its settings."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker may be told; values come from the composition root."""

    code_version: str
    session: str = "wattledger-worker"
    """Application name of its database sessions, by which a successor finds them."""
    currency: str = "USD"
    policy: Policy = field(default_factory=Policy)
    interval_s: float = 10.0
    standstill_s: int = 20
    """A worker that stands still inside a transaction (stopped, swapped out, its machine gone) holds the row of its hour:
    after this long the server ends its session. Shorter than the lease, so that whoever takes over finds the row free."""
    row_wait_s: int = 10
    """How long to wait for a row another worker holds; then its hour is left for the next round."""
    hours_per_pass: int = 24
    """At most so many hours of one site are computed together: fewer passes."""
    device_hours_per_pass: int = 4_096
    """And at most so many hours x devices, but always one hour: memory (3,072 at 10 s take about 0.3 GiB)."""


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
    refused: int = 0
    """Hours whose inputs changed after their samples were past retention: a finding says so, and their books stay."""
    unsettled: list[tuple[int, datetime]] = field(default_factory=list, repr=False)
    """(site, hour) of those, and of lost races."""


@dataclass(frozen=True, slots=True)
class _Computed:
    """The books of one batch, not yet written."""

    loaded: Loaded
    window: Window
    result: HourResult
    rollups: pl.DataFrame
    tenant_minutes: pl.DataFrame


class HourCloser:
    """Closes due hours of the ledger, oldest first, and keeps the open window priced."""

    def __init__(
        self,
        database: Database,
        settings: WorkerSettings,
        segments: Segments | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """``segments``: where sealed hours lie; without, one that is due is left open with an error.

        ``tracer`` makes spans of hours that are closed together, and of each that is written.
        """
        self._tracer = tracer or NoOpTracer()
        self._database = database
        self._settings = settings
        self._segments = segments

    def run(
        self,
        now: datetime,
        *,
        on_due: Callable[[Sequence[HourState]], None] | None = None,
        on_hour: Callable[[HourState, Saved], None] | None = None,
    ) -> Round:
        """Bring the ledger up to date as of ``now``; an hour that fails is logged, counted and left due, others go on.

        ``on_due`` is told once what is due, ``on_hour`` of each hour that was written or found to be as it was.
        Raises only when the database is gone: then no hour could be written.
        """
        round_ = Round()
        with self._database.connect("worker", autocommit=True, application=self._settings.session) as connection:
            settings = self._settings
            connection.execute(PATIENCE, (f"{settings.standstill_s}s", f"{settings.row_wait_s}s"))
            horizon = _snapshot_xmin(connection)
            lateness = timedelta(microseconds=settings.policy.lateness_us)
            due = due_hours(connection, now, lateness, attest=self._segments is not None)
            if on_due is not None:
                on_due(due)
            waiting = batches(due, settings.hours_per_pass, hours_at_once(connection, settings.device_hours_per_pass))
            while waiting:
                batch = waiting.pop(0)
                if batch.hours[0].is_rating_only and self._rate(connection, batch, now, round_, on_hour):
                    continue
                try:
                    with self._tracer.start_as_current_span("compute hours", attributes=_told(batch.hours)):
                        computed = self._compute(connection, batch, now)
                # Broad: what one site's data can provoke, from a row that fits no frame to memory that does not suffice,
                # has no common base, and whatever it is must not keep other sites from their books. Nothing is written yet.
                except Exception as error:
                    if connection.closed:
                        raise
                    if len(batch.hours) > 1:  # one bad hour must not keep its neighbours from their books
                        waiting = batches(list(batch.hours), 1) + waiting
                    elif isinstance(error, SegmentExpiredError) and settle(connection, batch.hours[0], horizon):
                        _refuse(connection, batch.hours[0], error, round_)
                    else:
                        _leave_open(connection, batch.hours[0], error, round_)
                    continue
                self._save(connection, batch, computed, now, round_, on_hour)
            settled = _floor_hour(now - lateness)
            forget_changes(connection, horizon, settled, round_.unsettled)
        return round_

    def _rate(
        self,
        connection: psycopg.Connection[Any],
        batch: Batch,
        now: datetime,
        round_: Round,
        on_hour: Callable[[HourState, Saved], None] | None,
    ) -> bool:
        """Rate closed hours of which only prices, tenants or calls changed; False, and nothing done, where that is not enough."""
        settings = self._settings
        window = Window(batch.from_at, batch.to_at, now - timedelta(microseconds=settings.policy.lateness_us))
        try:
            with self._tracer.start_as_current_span("rate hours", attributes=_told(batch.hours)):
                loaded = load_rating(connection, batch.hours, window, settings.currency)
                if loaded is None:
                    return False
                rated = rate_hours(loaded.inputs)
        # As broad as where hours are computed, and nothing is written yet: closing them as a whole tells what is wrong, by hour.
        except Exception as error:
            if connection.closed:
                raise
            log.warning(
                "site %s, hours from %s: not rated, so closed as a whole: %s", batch.site_id, batch.from_at, error
            )
            return False
        for hour in batch.hours:
            run = Run(
                settings.code_version, loaded.as_of, loaded.seen_xid, loaded.read, settings.policy, "changed rates"
            )
            try:
                saved = save_rated(connection, hour, _rated_of(hour, rated), run)
            except (psycopg.Error, pl.exceptions.PolarsError) as error:
                if connection.closed:
                    raise
                _leave_open(connection, hour, error, round_)
                continue
            round_.rated += saved is Saved.WRITTEN
            _count(round_, hour, saved, closed=True)
            if on_hour is not None:
                on_hour(hour, saved)
        return True

    def _compute(self, connection: psycopg.Connection[Any], batch: Batch, now: datetime) -> _Computed:
        settings = self._settings
        closed_before = now - timedelta(microseconds=settings.policy.lateness_us)
        window = Window(from_at=batch.from_at, to_at=min(batch.to_at, now), closed_before_at=closed_before)
        loaded = load_batch(
            self._database,
            connection,
            batch.site_id,
            window,
            settings.policy,
            settings.currency,
            segments=self._segments,
        )
        metered = read_meters(loaded.inputs.usage, settings.policy)
        result = close_hours(loaded.inputs, settings.policy, metered)
        rollups = roll_minutes(loaded.inputs.usage, settings.policy, metered)
        by_tenant = roll_tenants(loaded.inputs.usage, rollups, result.job_tenants, metered)
        return _Computed(loaded, window, result, rollups, by_tenant)

    def _save(
        self,
        connection: psycopg.Connection[Any],
        batch: Batch,
        computed: _Computed,
        now: datetime,
        round_: Round,
        on_hour: Callable[[HourState, Saved], None] | None,
    ) -> None:
        settings, loaded = self._settings, computed.loaded
        closed_before = now - timedelta(microseconds=settings.policy.lateness_us)
        restated = False
        for hour in batch.hours:
            closed = hour.hour_at + timedelta(hours=1) <= closed_before
            run = Run(
                settings.code_version,
                loaded.as_of,
                loaded.seen_xid,
                loaded.read,
                settings.policy,
                _reason(hour, closed=closed),
                loaded.generations.get(hour.hour_at, 0),
            )
            books = _books_of(hour, computed)
            try:
                with self._tracer.start_as_current_span("close hour", attributes=_told([hour])) as span:
                    saved = save_hour(connection, hour, books, run, closed=closed)
                    span.set_attributes({"wattledger.outcome": saved.name.lower(), "wattledger.closed": closed})
            except (psycopg.Error, pl.exceptions.PolarsError) as error:
                if connection.closed:
                    raise
                _leave_open(connection, hour, error, round_)
                continue
            _count(round_, hour, saved, closed=closed)
            if hour.is_settled and saved is Saved.WRITTEN:
                log.error(
                    "site %s, hour %s: sealed samples give other books than hot rows gave", hour.site_id, hour.hour_at
                )
                report_attest(connection, hour.site_id, hour.hour_at)
            restated |= saved is Saved.WRITTEN and hour.status == "closed"
            if on_hour is not None:
                on_hour(hour, saved)
        remember_silences(connection, batch.site_id, loaded.silences, computed.window, restated=restated)


def _told(hours: Sequence[HourState]) -> dict[str, str | int]:
    first = hours[0]
    return {
        "wattledger.site_id": first.site_id,
        "wattledger.hour_at": first.hour_at.isoformat(),
        "wattledger.hours": len(hours),
    }


def _refuse(connection: psycopg.Connection[Any], hour: HourState, error: SegmentExpiredError, round_: Round) -> None:
    """Leave an hour as it was closed, for good: what it would be computed of is gone. On record, and not tried for ever."""
    round_.refused += 1
    log.warning("site %s, hour %s: not closed again: %s", hour.site_id, hour.hour_at, error)
    raise_refused(connection, hour.site_id, hour.hour_at, error)


def _leave_open(connection: psycopg.Connection[Any], hour: HourState, error: Exception, round_: Round) -> None:
    """Leave an hour that failed due, on record: in the log, and where it is the books' own fault, as a finding."""
    round_.failed += 1
    round_.unsettled.append((hour.site_id, hour.hour_at))
    remember_open(connection, hour.site_id, hour.hour_at)
    if isinstance(error, BooksError):
        log.error("site %s, hour %s: the books do not balance", hour.site_id, hour.hour_at, exc_info=error)
        report_unbalanced(connection, hour.site_id, hour.hour_at, error)
    else:
        log.error("site %s, hour %s: left open", hour.site_id, hour.hour_at, exc_info=error)


def _snapshot_xmin(connection: psycopg.Connection[Any]) -> str:
    row = connection.execute("SELECT pg_snapshot_xmin(pg_current_snapshot())::text").fetchone()
    if row is None:
        raise psycopg.DataError("pg_current_snapshot() returned no row")
    return str(row[0])


def _floor_hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


def _reason(hour: HourState, *, closed: bool) -> str:
    if not closed:
        return "open window"
    if hour.status != "closed":
        return "first close"
    return "sealed samples" if hour.is_settled else "changed inputs"


def _books_of(hour: HourState, computed: _Computed) -> HourBooks:
    at, result = hour.hour_at, computed.result
    return HourBooks(
        usage=result.usage.filter(result.usage["hour_at"] == at),
        lines=result.lines.filter(result.lines["hour_at"] == at),
        findings=result.findings.filter(result.findings["hour_at"] == at),
        quality=result.quality.filter(result.quality["hour_at"] == at),
        rollups=computed.rollups.filter(pl.col("minute_at").dt.truncate("1h") == at),
        tenant_minutes=computed.tenant_minutes.filter(pl.col("minute_at").dt.truncate("1h") == at),
        job_tenants=result.job_tenants.filter(result.job_tenants["hour_at"] == at),
    )


def _rated_of(hour: HourState, rated: Rated) -> RatedBooks:
    at = pl.col("hour_at") == hour.hour_at
    return RatedBooks(
        usage=rated.usage.filter(at),
        lines=rated.lines.filter(at),
        findings=rated.findings.filter(at),
        job_tenants=rated.job_tenants.filter(at),
    )


def _count(round_: Round, hour: HourState, saved: Saved, *, closed: bool) -> None:
    if saved is Saved.LOST_RACE:
        round_.lost_races += 1
        round_.unsettled.append((hour.site_id, hour.hour_at))
    elif saved is Saved.UNCHANGED:
        round_.unchanged += 1
    elif not closed:
        round_.provisional += 1
    elif hour.status == "closed":
        round_.restated += 1
    else:
        round_.closed += 1
