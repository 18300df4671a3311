"""A disk that keeps everybody waiting does not keep the measuring waiting."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from collector.probe import Epoch
from collector.spool import Spool
from collector.wire import DeviceRef, Feed, Origin, Stream
from collector.writer import MAX_PENDING_ROWS, Encode, Pending, RecorderState, Writer
from tests.fakes.agent import ScriptedProbe, Stand
from tests.fakes.clock import FixedClock

pytestmark = pytest.mark.unit

EPOCH = Epoch("boot", 3, Feed.NATIVE, Origin.LIVE)
DEVICES = (DeviceRef("GPU-1", "H100"),)


def taken_by_another(path: Path) -> sqlite3.Connection:
    """Hold the write lock of the file, as an operator's sqlite3 or a backup does."""
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    return other


def samples(stand: Stand) -> int:
    return sum(
        int(body.streams[Stream.DEVICE]["samples"].sum()) for body in stand.bodies() if Stream.DEVICE in body.streams
    )


def rows(stand: Stand, stream: Stream) -> list[dict[str, Any]]:
    return [row for body in stand.bodies() if stream in body.streams for row in body.streams[stream].to_dicts()]


def test_while_another_process_holds_the_spool_every_reading_is_taken_and_stored_afterwards(tmp_path: Path) -> None:
    stand = Stand(tmp_path, health_s=10.0)
    probe = ScriptedProbe(stand.clock, readings=100)
    others: list[sqlite3.Connection] = []
    instants_s: dict[int, float] = {}

    def weather(left: int) -> None:
        instants_s[left] = time.monotonic()
        if left == 85:
            others.append(taken_by_another(stand.spool.path))
        if left == 15:
            others[0].rollback()

    probe.before_read = weather
    stand.probes["nvml"] = probe
    stand.run()
    # Seven batches and as many looks at the spool fell due meanwhile, each of which would have waited for ten seconds.
    assert instants_s[16] - instants_s[85] < 5.0
    assert samples(stand) == 200
    assert all(row["samples_missed"] == 0 for row in rows(stand, Stream.DEVICE))
    assert stand.agent is not None
    assert stand.agent.stored
    assert stand.agent.recorder.state.dropped_rows == 0
    others[0].close()
    stand.spool.close()


def test_the_last_row_about_the_agent_says_what_the_spool_held(tmp_path: Path) -> None:
    stand = Stand(tmp_path)
    stand.probes["nvml"] = ScriptedProbe(stand.clock, readings=25)
    stand.run()
    (health,) = rows(stand, Stream.AGENT)
    assert health["spool_batches"] is not None
    stand.spool.close()


def test_at_the_end_the_disk_gets_so_much_time_and_the_rows_that_are_lost_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("collector.agent._STORE_CLOSE_S", 0.2)
    stand = Stand(tmp_path)
    probe = ScriptedProbe(stand.clock, readings=5)
    others: list[sqlite3.Connection] = []
    probe.before_read = lambda left: others.append(taken_by_another(stand.spool.path)) if left == 2 else None
    stand.probes["nvml"] = probe
    began_s = time.monotonic()
    stand.run()
    assert time.monotonic() - began_s < 3.0
    assert stand.agent is not None
    assert not stand.agent.stored
    assert "rows are lost: the disk did not take them in time" in caplog.text
    others[0].close()
    assert stand.agent.recorder.writer.close(5.0)  # the thread that was left behind comes to its end
    assert samples(stand) == 10
    stand.spool.close()


def test_the_epoch_s_number_is_on_the_disk_before_the_first_batch_of_it(tmp_path: Path) -> None:
    told: list[str] = []

    class Told(Spool):
        def remember(self, name: str, value: str) -> None:
            told.append(f"{name}={value}")
            super().remember(name, value)

        def put(self, encode: Callable[[str, int], bytes], now_us: int) -> int:
            told.append("put")
            return super().put(encode, now_us)

    spool = Told(tmp_path / "spool.db", max_bytes=1 << 20)
    writer = Writer(spool, FixedClock(), lambda *_: b"body", RecorderState())
    for lane, noted in (("nvml", True), ("nvml", True), ("amd", True), ("node", False)):
        writer.keep(lane, EPOCH, DEVICES, Stream.DEVICE, [{"at_us": 1}], noted=noted)
        writer.store()
    assert told == ["driver_epoch=boot 3", "put", "put", "driver_epoch:amd=boot 3", "put", "put"]
    spool.close()


def test_what_waits_for_the_disk_is_handed_on_and_told_as_it_was_meant(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.db", max_bytes=1 << 20)

    def bodies(name: str) -> Encode:
        return lambda entry, _uuid, _sequence: f"{name} {len(entry)} of {entry.epoch.driver_epoch}".encode()

    def keep(epoch: Epoch) -> None:
        writer.keep("nvml", epoch, DEVICES, Stream.DEVICE, [{"at_us": 1}], noted=True)

    before, after = RecorderState(), RecorderState()
    writer = Writer(spool, FixedClock(), bodies("before"), before)
    keep(EPOCH)
    writer.store()
    other = taken_by_another(spool.path)
    spool._db.execute("PRAGMA busy_timeout = 10")
    keep(replace(EPOCH, driver_epoch=4))
    writer.store()
    assert (before.spool_failures, writer.waiting_rows) == (1, 1)
    assert writer.known_epochs() == {"nvml": ("boot", 4)}  # also of what is not on the disk yet
    writer.serve(FixedClock(), bodies("after"), after)
    for _ in range(2):
        keep(replace(EPOCH, driver_epoch=4))
    other.rollback()
    other.close()
    writer.store()
    found: list[str] = []
    while (batch := spool.oldest(after=len(found))) is not None:
        found.append(batch.body.decode())
    assert found == ["before 1 of 3", "before 1 of 4", "after 2 of 4"]
    assert (before.batches, after.batches, after.dropped_rows) == (1, 2, 0)
    spool.close()


def test_rows_that_come_while_a_batch_is_being_stored_wait_for_the_next_and_memory_stays_bounded(
    tmp_path: Path,
) -> None:
    spool = Spool(tmp_path / "spool.db", max_bytes=1 << 20)
    state = RecorderState()
    going, gate = threading.Event(), threading.Event()
    stored: list[int] = []

    def encode(entry: Pending, _uuid: str, _sequence: int) -> bytes:
        going.set()
        gate.wait(5)
        stored.append(len(entry))
        return b"body"

    def keep(count: int) -> None:
        writer.keep("nvml", EPOCH, DEVICES, Stream.DEVICE, [{"at_us": at} for at in range(count)], noted=False)

    writer = Writer(spool, FixedClock(), encode, state)
    writer.start()
    keep(10)
    writer.store()
    assert going.wait(5)
    keep(MAX_PENDING_ROWS + 5)
    # The ten in hand are not touched; of the others fifteen are too many.
    assert (writer.waiting_rows, state.dropped_rows) == (MAX_PENDING_ROWS, 15)
    writer.store()
    writer.ask_held()
    gate.set()
    assert writer.close(5.0)
    assert stored == [10, MAX_PENDING_ROWS - 10]
    assert (writer.waiting_rows, state.batches) == (0, 2)
    assert writer.held is not None
    assert writer.held.batches == 2
    spool.close()
