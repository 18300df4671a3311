"""A worker with its closing process that is stopped in the middle of an hour and goes on later: whoever closed meanwhile, nothing is written twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from analytics.io.lease import Lease
from analytics.jobs import HourCloser, WorkerSettings
from ingest.store.engine import URL_VARIABLE, Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet
from tests.db.test_closing_child import assert_written_once, await_ended, held_at

pytestmark = pytest.mark.db
LATER = HOUR_AT + timedelta(hours=4)
STEP = "between its rows"


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + 2 * HOUR)
    fleet.job("7", HOUR_AT + timedelta(minutes=10), HOUR_AT + timedelta(minutes=70))
    return fleet


@contextmanager
def working(db: Database, home: Path) -> Iterator[int]:
    """Run `wattledger worker` in a group of its own; gives the group. The hours are weeks old and due at once."""
    env = os.environ | {URL_VARIABLE: db.url, "WATTLEDGER_LOG_LEVEL": "WARNING"}
    command = [sys.executable, "-m", "wattledger", "--home", str(home), "worker", "--interval", "1"]
    with (
        (home / "worker.log").open("wb") as log,
        subprocess.Popen(command, env=env, stderr=log, start_new_session=True) as worker,
    ):
        try:
            yield worker.pid
        finally:
            os.killpg(worker.pid, signal.SIGKILL)


def holder_of(fleet: SmallFleet) -> str:
    ((holder,),) = fleet.rows("SELECT holder FROM watermarks WHERE name = 'worker/lease'")
    return str(holder)


def works_again(fleet: SmallFleet, holder: str, hours: int) -> bool:
    """Wait until the worker of this name has made a round since now, after which so many hours are closed."""
    ((now,),) = fleet.rows("SELECT clock_timestamp()")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        rounds = (
            "SELECT FROM watermarks WHERE name = 'worker/lease' AND holder = %s AND updated_at > %s + interval '3 s'"
        )
        closed = fleet.rows("SELECT count(*) FROM ledger_hours WHERE status = 'closed'")
        if fleet.rows(rounds, holder, now) and closed == [(hours,)]:
            return True
        time.sleep(0.2)
    return False


def test_a_worker_whose_hours_another_closed_while_it_was_stopped_writes_nothing_when_it_goes_on(
    fleet: SmallFleet, tmp_path: Path
) -> None:
    successor = Lease("host/2/bbbb", expires=timedelta(0))  # to whom half a minute of silence is over at once
    with working(fleet.database, tmp_path) as group, held_at(fleet.database, STEP) as somebody_waits:
        somebody_waits()
        first = holder_of(fleet)
        os.killpg(group, signal.SIGSTOP)  # the worker and its children: a machine that stands still
        # Logged in as the worker is: nobody else may end its sessions.
        with Database.at_url(fleet.database.url).connect("worker", autocommit=True) as connection:
            assert successor.take(connection)
            await_ended(fleet.database, Lease(first).session)
            with fleet.admin() as admin:
                admin.execute("DROP TRIGGER gate ON ledger_lines")
            settings = WorkerSettings(code_version="test", session=successor.session)
            assert HourCloser(fleet.database, settings).run(LATER).closed == 3
            runs = fleet.rows("SELECT id FROM ledger_runs ORDER BY 1")
            os.killpg(group, signal.SIGCONT)
            successor.release(connection)
        assert works_again(fleet, first, 3)
    assert fleet.rows("SELECT id FROM ledger_runs ORDER BY 1") == runs
    assert_written_once(fleet)


@pytest.mark.slow
def test_a_worker_that_was_stopped_for_a_minute_closes_what_it_was_at_once(fleet: SmallFleet, tmp_path: Path) -> None:
    """Nobody takes over: after 20 s the server ends the transaction, whose rows are gone; the hours are closed when it goes on."""
    with working(fleet.database, tmp_path) as group:
        with held_at(fleet.database, STEP) as somebody_waits:
            somebody_waits()
            first = holder_of(fleet)
            os.killpg(group, signal.SIGSTOP)
        time.sleep(60)
        assert fleet.rows("SELECT count(*) FROM ledger_runs") == [(0,)]
        os.killpg(group, signal.SIGCONT)
        assert works_again(fleet, first, 3)
    assert_written_once(fleet)
