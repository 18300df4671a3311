"""One hour of a large site in two processes: the books, the record and what is due afterwards are those of one process, whatever ends either."""

from __future__ import annotations

import logging
import os
import pickle
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from analytics.closing.halves import Half, HalfDone, do_half
from analytics.closing.hours import Here
from analytics.closing.pool import Pool, StoppedError
from analytics.closing.request import Done, MinutesTask, Task, Told
from analytics.io.open_rows import Look, OpenRows
from analytics.jobs import HourCloser, Round, WorkerSettings
from analytics.minutes import MinutesMaker
from ingest.store.engine import Database
from ingest.store.seal import Sealer, hour_of
from ingest.store.segments import Segments
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet
from tests.db.test_closing_child import _until, closing_beside
from tests.db.test_open_rows import STEPS, Site

pytestmark = pytest.mark.db

MINUTE = timedelta(minutes=1)
LATER = HOUR_AT + 6 * HOUR
SETTINGS = WorkerSettings(
    code_version="test", session="wattledger-worker/half", hours_per_pass=1, devices_to_share=2, devices_per_look=2
)
ALONE = replace(SETTINGS, devices_to_share=1_000_000)
WRITTEN = {
    "hours": "SELECT hour_at, revision, content_sha256 FROM ledger_hours ORDER BY 1",
    "record": "SELECT hour_at, revision, inputs::text, quality::text FROM ledger_runs ORDER BY 1, 2, 3",
    "findings": "SELECT dedupe_key, waste_energy_mj FROM findings WHERE withdrawn_at IS NULL ORDER BY 1",
    "due": "SELECT site_id, from_at, to_at, kind FROM changes ORDER BY 2, 3, 4",
}


@dataclass
class Aside:
    """The other process, in this one: what travels is pickled as it is between two."""

    rows: OpenRows = field(default_factory=lambda: OpenRows(1 << 26))
    asked: int = 0
    is_lost: bool = False
    """Whether nothing comes of what it is asked."""
    half: Half | None = None
    look: Look | None = None

    def ask(self, half: Half) -> None:
        self.asked += 1
        self.half = pickle.loads(pickle.dumps(half))

    def answer(self) -> HalfDone | None:
        assert self.half is not None
        if self.is_lost:
            return None
        done, self.look = do_half(self.half, self.rows)
        made: HalfDone = pickle.loads(pickle.dumps(done))
        return made


class Halved:
    """Closes in two halves, one after the other."""

    def __init__(self) -> None:
        self.other = Aside()
        self._here = Here(OpenRows(1 << 26), self.other)

    def close(self, task: Task) -> Iterator[Told]:
        for told in self._here.close(replace(task, is_shared=True)):
            if isinstance(told, Done) and told.is_kept and self.other.look is not None:
                self.other.rows.keep(self.other.look)
            yield told

    def make_minutes(self, task: MinutesTask) -> bool:
        return self._here.make_minutes(replace(task, is_shared=True))


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    """Three nodes with a board each."""
    fleet = small_fleet(db)
    for name in ("n2", "n3"):
        with fleet.admin() as connection:
            add_node(connection, fleet, name)
    return fleet


def add_node(connection: psycopg.Connection[Any], fleet: SmallFleet, name: str) -> None:
    given = {"site": fleet.site_id, "name": name, "at": HOUR_AT - HOUR}
    connection.execute(
        """
        WITH node AS (INSERT INTO nodes (site_id, name) VALUES (%(site)s, %(name)s) RETURNING id),
        told AS (INSERT INTO epochs (node_id, boot_id, driver_epoch, feed, origin, cadence_us, agent_version)
                 SELECT id, 'b1', 0, 1, 1, 10000000, 'test' FROM node),
        board AS (INSERT INTO devices (uuid, vendor, model, kind) VALUES ('GPU-' || %(name)s, 'nvidia', 'H100', 'gpu') RETURNING id)
        INSERT INTO placements (device_id, node_id, valid_from) SELECT board.id, node.id, %(at)s FROM board, node
        """,
        given,
    )


def boards(fleet: SmallFleet) -> list[SmallFleet]:
    """Return the fleet by each of its boards."""
    found = fleet.rows(
        "SELECT device_id, node_id, epochs.id FROM placements JOIN epochs USING (node_id) WHERE valid_to IS NULL ORDER BY 1"
    )
    return [replace(fleet, device_id=device, node_id=node, epoch_id=epoch) for device, node, epoch in found]


def live(fleet: SmallFleet, seed: int) -> None:
    """Three hours in which each board is read, silent, and held by somebody, now and then; two are shared by two jobs."""
    draw = random.Random(seed)
    for number, board in enumerate(boards(fleet)):
        at, counter = HOUR_AT, 0
        while at < HOUR_AT + 3 * HOUR:
            until = min(at + draw.randint(5, 70) * MINUTE, HOUR_AT + 3 * HOUR)
            power_w = draw.choice([60, 100, 400])
            board.samples(at, until, power_w=power_w, start_mj=counter)
            counter += int((until - at).total_seconds()) * power_w * 1_000 + 1
            at = until + draw.choice([10, 10, 10, 400, 4_000]) * timedelta(seconds=1)
        for job in range(draw.randint(1, 3)):
            start = HOUR_AT + draw.randint(0, 150) * MINUTE
            board.job(f"{number}/{job}", start, draw.choice([None, start + draw.randint(1, 60) * MINUTE]))


def written(fleet: SmallFleet) -> dict[str, list[tuple[Any, ...]]]:
    return {name: fleet.rows(query) for name, query in WRITTEN.items()}


def unwritten(fleet: SmallFleet) -> None:
    with fleet.admin() as connection:
        connection.execute("TRUNCATE ledger_hours, ledger_runs, usage_hours, hour_jobs, ledger_lines, findings CASCADE")
        fleet.changed("device_samples", HOUR_AT, HOUR_AT + 3 * HOUR, connection)


@pytest.mark.parametrize(("where", "seed"), [("hot", 1), ("sealed", 2), ("sealed, and late rows of the last board", 3)])
def test_books_and_their_record_are_the_same_however_an_hour_was_divided(
    fleet: SmallFleet, tmp_path: Path, where: str, seed: int
) -> None:
    live(fleet, seed)
    segments = Segments.at(tmp_path)
    if where != "hot":
        for hour in range(3):
            Sealer(fleet.database, segments).seal(hour_of(fleet.site_id, HOUR_AT + hour * HOUR))
    if "late" in where:
        last = boards(fleet)[-1]
        with fleet.admin() as connection:
            connection.execute(
                "INSERT INTO late_samples (at, device_id, epoch_id, reading, span_us, samples, samples_missed, power_average_mw) "
                "SELECT %s + n * interval '7 s', %s, %s, 0, 7000000, 7, 0, 90000 FROM generate_series(1, 5) AS n",
                (HOUR_AT + 30 * MINUTE, last.device_id, last.epoch_id),
            )
    HourCloser(fleet.database, ALONE, segments).run(
        LATER
    )  # what is announced is all seen: from here on the same hours are due
    unwritten(fleet)
    HourCloser(fleet.database, ALONE, segments).run(LATER)
    alone = written(fleet)
    assert len(alone["hours"]) >= 3

    for is_lost in (False, True):
        unwritten(fleet)
        halved = Halved()
        halved.other.is_lost = is_lost
        assert HourCloser(fleet.database, SETTINGS, segments, closing=halved).run(LATER).failed == 0
        assert halved.other.asked >= 3
        assert written(fleet) == alone


def test_a_small_site_asks_nobody(fleet: SmallFleet) -> None:
    live(fleet, 3)
    halved = Halved()
    HourCloser(fleet.database, ALONE, closing=halved).run(LATER)
    assert halved.other.asked == 0


@pytest.mark.parametrize("seed", [5])
def test_looks_in_halves_keep_their_rows_and_give_the_books_of_an_hour_read_whole(fleet: SmallFleet, seed: int) -> None:
    draw, halved = random.Random(seed), Halved()
    with fleet.admin() as connection:
        connection.execute(
            "SELECT ensure_partitions(%s, %s, NULL)", (HOUR_AT.date(), HOUR_AT.date() + timedelta(days=1))
        )
    site = Site(fleet, draw, [board.device_id for board in boards(fleet)])
    site.arrive()
    kept, content_of = 0, "SELECT content_sha256 FROM ledger_hours WHERE hour_at = %s"
    closer = HourCloser(fleet.database, SETTINGS, closing=halved)
    minutes = MinutesMaker(fleet.database, SETTINGS, closing=halved)
    rolled = "SELECT minute_at, device_id, energy_mj FROM minute_rollups ORDER BY 1, 2"
    for number in range(10):
        for step in draw.sample(STEPS, k=draw.randint(1, 3)) if number else [Site.arrive]:
            step(site)
        looked = closer.run(site.now)
        (content,) = fleet.rows(content_of, HOUR_AT)
        kept += looked.read_whole == 0
        if number == 6:  # they go by the rows that are kept, and leave them
            assert minutes.step(site.now).made
            by_halves = fleet.rows(rolled)
        assert HourCloser(fleet.database, ALONE).run(site.now).failed == looked.failed == 0
        assert fleet.rows(content_of, HOUR_AT) == [content]
        if number == 6:
            fleet.rows("UPDATE ledger_hours SET minutes_run_id = NULL RETURNING 1")
            MinutesMaker(fleet.database, ALONE).step(site.now)
            assert by_halves == fleet.rows(rolled) != []
    assert kept >= 2
    assert halved.other.asked >= 10


@contextmanager
def two(**given: Any) -> Iterator[Pool]:
    pool = Pool(children=2, **given)
    try:
        yield pool
    finally:
        pool.end()


@contextmanager
def readings_locked(fleet: SmallFleet) -> Iterator[Callable[[], None]]:
    """Have whoever reads samples wait; gives what waits until both halves do. Afterwards nobody is held."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with fleet.database.connect("admin") as holder, fleet.admin() as admin:
        holder.execute("LOCK TABLE device_samples IN ACCESS EXCLUSIVE MODE")
        yield lambda: _until(lambda: admin.execute(waiting).fetchone() == (2,))
        holder.rollback()


def one_hour(fleet: SmallFleet) -> None:
    for board in boards(fleet):
        board.samples(HOUR_AT, HOUR_AT + HOUR - 10 * timedelta(seconds=1))


def assert_written_once(fleet: SmallFleet) -> None:
    assert fleet.rows("SELECT hour_at, revision FROM ledger_hours") == [(HOUR_AT, 1)]
    assert fleet.rows("SELECT count(*) FROM ledger_runs") == [(1,)]
    # Three boards of 100 W, and each for all but the last ten seconds.
    assert fleet.rows("SELECT sum(energy_mj)::bigint FROM usage_hours") == [(3 * 3_590 * 100_000,)]


@pytest.mark.parametrize(("which", "how"), [(1, "killed"), (0, "killed"), (1, "stopped")])
def test_either_half_may_end_or_stand_still_and_the_hour_is_closed_once(
    fleet: SmallFleet, caplog: pytest.LogCaptureFixture, which: int, how: str
) -> None:
    one_hour(fleet)
    with two(silent_s=16.0 if how == "stopped" else 60.0) as pool, caplog.at_level(logging.WARNING):
        closer = HourCloser(fleet.database, SETTINGS, closing=pool)
        with closing_beside(closer) as came, readings_locked(fleet) as both_wait:
            both_wait()
            os.kill(pool.pids[which], signal.SIGKILL if how == "killed" else signal.SIGSTOP)
            if how == "killed":
                _until(lambda: bool(caplog.records))
    assert came == [Round(closed=1)]
    assert ("half of an hour" in caplog.text) == (which == 1)
    assert_written_once(fleet)


def test_a_half_that_is_over_its_bound_is_done_by_who_asked(
    fleet: SmallFleet, caplog: pytest.LogCaptureFixture
) -> None:
    one_hour(fleet)
    with two() as pool, caplog.at_level(logging.WARNING):
        closer = HourCloser(fleet.database, SETTINGS, closing=pool)
        with closing_beside(closer) as came, readings_locked(fleet) as both_wait:
            both_wait()
            pool._children[1].memory_mib = 1
            _until(lambda: bool(caplog.records))
    assert came == [Round(closed=1)]
    assert "of 1 it may have" in caplog.text
    assert_written_once(fleet)


def test_a_worker_that_is_to_stop_gives_up_both_halves(fleet: SmallFleet) -> None:
    one_hour(fleet)
    stop = threading.Event()
    with two(stop=stop) as pool:
        closer = HourCloser(fleet.database, SETTINGS, closing=pool)
        with closing_beside(closer) as came, readings_locked(fleet) as both_wait:
            both_wait()
            stop.set()
            _until(lambda: bool(came))
            assert pool.pids == []
    assert isinstance(came[0], StoppedError)
    assert fleet.rows("SELECT count(*) FROM ledger_runs") == [(0,)]


def test_a_fault_in_the_hour_itself_leaves_it_due_and_the_children_to_the_next_one(fleet: SmallFleet) -> None:
    one_hour(fleet)
    with two() as pool:
        closer = HourCloser(fleet.database, SETTINGS, closing=pool)
        with fleet.admin() as connection:
            connection.execute("ALTER TABLE ledger_lines RENAME TO hidden")
        assert closer.run(LATER).failed == 1
        with fleet.admin() as connection:
            connection.execute("ALTER TABLE hidden RENAME TO ledger_lines")
        children = pool.pids
        assert len(children) == 2
        assert closer.run(LATER).closed == 1
        assert pool.pids == children
    assert_written_once(fleet)


def test_looks_by_two_children_fetch_what_was_written_since(fleet: SmallFleet) -> None:
    for board in boards(fleet):
        board.samples(HOUR_AT, HOUR_AT + 10 * MINUTE)
    with two() as pool:
        closer = HourCloser(fleet.database, SETTINGS, closing=pool)
        assert [closer.run(HOUR_AT + 10 * MINUTE).read_whole for _ in range(3)] == [1, 1, 0]
        os.kill(pool.pids[0], signal.SIGKILL)  # who was asked for half of it
        assert [closer.run(HOUR_AT + 10 * MINUTE).read_whole for _ in range(2)] == [1, 0]
