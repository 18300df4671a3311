"""The worker process: closes hours, decides on budgets and acts, delivers messages, keeps house, until told to stop.

One worker at a time holds the lease and works; others wait for it to run out. Each chore has its own interval and its own
failures: one that fails is logged, counted and tried again with a growing, jittered pause, and the others go on.
"""

from __future__ import annotations

import logging
import math
import os
import random
import shutil
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

import httpx
import psycopg

from analytics.actions.enforcement import Enforcement
from analytics.actions.errors import PlaneError
from analytics.actions.executor import Executor
from analytics.actions.pause import paused
from analytics.actions.plane import Plane
from analytics.actions.settings import ActionSettings
from analytics.actions.slurm import SlurmPlane
from analytics.actions.webhooks import TIMEOUT_S, Deliverer
from analytics.closing.pool import Pool, StoppedError, memory_of, processes_of
from analytics.closing.request import Closing
from analytics.io.bill_spans import SpanSums
from analytics.io.disagreements import raise_disagreements
from analytics.io.fleet import SILENT_AFTER, raise_silences, raise_told
from analytics.io.lease import Lease
from analytics.jobs import HourCloser, WorkerSettings
from analytics.minutes import MinutesMaker
from analytics.model.hostlist import fold
from ingest.pollers.scrape import serve
from ingest.store.engine import Database
from ingest.store.segments import Segments
from wattledger import logins
from wattledger.errors import WattledgerError
from wattledger.home import Home
from wattledger.housekeeping import Housekeeper
from wattledger.runtime import code_version, ready_database, segments_of
from wattledger.sealing import Sealing, SealingSettings
from wattledger.tracing import Traces, traces_of
from wattledger.worker_metrics import MeasuredSealing, WorkerMetrics

log = logging.getLogger(__name__)
ENFORCE_INTERVAL_S: Final = 30.0
"""A decision reads a whole period's lines of each budget; hours close once an hour, the open one moves every round."""
HOUSEKEEPING_INTERVAL_S: Final = 3_600.0
FLEET_INTERVAL_S: Final = 60.0
SOURCES_INTERVAL_S: Final = 300.0
HOURS_WITHIN_S: Final = 30.0
"""No more hours are begun in a round that has taken so long: years that are rated anew keep no budget from being looked at."""
BILLS_INTERVAL_S: Final = 30.0
BILLS_STEP_S: Final = 5.0
"""An hour is summed once it is closed, a day once it is over; after an upgrade there are years of them."""
_LONGEST_PAUSE_S: Final = 60.0
LEASE: Final = timedelta(seconds=30)
_SEALING_ENDS_WITHIN_S: Final = 5.0
_NICE: Final = 5
"""Where they share processors, taking in comes before explaining: about three parts to one, so that neither starves."""


def run_worker(
    home: Home, *, interval_s: float, once: bool, enforced: bool, metrics_at: tuple[str, int] | None = None
) -> None:
    """Work until SIGTERM or SIGINT; with ``once`` do every chore once and return.

    ``metrics_at``: address and port of its metrics; raises WattledgerError when that is taken.
    """
    database = ready_database(home, logins.env_of("worker", os.environ))
    logins.warn_of_an_owner("worker", database)
    settings = WorkerSettings(code_version=code_version(), interval_s=interval_s)
    sealing = SealingSettings.from_env(os.environ)
    traces = traces_of(os.environ, "wattledger-worker", settings.code_version)
    segments = segments_of(home)
    stop = threading.Event()
    pool = Pool(
        memory_of(os.environ), stop, children=processes_of(os.environ)
    )  # once told to stop it gives up a long hour: the next worker begins it anew
    worker = Worker(
        database,
        settings,
        home,
        enforced=enforced,
        segments=segments,
        sealing=sealing,
        traces=traces,
        closing=pool,
    )
    try:
        if metrics_at is not None:
            _show(worker.metrics, *metrics_at)
        if once:
            worker.once()
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        step_back()
        worker.run(stop)
    finally:
        pool.end()
        worker.close()


def step_back() -> None:
    """Let ingest and the API go first on the processors of this machine."""
    if os.getpriority(os.PRIO_PROCESS, 0) < _NICE:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)


def _show(metrics: WorkerMetrics, host: str, port: int) -> None:
    try:
        server = serve(metrics.exposition, port, host)
    except OSError as error:
        raise WattledgerError(f"metrics cannot be served on {host}:{port}: {error.strerror}; choose another") from None
    log.info("metrics on http://%s:%s/metrics", host, server.server_address[1])


class OpenHoursError(WattledgerError):
    """Some hours could not be closed; the round itself went through."""


@dataclass(slots=True)
class Chore:
    """One thing a worker does again and again. ``work`` returns what is worth a line in the log, or None."""

    name: str
    interval_s: float
    work: Callable[[datetime], object | None]
    due_s: float = 0.0
    failures: int = 0
    """In a row."""

    def do(self, now: datetime) -> None:
        outcome = self.work(now)
        if outcome is not None:
            log.info("%s: %s", self.name, outcome)

    def finished(self, at_s: float, *, failed: bool) -> None:
        """Say when it is due again: after its interval, and after a longer pause the more often it failed."""
        self.failures = self.failures + 1 if failed else 0
        # A round comes every interval, give or take a tenth: what is due with it must not miss it.
        pause_s = self.interval_s * 0.85
        if failed:
            longest_s = max(_LONGEST_PAUSE_S, self.interval_s)
            pause_s = min(self.interval_s * 2 ** min(self.failures, 6), longest_s) * random.uniform(0.8, 1.0)  # noqa: S311
        self.due_s = at_s + pause_s


def _now() -> datetime:
    return datetime.now(UTC)


class Worker:
    """Everything one worker process does, and the loop around it. Opens nothing before its first chore."""

    def __init__(  # noqa: PLR0913 - the root of a process, and each of these is a part of it
        self,
        database: Database,
        settings: WorkerSettings,
        home: Home,
        *,
        enforced: bool,
        clock: Callable[[], datetime] = _now,
        segments: Segments | None = None,
        sealing: SealingSettings | None = None,
        traces: Traces | None = None,
        closing: Closing | None = None,
    ) -> None:
        """Without ``segments`` nothing is sealed, and a sealed hour that is due is left open with an error.

        ``closing``: who closes hours; without, it does itself, and no bound holds: for tests.
        """
        self._database = database
        self._interval_s = settings.interval_s
        self._home = home
        self._clock = clock
        # Renewed several times before it runs out: another worker takes over after half a minute of silence.
        holder = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex}"
        self._lease = Lease(holder, LEASE)
        self._engine = database.create_engine("worker", pool_size=3, application=self._lease.session)
        self._client = httpx.Client(timeout=TIMEOUT_S, follow_redirects=False)
        self.metrics = WorkerMetrics(timedelta(microseconds=settings.policy.lateness_us), clock)
        self._traces = traces
        tracer = None if traces is None else traces.tracer("wattledger.worker")
        ours = replace(settings, session=self._lease.session)
        self._closer = HourCloser(database, ours, segments, tracer, closing)
        self._minutes = MinutesMaker(database, ours, segments, closing=closing)
        self._sealing = None
        if segments is not None:
            plain = Sealing(database, segments, sealing or SealingSettings(), self._lease.session, self._engine)
            self._sealing = MeasuredSealing(plain, self.metrics)
        self._is_ours = False
        self._planes: dict[str, Plane] = {}
        executor = Executor(self._engine, self._planes, ActionSettings(home.root, enforced=enforced), clock)
        deliverer = Deliverer(self._engine, self._client, os.environ, clock)
        self._enforcement = Enforcement(self._engine, executor, deliverer, clock)
        self._housekeeper = Housekeeper(self._engine)
        self._sums = SpanSums()
        self._was_paused = False
        self._was_slurm_silent = False
        self.chores = (
            Chore("hours", settings.interval_s, self._close_hours),
            Chore("budgets", max(ENFORCE_INTERVAL_S, settings.interval_s), self._enforce),
            Chore("minutes", settings.interval_s, self._make_minutes),
            Chore("fleet", FLEET_INTERVAL_S, self._listen_to_the_fleet),
            Chore("sources", SOURCES_INTERVAL_S, self._compare_sources),
            Chore("bills", BILLS_INTERVAL_S, self._sum_bills),
            Chore("housekeeping", HOUSEKEEPING_INTERVAL_S, self._keep_house),
        )
        log.info("budgets %s", "act on jobs where they are armed" if enforced else "are a dry run: not --enforced")

    def run(self, stop: threading.Event) -> None:
        """Do chores as they fall due, until told to stop."""
        threading.Thread(target=self._stay_alive, args=(stop,), name="lease", daemon=True).start()
        sealing = threading.Thread(target=self._seal, args=(stop,), name="sealing", daemon=True)
        sealing.start()
        while not stop.is_set():
            self.round()
            stop.wait(self._interval_s * random.uniform(0.9, 1.1))  # noqa: S311 (jitter)
        # Whatever hour it is in the middle of is as if it had not begun, should this take longer than we are given.
        sealing.join(_SEALING_ENDS_WITHIN_S)
        self._give_back()

    def round(self) -> None:
        """Do what is due, if this worker has the lease; whatever fails, the next chore is tried."""
        began_s = time.monotonic()
        outcome = self._round()
        self.metrics.round_over(outcome, time.monotonic() - began_s)

    def _round(self) -> str:
        try:
            with self._database.connect("worker", autocommit=True, application="wattledger-lease") as connection:
                is_ours = self._lease.take(connection)
        except psycopg.OperationalError as error:
            log.warning("the database does not answer: %s", str(error).partition("\n")[0])
            self._is_ours = False
            return "no_database"
        self._is_ours = is_ours
        if not is_ours:
            return "standby"
        for chore in self.chores:
            if chore.due_s > time.monotonic():
                continue
            failed = False
            try:
                with self.metrics.chore(chore.name):
                    chore.do(self._clock())
            except StoppedError as stopped:
                log.info("%s: %s", chore.name, stopped)
                break
            except Exception:  # the outermost loop of the process: whatever it was, the next time may do
                failed = True
                log.exception("%s failed, %s in a row", chore.name, chore.failures + 1)
            chore.finished(time.monotonic(), failed=failed)
        return "worked"

    def once(self) -> None:
        """Do every chore once, as long as it takes; the first failure is raised."""
        hours, *others = self.chores
        with self.metrics.chore(hours.name):
            self._close_hours(self._clock(), within_s=math.inf)
        for chore in others:
            with self.metrics.chore(chore.name):
                chore.do(self._clock())
        self._minutes.step(self._clock(), within_s=math.inf)
        if self._sealing is not None:
            self._sealing.once(self._clock())

    def close(self) -> None:
        """Let go of connections."""
        self._client.close()
        self._engine.dispose()
        self.metrics.close()
        if self._traces is not None:
            self._traces.close()

    def _close_hours(self, now: datetime, within_s: float = HOURS_WITHIN_S) -> object | None:
        done = self._closer.run(now, on_due=self.metrics.due, on_hour=self.metrics.saved, within_s=within_s)
        self.metrics.closed(done)
        if done.failed:  # all others are closed; these are tried again, with the growing pause of a failure
            raise OpenHoursError(f"{done.failed} hours were left open by errors, see above: {done}")
        return done if done.closed or done.restated else None

    def _enforce(self, now: datetime) -> object | None:
        del now  # decisions, acts and messages each read the clock: an act may take its time
        self._find_slurm()
        self._look_at_the_brake()
        done = self._enforcement.run()
        return done if done.planned or done.acted or done.delivered or done.undelivered else None

    def _keep_house(self, now: datetime) -> object | None:
        kept = self._housekeeper.run(now)
        return kept if kept.made or kept.closed or kept.busy else None

    def _make_minutes(self, now: datetime) -> object | None:
        done = self._minutes.step(now)
        self.metrics.minutes(done)
        return f"made of {done.made} hours, {done.left} are left" if done.made > 1 and done.left else None

    def _sum_bills(self, now: datetime) -> object | None:
        del now  # which hours are closed the books say
        with self._database.connect("worker", autocommit=True, application=self._lease.session) as connection:
            done = self._sums.step(connection, for_s=BILLS_STEP_S)
        return f"{done.made} days or hours summed for bills, {done.left} to go" if done.left else None

    def _listen_to_the_fleet(self, now: datetime) -> object | None:
        with self._database.connect("worker", application=self._lease.session) as connection:
            silent = raise_silences(connection, now)
            told = raise_told(connection, now)
        said = [f"silent for over {SILENT_AFTER}: {fold(silent)}"] if silent else []
        said += [f"{told} findings told by agents"] if told else []
        return "; ".join(said) or None

    def _compare_sources(self, now: datetime) -> object | None:
        with self._database.connect("worker", application=self._lease.session) as connection:
            new = raise_disagreements(connection, now)
        return ", ".join(f"{number} findings {kind}" for kind, number in sorted(new.items())) or None

    def _find_slurm(self) -> None:
        """Reach the cluster whose commands are installed here; until it answers its jobs are dry runs."""
        if self._planes or shutil.which("scontrol") is None:
            return
        plane = SlurmPlane()
        try:
            cluster = plane.cluster()
        except PlaneError as error:
            # Said once: at every round it would drown the log.
            level = logging.DEBUG if self._was_slurm_silent else logging.WARNING
            log.log(level, "Slurm is installed but does not answer, so nothing is done to its jobs: %s", error)
            self._was_slurm_silent = True
            return
        self._was_slurm_silent = False
        self._planes[cluster] = plane
        log.info("jobs of the Slurm cluster %s are in reach", cluster)

    def _look_at_the_brake(self) -> None:
        brake = paused(self._home.root)
        if brake is not None and not self._was_paused:
            log.warning("actions are paused by %s since %s: %s", brake.by, brake.at, brake.reason)
        elif brake is None and self._was_paused:
            log.info("actions go on")
        self._was_paused = brake is not None

    def _seal(self, stop: threading.Event) -> None:
        if self._sealing is not None:
            self._sealing.run(stop, lambda: self._is_ours, self._clock)

    def _stay_alive(self, stop: threading.Event) -> None:
        """Renew the lease while a round lasts, however long that is."""
        while not stop.wait(LEASE.total_seconds() / 4):
            try:
                with self._database.connect("worker", autocommit=True, application="wattledger-lease") as connection:
                    self._lease.renew(connection)
            except psycopg.OperationalError as error:
                log.debug("the lease could not be renewed: %s", error)

    def _give_back(self) -> None:
        try:
            with self._database.connect("worker", autocommit=True) as connection:
                self._lease.release(connection)
        except psycopg.OperationalError:
            log.warning("the lease could not be given back; the next worker waits until it runs out")
