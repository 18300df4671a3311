"""The spool keeps what it was given, in order, within its bound, and says what it gave up."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from collector.errors import SpoolError
from collector.spool import Spool

MIB = 2**20


def body(spool: str, sequence: int) -> bytes:
    return f"{spool} {sequence}".encode()


def of_size(size: int) -> bytes:
    return b"x" * size


def drain(spool: Spool, last: int) -> None:
    for sequence in range(1, last + 1):
        spool.acknowledge(sequence)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "spool.db"


def test_batches_come_out_oldest_first_until_acknowledged(path: Path) -> None:
    spool = Spool(path, max_bytes=MIB)
    assert [spool.put(body, now_us=100 + number) for number in range(3)] == [1, 2, 3]
    first = spool.oldest()
    assert first is not None
    assert (first.sequence, first.stored_at_us, first.body) == (1, 100, f"{spool.uuid} 1".encode())
    assert spool.oldest() == first
    spool.acknowledge(1)
    second = spool.oldest()
    assert second is not None
    assert second.sequence == 2
    spool.close()


def test_a_drained_and_reopened_spool_never_gives_out_an_id_again(path: Path) -> None:
    spool = Spool(path, max_bytes=MIB)
    identity = spool.uuid
    assert spool.put(body, 0) == 1
    spool.acknowledge(1)
    spool.close()
    spool = Spool(path, max_bytes=MIB)
    assert spool.uuid == identity
    assert spool.put(body, 0) == 2
    spool.close()


def test_a_body_that_could_not_be_made_leaves_nothing_and_wastes_no_id(path: Path) -> None:
    spool = Spool(path, max_bytes=MIB)

    def fails(_spool: str, _sequence: int) -> bytes:
        raise ValueError("no body")

    with pytest.raises(ValueError, match="no body"):
        spool.put(fails, 0)
    assert spool.oldest() is None
    assert spool.put(body, 0) == 1
    spool.close()


def test_at_the_bound_the_oldest_go_first_and_are_counted(path: Path) -> None:
    spool = Spool(path, max_bytes=1_000)
    for size in (400, 300, 200):
        spool.put(lambda _spool, _sequence, size=size: of_size(size), 0)  # type: ignore[misc]
    # 900 are held and 350 come: 250 too many, so the first (400) goes and 850 are held.
    spool.put(lambda _spool, _sequence: of_size(350), 0)
    state = spool.state()
    assert (state.batches, state.bytes) == (3, 850)
    assert (state.dropped_batches, state.dropped_bytes) == (1, 400)
    oldest = spool.oldest()
    assert oldest is not None
    assert oldest.sequence == 2
    spool.close()


def test_a_batch_larger_than_the_spool_is_refused_and_drops_nothing(path: Path) -> None:
    spool = Spool(path, max_bytes=1_000)
    spool.put(body, 0)
    with pytest.raises(SpoolError, match="larger than the whole spool"):
        spool.put(lambda _spool, _sequence: of_size(1_001), 0)
    assert spool.state().batches == 1
    spool.close()


def test_what_was_dropped_is_remembered_across_restarts(path: Path) -> None:
    spool = Spool(path, max_bytes=100)
    for _ in range(3):
        spool.put(lambda _spool, _sequence: of_size(60), 0)
    spool.close()
    spool = Spool(path, max_bytes=100)
    assert spool.state().dropped_batches == 2
    spool.close()


def test_a_refused_batch_is_set_aside_with_its_reason_and_not_sent_again(path: Path) -> None:
    spool = Spool(path, max_bytes=MIB)
    spool.put(body, 0)
    spool.put(body, 0)
    spool.quarantine(1, "HTTP 422: wrong node", 55)
    assert spool.refusals() == [(1, 55, "HTTP 422: wrong node")]
    oldest = spool.oldest()
    assert oldest is not None
    assert oldest.sequence == 2
    assert spool.state().quarantined == 1
    spool.close()


def test_quarantine_is_bounded_and_keeps_the_newest(path: Path) -> None:
    spool = Spool(path, max_bytes=1_000)  # so quarantine may hold 100 bytes
    for sequence in (1, 2, 3):
        assert spool.put(lambda _spool, _sequence: of_size(40), 0) == sequence
        spool.quarantine(sequence, "no", sequence)
    assert [sequence for sequence, _, _ in spool.refusals()] == [2, 3]
    assert (spool.state().dropped_batches, spool.state().dropped_bytes) == (1, 40)
    spool.close()


def test_a_damaged_file_is_kept_aside_and_a_new_spool_begins(path: Path) -> None:
    spool = Spool(path, max_bytes=MIB)
    identity = spool.uuid
    spool.put(body, 0)
    spool.close()
    path.write_bytes(b"this is no database " * 500)
    spool = Spool(path, max_bytes=MIB)
    assert spool.uuid != identity
    (kept,) = spool.damaged_files
    assert kept.read_bytes().startswith(b"this is no database")
    assert spool.put(body, 0) == 1
    spool.close()


def test_damage_found_while_running_starts_anew_and_the_next_put_works(path: Path) -> None:
    spool = Spool(path, max_bytes=MIB)
    identity = spool.uuid
    for _ in range(50):
        spool.put(lambda _spool, _sequence: of_size(4_000), 0)
    spool._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(4_096)
        file.write(b"\xff" * 100_000)
    spool._db.execute("PRAGMA shrink_memory")
    with pytest.raises(SpoolError, match="failed"):
        drain(spool, 50)
    assert len(spool.damaged_files) == 1
    assert spool.uuid != identity
    assert spool.put(body, 0) == 1
    spool.close()


def test_a_spool_of_a_later_version_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(SpoolError, match="version 99"):
        Spool(path, max_bytes=MIB)
    assert path.exists()


def test_a_folder_without_write_rights_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="cannot open the spool"):
        Spool(tmp_path / "file" / "spool.db", max_bytes=MIB)


def test_facts_outlive_the_process(path: Path) -> None:
    spool = Spool(path, max_bytes=MIB)
    assert spool.recall("driver_epoch") is None
    spool.remember("driver_epoch", "3")
    spool.close()
    spool = Spool(path, max_bytes=MIB)
    assert spool.recall("driver_epoch") == "3"
    spool.close()


def test_a_drained_spool_gives_its_disk_space_back(path: Path) -> None:
    spool = Spool(path, max_bytes=64 * MIB)
    for _ in range(100):
        spool.put(lambda _spool, _sequence: of_size(64_000), 0)
    spool._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    full_bytes = path.stat().st_size
    drain(spool, 100)
    spool._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert path.stat().st_size < full_bytes * 0.75
    spool.close()


def test_memory_filesystems_are_told_from_disks(path: Path) -> None:
    in_memory = Path("/dev/shm")
    if not in_memory.is_dir():
        pytest.skip("no /dev/shm here")
    spool = Spool(in_memory / f"wattledger-test-{id(path)}.db", max_bytes=MIB)
    assert not spool.durable
    spool.close()
    for file in in_memory.glob(f"wattledger-test-{id(path)}.db*"):
        file.unlink()


def test_two_threads_put_and_take_without_losing_any(path: Path) -> None:
    spool = Spool(path, max_bytes=MIB)
    taken: list[int] = []

    def take() -> None:
        while len(taken) < 100:
            batch = spool.oldest()
            if batch is not None:
                taken.append(batch.sequence)
                spool.acknowledge(batch.sequence)

    taker = threading.Thread(target=take)
    taker.start()
    for _ in range(100):
        spool.put(body, 0)
    taker.join(timeout=30)
    assert taken == list(range(1, 101))
    spool.close()
