"""Hours closed in a process of their own: the same books, a bound on memory, and nothing written twice whatever ends or stops it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from analytics.closing.pool import MEMORY_VARIABLE, PROCESSES_VARIABLE, Pool, StoppedError, memory_of, processes_of
from analytics.errors import InputError
from analytics.io.lease import Lease
from analytics.jobs import HourCloser, Round, WorkerSettings
from ingest.store.engine import URL_VARIABLE, Database
from ingest.store.seal import Sealer, hour_of
from ingest.store.segments import Segments
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db

SETTINGS = WorkerSettings(code_version="test", session="wattledger-worker/child")
LATER = HOUR_AT + timedelta(hours=4)
BOOKS = "SELECT hour_at, revision, content_sha256 FROM ledger_hours ORDER BY 1"
GATE = 4711
"""An advisory lock by which a test holds a child at a step."""


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """One for the file: a child costs a second of imports, and is there for the next test too."""
    made = Pool(memory_mib=320)
    yield made
    made.end()


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + 2 * HOUR)
    fleet.job("7", HOUR_AT + timedelta(minutes=10), HOUR_AT + timedelta(minutes=70))
    return fleet


def test_a_child_writes_the_books_that_this_process_would_write(
    fleet: SmallFleet, pool: Pool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    segments = Segments.at(tmp_path)
    HourCloser(fleet.database, SETTINGS).run(LATER)
    here = fleet.rows(BOOKS)
    with fleet.admin() as connection:
        connection.execute("TRUNCATE ledger_hours, ledger_runs, usage_hours, hour_jobs, ledger_lines CASCADE")
        fleet.changed("device_samples", HOUR_AT, HOUR_AT + 2 * HOUR + timedelta(microseconds=1), connection)
    Sealer(fleet.database, segments).seal(hour_of(fleet.site_id, HOUR_AT))
    closer = HourCloser(fleet.database, SETTINGS, segments, closing=pool)

    assert closer.run(LATER).closed == 3

    assert fleet.rows(BOOKS) == here
    child = pool.pids
    assert closer.run(LATER).closed == 0
    fleet.rows("UPDATE hour_segments SET path = 'lost.parquet' RETURNING 1")
    with fleet.admin() as connection, caplog.at_level(logging.ERROR):
        fleet.changed("allocations", HOUR_AT, HOUR_AT + HOUR, connection)
        assert closer.run(LATER).failed == 2  # the second reads the end of the first
    assert pool.pids == child
    assert "lost.parquet" in caplog.text


def test_two_children_write_the_books_of_one(fleet: SmallFleet) -> None:
    # Closed in two at a time, each two of the four hours; the job is in both, its tenant that of its last hour.
    fleet.samples(HOUR_AT + 2 * HOUR + timedelta(seconds=10), HOUR_AT + 3 * HOUR, start_mj=721_000_000)
    HourCloser(fleet.database, SETTINGS).run(LATER + HOUR)
    here = fleet.rows(BOOKS)
    assert len(here) == 4
    with fleet.admin() as connection:
        connection.execute("TRUNCATE ledger_hours, ledger_runs, usage_hours, hour_jobs, ledger_lines CASCADE")
        fleet.changed("device_samples", HOUR_AT, HOUR_AT + 3 * HOUR + timedelta(microseconds=1), connection)
    two = Pool(children=2)
    try:
        assert HourCloser(fleet.database, SETTINGS, closing=two).run(LATER + HOUR).closed == 4
        assert len(two.pids) == 2
        assert fleet.rows(BOOKS) == here
    finally:
        two.end()
    assert two.pids == []


def test_hours_of_more_devices_than_are_loaded_together_are_closed_a_few_at_a_time(fleet: SmallFleet) -> None:
    HourCloser(fleet.database, SETTINGS).run(LATER)
    here = fleet.rows(BOOKS)
    with fleet.admin() as connection:
        connection.execute("TRUNCATE ledger_hours, ledger_runs, usage_hours, hour_jobs, ledger_lines CASCADE")
        fleet.changed("device_samples", HOUR_AT, HOUR_AT + 2 * HOUR + timedelta(microseconds=1), connection)
        (devices,) = connection.execute("SELECT count(DISTINCT device_id) FROM placements").fetchone() or (0,)
    few = replace(SETTINGS, device_hours_per_load=2 * devices)  # two of the three hours, and then one
    assert HourCloser(fleet.database, few).run(LATER).closed == 3
    assert fleet.rows(BOOKS) == here
    windows = fleet.rows("SELECT count(*) FROM ledger_runs GROUP BY inputs -> 'window' ORDER BY 1")
    assert windows == [(1,), (2,)]


def test_an_hour_over_the_bound_dies_alone_and_is_left_due_with_a_finding(
    fleet: SmallFleet, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    # 240 calls that each name a model of a megabyte: of what an hour may hold the least usual, and quick to write.
    large = "repeat('x', 1000000)"
    with fleet.admin() as connection:
        connection.execute(
            "SELECT ensure_partitions(%s, %s, NULL)", (HOUR_AT.date(), HOUR_AT.date() + 2 * timedelta(1))
        )
        connection.execute(
            "INSERT INTO api_calls (called_at, dedupe_key, site_id, provider, model, usage_known, source, origin) "
            f"SELECT %s, 'call-' || n, %s, 'p', {large}, false, 'span', 1 FROM generate_series(1, 240) AS n".encode(),
            (HOUR_AT + timedelta(minutes=5), fleet.site_id),
        )
    closer = HourCloser(fleet.database, SETTINGS, closing=pool)

    with caplog.at_level(logging.WARNING):
        done = closer.run(LATER)

    assert (done.failed, done.died, done.closed) == (1, 1, 2)
    assert fleet.rows("SELECT hour_at FROM ledger_hours ORDER BY 1") == [(HOUR_AT + HOUR,), (HOUR_AT + 2 * HOUR,)]
    found = (
        "SELECT start_at, evidence ->> 'message' FROM findings WHERE kind = 'close_over_memory' AND withdrawn_at IS {}"
    )
    ((start_at, message),) = fleet.rows(found.format("NULL"))
    assert start_at == HOUR_AT
    assert "320 MiB" in message or "of 320" in message
    fleet.rows("DELETE FROM api_calls RETURNING 1")
    assert closer.run(LATER).closed == 1
    assert len(fleet.rows(found.format("NOT NULL"))) == 1


STEPS = {
    "while it reads": "LOCK TABLE device_samples IN ACCESS EXCLUSIVE MODE",
    "before its run": "CREATE TRIGGER gate BEFORE INSERT ON ledger_runs FOR EACH ROW EXECUTE FUNCTION gate()",
    "between its rows": "CREATE TRIGGER gate BEFORE INSERT ON ledger_lines FOR EACH ROW EXECUTE FUNCTION gate()",
    "in its commit": "CREATE CONSTRAINT TRIGGER gate AFTER INSERT ON ledger_runs DEFERRABLE INITIALLY DEFERRED "
    "FOR EACH ROW EXECUTE FUNCTION gate()",
}


@contextmanager
def held_at(db: Database, step: str) -> Iterator[Callable[[], None]]:
    """Have whoever closes an hour wait at a step; gives what waits until somebody does. Afterwards nobody is held."""
    with db.connect("admin") as holder, db.connect("admin", autocommit=True) as admin:
        if STEPS[step].startswith("LOCK"):
            holder.execute(STEPS[step].encode())
        else:
            holder.execute("SELECT pg_advisory_xact_lock(%s)", (GATE,))
            admin.execute(
                "CREATE OR REPLACE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS "
                f"$$ BEGIN PERFORM pg_advisory_xact_lock_shared({GATE}); RETURN NEW; END $$".encode()
            )
            admin.execute(STEPS[step].encode())

        def somebody_waits() -> None:
            _until(
                lambda: (
                    admin.execute(
                        "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
                    ).fetchone()
                    is not None
                )
            )

        yield somebody_waits
        holder.rollback()


@contextmanager
def closing_beside(closer: HourCloser) -> Iterator[list[Any]]:
    """Run a round in a thread of its own; what it gives, or raises, is in the list afterwards."""
    came: list[Any] = []

    def run() -> None:
        try:
            came.append(closer.run(LATER))
        except (psycopg.OperationalError, StoppedError) as error:
            came.append(error)

    running = threading.Thread(target=run)
    running.start()
    yield came
    running.join(60)
    assert not running.is_alive()


@pytest.mark.parametrize("step", list(STEPS))
def test_a_child_that_is_killed_at_any_step_costs_nothing_and_writes_nothing_twice(
    fleet: SmallFleet, pool: Pool, step: str
) -> None:
    closer = HourCloser(fleet.database, SETTINGS, closing=pool)
    with closing_beside(closer) as came, held_at(fleet.database, step) as somebody_waits:
        somebody_waits()
        (killed,) = pool.pids
        os.kill(killed, signal.SIGKILL)
        _until(lambda: pool.pids not in ([], [killed]))  # what was at hand is begun anew while the gate is still shut
    (done,) = came
    assert isinstance(done, Round)
    assert done.failed == done.died == 0
    # In its commit the first one's hour was written, though nobody heard: who came second found the row taken.
    assert (done.closed, done.lost_races) in ([(3, 0), (2, 1)] if step == "in its commit" else [(3, 0)])
    assert_written_once(fleet)


def test_a_child_that_stands_still_inside_its_transaction_loses_it_and_writes_nothing_twice(
    fleet: SmallFleet, pool: Pool
) -> None:
    # Sixty seconds scaled to two: after one the server ends the session of a transaction nobody speaks in.
    closer = HourCloser(fleet.database, replace(SETTINGS, standstill_s=1), closing=pool)
    with closing_beside(closer) as came:
        with held_at(fleet.database, "between its rows") as somebody_waits:
            somebody_waits()
            (stopped,) = pool.pids
            os.kill(stopped, signal.SIGSTOP)
        await_ended(fleet.database, SETTINGS.session, but=1)
        os.kill(stopped, signal.SIGCONT)
    assert isinstance(came[0], psycopg.OperationalError)
    assert fleet.rows("SELECT count(*) FROM ledger_runs") == [(0,)]
    assert closer.run(LATER).closed == 3
    assert_written_once(fleet)


def test_who_takes_over_ends_what_the_child_of_a_silent_worker_is_at(fleet: SmallFleet, pool: Pool) -> None:
    first, second = Lease("host/1/aaaa"), Lease("host/2/bbbb", expires=timedelta(0))
    closer = HourCloser(fleet.database, replace(SETTINGS, session=first.session), closing=pool)
    with fleet.database.connect("worker", autocommit=True) as connection:
        assert first.take(connection)
        with closing_beside(closer) as came, held_at(fleet.database, "between its rows") as somebody_waits:
            somebody_waits()
            (child,) = pool.pids
            os.kill(child, signal.SIGSTOP)  # the worker and its process: a machine that stands still
            assert second.take(connection)
            await_ended(fleet.database, first.session)
            successor = HourCloser(fleet.database, replace(SETTINGS, session=second.session))
            with fleet.admin() as admin:
                admin.execute("DROP TRIGGER gate ON ledger_lines")
            assert successor.run(LATER).closed == 3
            os.kill(child, signal.SIGCONT)
    assert isinstance(came[0], psycopg.OperationalError)
    assert_written_once(fleet)


def test_a_worker_that_is_to_stop_gives_up_the_hour_at_hand(fleet: SmallFleet) -> None:
    stop = threading.Event()
    own = Pool(stop=stop)
    closer = HourCloser(fleet.database, SETTINGS, closing=own)
    with closing_beside(closer) as came, held_at(fleet.database, "before its run") as somebody_waits:
        somebody_waits()
        (child,) = own.pids
        stop.set()
        _until(lambda: bool(came))
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
    assert isinstance(came[0], StoppedError)
    assert fleet.rows("SELECT count(*) FROM ledger_runs") == [(0,)]


def test_a_child_that_tells_nothing_for_too_long_is_ended(fleet: SmallFleet) -> None:
    impatient = Pool(silent_s=6.0)
    closer = HourCloser(fleet.database, SETTINGS, closing=impatient)
    try:
        with closing_beside(closer) as came, held_at(fleet.database, "before its run") as somebody_waits:
            somebody_waits()
            (stopped,) = impatient.pids
            os.kill(stopped, signal.SIGSTOP)
            _until(lambda: impatient.pids != [stopped])
    finally:
        impatient.end()
    assert came[0].closed == 3
    assert_written_once(fleet)


@pytest.mark.parametrize(
    ("send", "ending"),
    [(os.kill, signal.SIGTERM), (os.killpg, signal.SIGTERM), (os.kill, signal.SIGKILL)],
    ids=["told to stop", "told with all its group", "killed"],
)
def test_a_worker_closes_in_a_child_that_ends_with_it_and_without_a_complaint(
    fleet: SmallFleet, tmp_path: Path, send: Callable[[int, int], None], ending: signal.Signals
) -> None:
    # Hours of three weeks ago are long due. Held before its run, so that there is a child to be seen.
    env = os.environ | {URL_VARIABLE: fleet.database.url, "WATTLEDGER_LOG_LEVEL": "WARNING"}
    command = [sys.executable, "-m", "wattledger", "--home", str(tmp_path), "worker", "--interval", "1"]
    said = tmp_path / "worker.log"
    with (
        held_at(fleet.database, "before its run") as somebody_waits,
        said.open("wb") as log,
        subprocess.Popen(command, env=env, stderr=log, start_new_session=True) as worker,
    ):
        try:
            somebody_waits()
            children = _children(worker.pid)
            assert children
            send(worker.pid, ending)
            assert worker.wait(20) == (0 if ending is signal.SIGTERM else -ending)
            _until(lambda: all(not Path(f"/proc/{child}").exists() or _state(child) == "Z" for child in children))
        finally:
            worker.kill()
    assert "closing" not in said.read_text(encoding="utf-8")
    assert fleet.rows("SELECT count(*) FROM ledger_runs") == [(0,)]


def _children(pid: int) -> list[int]:
    # Whichever of its threads started them.
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    listed = [child for task in tasks for child in task.read_text(encoding="ascii").split()]
    # Beside it multiprocessing has a process of its own, which tracks resources.
    return [int(each) for each in listed if "spawn_main" in Path(f"/proc/{each}/cmdline").read_text(encoding="utf-8")]


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]


def test_the_bound_is_a_whole_number_of_mib_that_a_process_can_start_with() -> None:
    assert memory_of({}) == 1_024
    assert memory_of({MEMORY_VARIABLE: "300"}) == 300
    for said in ("100", "1GiB", "-1", "1e3"):
        with pytest.raises(InputError, match=MEMORY_VARIABLE):
            memory_of({MEMORY_VARIABLE: said})


def test_there_are_as_many_children_as_asked_for_by_default_no_more_than_processors() -> None:
    assert 1 <= processes_of({}) <= min(2, os.cpu_count() or 1)
    assert processes_of({PROCESSES_VARIABLE: "3"}) == 3
    with pytest.raises(InputError, match=PROCESSES_VARIABLE):
        processes_of({PROCESSES_VARIABLE: "0"})


def assert_written_once(fleet: SmallFleet) -> None:
    hours = [HOUR_AT, HOUR_AT + HOUR, HOUR_AT + 2 * HOUR]
    assert fleet.rows("SELECT hour_at, revision FROM ledger_hours ORDER BY 1") == [(at, 1) for at in hours]
    assert fleet.rows("SELECT hour_at FROM ledger_runs ORDER BY 1") == [(at,) for at in hours]
    twice = "SELECT hour_at, device_id, holder FROM usage_hours GROUP BY 1, 2, 3 HAVING count(*) > 1"
    assert fleet.rows(twice) == []
    # 100 W for two hours are 720 kJ.
    assert fleet.rows("SELECT sum(energy_mj)::bigint FROM usage_hours") == [(720_000_000,)]


def await_ended(db: Database, session: str, but: int = 0) -> None:
    """Wait until at most ``but`` sessions of that name are left."""
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
    with db.connect("admin", autocommit=True) as admin:
        _until(lambda: len(admin.execute(query, (session,)).fetchall()) <= but)


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that within 30 s"
        time.sleep(0.02)
