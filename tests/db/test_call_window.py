"""Names of old calls go, and still no call is counted twice: a late report finds it, and one within the window always did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
import sqlalchemy as sa

from ingest.calls import CallSource
from ingest.store import call_window
from ingest.store.call_window import Pruned, prune_names
from ingest.store.calls import Written
from ingest.store.engine import Database
from tests.db.test_calls_one_call import HOUR_US, LOG, NINE_US, SPAN, call, engine, rows, site, write

__all__ = ["engine", "site"]
pytestmark = pytest.mark.db

NINE = datetime(2025, 11, 21, 9, tzinfo=UTC)
DAY_US = 24 * HOUR_US
NAMES = "SELECT count(*) FROM call_keys"
COUNTED = "SELECT source, input_uncached_tokens, cache_read_tokens FROM api_calls ORDER BY called_at"


@pytest.fixture
def worker(db: Database) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    with db.connect("worker") as connection:
        yield connection


def test_names_before_the_instant_go_and_others_and_marks_stay(
    db: Database, engine: sa.Engine, site: int, worker: psycopg.Connection[tuple[object, ...]]
) -> None:
    reused = [call(f"span/2/{number}", NINE_US + number, response_id="same") for number in range(17)]
    write(engine, site, CallSource.SPAN, SPAN, replace(LOG, called_at_us=NINE_US + DAY_US, response_id="r-2"), *reused)
    # r-1; r-2 and q-1; "same", which is marked and names nothing, and the own key of each of the 17 that have it.
    assert rows(db, NAMES) == [(21,)]
    assert prune_names(worker, NINE + timedelta(hours=1)) == Pruned(18)
    left = rows(db, "SELECT dedupe_key FROM call_keys ORDER BY 1")
    assert left == [("!reused",), ("log/7",), ("log/7",)]
    assert prune_names(worker, NINE + timedelta(hours=1)) == Pruned()
    assert prune_names(worker, NINE) == Pruned(), "the window never moves back"


@pytest.mark.parametrize("days", [-30, 0, 30])
def test_a_late_report_of_a_call_whose_names_went_is_of_that_call(
    db: Database, engine: sa.Engine, site: int, worker: psycopg.Connection[tuple[object, ...]], days: int
) -> None:
    write(engine, site, CallSource.SPAN, SPAN)
    prune_names(worker, NINE + timedelta(days=1))
    assert rows(db, NAMES) == [(0,)]
    late = replace(LOG, called_at_us=NINE_US + days * DAY_US)
    assert write(engine, site, CallSource.LOG, late) == Written(superseded=1)
    assert rows(db, COUNTED) == [("span", 400, 600)]
    assert write(engine, site, CallSource.SPAN, SPAN) == Written(repeated=1)
    assert write(engine, site, CallSource.LOG, late) == Written(repeated=1)
    assert rows(db, COUNTED) == [("span", 400, 600)]
    # What was put back goes the next time, and the reports kept beside the call are found by their own names as well.
    prune_names(worker, NINE + timedelta(days=40))
    assert rows(db, NAMES) == [(0,)]
    assert write(engine, site, CallSource.LOG, replace(late, response_id=None, request_id=None)) == Written(repeated=1)
    assert rows(db, COUNTED) == [("span", 400, 600)]


def test_a_report_within_the_window_finds_its_call_however_far_apart_they_are(
    db: Database, engine: sa.Engine, site: int, worker: psycopg.Connection[tuple[object, ...]]
) -> None:
    write(engine, site, CallSource.SPAN, SPAN)
    prune_names(worker, NINE)
    assert write(engine, site, CallSource.LOG, replace(LOG, called_at_us=NINE_US + 300 * DAY_US)) == Written(
        superseded=1
    )
    assert rows(db, COUNTED) == [("span", 400, 600)]


def test_calls_that_are_old_when_they_come_are_matched_with_each_other(
    db: Database, engine: sa.Engine, site: int, worker: psycopg.Connection[tuple[object, ...]]
) -> None:
    prune_names(worker, NINE + timedelta(days=400))
    assert write(engine, site, CallSource.SPAN, SPAN, call("span/3/3")) == Written(counted=2)
    assert write(engine, site, CallSource.LOG, LOG, call("log/8", response_id="r-8")) == Written(
        counted=1, superseded=1
    )
    prune_names(worker, NINE + timedelta(days=401))
    assert write(engine, site, CallSource.SPAN, SPAN, call("span/3/3")) == Written(repeated=2)
    assert rows(db, "SELECT count(*) FROM api_calls") == [(3,)]


def test_names_stay_while_somebody_writes_who_may_not_know(
    db: Database,
    engine: sa.Engine,
    site: int,
    worker: psycopg.Connection[tuple[object, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(engine, site, CallSource.SPAN, SPAN)
    monkeypatch.setattr(call_window, "_WAIT_S", 0.2)
    with db.connect("writer") as other:
        other.execute("CREATE TEMPORARY TABLE begun (n int)")  # which gives the transaction an id
        assert prune_names(worker, NINE + timedelta(hours=1)) == Pruned(waits=True)
        assert rows(db, NAMES) == [(1,)]
        # Whoever looks now puts names back that are there: nothing is lost, nothing twice.
        assert write(engine, site, CallSource.SPAN, SPAN) == Written(repeated=1)
    assert prune_names(worker, NINE + timedelta(hours=1)) == Pruned(1)
