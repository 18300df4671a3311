"""What is kept between pages: bounded in bytes and time, and built again where it is gone."""

from __future__ import annotations

import pytest

from analytics.api.cursors import cursor_of
from analytics.api.problems import ApiError
from analytics.api.snapshots import Snapshot, Snapshots

pytestmark = pytest.mark.unit


class Bill:
    """An answer of numbered rows that counts how often it is built."""

    def __init__(self, rows: int = 1_000) -> None:
        self.rows = [{"key": f"job-{number}"} for number in range(rows)]
        self.built = 0

    def __call__(self) -> Snapshot:
        self.built += 1
        return Snapshot.of({"total": len(self.rows)}, self.rows)


def read(kept: Snapshots, bill: Bill, limit: int, key: str = "acme") -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    cursor = None
    while True:
        _, start, page, cursor = kept.page(key, bill, cursor, limit)
        assert start == len(rows)
        rows += page
        if cursor is None:
            return rows


@pytest.mark.parametrize("limit", [1, 249, 250, 251, 999, 1_000, 1_001])
def test_pages_of_any_length_are_the_whole_built_once(limit: int) -> None:
    bill = Bill()
    assert read(Snapshots(), bill, limit) == bill.rows
    assert bill.built == 1


def test_an_answer_that_fits_one_page_is_not_kept() -> None:
    kept, bill = Snapshots(), Bill(3)
    read(kept, bill, 3)
    read(kept, bill, 3)
    assert bill.built == 2


def test_an_answer_too_large_to_keep_is_built_for_every_page_and_is_right() -> None:
    bill = Bill()
    assert read(Snapshots(kept_bytes=10), bill, 250) == bill.rows
    assert bill.built == 4


def test_the_least_recently_used_goes_when_the_bytes_are_used_up() -> None:
    one, two = Bill(), Bill(999)
    kept = Snapshots(kept_bytes=one().packed_bytes + 100)
    _, _, _, cursor = kept.page("acme", one, None, 10)
    kept.page("acme", two, None, 10)
    one.built = 0
    kept.page("acme", one, cursor, 10)
    assert one.built == 1


def test_an_answer_is_kept_for_its_time_only() -> None:
    now = [0.0]
    kept, bill = Snapshots(kept_s=600, clock=lambda: now[0]), Bill()
    _, _, _, cursor = kept.page("acme", bill, None, 10)
    now[0] = 600.0
    kept.page("acme", bill, cursor, 10)
    assert bill.built == 1
    now[0] = 600.1
    kept.page("acme", bill, cursor, 10)
    assert bill.built == 2


def test_what_is_kept_for_one_view_is_nothing_to_another() -> None:
    kept, bill, other = Snapshots(), Bill(), Bill(5)
    _, _, _, cursor = kept.page("acme", bill, None, 10)
    with pytest.raises(ApiError, match="the books changed"):
        kept.page("globex", other, cursor, 10)
    assert other.built == 1


@pytest.mark.parametrize("position", ["", "7", "x:1", f"{'0' * 32}:-1", f"{'0' * 32}:{'9' * 13}"])
def test_a_cursor_nobody_gave_is_refused(position: str) -> None:
    bill = Bill()
    with pytest.raises(ApiError, match="not one this API gave"):
        Snapshots().page("acme", bill, cursor_of(position), 10)


def test_a_cursor_past_the_end_is_refused() -> None:
    bill = Bill()
    with pytest.raises(ApiError, match="not one this API gave"):
        Snapshots().page("acme", bill, cursor_of(f"{bill().fingerprint}:1001"), 10)
