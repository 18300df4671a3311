"""kill -9 between every two steps of sealing, merging, rebuilding, dropping and deleting, while ingest writes: each row once."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from collector.wire import Feed, Stream
from ingest.receivers.native import Reader
from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import Database
from ingest.store.group import GroupWriter, Outcome
from ingest.store.hours import SiteHour
from ingest.store.prepare import Submission
from ingest.store.registry import Registry
from ingest.store.samples import sample_session
from ingest.store.seal import Sealer, hour_of, instant_of
from ingest.store.seal_days import drop_hot_days
from ingest.store.seal_hours import delete_retired, sweep
from ingest.store.segments import Segments
from tests.db.ingest_harness import batch_meta, body_of, device, device_row, rows
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet
from tests.db.seal_process import Forks

pytestmark = pytest.mark.db
DAY_AT = HOUR_AT.replace(hour=0)
TOMORROW = (DAY_AT + timedelta(days=1)).date()
EMPTY = {"fabric_samples", "engine_samples", "device_health", "device_shares", "agent_health"}
"""Streams without rows do nothing between their reading and the next one's."""
UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class Writers:
    """Two threads with a writer of ingest each, which send bodies for the hour under test: a device's row and a meter's."""

    fleet: SmallFleet
    hour_at: datetime
    sent: dict[datetime, set[datetime]] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    number: int = 0
    threads: list[threading.Thread] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    def start(self) -> None:
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(2)]
        for thread in self.threads:
            thread.start()

    def end(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()
        assert self.failures == []

    def _run(self) -> None:
        engine = self.fleet.database.create_engine("writer", pool_size=1)
        writer = GroupWriter(self.fleet.database, Registry(engine), hot_retention=timedelta(days=36_500))
        spool = str(uuid.uuid4())
        try:
            while not self.stop.is_set():
                with self.lock:
                    self.number += 1
                    hour_at, number = self.hour_at, self.number
                at = hour_at + timedelta(milliseconds=number)
                self._send(writer, spool, number, at)
                with self.lock:
                    self.sent.setdefault(hour_at, set()).add(at)
                self.stop.wait(0.1)
        except BaseException as error:  # noqa: BLE001 - told by the test, which would else see rows missing
            self.failures.append(error)
        finally:
            writer.close()
            engine.dispose()

    def _send(self, writer: GroupWriter, spool: str, number: int, at: datetime) -> None:
        at_us = (at - UNIX_EPOCH) // timedelta(microseconds=1)
        meta = batch_meta(spool=spool, sequence=number, node="n1", feed=Feed.NATIVE, devices=(device("a"),))
        meter = rows(Stream.NODE, {"at_us": at_us, "meter": "redfish", "span_us": 0, "energy_mj": number})
        body = Reader().read(body_of(meta, device_row(at_us, energy_mj=number), node=meter))
        for _ in range(1 + (number % 4 == 0)):  # an agent that heard no answer sends again
            (result,) = writer.write([Submission(self.fleet.site_id, body)])
            assert isinstance(result, Outcome), result
            assert result.refusals == ()


@dataclass
class Stand:
    fleet: SmallFleet
    segments: Segments
    forks: Forks
    writers: Writers

    def found(self, hour_at: datetime) -> list[Counter[datetime]]:
        """Return the instants of the device's rows and of the meter's, each with how many rows it has."""
        with sample_session(self.fleet.database, self.segments) as session:
            return [
                Counter(session.rows(stream, ["energy_mj"], hour_at, hour_at + HOUR).collect()["at"].to_list())
                for stream in (Stream.DEVICE, Stream.NODE)
            ]

    def check(self, hour_at: datetime) -> None:
        """Whatever was acknowledged before the look is there once; nothing is there that was not sent by its end."""
        with self.writers.lock:
            before = set(self.writers.sent.get(hour_at, ()))
        for found in self.found(hour_at):
            assert set(found.values()) <= {1}
            assert before <= set(found)

    def steps(self, work: str, hour: SiteHour) -> list[str]:
        names: list[str] = []
        sealer = Sealer(self.fleet.database, self.segments, step=names.append)
        if work == "rebuild":
            sealer.rebuild(hour, [Stream.DEVICE, Stream.NODE])
        else:
            (sealer.seal if work == "seal" else sealer.merge)(hour)
        return [name for name in names if name.split(" ")[-1] not in EMPTY]

    def wait_for_late(self, hour_at: datetime) -> None:
        while not self.fleet.rows(
            "SELECT 1 FROM late_samples WHERE at >= %s AND at < %s LIMIT 1", hour_at, hour_at + HOUR
        ):
            assert self.writers.failures == []


@pytest.fixture
def stand(db: Database, server: EmbeddedServer, tmp_path: Path) -> Iterator[Stand]:
    fleet = small_fleet(db)
    folder = tmp_path / "segments"
    writers = Writers(fleet, DAY_AT)
    with Forks(server.placement.socket_dir, db.name, folder) as forks:
        writers.start()
        try:
            yield Stand(fleet, Segments.at(folder), forks, writers)
        finally:
            writers.stop.set()
            for thread in writers.threads:
                thread.join()


def test_whichever_step_a_sealer_is_killed_before_each_row_is_there_once(stand: Stand) -> None:
    hours = [hour_of(stand.fleet.site_id, DAY_AT + HOUR * number) for number in range(3)]
    while not stand.writers.sent:
        assert stand.writers.failures == []
    seal_steps = stand.steps("seal", hours[0])
    assert {"flip", "commit flip", "publish node_samples", "record", "commit", "done"} <= set(seal_steps)
    stand.wait_for_late(DAY_AT)
    merge_steps = stand.steps("merge", hours[0])
    assert {"read device_samples", "publish device_samples", "record", "commit", "done"} <= set(merge_steps)

    # One hour is killed before every step until it is sealed, the other before the one after its commit.
    stand.writers.hour_at = instant_of(hours[1])
    for step in seal_steps:
        stand.forks.killed("seal", step, *hours[1])
        stand.check(instant_of(hours[1]))
    assert seal_steps[-1] == "done"  # its kill came after the commit
    for step in merge_steps:
        stand.wait_for_late(instant_of(hours[1]))
        stand.forks.killed("merge", step, *hours[1])
        stand.check(instant_of(hours[1]))
    for step in stand.steps("rebuild", hours[1]):
        stand.forks.killed("rebuild", step, *hours[1])
        stand.check(instant_of(hours[1]))
    stand.writers.hour_at = instant_of(hours[2])
    stand.forks.killed("seal", "done", *hours[2])  # nobody wrote to it before, or hardly
    stand.check(instant_of(hours[2]))
    stand.writers.end()
    _finish(stand, hours)


def _finish(stand: Stand, hours: list[SiteHour]) -> None:
    """Merge what is left, seal the rest of the day, drop it with kills in between: all rows are in segments, once."""
    sealer = Sealer(stand.fleet.database, stand.segments)
    for hour in hours:
        sealer.merge(hour)
    for number in range(len(hours), 24):
        sealer.seal(hour_of(stand.fleet.site_id, DAY_AT + HOUR * number))
    for step in ("look again", "commit drop"):
        stand.forks.killed("drop", step, TOMORROW)
        assert stand.fleet.rows("SELECT count(*) > 0 FROM device_samples") == [(True,)]
    stand.forks.killed("drop", "dropped", TOMORROW)
    engine = stand.fleet.database.create_engine("worker", pool_size=1)
    assert drop_hot_days(engine, stand.segments, TOMORROW).partitions == []
    engine.dispose()
    for step in ("delete file", "forget file"):
        stand.forks.killed("delete", step)
    with stand.fleet.database.connect("worker") as connection:
        assert delete_retired(connection, stand.segments, timedelta(0)) > 0
        sweep(connection, stand.segments, [("s1", instant_of(hour)) for hour in hours], timedelta(0))
    assert {path for path, _ in stand.segments.listed("")} == {
        path for (path,) in stand.fleet.rows("SELECT path FROM hour_segments")
    }
    for table in ("device_samples", "node_samples", "late_samples", "late_node_samples"):
        assert stand.fleet.rows(f"SELECT count(*) FROM {table}") == [(0,)]
    for hour in hours:
        assert stand.found(instant_of(hour)) == [Counter(stand.writers.sent.get(instant_of(hour), ()))] * 2
