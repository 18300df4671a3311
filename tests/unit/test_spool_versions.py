"""Spools of the first release, and the bodies of others that a spool takes in since the second."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from collector import spool_file
from collector.errors import SpoolError, SpoolFullError
from collector.spool import Envelope, Lane, Spool

pytestmark = pytest.mark.unit

MIB = 2**20


def body(spool: str, sequence: int) -> bytes:
    return f"{spool} {sequence}".encode()


def of_size(size: int) -> bytes:
    return b"x" * size


def bodies_of(spool: Spool) -> list[bytes]:
    found: list[bytes] = []
    last = 0
    while (batch := spool.oldest(after=last)) is not None:
        last = batch.sequence
        found.append(batch.body)
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "spool.db"


def file_of_version_1(path: Path, *, batches: int) -> str:
    """Make a file exactly as the first release did."""
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA auto_vacuum = INCREMENTAL")
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript("""
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batches (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT, stored_at_us INTEGER NOT NULL, bytes INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS quarantine (
  sequence INTEGER PRIMARY KEY, refused_at_us INTEGER NOT NULL, reason TEXT NOT NULL, bytes INTEGER NOT NULL,
  body BLOB NOT NULL);
""")
    db.execute("PRAGMA user_version = 1")
    identity = "00000000-0000-4000-8000-000000000001"
    db.execute("INSERT INTO facts VALUES ('uuid', ?), ('driver_epoch', 'boot 3')", (identity,))
    for sequence in range(1, batches + 1):
        db.execute("INSERT INTO batches VALUES (?, ?, 6, ?)", (sequence, sequence * 10, f"body {sequence}".encode()))
    db.execute(
        "INSERT INTO quarantine SELECT sequence, 99, 'HTTP 400: no', bytes, body FROM batches WHERE sequence = 2"
    )
    db.execute("DELETE FROM batches WHERE sequence IN (2, ?)", (batches,))
    db.close()
    return identity


def test_a_spool_of_the_first_version_keeps_every_batch_number_fact_and_refusal(path: Path) -> None:
    identity = file_of_version_1(path, batches=5)
    spool = Spool(path, max_bytes=MIB)
    assert (spool.uuid, spool.recall("driver_epoch")) == (identity, "boot 3")
    assert bodies_of(spool) == [b"body 1", b"body 3", b"body 4"]
    assert spool.refusals() == [(2, 99, "HTTP 400: no")]
    # Number 5 was given out and taken away before; it never comes again.
    assert spool.put(body, 0) == 6
    spool.close()
    again = Spool(path, max_bytes=MIB)
    assert not again.damaged_files
    assert again.state().batches == 4
    again.close()


def test_a_migration_that_is_cut_short_leaves_the_version_before_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_of_version_1(path, batches=3)
    with monkeypatch.context() as patch:
        patch.setattr(spool_file, "_STEPS", (*spool_file._STEPS[:1], (*spool_file._VERSION_2, "NO SUCH STATEMENT")))
        with pytest.raises(SpoolError, match="cannot open the spool"):
            Spool(path, max_bytes=MIB)
    spool = Spool(path, max_bytes=MIB)
    assert bodies_of(spool) == [b"body 1"]
    assert [sequence for sequence, _, _ in spool.refusals()] == [2]
    spool.close()


TRACES = Envelope("/v1/traces", "application/x-protobuf", "gzip")


def test_bodies_of_others_have_numbers_of_their_own_and_keep_how_they_are_to_be_sent(path: Path) -> None:
    spool = Spool(path, max_bytes=MIB)
    spool.put(body, 5)
    assert spool.put_forward(b"spans", TRACES, 7) == 1
    assert spool.put(body, 9) == 2
    forward = spool.oldest(lane=Lane.FORWARDS)
    assert forward is not None
    assert (forward.sequence, forward.body, forward.envelope) == (1, b"spans", TRACES)
    assert spool.state().batches == 3
    spool.quarantine(1, "HTTP 400: no", 11, Lane.FORWARDS)
    assert spool.oldest(lane=Lane.FORWARDS) is None
    assert spool.oldest() is not None
    assert spool.refusals() == [(1, 11, "HTTP 400: no")]
    spool.close()


def test_bodies_of_others_never_push_out_a_batch(path: Path) -> None:
    spool = Spool(path, max_bytes=1_000)
    for _ in range(3):
        spool.put(lambda _spool, _sequence: of_size(240), 0)
    assert spool.put_forward(of_size(240), TRACES, 0) == 1
    with pytest.raises(SpoolFullError, match="keeps at most 250"):
        spool.put_forward(of_size(11), TRACES, 0)
    assert (spool.state().batches, spool.state().dropped_batches) == (4, 0)
    spool.close()


def test_in_a_full_spool_bodies_of_others_are_refused_and_those_there_go_before_any_batch(path: Path) -> None:
    spool = Spool(path, max_bytes=1_000)
    for _ in range(3):
        spool.put(lambda _spool, _sequence: of_size(240), 0)
    spool.put_forward(of_size(100), TRACES, 0)
    spool.put_forward(of_size(100), TRACES, 0)
    spool.put(lambda _spool, _sequence: of_size(60), 0)
    # 980 are held: 21 more are too many for a stranger, 240 more of the node's own cost what is there of others.
    with pytest.raises(SpoolFullError, match="full"):
        spool.put_forward(of_size(21), TRACES, 0)
    spool.put(lambda _spool, _sequence: of_size(240), 0)
    assert spool.oldest(lane=Lane.FORWARDS) is None
    assert (spool.state().batches, spool.state().dropped_batches, spool.state().dropped_bytes) == (
        4,
        3,
        440,
    )  # and the oldest batch: 220 were too many
    spool.close()


def test_the_newest_is_found_behind_a_backlog(path: Path) -> None:
    spool = Spool(path, max_bytes=MIB)
    for number in range(5):
        spool.put(body, number)
    newest = spool.newest()
    assert newest is not None
    assert newest.sequence == 5
    assert spool.newest(after=5) is None
    spool.close()


def test_a_closed_spool_is_an_error_and_no_damage(path: Path) -> None:
    spool = Spool(path, max_bytes=MIB)
    spool.close()
    with pytest.raises(SpoolError):
        spool.oldest()
    assert path.exists()
    assert not spool.damaged_files


def test_facts_are_found_by_their_beginning_and_forgotten(path: Path) -> None:
    spool = Spool(path, max_bytes=MIB)
    spool.remember("command:b", "2")
    spool.remember("command:a", "1")
    spool.remember("other", "3")
    assert spool.facts("command:") == {"a": "1", "b": "2"}
    spool.forget("command:a")
    assert spool.facts("command:") == {"b": "2"}
    spool.close()
