"""kill -9 between every two steps of sealing, merging, dropping and deleting, while writers run: each row exactly once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from collector.wire import Stream
from ingest.store.embedded import EmbeddedServer
from ingest.store.engine import Database
from ingest.store.hours import hold_open
from ingest.store.samples import sample_session
from ingest.store.seal import Sealer, hour_of
from ingest.store.seal_days import drop_hot_days
from ingest.store.seal_hours import delete_retired
from ingest.store.segments import Segments
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db
ROOT = Path(__file__).resolve().parents[2]
DAY_AT = HOUR_AT.replace(hour=0)
DEVICE = "(at, device_id, epoch_id, reading, span_us, samples, samples_missed, energy_mj) VALUES (%s, %s, %s, 0, 0, 1, 0, %s)"
NODE = "(at, meter_id, epoch_id, span_us, energy_mj) VALUES (%s, %s, %s, 0, %s)"


@dataclass
class Writers:
    """Two threads that write to the hour under test as ingest does: lock the hour, ask the catalog, hot or late, commit."""

    fleet: SmallFleet
    meter_id: int
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
        try:
            with self.fleet.database.connect("writer", autocommit=True) as connection:
                while not self.stop.is_set():
                    with self.lock:
                        self.number += 1
                        hour_at, number = self.hour_at, self.number
                    at = hour_at + timedelta(milliseconds=number)
                    hour = hour_of(self.fleet.site_id, at)
                    with connection.transaction():
                        late = hour in hold_open(connection, [hour])
                        for hot, table, columns, key in (
                            ("device_samples", "late_samples", DEVICE, self.fleet.device_id),
                            ("node_samples", "late_node_samples", NODE, self.meter_id),
                        ):
                            statement = f"INSERT INTO {table if late else hot} {columns}"
                            connection.execute(statement.encode(), [at, key, self.fleet.epoch_id, number])
                    with self.lock:
                        self.sent.setdefault(hour_at, set()).add(at)
                    self.stop.wait(0.02)
        except BaseException as error:  # noqa: BLE001 - told by the test, which would else see rows missing
            self.failures.append(error)


@dataclass
class Stand:
    fleet: SmallFleet
    folder: Path
    segments: Segments
    socket_dir: Path
    writers: Writers

    def killed(self, work: str, step: str, *words: object) -> None:
        command = [sys.executable, "-m", "tests.db.seal_process", str(self.socket_dir), self.fleet.database.name]
        command += [str(self.folder), work, step, *map(str, words)]
        done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, f"{work} before {step!r}: {done.returncode} {done.stderr[-2000:]}"

    def found(self, stream: Stream, hour_at: datetime) -> Counter[datetime]:
        with sample_session(self.fleet.database, self.segments) as session:
            return Counter(session.rows(stream, ["energy_mj"], hour_at, hour_at + HOUR).collect()["at"].to_list())

    def check(self, hour_at: datetime) -> None:
        """Whatever was acknowledged before the look is there once; nothing is there that was not sent by its end."""
        for stream in (Stream.DEVICE, Stream.NODE):
            with self.writers.lock:
                before = set(self.writers.sent.get(hour_at, ()))
            found = self.found(stream, hour_at)
            assert set(found.values()) <= {1}
            assert before <= set(found)

    def steps(self, work: str, hour_at: datetime) -> list[str]:
        names: list[str] = []
        sealer = Sealer(self.fleet.database, self.segments, step=names.append)
        hour = hour_of(self.fleet.site_id, hour_at)
        (sealer.seal if work == "seal" else sealer.merge)(hour)
        # Streams without rows do nothing between their reading and the next one's.
        return [name for name in names if name.split(" ")[-1] not in _EMPTY]


_EMPTY = {"fabric_samples", "engine_samples", "device_health", "device_shares", "agent_health"}


@pytest.fixture
def stand(db: Database, server: EmbeddedServer, tmp_path: Path) -> Iterator[Stand]:
    fleet = small_fleet(db)
    fleet.rows("SELECT ensure_partitions(%s, %s, NULL)", DAY_AT.date(), (DAY_AT + timedelta(days=2)).date())
    ((meter,),) = fleet.rows(
        "INSERT INTO meters (node_id, name, bills) VALUES (%s, 'redfish', true) RETURNING id", fleet.node_id
    )
    folder = tmp_path / "segments"
    writers = Writers(fleet, meter, DAY_AT)
    made = Stand(fleet, folder, Segments.at(folder), server.placement.socket_dir, writers)
    writers.start()
    try:
        yield made
    finally:
        writers.stop.set()
        for thread in writers.threads:
            thread.join()


@pytest.mark.parametrize(
    "every", [pytest.param(1, marks=pytest.mark.slow, id="every step"), pytest.param(2, id="half")]
)
def test_whichever_step_a_sealer_is_killed_before_each_row_is_there_once(stand: Stand, every: int) -> None:
    seal_steps = stand.steps("seal", DAY_AT)
    while not stand.fleet.rows("SELECT 1 FROM late_samples LIMIT 1"):
        pass
    merge_steps = stand.steps("merge", DAY_AT)
    assert {"flip", "commit flip", "publish node_samples", "record", "commit", "done"} <= set(seal_steps)
    hours = [DAY_AT + HOUR * number for number in range(1, 3)]
    sealer = Sealer(stand.fleet.database, stand.segments)
    for hour_at, steps in zip(hours, (seal_steps[::2], seal_steps[1::2][::every]), strict=True):
        stand.writers.hour_at = hour_at
        hour = hour_of(stand.fleet.site_id, hour_at)
        sealed = False
        for step in steps:
            if sealed:  # a kill after the commit leaves a sealed hour: that way is over
                break
            stand.killed("seal", step, hour.site_id, hour.hour)
            stand.check(hour_at)
            sealed = step == "done"
        if not sealed:
            sealer.seal(hour)
        stand.check(hour_at)
    last = hours[-1]
    hour = hour_of(stand.fleet.site_id, last)
    for step in merge_steps[:: 1 if every == 1 else 3]:
        while not stand.fleet.rows("SELECT 1 FROM late_samples WHERE at >= %s LIMIT 1", last):
            pass
        stand.killed("merge", step, hour.site_id, hour.hour)
        stand.check(last)
    stand.writers.end()
    _finish(stand, [DAY_AT, *hours])


def _finish(stand: Stand, hours: list[datetime]) -> None:
    """Merge what is left, seal the rest of the day, drop it with kills in between: all rows are in segments, once."""
    sealer = Sealer(stand.fleet.database, stand.segments)
    for hour_at in hours:
        sealer.merge(hour_of(stand.fleet.site_id, hour_at))
    for number in range(24):
        if DAY_AT + HOUR * number not in hours:
            sealer.seal(hour_of(stand.fleet.site_id, DAY_AT + HOUR * number))
    tomorrow = (DAY_AT + timedelta(days=1)).date()
    for step in ("look again", "commit drop"):
        stand.killed("drop", step, tomorrow)
        assert stand.fleet.rows("SELECT count(*) > 0 FROM device_samples") == [(True,)]
    stand.killed("drop", "dropped", tomorrow)
    engine = stand.fleet.database.create_engine("worker", pool_size=1)
    assert drop_hot_days(engine, stand.segments, tomorrow).partitions == []
    engine.dispose()
    for step in ("delete file", "forget file"):
        stand.killed("delete", step)
    with stand.fleet.database.connect("worker") as connection:
        assert delete_retired(connection, stand.segments, timedelta(0)) > 0
    for table in ("device_samples", "node_samples", "late_samples", "late_node_samples"):
        assert stand.fleet.rows(f"SELECT count(*) FROM {table}") == [(0,)]
    for hour_at in hours:
        for stream in (Stream.DEVICE, Stream.NODE):
            assert stand.found(stream, hour_at) == Counter(stand.writers.sent[hour_at])
