"""The worker's sealing: hours that are over go to segments, late rows into them, old days out of the hot tables.

It runs in a thread of its own beside the worker's chores, so that no budget waits for a file, and only while the worker has
the lease. It rests as long as it works: ingest and closing hours need the database too. An hour that fails is set apart for a
while, and the others go on. It decides nothing about rows; what may be sealed is `ingest.store.seal_hours`, what may be
dropped `seal_days`, what may expire `seal_retention`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any, Final

import psycopg
import sqlalchemy as sa

from analytics.io.segments import (
    CLOCKS,
    HELD_BACK,
    UNREACHABLE,
    raise_damaged,
    raise_everywhere,
    raise_too_late,
    recent_hours,
    withdraw_everywhere,
    withdraw_healthy,
)
from collector.wire import Stream
from ingest.store.call_window import prune_names
from ingest.store.engine import Database
from ingest.store.hours import SiteHour
from ingest.store.seal import Generation, HourBusyError, Sealer, hour_of, instant_of
from ingest.store.seal_days import Whole, drop_hot_days, hot_before
from ingest.store.seal_hours import delete_retired, due, sweep
from ingest.store.seal_retention import LONGEST_SILENCE, Clocks, clocks, discard_too_late, expirable, expire
from ingest.store.segment_place import ours
from ingest.store.segments import Segments, SegmentUnreachableError
from ingest.store.segments_check import check_some, damaged_hours
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
_SET_APART: Final = (timedelta(minutes=10), timedelta(hours=6))
"""How long an hour that failed waits at first, and at most; each time twice as long."""
_MOST_FAILURES: Final = 20
"""In a row, until a pass gives up: what fails then is not the hours."""


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
    rebuilt: int = 0
    refused: int = 0
    """1: nothing was deleted by age, since clocks disagree or the segments' place is away."""
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
    tell_time: Callable[[psycopg.Connection[Any]], Clocks] = clocks
    """Asks the database; what is old is not for one clock to say."""
    _rest: Callable[[float], bool] = field(default=lambda _: False)
    _apart: dict[SiteHour, tuple[int, float]] = field(default_factory=dict)
    """Hours that failed: how often in a row, and until when by the monotonic clock they are left alone."""
    _whole: dict[date, Whole] = field(default_factory=dict)

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
        done = Pass()
        if not is_ours():
            return done
        try:
            self._pass(now, is_ours, done)
        except SegmentUnreachableError as error:
            log.error("the segments cannot be reached: %s", error)  # noqa: TRY400 - it says all there is to say
            done.refused = 1
            with self._connect() as connection:
                raise_everywhere(connection, UNREACHABLE, now, {"error": str(error)})
        return done

    def _pass(self, now: datetime, is_ours: Callable[[], bool], done: Pass) -> None:
        with self._connect() as connection:
            told = self.tell_time(connection)
            connection.commit()
            ours(connection, self.segments)
            withdraw_everywhere(connection, UNREACHABLE)
        sealer = Sealer(self.database, self.segments, application=self.session)
        # Whichever clock is ahead, no hour is sealed before it is over by the other one.
        if not self._move(sealer, min(now, told.server_at), is_ours, done):
            return
        self._look_after(sealer, is_ours, done)
        if told.agree(now):
            self._delete(told, is_ours, done)
            self._prune(told.server_at, done, is_ours)
        else:
            self._refuse(now, told, done)

    def _connect(self) -> psycopg.Connection[Any]:
        return self.database.connect("worker", application=self.session)

    def _move(self, sealer: Sealer, now: datetime, is_ours: Callable[[], bool], done: Pass) -> bool:
        """Seal and merge what is due, each for half of a pass at most; return False to end the pass."""
        began_s = time.monotonic()
        self._apart = {
            hour: until for hour, until in self._apart.items() if until[1] > began_s - _SET_APART[1].total_seconds()
        }
        apart = [hour for hour, (_, until_s) in self._apart.items() if until_s > began_s]
        settings = self.settings
        hours = due(self.engine, now, seal_after=settings.seal_after, merge_after=settings.merge_after, apart=apart)
        for share, (work, wanted) in enumerate(((sealer.seal, hours.seal), (sealer.merge, hours.merge)), 1):
            in_a_row = 0
            for hour in wanted:
                if not is_ours():
                    return False
                if in_a_row == _MOST_FAILURES or time.monotonic() - began_s > share * _LONGEST_PASS_S / 2:
                    break
                hour_began_s, failed = time.monotonic(), done.failed
                made = self._one(work, hour, done)
                in_a_row = in_a_row + 1 if done.failed > failed else 0
                if made is not None:
                    done.sealed += work == sealer.seal
                    done.merged += work == sealer.merge
                    done.rows += made.rows
                if self._rest(min(time.monotonic() - hour_began_s, _LONGEST_REST_S)):
                    return False
        return True

    def _one(self, work: Callable[[SiteHour], Generation], hour: SiteHour, done: Pass) -> Generation | None:
        try:
            made = work(hour)
        except HourBusyError as error:
            log.info("%s; later", error)
            done.busy += 1
        except Exception:  # whatever it is about this hour, the other hours and sites must not wait for it
            failures = self._apart.get(hour, (0, 0.0))[0] + 1
            apart_s = min(_SET_APART[0].total_seconds() * 2 ** (failures - 1), _SET_APART[1].total_seconds())
            self._apart[hour] = failures, time.monotonic() + apart_s
            log.exception("%s failed, attempt %d; again in %.0f minutes", _about(hour), failures, apart_s / 60)
            done.failed += 1
        else:
            self._apart.pop(hour, None)
            return made
        return None

    def _look_after(self, sealer: Sealer, is_ours: Callable[[], bool], done: Pass) -> None:
        """Check some files, and make those that are not whole anew while their rows are hot."""
        with self._connect() as connection:
            checked = check_some(connection, self.segments, _CHECKED_HOURS)
            done.damaged_files = raise_damaged(connection, [each for each in checked if each.fault])
            withdraw_healthy(connection, [each.listed.file.path for each in checked if not each.fault])
            connection.commit()
            damaged = damaged_hours(connection)
        until_s = time.monotonic() + _LONGEST_PASS_S / 2
        for site_id, hour_at, streams in damaged:
            hour = hour_of(site_id, hour_at)
            if not is_ours() or time.monotonic() > until_s or self._rest(0):
                return
            if self._apart.get(hour, (0, 0.0))[1] > time.monotonic():
                continue
            if (
                self._one(partial(sealer.rebuild, streams=[Stream(stream) for stream in streams]), hour, done)
                is not None
            ):
                log.warning("%s: %s made anew from hot rows", _about(hour), ", ".join(streams))
                done.rebuilt += 1
        if done.rebuilt:
            with self._connect() as connection:
                withdraw_healthy(connection)

    def _delete(self, told: Clocks, is_ours: Callable[[], bool], done: Pass) -> None:
        settings = self.settings
        with self._connect() as connection:
            withdraw_everywhere(connection, CLOCKS)
            connection.commit()
            old = told.latest(self._silence) - settings.segment_retention
            done.expired_hours = len(expire(connection, old))
            self._tell_held_back(connection, told)
            done.too_late_rows = raise_too_late(connection, discard_too_late(connection))
            connection.commit()
            done.deleted_files = delete_retired(connection, self.segments, settings.grace)
            recent = recent_hours(connection, told.server_at - 3 * settings.grace)
            done.unknown_files = len(sweep(connection, self.segments, recent, settings.grace).unknown)
        hot = hot_before(told.latest(), settings.hot_retention)
        dropped = drop_hot_days(self.engine, self.segments, hot, go_on=is_ours, known=self._whole)
        done.dropped_partitions = len(dropped.partitions)
        if dropped.damaged:
            with self._connect() as connection:
                done.damaged_files += raise_damaged(connection, dropped.damaged)

    @property
    def _silence(self) -> timedelta:
        return min(LONGEST_SILENCE, self.settings.segment_retention / 8)

    def _tell_held_back(self, connection: psycopg.Connection[Any], told: Clocks) -> None:
        """Say once where segments stay that the clock calls old: no new sample says so too."""
        retention = self.settings.segment_retention
        if told.latest(self._silence) < told.server_at and expirable(connection, told.server_at - retention):
            newest = None if told.newest_at is None else told.newest_at.isoformat()
            raise_everywhere(connection, HELD_BACK, told.server_at, {"newest_sealed_at": newest})
        else:
            withdraw_everywhere(connection, HELD_BACK)

    def _refuse(self, now: datetime, told: Clocks, done: Pass) -> None:
        done.refused = 1
        apart_s = (now - told.server_at).total_seconds()
        log.error("the worker's clock is %+.0f s off the database's: nothing is deleted until they agree", apart_s)
        with self._connect() as connection:
            evidence = {"worker_minus_database_s": round(apart_s, 3), "database_at": told.server_at.isoformat()}
            raise_everywhere(connection, CLOCKS, told.server_at, evidence)

    def _prune(self, now: datetime, done: Pass, is_ours: Callable[[], bool]) -> None:
        """Let the names of old calls go, a day of them at a time."""
        day = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        with self._connect() as connection:
            done.call_names = prune_names(connection, day - self.settings.call_names, is_ours).names


def _about(hour: SiteHour) -> str:
    return f"site {hour.site_id}, hour {instant_of(hour):%Y-%m-%d %H:%M} UTC"
