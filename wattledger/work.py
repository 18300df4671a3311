"""The worker process: rounds of closing, deciding and delivering, until told to stop.

One worker at a time holds the lease and works; others wait for it to run out. The loop outlives any failure of a round:
it is logged, counted and tried again with a growing, jittered pause.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import threading
import uuid
from datetime import UTC, datetime

import psycopg

from analytics.io.lease import Lease
from analytics.jobs import HourCloser, Round, WorkerSettings
from ingest.store.engine import Database
from wattledger.home import Home
from wattledger.runtime import code_version, ready_database

log = logging.getLogger(__name__)
_LONGEST_PAUSE_S = 60.0


def run_worker(home: Home, *, interval_s: float, once: bool, enforced: bool) -> None:
    """Work until SIGTERM or SIGINT; with ``once`` do one round and return."""
    database = ready_database(home)
    settings = WorkerSettings(code_version=code_version(), interval_s=interval_s)
    worker = Worker(database, settings, home, enforced=enforced)
    if once:
        log.info("%s", worker.round(datetime.now(UTC)))
        return
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    worker.run(stop)


class Worker:
    """Everything one worker process does in a round, and the loop around it."""

    def __init__(self, database: Database, settings: WorkerSettings, home: Home, *, enforced: bool) -> None:
        self._database = database
        self._settings = settings
        self._home = home
        self._enforced = enforced
        self._closer = HourCloser(database, settings)
        self._lease = Lease(f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}")

    def run(self, stop: threading.Event) -> None:
        """Do rounds until told to stop."""
        failures = 0
        while not stop.is_set():
            try:
                with self._database.connect("worker", autocommit=True, application="wattledger-lease") as connection:
                    is_ours = self._lease.take(connection)
                if is_ours:
                    done = self.round(datetime.now(UTC))
                    if done.closed or done.restated or done.failed:
                        log.info("%s", done)
                failures = 0
            except Exception:  # the outermost loop of the process: whatever it was, the next round may do
                failures += 1
                log.exception("round failed, %s in a row", failures)
            pause_s = self._settings.interval_s * min(2**failures, 64) if failures else self._settings.interval_s
            stop.wait(min(pause_s, _LONGEST_PAUSE_S) * random.uniform(0.9, 1.1))  # noqa: S311 (jitter)
        self._give_back()

    def round(self, now: datetime) -> Round:
        """Close hours, evaluate budgets, deliver messages."""
        return self._closer.run(now)

    def _give_back(self) -> None:
        try:
            with self._database.connect("worker", autocommit=True) as connection:
                self._lease.release(connection)
        except psycopg.OperationalError:
            log.warning("the lease could not be given back; the next worker waits until it runs out")
