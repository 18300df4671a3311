"""What is done to a closed month beside its lines is found: to what was posted in it, to what counts, to hours that it never had."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from analytics.io.bill_spans import sum_spans
from analytics.io.periods import Closed, close_month
from analytics.io.verify_period import Verified, verify
from analytics.jobs import HourCloser, WorkerSettings
from analytics.model.month import Month, month
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db
NOVEMBER, DECEMBER = month("2026-11"), month("2026-12")
IN_DECEMBER, IN_JANUARY = datetime(2026, 12, 2, tzinfo=UTC), datetime(2027, 1, 2, tzinfo=UTC)
NINE, NOON = HOUR_AT + HOUR, HOUR_AT + 4 * HOUR


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    """One job from 8:00 to 9:00 at 100 W, and the hour after it."""
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + 2 * HOUR)
    fleet.job("7", HOUR_AT, NINE)
    compute(fleet)
    return fleet


@pytest.fixture
def rogue(fleet: SmallFleet) -> Iterator[psycopg.Connection[Any]]:
    """A superuser whom no trigger and no policy sees."""
    with fleet.admin() as connection:
        connection.execute("SET session_replication_role = replica")
        yield connection


def compute(fleet: SmallFleet) -> None:
    HourCloser(fleet.database, WorkerSettings(code_version="test")).run(IN_DECEMBER)


def close(fleet: SmallFleet, of: Month = NOVEMBER, now: datetime = IN_DECEMBER, site: str | None = None) -> Closed:
    accepted = ["coverage", "mapped"] if of == NOVEMBER else ["hours"]
    with fleet.database.connect("owner", autocommit=True) as owner:
        return close_month(owner, of, site, now=now, lateness=timedelta(minutes=15), by="ada", accepted=accepted)


def look(fleet: SmallFleet, of: Month = NOVEMBER, **how: Any) -> Verified:
    with fleet.database.connect("worker", autocommit=True) as connection:
        return verify(connection, from_at=of.from_at, to_at=of.to_at, **how)


def told(found: Verified) -> list[tuple[str, datetime | None]]:
    return [(problem.kind, problem.hour_at) for problem in found.problems]


def tariff_was(fleet: SmallFleet, amount: str) -> None:
    """Correct the tariff of ever, which posts a difference for both hours."""
    fleet.rows("UPDATE tariffs SET superseded_at = now() WHERE superseded_at IS NULL RETURNING 1")
    fleet.rows(
        "INSERT INTO tariffs (site_id, metering_point, amount_per_kwh, currency, source, valid_from) "
        "VALUES (%s, 'it', %s, 'USD', 'test', '2026-10-01Z') RETURNING 1",
        fleet.site_id,
        Decimal(amount),
    )
    with fleet.admin() as connection:
        fleet.changed("tariffs", HOUR_AT, HOUR_AT + 2 * HOUR, connection)
    compute(fleet)


def late_noon(fleet: SmallFleet) -> None:
    """Have readings of an hour come that November was closed without."""
    fleet.samples(NOON, NOON + HOUR - timedelta(seconds=10), start_mj=1_000_000_000)
    compute(fleet)


def test_a_correction_is_looked_at_with_the_month_it_is_posted_in(
    fleet: SmallFleet, rogue: psycopg.Connection[Any]
) -> None:
    close(fleet)
    tariff_was(fleet, "0.51")
    done = close(fleet, DECEMBER, IN_JANUARY)
    assert look(fleet, DECEMBER, name="2026-12", document=done.document).problems == ()
    rogue.execute("UPDATE ledger_corrections SET billed_cost = billed_cost + 1000 WHERE hour_at = %s", [HOUR_AT])
    found = look(fleet, DECEMBER, name="2026-12", document=done.document)
    assert told(found) == [("altered", HOUR_AT), ("sums", HOUR_AT)]
    assert "billed_cost is 1000.031000000, the hour's revisions differ by 0.031000000" in found.problems[1].what


def test_corrections_that_went_with_the_shadow_they_came_of_are_missed(
    fleet: SmallFleet, rogue: psycopg.Connection[Any]
) -> None:
    close(fleet)
    tariff_was(fleet, "0.51")
    rogue.execute("DELETE FROM ledger_corrections")
    rogue.execute("UPDATE ledger_hours SET shadow_revision = NULL, shadow_run_id = NULL")
    found = look(fleet)
    assert told(found) == [("revision", HOUR_AT), ("revision", NINE)]
    assert found.problems[0].what == "revision 1 counts with what is posted for it, the newest is 2"


def test_a_line_given_to_an_hour_that_had_no_books_is_invented(fleet: SmallFleet) -> None:
    done = close(fleet)
    late_noon(fleet)
    with fleet.database.connect("worker", autocommit=True) as worker:  # no more than a worker may
        worker.execute(
            "INSERT INTO ledger_lines SELECT (jsonb_populate_record(l, jsonb_build_object('revision', 0, 'billed_cost', 777))).* "
            "FROM ledger_lines AS l WHERE hour_at = %s",
            [NOON],
        )
    found = look(fleet, document=done.document)
    assert ("invented", NOON) in told(found)
    assert "lines of revision 0, which no run wrote" in found.problems[0].what


def test_sums_that_bills_are_read_from_are_made_once_more(fleet: SmallFleet, rogue: psycopg.Connection[Any]) -> None:
    with fleet.database.connect("worker", autocommit=True) as worker:
        sum_spans(worker, for_s=60)
        assert look(fleet).problems == ()
        worker.execute(  # no more than a worker may
            "INSERT INTO bill_lines SELECT span_id, tenant_id, pool, charge_category, currency, 0, 0, 0, 500, 500, NULL, NULL, NULL, NULL, "
            "sources, origins FROM bill_lines WHERE tenant_id IS NOT NULL AND charge_category = 'gpu_owned'"
        )
    (problem,) = look(fleet).problems
    assert (problem.kind, problem.site) == ("bills", "s1")
    assert problem.what.startswith("1 rows of bill_lines from 2026-11-01 ")
    rogue.execute("DELETE FROM bill_lines WHERE billed_cost = 500")
    rogue.execute("UPDATE bill_times SET held_us = held_us + 1 WHERE pool = 'job'")
    assert [problem.what.split(" from ")[0] for problem in look(fleet).problems] == ["2 rows of bill_times"]
