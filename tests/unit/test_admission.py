"""Who may send now."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from ingest.admission import DiskGuard, Rate, RateLimits
from ingest.errors import TooManyError, UnavailableError
from ingest.store.database_room import DatabaseRoom

pytestmark = pytest.mark.unit
_MIB = 1024 * 1024


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class _Disk:
    def __init__(self, free_mib: int) -> None:
        self.free_mib = free_mib
        self.looks = 0

    def __call__(self, _: Path) -> int:
        self.looks += 1
        return self.free_mib * _MIB


def test_a_token_may_send_ten_seconds_of_its_rate_at_once_and_then_its_rate() -> None:
    clock = _Clock()
    limits = RateLimits(clock)
    rate = Rate(bodies_per_s=2)
    for _ in range(20):
        limits.take(7, rate, 100)
    with pytest.raises(TooManyError) as refused:
        limits.take(7, rate, 100)
    assert refused.value.status == 429
    assert refused.value.headers() == {"retry-after": "1"}
    clock.now += 0.5
    limits.take(7, rate, 100)  # half a second is worth one body
    with pytest.raises(TooManyError):
        limits.take(7, rate, 100)
    limits.take(8, rate, 100)  # another token has its own


def test_what_was_refused_is_not_counted_as_sent() -> None:
    clock = _Clock()
    limits = RateLimits(clock)
    rate = Rate(bytes_per_s=100)
    limits.take(7, rate, 1000)
    for _ in range(1000):
        with pytest.raises(TooManyError):
            limits.take(7, rate, 1000)
    clock.now += 10
    limits.take(7, rate, 1000)


def test_a_body_larger_than_the_burst_is_taken_from_a_sender_that_owes_nothing_and_paid_off_after() -> None:
    clock = _Clock()
    limits = RateLimits(clock)
    rate = Rate(bytes_per_s=100)
    limits.take(7, rate, 6000)
    clock.now += 30
    with pytest.raises(TooManyError) as refused:
        limits.take(7, rate, 6000)
    assert refused.value.retry_after_s == 30
    clock.now += 30
    limits.take(7, rate, 6000)


def test_a_rate_of_nothing_is_no_limit() -> None:
    limits = RateLimits(_Clock())
    for _ in range(100_000):
        limits.take(7, Rate(), 10 * _MIB)


def test_the_slower_of_bodies_and_bytes_counts() -> None:
    assert Rate(10, 100).worth_s(1) == 0.1
    assert Rate(10, 100).worth_s(100) == 1.0


def test_nothing_is_taken_while_the_disk_is_nearly_full_until_a_tenth_more_is_free_again() -> None:
    clock, disk = _Clock(), _Disk(101)
    guard = DiskGuard([Path("data")], 100 * _MIB, clock=clock, free_bytes=disk)
    guard.check()
    disk.free_mib = 99
    guard.check()  # looked at less than a second ago
    assert disk.looks == 1
    for now_free, is_taken in ((99, False), (105, False), (110, True), (101, True), (99, False)):
        clock.now += 1
        disk.free_mib = now_free
        if is_taken:
            guard.check()
        else:
            with pytest.raises(UnavailableError) as refused:
                guard.check()
            assert refused.value.headers() == {"retry-after": "60"}
            assert f"{now_free} MiB are free" in refused.value.detail


def test_what_a_database_may_have_is_guarded_like_a_disk() -> None:
    clock, room = _Clock(), DatabaseRoom(sa.create_engine("postgresql+psycopg://"), 1_000 * _MIB)
    guard = DiskGuard([], 100 * _MIB, clock=clock, room=room)
    assert (guard.is_watching, guard.left_bytes()) == (True, None)
    guard.check()  # nothing was told yet
    for size_mib, is_taken in ((900, True), (901, False), (891, False), (890, True), (1_200, False)):
        clock.now += 1
        room.size_bytes = size_mib * _MIB
        assert guard.left_bytes() == (1_000 - size_mib) * _MIB
        if is_taken:
            guard.check()
        else:
            with pytest.raises(UnavailableError, match=f"has {size_mib} MiB of the 1000 MiB it may have"):
                guard.check()


def test_a_guard_without_disk_or_bound_says_that_it_watches_nothing() -> None:
    unbound = DatabaseRoom(sa.create_engine("postgresql+psycopg://"), 0)
    unbound.size_bytes = 10**15
    for guard in (DiskGuard([], 1, room=unbound), DiskGuard([Path("/")], 0)):
        assert not guard.is_watching
        guard.check()


def test_a_disk_that_cannot_be_looked_at_takes_nothing(tmp_path: Path) -> None:
    guard = DiskGuard([tmp_path / "gone"], 1)
    with pytest.raises(UnavailableError, match="cannot be told"):
        guard.check()
    DiskGuard([tmp_path], 1).check()
    DiskGuard([], 10**18).check()
