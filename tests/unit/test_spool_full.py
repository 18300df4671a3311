"""What is settled leaves the spool, or is at least not given out again, whatever the disk lets happen."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from collector.errors import SpoolError
from collector.ship import Shipper
from collector.spool import Envelope, Lane, Spool
from collector.spool_file import open_file
from tests.fakes.clock import FixedClock
from tests.unit.test_spool_disk import fill, held, small_disk

pytestmark = pytest.mark.unit

MIB = 1 << 20


class FullDisk:
    """A connection to the spool's file on a disk that has no room to write, until it has."""

    def __init__(self, db: sqlite3.Connection, code: int = sqlite3.SQLITE_FULL) -> None:
        self.db = db
        self.full = True
        self.code = code
        self.refused = 0

    def execute(self, statement: str, values: Any = ()) -> sqlite3.Cursor:
        if self.full and not statement.startswith(("SELECT", "PRAGMA")):
            self.refused += 1
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = self.code
            raise error
        return self.db.execute(statement, values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.db, name)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool.db", max_bytes=MIB)
    for number in range(1, 7):
        spool.put(lambda _uuid, _number: b"x" * 100, number)
    yield spool
    spool.close()


def fill_up(spool: Spool) -> FullDisk:
    disk = FullDisk(spool._db)
    spool._db = disk  # type: ignore[assignment]
    return disk


def test_what_was_acknowledged_is_not_given_out_again_and_deleted_once_there_is_room(spool: Spool) -> None:
    disk = fill_up(spool)
    spool.acknowledge(1)
    spool.acknowledge(6)
    spool.acknowledge_all([2, 4])
    assert disk.refused
    assert held(spool) == [3, 5]
    newest = spool.newest()
    assert newest is not None
    assert newest.sequence == 5
    assert (spool.state().batches, spool.state().oldest_at_us) == (4, 3)  # 4 and 6 are still counted
    disk.full = False
    assert spool.put(lambda _uuid, _number: b"y", 7) == 7
    assert [row[0] for row in disk.db.execute("SELECT sequence FROM batches ORDER BY 1")] == [3, 5, 7]
    assert held(spool) == [3, 5, 7]


def test_a_thousand_acknowledged_on_a_full_disk_take_no_memory_each(spool: Spool) -> None:
    for number in range(7, 1_001):
        spool.put(lambda _uuid, _number: b"x", number)
    fill_up(spool)
    for number in range(1, 1_000):
        spool.acknowledge(number)
        batch = spool.oldest()
        assert batch is not None
        assert batch.sequence == number + 1
    owed = spool._owed[Lane.BATCHES]
    assert (owed.floor, len(owed.above)) == (999, 0)


def test_a_refused_body_that_cannot_be_moved_holds_up_no_other_and_is_moved_later(spool: Spool) -> None:
    disk = fill_up(spool)
    spool.quarantine(2, "too old", 77)
    spool.acknowledge(1)
    spool.acknowledge(3)
    assert held(spool) == [4, 5, 6]
    assert spool.refusals() == []
    disk.full = False
    spool.acknowledge(4)
    assert held(spool) == [5, 6]
    assert spool.refusals() == [(2, 77, "too old")]


def test_refused_bodies_that_cannot_be_moved_are_bounded(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.spool.MAX_PUT_OFF", 1)
    fill_up(spool)
    spool.quarantine(1, "no", 0)
    with pytest.raises(SpoolError, match="wait for room"):
        spool.quarantine(2, "no", 0)
    assert held(spool) == [2, 3, 4, 5, 6]


def test_bodies_of_others_are_settled_alike(spool: Spool) -> None:
    for _ in range(2):
        spool.put_forward(b"t", Envelope("/v1/traces", "application/json"), 0)
    fill_up(spool)
    spool.acknowledge(1, Lane.FORWARDS)
    left = spool.oldest(lane=Lane.FORWARDS)
    assert left is not None
    assert left.sequence == 2
    assert held(spool) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE], ids=["full", "beyond the quota"])
def test_the_reserve_is_given_up_for_deleting_and_made_again(code: int, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.db", max_bytes=MIB)
    reserve = tmp_path / "spool.db.reserve"
    assert reserve.stat().st_blocks * 512 >= 4 * MIB
    spool.put(lambda _uuid, _number: b"x", 0)

    class Disk(FullDisk):
        def execute(self, statement: str, values: Any = ()) -> sqlite3.Cursor:
            self.full = reserve.exists()
            return super().execute(statement, values)

    disk = Disk(spool._db, code)
    spool._db = disk  # type: ignore[assignment]
    spool.acknowledge(1)
    assert (held(spool), disk.refused) == ([], 1)
    assert disk.db.execute("SELECT count(*) FROM batches").fetchone() == (0,)
    assert reserve.exists()
    spool.close()


def test_a_spool_damaged_on_a_full_disk_is_started_anew_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "spool.db"
    spool = Spool(path, max_bytes=MIB)
    before = spool.uuid
    spool.put(lambda _uuid, _number: b"x", 0)
    full = True

    def opened(where: Path) -> sqlite3.Connection:
        db = open_file(where)
        if not full:
            return db
        db.close()
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr("collector.spool.open_file", opened)
    damaged = FullDisk(spool._db, sqlite3.SQLITE_CORRUPT)
    spool._db = damaged  # type: ignore[assignment]
    for _ in range(3):
        with pytest.raises(SpoolError):
            spool.put(lambda _uuid, _number: b"y", 1)
        with pytest.raises(SpoolError):
            spool.state()
    assert len(list(tmp_path.glob("spool.db.damaged-????????"))) == 1  # renamed once, not at each try
    full = False
    assert spool.put(lambda identity, _number: identity.encode(), 2) == 1
    found = spool.oldest()
    assert found is not None
    assert found.body == spool.uuid.encode()
    assert spool.uuid != before  # its numbers begin anew, so its name must be another
    assert len(spool.damaged_files) == 1
    assert held(spool) == [1]
    spool.close()


def test_a_damaged_file_that_cannot_be_set_aside_yet_is_set_aside_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path / "spool.db", max_bytes=MIB)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda _path, _target: (_ for _ in ()).throw(OSError(28, "No space left")))
        spool._db = FullDisk(spool._db, sqlite3.SQLITE_CORRUPT)  # type: ignore[assignment]
        for _ in range(2):
            with pytest.raises(SpoolError, match="could not be started anew"):
                spool.put(lambda _uuid, _number: b"y", 1)
    assert spool.put(lambda _uuid, _number: b"y", 1) == 1
    assert len(spool.damaged_files) == 1
    spool.close()


@pytest.mark.root
def test_on_a_full_disk_a_backlog_is_sent_to_its_end_each_batch_once_and_there_is_room_for_new_ones(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path, "6m") as disk:
        spool = Spool(disk / "spool.db", max_bytes=4 * MIB)
        for _ in range(50):
            spool.put(lambda _uuid, _number: b"x" * 20_000, 0)
        fill(disk / "ballast")
        with suppress(SpoolError):
            for _ in range(500):
                spool.put(lambda _uuid, _number: b"x" * 20_000, 0)
            pytest.fail("the disk is not full")
        stored = held(spool)
        sent: list[bytes] = []

        def answer(request: httpx.Request) -> httpx.Response:
            sent.append(request.read())
            return httpx.Response(204)

        clock = FixedClock()
        with httpx.Client(transport=httpx.MockTransport(answer), base_url="https://ledger.test") as client:
            shipper = Shipper(client, spool, clock, token=lambda: None)
            for _ in range(len(stored) + 5):
                shipper.step()
        assert len(sent) == len(stored)
        assert shipper.state.failed_attempts == 0
        assert held(spool) == []
        for _ in range(20):  # what was deleted left room, on a disk that is as full as before
            spool.put(lambda _uuid, _number: b"x" * 20_000, 0)
        spool.close()
