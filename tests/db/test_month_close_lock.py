"""Closing a month follows every line before it takes the lock that no save of an hour can pass, and closes only what it looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from analytics.io import period_hours, period_ready, periods
from analytics.io.period_document import faults, moved_link, moved_start
from analytics.io.periods import reopen
from analytics.io.verify_period import verify
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet
from tests.db.test_month_close import LATER, NINE, NOVEMBER, close, closed, tariff_was

pytestmark = pytest.mark.db
Looks = Callable[[Callable[[int], None]], list[bool]]


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    """A month that was closed, and opened again over a tariff of 0.51: two lines moved."""
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + 2 * HOUR)
    fleet.job("7", HOUR_AT, NINE)
    closed(fleet)
    with db.connect("owner", autocommit=True) as owner:
        close(owner, accepted=["coverage"])
        reopen(owner, "2026-11", None, by="grace", reason="wrong tariff", now=LATER)
    tariff_was(fleet, "0.51")
    return fleet


@pytest.fixture
def owner(fleet: SmallFleet) -> Iterator[psycopg.Connection[Any]]:
    with fleet.database.connect("owner", autocommit=True) as connection:
        yield connection


@pytest.fixture
def looks(fleet: SmallFleet, monkeypatch: pytest.MonkeyPatch) -> Looks:
    """Do something while lines that moved are looked at, by the number of the look; return for each whether an hour could be saved."""

    def begin(then: Callable[[int], None]) -> list[bool]:
        could_save: list[bool] = []

        def moved_lines(*asked: Any) -> Iterator[str]:
            with fleet.database.connect("worker") as worker:
                try:
                    worker.execute("LOCK TABLE ledger_hours IN ROW EXCLUSIVE MODE NOWAIT")
                    could_save.append(True)
                except psycopg.errors.LockNotAvailable:
                    could_save.append(False)
            yield from period_hours.moved_lines(*asked)
            then(len(could_save))

        monkeypatch.setattr(period_ready, "moved_lines", moved_lines)
        return could_save

    return begin


def moved(document: dict[str, Any]) -> list[tuple[str, str]]:
    return [(row["category"], row["billed_cost"]) for row in document["moved"]["told"]]


def test_hours_can_be_saved_while_the_lines_that_moved_are_followed(
    owner: psycopg.Connection[Any], looks: Looks
) -> None:
    could_save = looks(lambda _: None)
    done = close(owner, accepted=["coverage"])
    assert could_save == [True]
    assert moved(done.document) == [("electricity", "0.031000000")] * 2  # 0.1 kWh x 0.31 USD, twice
    assert faults(done.document, None) == []


def test_whoever_asks_for_the_document_later_follows_no_line(
    owner: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = close(owner, accepted=["coverage"])

    def moved_since(*_: Any) -> Iterator[str]:
        raise AssertionError("what is on record is worked out again")

    with monkeypatch.context() as patched:
        patched.setattr(periods, "moved_since", moved_since)
        assert periods.exported(owner, done.period) == done.document
    owner.execute("UPDATE ledger_periods SET moved_told = NULL")  # of a month that was closed before they were kept
    (period, _) = periods.listed(owner)
    assert periods.exported(owner, period) == done.document


def test_what_was_saved_meanwhile_is_looked_at_again_and_what_is_closed_is_what_counts(
    fleet: SmallFleet, owner: psycopg.Connection[Any], looks: Looks
) -> None:
    could_save = looks(lambda look: tariff_was(fleet, "0.40") if look == 1 else None)
    done = close(owner, accepted=["coverage"])
    assert could_save == [True, True]
    assert moved(done.document) == [("electricity", "0.020000000")] * 2  # 0.1 kWh x 0.20 USD
    assert done.document["totals"]["billed_cost"] == {"USD": "6.080000000"}
    assert verify(owner, from_at=NOVEMBER.from_at, to_at=NOVEMBER.to_at).problems == ()


def test_where_books_change_at_each_look_the_last_is_under_the_lock(
    fleet: SmallFleet, owner: psycopg.Connection[Any], looks: Looks
) -> None:
    prices = {1: "0.40", 2: "0.30"}
    could_save = looks(lambda look: tariff_was(fleet, prices[look]) if look in prices else None)
    done = close(owner, accepted=["coverage"])
    assert could_save == [True, True, False]
    assert moved(done.document) == [("electricity", "0.010000000")] * 2


def test_of_more_lines_than_a_document_tells_the_first_are_kept_and_all_are_in_the_chain(
    owner: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(period_ready, "MOVED_TOLD", 1)
    texts = list(period_hours.moved_lines(owner, 1, [1], NOVEMBER))
    ready = period_ready.make_ready(owner, NOVEMBER, None, [(1, "lab")], (1, 1))
    assert (len(texts), ready.moved_told) == (2, (texts[0],))
    assert (ready.moved_sha256, ready.moved_lines) == moved_link(moved_start("2026-11", None, 2), texts)
