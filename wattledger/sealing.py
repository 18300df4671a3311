"""The worker's sealing: hours that are over go to segments, late rows into them, old days out of the hot tables.

It runs in a thread of its own beside the worker's chores, so that no budget waits for a file, and only while the worker has
the lease. It rests as long as it works: ingest and closing hours need the database too. It decides nothing about rows; what
may be sealed and dropped is `ingest.store.seal_hours`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import sqlalchemy as sa

from analytics.io.segments import raise_damaged, raise_too_late, recent_hours, withdraw_healthy
from ingest.store.call_window import prune_names
from ingest.store.engine import Database
from ingest.store.hours import SiteHour
from ingest.store.seal import Generation, HourBusyError, Sealer
from ingest.store.seal_hours import delete_retired, discard_too_late, drop_hot_days, due, expire, hot_before, sweep
from ingest.store.segments import SegmentError, Segments, SegmentUnreachableError
from ingest.store.segments_check import check_some
from wattledger.errors import WattledgerError

log = logging.getLogger(__name__)
SEAL_AFTER_VARIABLE: Final = "WATTLEDGER_SEAL_AFTER_H"
SEGMENT_RETENTION_VARIABLE: Final = "WATTLEDGER_SEGMENT_RETENTION_D"
CALL_NAMES_VARIABLE: Final = "WATTLEDGER_CALL_NAMES_D"
HOT_RETENTION_VARIABLE: Final = "WATTLEDGER_INGEST_HOT_RETENTION_H"
"""One variable for both: ingest calls rows late that are older, and the worker drops their days."""
_LONGEST_REST_S: Final = 5.0
_LONGEST_PASS_S: Final = 600.0
_CHECKED_HOURS: Final = 2
"""By chance, a pass: of a bucket each is fetched."""


@dataclass(frozen=True, slots=True)
class SealingSettings:
    """When hours move. All are counted from the end of the hour or the arrival of the row."""

    seal_after: timedelta = timedelta(hours=3)
    merge_after: timedelta = timedelta(hours=1)
    """Late rows wait so long for company, since each merge writes their hour's file anew."""
    grace: timedelta = timedelta(hours=1)
    """How long a replaced file stays for readers that began before it was replaced."""
    hot_retention: timedelta = timedelta(hours=48)
    segment_retention: timedelta = timedelta(days=400)
    """A year and a month: last year's months can be computed again while this year's are billed."""
    call_names: timedelta = timedelta(days=400)
    """How long after a call its names are kept, by which other reports of it are found."""
    interval_s: float = 300.0

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> SealingSettings:
        """Return the settings of an environment; raises WattledgerError naming the variable that is wrong."""
        return cls(
            seal_after=timedelta(hours=_whole(env, SEAL_AFTER_VARIABLE, 3, "hours", 1, 24 * 400)),
            hot_retention=timedelta(hours=_whole(env, HOT_RETENTION_VARIABLE, 48, "hours", 1, 24 * 400)),
            # Open hours look back for two days, and hot ones are sealed within as many.
            segment_retention=timedelta(days=_whole(env, SEGMENT_RETENTION_VARIABLE, 400, "days", 8, 36_500)),
            # Invoices come a month after the calls they charge.
            call_names=timedelta(days=_whole(env, CALL_NAMES_VARIABLE, 400, "days", 62, 36_500)),
        )


def _whole(env: Mapping[str, str], name: str, default: int, unit: str, least: int, most: int) -> int:
    text = env.get(name)
    if text is None:
        return default
    if not text.isdigit() or not least <= int(text) <= most:
        raise WattledgerError(f"{name} must be whole {unit} from {least} to {most}, got {text!r:.40}")
    return int(text)


@dataclass(slots=True)
class Pass:
    """What one pass did, for the log and tests."""

    sealed: int = 0
    merged: int = 0
    rows: int = 0
    busy: int = 0
    failed: int = 0
    dropped_partitions: int = 0
    deleted_files: int = 0
    unknown_files: int = 0
    expired_hours: int = 0
    too_late_rows: int = 0
    damaged_files: int = 0
    call_names: int = 0

    @property
    def is_anything(self) -> bool:
        return any(getattr(self, name) for name in self.__slots__)


@dataclass(slots=True)
class Sealing:
    """One worker's sealing; ``session`` is the application name by which a successor ends its sessions."""

    database: Database
    segments: Segments
    settings: SealingSettings
    session: str
    engine: sa.Engine
    _rest: Callable[[float], bool] = field(default=lambda _: False)

    def run(self, stop: threading.Event, is_ours: Callable[[], bool], clock: Callable[[], datetime]) -> None:
        """Make passes until told to stop; the outermost loop of its thread.

        The first comes an interval after the start: after an outage agents first send what they kept, and what comes
        before its hour is sealed need not be merged into it.
        """
        self._rest = stop.wait
        while not stop.wait(self.settings.interval_s):
            if not is_ours():
                continue
            try:
                done = self.once(clock(), is_ours)
            except Exception:  # the outermost loop: whatever it was, the next pass may do
                log.exception("sealing failed")
                continue
            if done.is_anything:
                log.info("sealing: %s", done)

    def once(self, now: datetime, is_ours: Callable[[], bool] = lambda: True) -> Pass:
        """Make one pass; hours that fail are logged and counted, others go on."""
        done, settings = Pass(), self.settings
        hours = due(self.engine, now, seal_after=settings.seal_after, merge_after=settings.merge_after)
        sealer = Sealer(self.database, self.segments, application=self.session)
        until_s = time.monotonic() + _LONGEST_PASS_S
        for work, wanted in ((sealer.seal, hours.seal), (sealer.merge, hours.merge)):
            for hour in wanted:
                if not is_ours() or time.monotonic() > until_s:
                    return done
                began_s = time.monotonic()
                made = self._one(work, hour, done)
                if made is not None:
                    done.sealed += work == sealer.seal
                    done.merged += work == sealer.merge
                    done.rows += made.rows
                if self._rest(min(time.monotonic() - began_s, _LONGEST_REST_S)):
                    return done
        if not hours.seal:
            done.dropped_partitions = len(drop_hot_days(self.engine, hot_before(now, settings.hot_retention)))
        self._tidy(now, done)
        self._prune(now, done, is_ours)
        return done

    def _prune(self, now: datetime, done: Pass, is_ours: Callable[[], bool]) -> None:
        """Let the names of old calls go, a day of them at a time."""
        day = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        with self.database.connect("worker", application=self.session) as connection:
            done.call_names = prune_names(connection, day - self.settings.call_names, is_ours).names

    def _one(self, work: Callable[[SiteHour], Generation], hour: SiteHour, done: Pass) -> Generation | None:
        try:
            return work(hour)
        except HourBusyError as error:
            log.info("%s; later", error)
            done.busy += 1
        except (SegmentError, SegmentUnreachableError):
            log.exception("site %s, hour %s: not merged", hour.site_id, hour.hour)
            done.failed += 1
        return None

    def _tidy(self, now: datetime, done: Pass) -> None:
        with self.database.connect("worker", application=self.session) as connection:
            done.expired_hours = len(expire(connection, now - self.settings.segment_retention))
            done.too_late_rows = raise_too_late(connection, discard_too_late(connection))
            connection.commit()
            done.deleted_files = delete_retired(connection, self.segments, self.settings.grace)
            recent = recent_hours(connection, now.astimezone(UTC) - 3 * self.settings.grace)
            done.unknown_files = len(sweep(connection, self.segments, recent, self.settings.grace).unknown)
            checked = check_some(connection, self.segments, _CHECKED_HOURS)
            done.damaged_files = raise_damaged(connection, [each for each in checked if each.fault])
            withdraw_healthy(connection, [each.listed.file.path for each in checked if not each.fault])
