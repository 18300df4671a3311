"""What of the rows outlives an agent, and when it ends."""

from __future__ import annotations

import signal
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from collector import run
from collector.commands.left import orders_may_be_left
from collector.config import Settings
from collector.probe import Epoch, Probe
from collector.run import Runner
from collector.spool import Spool
from collector.stores import Stores
from collector.wire import DeviceRef, Feed, Origin, Stream
from collector.writer import RecorderState, Writer
from tests.fakes.agent import ScriptedProbe
from tests.fakes.bodies import Body, read_body
from tests.fakes.clock import FixedClock

pytestmark = pytest.mark.unit

DEVICES = (DeviceRef("GPU-1", "H100"),)


def settings(folder: Path, **others: int) -> Settings:
    return Settings(node="n", spool_path=str(folder / "spool.db"), **others)  # type: ignore[arg-type]


def writer_of(spool: Spool, rows: int, driver_epoch: int = 2) -> Writer:
    writer = Writer(spool, FixedClock(), lambda *_: b"body", RecorderState())
    epoch = Epoch("boot", driver_epoch, Feed.NATIVE, Origin.LIVE)
    if rows:
        writer.keep("nvml", epoch, DEVICES, Stream.DEVICE, [{"at_us": at} for at in range(rows)], noted=True)
    return writer


def taken_by_another(path: Path) -> sqlite3.Connection:
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)  # let go of by another thread
    other.execute("BEGIN EXCLUSIVE")
    return other


def test_the_same_spool_is_not_opened_again_and_its_writer_goes_on(tmp_path: Path) -> None:
    stores = Stores()
    spool = stores.spool(settings(tmp_path))
    assert stores.writer_of(spool) is None
    writer = writer_of(spool, rows=3)
    stores.begin(writer)
    stores.keep(writer)
    other = taken_by_another(spool.path)
    again = stores.spool(settings(tmp_path, spool_max_mib=7))
    assert again is spool
    assert again.max_bytes == 7 << 20
    assert stores.writer_of(again) is writer
    other.close()
    stores.close()


def test_an_open_spool_that_keeps_everybody_waiting_is_not_asked_for_epochs(tmp_path: Path) -> None:
    stores = Stores()
    spool = stores.spool(settings(tmp_path))
    spool.remember("driver_epoch", "boot 1")
    spool.remember("driver_epoch:amd", "boot 5")
    assert [stores.known_epoch(spool, name, "boot") for name in ("nvml", "amd", "dcgm")] == [1, 5, 0]
    writer = writer_of(spool, rows=1, driver_epoch=2)
    stores.begin(writer)
    stores.keep(writer)
    spool.close()  # whoever asks it now fails
    assert [stores.known_epoch(spool, name, "boot") for name in ("nvml", "amd", "dcgm")] == [2, 5, 0]
    assert stores.known_epoch(spool, "nvml", "another boot") == 0


def test_after_a_reload_only_the_journal_s_files_tell_of_orders_left(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.db", max_bytes=1 << 20)
    spool.remember("power:GPU-0", "{}")
    assert orders_may_be_left(spool)
    spool.close()  # whoever asks it now fails
    assert not orders_may_be_left(spool, in_spool=False)
    (tmp_path / "spool.db.orders.copy").touch()
    assert orders_may_be_left(spool, in_spool=False)


def test_rows_for_a_spool_that_is_used_no_more_reach_it_however_long_it_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.writer._AGAIN_S", 0.02)
    stores = Stores()
    spool = stores.spool(settings(tmp_path))
    writer = writer_of(spool, rows=3)
    stores.begin(writer)
    stores.keep(writer)
    other = taken_by_another(spool.path)
    spool._db.execute("PRAGMA busy_timeout = 10")
    elsewhere = stores.spool(settings(tmp_path / "elsewhere"))
    assert elsewhere is not spool
    stores.begin(writer_of(elsewhere, rows=0))
    assert not writer.wait_stored(0.2)
    other.rollback()
    other.close()
    assert writer.wait_stored(5.0)
    stores.close()
    elsewhere.close()
    again = Spool(tmp_path / "spool.db", max_bytes=1 << 20)
    assert again.state().batches == 1
    again.close()


def test_at_the_end_what_is_kept_is_stored_or_said_to_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("collector.stores._END_S", 0.1)
    stores = Stores()
    spool = stores.spool(settings(tmp_path))
    writer = writer_of(spool, rows=3)
    writer.start()
    writer.store()
    assert writer.wait_stored(5.0)
    writer.keep("node", Epoch("b", 0, Feed.NATIVE, Origin.LIVE), (), Stream.NODE, [{"at_us": 1}], noted=False)
    other = taken_by_another(spool.path)
    writer.store()
    stores.keep(writer)
    stores.close()
    assert "1 rows are lost" in caplog.text
    other.rollback()
    other.close()
    assert writer.close(15.0)
    spool.close()


@pytest.mark.parametrize("place", ["same", "one that cannot be opened"])
def test_a_reload_while_the_spool_is_held_by_another_loses_no_reading(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.spool_file._BUSY_TIMEOUT_S", 0.2)
    (tmp_path / "file").touch()
    first = Settings(
        node="n",
        spool_path=str(tmp_path / "spool.db"),
        release_file="",
        sample_s=0.1,
        row_s=0.1,
        batch_s=0.1,
        jobs=False,
        host=False,
        rapl=False,
        infiniband=False,
        kernel_log=False,
    )
    elsewhere = place != "same"
    wanted = (
        replace(first, spool_path=str(tmp_path / "file" / "spool.db"))
        if elsewhere
        else replace(first, labels="rack=r2")
    )
    runner = Runner(first, lambda: wanted)
    made: list[ScriptedProbe] = []
    held: list[sqlite3.Connection] = []

    def take(left: int) -> None:
        if left == 96:
            held.append(taken_by_another(tmp_path / "spool.db"))
        if left == 94:
            runner._doorbell._note(signal.SIGHUP, None)

    def give(left: int) -> None:
        if left == 6:
            held[0].rollback()
            held[0].close()

    def make(*_args: object, driver_epochs: dict[str, int], **_names: object) -> list[tuple[str, Probe]]:
        made.append(ScriptedProbe(FixedClock(), readings=10 if made else 100))
        made[-1].before_read = take if len(made) == 1 else give
        return [("nvml", made[-1])]

    monkeypatch.setattr(run, "make_probes", make)
    runner._run_all()
    runner._stores.close()
    spool = Spool(tmp_path / "spool.db", max_bytes=1 << 24)
    bodies: list[Body] = []
    while (batch := spool.oldest(after=bodies[-1].meta.sequence if bodies else 0)) is not None:
        bodies.append(read_body(batch.body))
    spool.close()
    taken = sum(int(body.streams[Stream.DEVICE]["samples"].sum()) for body in bodies if Stream.DEVICE in body.streams)
    read = sum(100 - probe.left if probe is made[0] else 10 for probe in made)
    assert taken == 2 * read
    kinds = [
        kind for body in bodies if Stream.NODE_EVENT in body.streams for kind in body.streams[Stream.NODE_EVENT]["kind"]
    ]
    assert kinds.count("agent_started") == kinds.count("agent_stopped") == 2
    assert kinds.count("settings_refused") == elsewhere
    labels = [body.meta.labels for body in bodies]
    assert labels[0] == {}
    assert labels[-1] == ({} if elsewhere else {"rack": "r2"})
