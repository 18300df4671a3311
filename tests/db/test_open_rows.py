"""Rows of the open hour are kept between looks at it: the books are those of an hour that is read whole, whatever is written in between."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import polars as pl
import psycopg
import pytest

from analytics.closing.hours import Here
from analytics.closing.pool import Pool
from analytics.io.open_rows import OpenRows
from analytics.jobs import HourCloser, Round, WorkerSettings
from collector.wire import Stream
from ingest.store.engine import Database
from ingest.store.samples import SampleSession
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db

MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
SETTINGS = WorkerSettings(code_version="test")
PLENTY = 1 << 26
_INSERT = """
INSERT INTO device_samples (at, device_id, epoch_id, reading, span_us, samples, samples_missed, energy_mj, power_average_mw, gpu_util_percent,
                            clocks_event_reasons) VALUES (%s, %s, %s, 0, 10000000, 10, 0, %s, %s, %s, 0)
"""


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    return small_fleet(db)


def keeping(fleet: SmallFleet, most_bytes: int = PLENTY) -> HourCloser:
    return HourCloser(fleet.database, SETTINGS, closing=Here(OpenRows(most_bytes)))


def reading_whole(fleet: SmallFleet) -> HourCloser:
    return HourCloser(fleet.database, SETTINGS)


def test_a_look_fetches_what_was_written_since_the_one_before(fleet: SmallFleet) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + 10 * MINUTE)
    closer = keeping(fleet)

    # The first finds no books yet: nothing holds back changes from being forgotten. The second keeps what it reads.
    assert [closer.run(HOUR_AT + 10 * MINUTE).read_whole for _ in range(2)] == [1, 1]
    assert closer.run(HOUR_AT + 10 * MINUTE).read_whole == 0

    fleet.samples(HOUR_AT + 10 * MINUTE + 10 * SECOND, HOUR_AT + 11 * MINUTE, start_mj=610 * 100_000)
    assert closer.run(HOUR_AT + 11 * MINUTE).read_whole == 0
    assert fleet.rows("SELECT sum(energy_mj)::bigint FROM current_usage_hours") == [(11 * 60 * 100_000,)]
    assert reading_whole(fleet).run(HOUR_AT + 11 * MINUTE) == Round(unchanged=1)


def test_the_last_reading_of_a_board_that_was_silent_before_the_hour_is_looked_for_again_only_if_something_came(
    fleet: SmallFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = HOUR_AT + 20 * MINUTE
    fleet.samples(HOUR_AT - 170 * MINUTE, HOUR_AT - 160 * MINUTE)
    fleet.samples(HOUR_AT + 10 * MINUTE, now, start_mj=180 * 60 * 100_000)
    looked: list[datetime] = []
    ends = SampleSession.ends

    def ends_noted(
        session: SampleSession, stream: Stream, from_at: datetime, to_at: datetime, **how: Any
    ) -> pl.DataFrame:
        looked.append(to_at)
        return ends(session, stream, from_at, to_at, **how)

    monkeypatch.setattr(SampleSession, "ends", ends_noted)
    closer = keeping(fleet)
    while closer.run(now) != Round(unchanged=1):  # until the hours of the silence came to rest
        pass
    before = HOUR_AT - 10 * MINUTE  # what lies nearer is read with the hour

    def asks() -> int:
        looked.clear()
        assert closer.run(now).failed == 0
        return sum(to_at <= before for to_at in looked)

    assert asks() == 0
    # Half an hour that was kept in a spool. Whoever closes the hour before anew lets its change be forgotten.
    fleet.samples(HOUR_AT - 150 * MINUTE, HOUR_AT - 140 * MINUTE, start_mj=20 * 60 * 100_000)
    whole = reading_whole(fleet)
    for _ in range(3):
        whole.run(now)
    assert fleet.rows("SELECT count(*) FROM changes WHERE to_at < %s", HOUR_AT - HOUR) == [(0,)]
    content = fleet.rows("SELECT content_sha256 FROM ledger_hours WHERE hour_at = %s", HOUR_AT)
    assert asks() > 0
    assert fleet.rows("SELECT content_sha256 FROM ledger_hours WHERE hour_at = %s", HOUR_AT) == content
    assert asks() == 0


def test_an_hour_of_too_many_rows_is_read_whole_each_time(fleet: SmallFleet) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + 10 * MINUTE)
    closer = keeping(fleet, most_bytes=100)

    assert [closer.run(HOUR_AT + 10 * MINUTE).read_whole for _ in range(3)] == [1, 1, 1]


def test_what_is_committed_after_a_look_is_seen_by_the_next_however_early_it_began(fleet: SmallFleet) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + 5 * MINUTE)
    closer = keeping(fleet)
    with fleet.database.connect("admin") as slow:  # has its transaction id before the looks
        write(slow, fleet, [(HOUR_AT + 6 * MINUTE, 6 * 60 * 100_000, 100_000, 50)], fleet.device_id)
        for _ in range(3):
            closer.run(HOUR_AT + 7 * MINUTE)
        slow.commit()

    assert closer.run(HOUR_AT + 7 * MINUTE).read_whole == 0
    assert fleet.rows("SELECT sum(energy_mj)::bigint FROM current_usage_hours") == [(6 * 60 * 100_000,)]


def test_an_hour_that_is_closed_with_the_next_one_open_is_read_and_put_on_record_as_ever(fleet: SmallFleet) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + HOUR + 15 * MINUTE)
    closer = keeping(fleet)
    for _ in range(3):
        closer.run(HOUR_AT + HOUR + 10 * MINUTE)

    assert closer.run(HOUR_AT + HOUR + 15 * MINUTE) == Round(closed=1, provisional=1)
    # What was read outside of files is hashed, the hour and at least ten minutes after it: it can be told from others when it is computed again.
    ((rows,),) = fleet.rows("SELECT (inputs->'outside'->>0)::int FROM ledger_runs WHERE revision = 1")
    assert rows >= 420


def test_a_look_that_fails_keeps_nothing(fleet: SmallFleet) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + 10 * MINUTE)
    closer = keeping(fleet)
    for _ in range(3):
        closer.run(HOUR_AT + 10 * MINUTE)
    with fleet.admin() as connection:
        connection.execute("ALTER TABLE ledger_lines RENAME TO hidden")
    assert closer.run(HOUR_AT + 11 * MINUTE).failed == 1
    with fleet.admin() as connection:
        connection.execute("ALTER TABLE hidden RENAME TO ledger_lines")

    assert closer.run(HOUR_AT + 11 * MINUTE).read_whole == 1


def test_a_child_that_is_killed_between_looks_takes_its_rows_along_and_nothing_else(fleet: SmallFleet) -> None:
    fleet.samples(HOUR_AT, HOUR_AT + 10 * MINUTE)
    pool = Pool(memory_mib=320)
    try:
        closer = HourCloser(fleet.database, SETTINGS, closing=pool)
        assert [closer.run(HOUR_AT + 10 * MINUTE).read_whole for _ in range(3)] == [1, 1, 0]
        os.kill(pool.pids[0], signal.SIGKILL)
        fleet.samples(HOUR_AT + 10 * MINUTE + 10 * SECOND, HOUR_AT + 11 * MINUTE, start_mj=610 * 100_000)

        assert closer.run(HOUR_AT + 11 * MINUTE).read_whole == 1
        assert reading_whole(fleet).run(HOUR_AT + 11 * MINUTE) == Round(unchanged=1)
        # An hour that is closed has the memory for itself.
        assert closer.run(HOUR_AT + 2 * HOUR).closed == 1
    finally:
        pool.end()


@dataclass
class Site:
    """Three boards, and what may be written of them."""

    fleet: SmallFleet
    draw: random.Random
    devices: list[int]
    now: datetime = HOUR_AT + 2 * MINUTE
    told: set[tuple[int, datetime]] = field(default_factory=set)
    jobs: int = 0

    def arrive(self) -> None:
        """Some seconds pass, and each board is read; one is late now and then."""
        until = self.now + self.draw.choice([10, 20, 70]) * SECOND
        for device in self.devices:
            if self.draw.random() < 0.8:
                self._tell(device, self.now, until)
        self.now = until

    def come_late(self) -> None:
        """A spool sends what it kept, from before the hour on or from within it."""
        start = self.now - self.draw.randint(1, 20) * MINUTE
        self._tell(self.draw.choice(self.devices), start, start + self.draw.randint(1, 5) * MINUTE)

    def come_from_before(self) -> None:
        """A spool sends what it kept from the hour before, of a board that was silent since."""
        start = HOUR_AT - self.draw.randint(12, 50) * MINUTE
        self._tell(self.draw.choice(self.devices), start, start + self.draw.randint(1, 5) * MINUTE)

    def come_early(self) -> None:
        """A clock that is ahead."""
        self._tell(self.draw.choice(self.devices), self.now + 60 * SECOND, self.now + 80 * SECOND)

    def hold(self) -> None:
        """A job is told of that began, or was over, some time ago."""
        self.jobs += 1
        start = self.now - self.draw.randint(0, 25) * MINUTE
        end = self.draw.choice([None, start + self.draw.randint(1, 20) * MINUTE])
        device = self.draw.choice(self.devices)
        with self.fleet.admin() as connection:
            (job,) = one(
                connection,
                "INSERT INTO jobs (site_id, cluster, native_id, started_at, ended_at, account, origin, source) "
                "VALUES (%s, 'c1', %s, %s, %s, 'nlp', 1, 'agent') RETURNING id",
                (self.fleet.site_id, str(self.jobs), start, end),
            )
            connection.execute(
                "INSERT INTO allocations (job_id, site_id, device_id, start_at, end_at, evidence) VALUES (%s, %s, %s, %s, %s, 'cgroup')",
                (job, self.fleet.site_id, device, start, end),
            )
            self.fleet.changed("allocations", start, end or self.now, connection)

    def move(self) -> None:
        """A board is in another node from some time ago on, and read there."""
        device, at = self.draw.choice(self.devices), self.now - self.draw.randint(1, 10) * MINUTE
        with self.fleet.admin() as connection, connection.transaction():
            (node,) = one(
                connection,
                "INSERT INTO nodes (site_id, name) VALUES (%s, %s) RETURNING id",
                (self.fleet.site_id, f"x{self.draw.random()}"),
            )
            connection.execute(
                "UPDATE placements SET valid_to = %s WHERE device_id = %s AND valid_to IS NULL", (at, device)
            )
            connection.execute(
                "INSERT INTO placements (device_id, node_id, valid_from) VALUES (%s, %s, %s)", (device, node, at)
            )
            self.fleet.changed("allocations", at, self.now, connection)

    def appear(self) -> None:
        """A new board, whose first rows may be of before."""
        with self.fleet.admin() as connection:
            self.devices.append(board(connection, self.fleet, f"GPU-{len(self.devices) + 1}"))

    def price(self) -> None:
        """Another rate from the hour's begin on."""
        with self.fleet.admin() as connection:
            connection.execute("UPDATE prices SET amount = amount + 1")
            self.fleet.changed("prices", HOUR_AT, HOUR_AT + 24 * HOUR, connection)

    def _tell(self, device: int, start: datetime, end: datetime) -> None:
        rows = []
        at = start.replace(second=start.second // 10 * 10, microsecond=0)
        while at < end:
            if (device, at) not in self.told:
                seconds = int((at - HOUR_AT).total_seconds()) + 3_600
                rows.append((at, seconds * 100_000, 100_000, self.draw.choice([0, 50])))
                self.told.add((device, at))
            at += 10 * SECOND
        with self.fleet.database.connect("admin") as connection:
            write(connection, self.fleet, rows, device)


STEPS: list[Callable[[Site], None]] = [
    *[Site.arrive] * 8,
    Site.come_late,
    Site.come_from_before,
    Site.come_early,
    Site.hold,
    Site.move,
    Site.appear,
    Site.price,
]


@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_written_between_looks_the_books_are_those_of_an_hour_read_whole(
    fleet: SmallFleet, seed: int
) -> None:
    draw = random.Random(seed)
    with fleet.admin() as connection:
        connection.execute(
            "SELECT ensure_partitions(%s, %s, NULL)", (HOUR_AT.date(), HOUR_AT.date() + timedelta(days=1))
        )
        site = Site(
            fleet, draw, [fleet.device_id, board(connection, fleet, "GPU-2"), board(connection, fleet, "GPU-3")]
        )
    site.arrive()
    workers = [keeping(fleet), keeping(fleet)]
    kept, content_of = 0, "SELECT content_sha256 FROM ledger_hours WHERE hour_at = %s"

    for _ in range(10):
        for step in draw.sample(STEPS, k=draw.randint(1, 3)):
            step(site)
        # Now one worker, now the other: what a worker kept is as old as its last look.
        looked = workers[draw.random() < 0.25].run(site.now)
        (content,) = fleet.rows(content_of, HOUR_AT)
        kept += looked.read_whole == 0
        whole = reading_whole(fleet).run(
            site.now
        )  # the hour before, where late rows reach into it, it closes as it was closed
        assert (looked.failed, whole.failed) == (0, 0)
        assert fleet.rows(content_of, HOUR_AT) == [content]

    assert kept >= 2


def write(connection: psycopg.Connection[Any], fleet: SmallFleet, rows: list[tuple[Any, ...]], device: int) -> None:
    """Insert readings (at, energy_mj, power_mw, util) and the change that announces them, in the connection's transaction."""
    for at, energy_mj, power_mw, util in rows:
        connection.execute(_INSERT, (at, device, fleet.epoch_id, energy_mj, power_mw, util))
    if rows:
        instants = [row[0] for row in rows]
        fleet.changed("device_samples", min(instants), max(instants) + timedelta(microseconds=1), connection)


def board(connection: psycopg.Connection[Any], fleet: SmallFleet, uuid: str) -> int:
    (device,) = one(
        connection,
        "INSERT INTO devices (uuid, vendor, model, kind) VALUES (%s, 'nvidia', 'H100', 'gpu') RETURNING id",
        (uuid,),
    )
    connection.execute(
        "INSERT INTO placements (device_id, node_id, valid_from) VALUES (%s, %s, %s)",
        (device, fleet.node_id, HOUR_AT - HOUR),
    )
    return int(device)


def one(connection: psycopg.Connection[Any], query: str, parameters: tuple[Any, ...]) -> tuple[Any, ...]:
    row = connection.execute(query.encode(), parameters).fetchone()
    assert row is not None
    return tuple(row)
