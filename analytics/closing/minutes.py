"""Makes the minutes of one hour from what its books were made of, after them: dashboards wait for these, bills do not.

The hour is read as it was known when it was closed, and its jobs' tenants are those of its books: the minutes sum to what was billed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta

import dataframely as dy
import polars as pl
import psycopg

from analytics.closing.halves import Helper, map_shards
from analytics.closing.request import PATIENCE, MinutesTask
from analytics.errors import AnalyticsError
from analytics.frames import JobTenants
from analytics.inputs import UsageInputs, Window
from analytics.io.due_minutes import Minutes, job_tenants, write_minutes
from analytics.io.load import begin_batch
from analytics.io.open_rows import OpenRows
from analytics.pipeline import read_meters, roll_minutes, roll_tenants
from analytics.policy import Policy
from ingest.store.segments import SegmentError, SegmentUnreachableError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Rolling:
    """Rolls some devices up."""

    policy: Policy
    owners: dy.DataFrame[JobTenants]

    def of(self, part: UsageInputs) -> tuple[pl.DataFrame, pl.DataFrame]:
        metered = read_meters(part, self.policy)
        rolled = roll_minutes(part, self.policy, metered)
        return rolled, roll_tenants(part, rolled, self.owners, metered, self.policy)


def make_minutes(task: MinutesTask, rows: OpenRows | None = None, helper: Helper | None = None) -> bool:
    """Write an hour's minutes; False, logged, where they cannot be made for now or other books took the place of its own.

    ``rows``: what is kept of open hours by looks at them. ``helper``: who is asked for half of it.
    """
    settings, hour = task.settings, task.hour
    why: object = None
    with task.database.connect("worker", autocommit=True, application=settings.session) as connection:
        connection.execute(PATIENCE, (f"{settings.standstill_s}s", f"{settings.row_wait_s}s"))
        try:
            return write_minutes(connection, hour, _minutes(connection, task, rows, helper))
        except (SegmentError, SegmentUnreachableError, AnalyticsError, pl.exceptions.PolarsError) as error:
            why = error
        except (psycopg.errors.LockNotAvailable, psycopg.IntegrityError) as error:  # somebody else is at it
            why = error
    log.warning("site %s, hour %s: no minutes for now: %s", hour.site_id, hour.hour_at, why)
    return False


def _minutes(
    connection: psycopg.Connection[tuple[object, ...]],
    task: MinutesTask,
    rows: OpenRows | None,
    helper: Helper | None,
) -> Minutes:
    settings, hour = task.settings, task.hour
    end_at = hour.hour_at + timedelta(hours=1)
    is_open = hour.status != "closed"
    window = Window(hour.hour_at, min(end_at, task.now) if is_open else end_at, hour.hour_at if is_open else end_at)
    look = rows.look(hour.site_id, hour.hour_at) if rows is not None and task.is_at_hand else None
    begun = begin_batch(
        task.database,
        connection,
        hour.site_id,
        window,
        settings.policy,
        settings.currency,
        as_of=hour.as_of,
        segments=task.segments,
        look=look,
        is_shown=True,
    )
    rolling = _Rolling(settings.policy, job_tenants(connection, hour))
    with begun as hour_of:
        made = map_shards(hour_of, task, lambda _: rolling, look, helper)
    if rows is not None and look is not None:
        rows.keep(look)
    minutes = (
        pl.concat(by_tenant for _, by_tenant in made).group_by("minute_at", "tenant_id").agg(pl.col("energy_mj").sum())
    )
    return Minutes(pl.concat(rolled for rolled, _ in made), minutes.sort("minute_at", "tenant_id"))
