"""Closes the hours of one task: loads, computes, saves hour by hour, and tells what became of each. Whatever process that is in.

An hour that fails is logged and left due, and its neighbours go on. It knows no schedule: what is due, and when, others say.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import polars as pl
import psycopg

from analytics.closing.halves import Helper, map_shards
from analytics.closing.minutes import make_minutes
from analytics.closing.request import PATIENCE, Computed, Done, MinutesTask, Task, Told
from analytics.errors import BooksError
from analytics.inputs import UsageInputs, Window
from analytics.io.findings import report_attest, report_unbalanced
from analytics.io.hours import batches, parted, remember_open, settle
from analytics.io.load import Loaded, begin_batch
from analytics.io.load_rating import load_rating
from analytics.io.open_rows import Look, OpenRows
from analytics.io.runs import HourState, Run, Saved
from analytics.io.save import HourBooks, SilencesTold, save_hour
from analytics.io.save_rated import RatedBooks, save_rated
from analytics.io.segments import raise_refused
from analytics.model.holding import Resolved
from analytics.pipeline import HourResult, Rated, Shard, map_devices, rate_hours, reduce_shards, resolve_holds
from analytics.policy import Policy
from analytics.shards import resolved_of
from ingest.store.segments import SegmentExpiredError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Books:
    """The books of one batch, not yet written."""

    loaded: Loaded
    window: Window
    result: HourResult


class Here:
    """Closes in the process it is called in: what a child does, and a test whose hours are small."""

    def __init__(self, rows: OpenRows | None = None, helper: Helper | None = None) -> None:
        """``rows``: what is kept of open hours between two tasks; without, each look at one reads all of it.

        ``helper``: who is asked for half of an hour that may be shared.
        """
        self._rows = rows
        self._helper = helper

    def close(self, task: Task) -> Iterator[Told]:
        """Tell of each hour of a task what became of it; raises psycopg.OperationalError where the database is gone."""
        settings = task.settings
        with task.database.connect("worker", autocommit=True, application=settings.session) as connection:
            connection.execute(PATIENCE, (f"{settings.standstill_s}s", f"{settings.row_wait_s}s"))
            if task.batch.hours[0].is_rating_only and (yield from _rate(connection, task)):
                return
            for part in parted(connection, task.batch, settings.device_hours_per_load):
                at_once = task.devices_at_once * len(task.batch.hours) // len(part.hours)
                helper = self._helper if task.is_shared and len(part.hours) == 1 else None
                yield from _close(connection, replace(task, batch=part, devices_at_once=at_once), self._rows, helper)

    def make_minutes(self, task: MinutesTask) -> bool:
        """Write an hour's minutes; False, logged, where they cannot be made for now, or other books came."""
        return make_minutes(task, self._rows, self._helper if task.is_shared else None)


def _close(
    connection: psycopg.Connection[Any], task: Task, rows: OpenRows | None = None, helper: Helper | None = None
) -> Iterator[Told]:
    hours, began_ns = task.batch.hours, time.time_ns()
    look = rows.look(hours[0].site_id, hours[0].hour_at) if rows is not None and task.is_at_hand else None
    try:
        books = _compute(connection, task, look, helper)
    except MemoryError:
        raise  # the process is to end for it: what is too large for it is tried again with fewer devices at a time
    # Broad: what one site's data can provoke, from a row that fits no frame to memory that does not suffice,
    # has no common base, and whatever it is must not keep other sites from their books. Nothing is written yet.
    except Exception as error:
        if connection.closed:
            raise
        if len(hours) > 1:  # one bad hour must not keep its neighbours from their books
            for each in batches(list(hours), 1):
                yield from _close(connection, replace(task, batch=each))
            return
        is_refused = isinstance(error, SegmentExpiredError) and settle(connection, hours[0], task.horizon_xid)
        if is_refused:
            # Left as it was closed, for good: what it would be computed of is gone. On record, and not tried for ever.
            log.warning("site %s, hour %s: not closed again: %s", hours[0].site_id, hours[0].hour_at, error)
            raise_refused(connection, hours[0].site_id, hours[0].hour_at, error)
        else:
            _leave_open(connection, hours[0], error)
        yield Done(hours[0], None, began_ns, time.time_ns(), is_refused=is_refused)
        return
    yield Computed(hours, began_ns, time.time_ns())
    for done in _save(connection, task, books):
        if rows is not None and look is not None and done.is_kept:
            rows.keep(look)
        yield replace(done, is_read_whole=look is not None and look.is_whole)


@dataclass(frozen=True, slots=True)
class _Mapping:
    """Maps some devices; who held what of them was resolved with everybody else's."""

    policy: Policy
    resolved: Resolved

    def of(self, part: UsageInputs) -> Shard:
        return map_devices(part, self.policy, resolved=self.resolved)


def _compute(
    connection: psycopg.Connection[Any], task: Task, look: Look | None = None, helper: Helper | None = None
) -> _Books:
    settings, batch = task.settings, task.batch
    window = Window(batch.from_at, min(batch.to_at, task.now), task.closed_before_at)
    policy = settings.policy
    begun = begin_batch(
        task.database, connection, batch.site_id, window, policy, settings.currency, segments=task.segments, look=look
    )
    with begun as batch_of:
        resolved = resolve_holds(batch_of.inputs.usage, policy)

        def mapping(part: UsageInputs) -> _Mapping:
            return _Mapping(policy, resolved_of(resolved, part))

        mapped = map_shards(batch_of, task, mapping, look, helper)
        loaded = batch_of.end()
    return _Books(loaded, window, reduce_shards(window, mapped, loaded.inputs.references, loaded.inputs.api_calls))


def _save(connection: psycopg.Connection[Any], task: Task, books: _Books) -> Iterator[Done]:
    settings, loaded = task.settings, books.loaded
    for hour in task.batch.hours:
        began_ns = time.time_ns()
        closed = hour.hour_at + timedelta(hours=1) <= task.closed_before_at
        run = Run(
            settings.code_version,
            loaded.as_of,
            loaded.seen_xid,
            loaded.read,
            settings.policy,
            _reason(hour, closed=closed),
            loaded.generations.get(hour.hour_at, 0),
        )
        saved = None
        try:
            saved = save_hour(connection, hour, _books_of(hour.hour_at, books), run, closed=closed)
        except (psycopg.Error, pl.exceptions.PolarsError) as error:
            if connection.closed:
                raise
            _leave_open(connection, hour, error)
        if hour.is_settled and saved is Saved.WRITTEN:
            log.error(
                "site %s, hour %s: sealed samples give other books than hot rows gave", hour.site_id, hour.hour_at
            )
            report_attest(connection, hour.site_id, hour.hour_at)
        yield Done(hour, saved, began_ns, time.time_ns(), is_closed=closed)


def _rate(connection: psycopg.Connection[Any], task: Task) -> Generator[Told, None, bool]:
    """Rate closed hours of which only prices, tenants or calls changed; False, and nothing done, where that is not enough."""
    settings, batch, began_ns = task.settings, task.batch, time.time_ns()
    window = Window(batch.from_at, batch.to_at, task.closed_before_at)
    try:
        loaded = load_rating(connection, batch.hours, window, settings.currency)
        if loaded is None:
            return False
        rated = rate_hours(loaded.inputs)
    # As broad as where hours are computed, and nothing is written yet: closing them as a whole tells what is wrong, by hour.
    except Exception as error:
        if connection.closed:
            raise
        log.warning("site %s, hours from %s: not rated, so closed as a whole: %s", batch.site_id, batch.from_at, error)
        return False
    yield Computed(batch.hours, began_ns, time.time_ns(), is_rating=True)
    for hour in batch.hours:
        began_ns, saved = time.time_ns(), None
        run = Run(settings.code_version, loaded.as_of, loaded.seen_xid, loaded.read, settings.policy, "changed rates")
        try:
            saved = save_rated(connection, hour, _rated_of(hour.hour_at, rated), run)
        except (psycopg.Error, pl.exceptions.PolarsError) as error:
            if connection.closed:
                raise
            _leave_open(connection, hour, error)
        yield Done(hour, saved, began_ns, time.time_ns(), is_closed=True, is_rating=True)
    return True


def _leave_open(connection: psycopg.Connection[Any], hour: HourState, error: Exception) -> None:
    """Leave an hour that failed due, on record: in the log, and where it is the books' own fault, as a finding."""
    remember_open(connection, hour.site_id, hour.hour_at)
    if isinstance(error, BooksError):
        log.error("site %s, hour %s: the books do not balance", hour.site_id, hour.hour_at, exc_info=error)
        report_unbalanced(connection, hour.site_id, hour.hour_at, error)
    else:
        log.error("site %s, hour %s: left open", hour.site_id, hour.hour_at, exc_info=error)


def _reason(hour: HourState, *, closed: bool) -> str:
    if not closed:
        return "open window"
    if hour.status != "closed":
        return "first close"
    if hour.asked is not None:
        return f"restated: {hour.asked}"
    return "sealed samples" if hour.is_settled else "changed inputs"


def _books_of(at: datetime, books: _Books) -> HourBooks:
    result = books.result
    return HourBooks(
        usage=result.usage.filter(result.usage["hour_at"] == at),
        lines=result.lines.filter(result.lines["hour_at"] == at),
        findings=result.findings.filter(result.findings["hour_at"] == at),
        quality=result.quality.filter(result.quality["hour_at"] == at),
        job_tenants=result.job_tenants.filter(result.job_tenants["hour_at"] == at),
        silences=SilencesTold.of(books.loaded.silences, books.window, at),
    )


def _rated_of(at: datetime, rated: Rated) -> RatedBooks:
    of_hour = pl.col("hour_at") == at
    return RatedBooks(
        usage=rated.usage.filter(of_hour),
        lines=rated.lines.filter(of_hour),
        findings=rated.findings.filter(of_hour),
        job_tenants=rated.job_tenants.filter(of_hour),
    )
