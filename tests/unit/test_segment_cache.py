"""Copies of a bucket's files: they answer for readers, never for the bucket, and give way to no one who still reads."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from ingest.store.segment_cache import Cache, CacheFullError
from ingest.store.segments import Bucket, SegmentError, SegmentFile, Segments, SegmentUnreachableError

pytestmark = pytest.mark.unit
SIZE = 1_000


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def segments_of(store: MemoryStore, cache: Cache) -> Segments:
    made = Segments(Bucket(store, cache), cache.unfinished, "memory://")
    made.set_mark("m")
    return made


def put(store: MemoryStore, number: int) -> SegmentFile:
    body = bytes([number]) * SIZE
    store.put(f"f{number}", body)
    return SegmentFile(f"f{number}", 1, SIZE, sha256(body).digest())


def copies(cache: Cache) -> list[Path]:
    return sorted(cache.folder.glob("*.parquet"))


def test_a_copy_that_was_cut_short_is_fetched_once_more(store: MemoryStore, tmp_path: Path) -> None:
    file = put(store, 1)
    segments_of(store, Cache(tmp_path)).checked(file)
    (copy,) = copies(Cache(tmp_path))
    copy.write_bytes(b"")  # as a power cut leaves what was renamed and never synced

    assert segments_of(store, Cache(tmp_path)).checked(file).read_bytes() == b"\1" * SIZE


def test_a_copy_does_not_answer_for_what_is_gone_from_the_bucket(store: MemoryStore, tmp_path: Path) -> None:
    file = put(store, 1)
    segments = segments_of(store, Cache(tmp_path))
    segments.checked(file)
    store.delete("f1")

    with pytest.raises(SegmentError, match="is missing"), segments.fresh(file):
        pass
    assert segments.checked(file).read_bytes() == b"\1" * SIZE  # who only reads still has it


def test_a_file_that_is_bad_in_the_bucket_is_bad_and_leaves_nothing_here(store: MemoryStore, tmp_path: Path) -> None:
    file = put(store, 1)
    store.put("f1", b"\2" * SIZE)
    segments = segments_of(store, Cache(tmp_path))
    with pytest.raises(SegmentError, match="another SHA-256"), segments.fresh(file, keep=True):
        pass
    assert copies(Cache(tmp_path)) == []
    assert list(Cache(tmp_path).unfinished.iterdir()) == []


def test_looking_at_a_file_keeps_no_copy_unless_it_is_about_to_be_read(store: MemoryStore, tmp_path: Path) -> None:
    file, cache = put(store, 1), Cache(tmp_path)
    segments = segments_of(store, cache)
    with segments.fresh(file) as path:
        assert path.read_bytes() == b"\1" * SIZE
    assert copies(cache) == []
    with segments.fresh(file, keep=True):
        pass
    assert len(copies(cache)) == 1
    assert list(cache.unfinished.iterdir()) == []


def test_a_file_is_hashed_once_however_often_it_is_read(store: MemoryStore, tmp_path: Path) -> None:
    file = put(store, 1)
    segments = segments_of(store, Cache(tmp_path))
    path = segments.checked(file)
    changed_ns = path.stat().st_mtime_ns
    assert segments.checked(file).stat().st_mtime_ns == changed_ns
    assert len(segments._checked) == 1


def test_what_was_used_within_the_hour_stays_whatever_the_bound(store: MemoryStore, tmp_path: Path) -> None:
    files = [put(store, number) for number in range(1, 8)]
    cache = Cache(tmp_path, most_bytes=3 * SIZE)
    segments = segments_of(store, cache)
    paths = [segments.checked(file) for file in files]
    assert [path.read_bytes()[0] for path in paths] == [1, 2, 3, 4, 5, 6, 7]

    two_hours_ago_ns = time.time_ns() - 7_200 * 10**9
    for path in paths[:6]:
        os.utime(path, ns=(two_hours_ago_ns, path.stat().st_mtime_ns))
    segments_of(store, Cache(tmp_path)).checked(files[0])  # another process still reads this one
    segments.checked(put(store, 8))
    # 3,000 bytes fit: what is used (1, 7) and the new one.
    assert {path.read_bytes()[0] for path in copies(cache)} == {1, 7, 8}


def test_a_disk_without_room_is_told_and_is_no_fault_of_the_file(store: MemoryStore, tmp_path: Path) -> None:
    cache = Cache(tmp_path, least_free_bytes=1 << 60)
    with pytest.raises(CacheFullError, match="has no room for a copy of 1000 bytes"), cache.made("x", SIZE, [b""]):
        pass
    with pytest.raises(SegmentUnreachableError, match=r"f1 cannot be fetched: .* has no room"):
        segments_of(store, cache).checked(put(store, 1))
    assert list(cache.unfinished.iterdir()) == []


def test_a_copy_that_broke_off_leaves_nothing(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"half"
        raise OSError(28, "No space left on device")

    cache = Cache(tmp_path)
    with pytest.raises(OSError, match="No space left"), cache.made("x", SIZE, pieces()):
        pass
    assert list(cache.unfinished.iterdir()) == []


def test_copies_that_a_killed_process_left_unfinished_are_swept(store: MemoryStore, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    segments = segments_of(store, cache)
    cache.unfinished.mkdir()
    (cache.unfinished / "x.parquet.1.2.3").write_bytes(b"half")
    (tmp_path / "y.parquet.1.2.partial").write_bytes(b"half")  # where they were made before
    assert segments.clear_scratch(-1) == 2
    assert copies(cache) == []
    assert list(tmp_path.glob("*.partial")) == []
