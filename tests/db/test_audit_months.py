"""What is done to a closed month beside its lines is found: to what was posted in it, to what counts, to hours that it never had."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from analytics.errors import CloseError
from analytics.io.bill_spans import sum_spans
from analytics.io.periods import Closed, close_month, reopen
from analytics.io.verify import hours_between, look_at
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


def close(
    fleet: SmallFleet,
    of: Month = NOVEMBER,
    now: datetime = IN_DECEMBER,
    accepted: Sequence[str] = ("coverage", "mapped"),
) -> Closed:
    with fleet.database.connect("owner", autocommit=True) as owner:
        return close_month(owner, of, None, now=now, lateness=timedelta(minutes=15), by="ada", accepted=accepted)


def look(fleet: SmallFleet, of: Month = NOVEMBER, **how: Any) -> Verified:
    with fleet.database.connect("worker", autocommit=True) as connection:
        return verify(connection, from_at=of.from_at, to_at=of.to_at, **how)


def told(found: Verified) -> list[tuple[str, datetime | None]]:
    return [(problem.kind, problem.hour_at) for problem in found.problems]


def tariff_was(fleet: SmallFleet, amount: str) -> None:
    """Correct the tariff of ever, which posts a difference for both hours."""
    fleet.tariff_was(amount)
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
    done = close(fleet, DECEMBER, IN_JANUARY, ["hours"])
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


def test_corrections_moved_into_a_closed_month_are_not_under_its_root(
    fleet: SmallFleet, rogue: psycopg.Connection[Any]
) -> None:
    done = close(fleet)
    tariff_was(fleet, "0.51")
    rogue.execute("UPDATE ledger_corrections SET posted_hour_at = %s", [NINE])
    found = look(fleet, name="2026-11", document=done.document)
    ((run_id,),) = rogue.execute("SELECT run_id FROM ledger_corrections WHERE hour_at = %s", [NINE]).fetchall()
    said = f"corrections by run {run_id} are posted in 2026-11 number 1 and not under its root"
    assert [(each.hour_at, each.what) for each in found.problems if each.kind == "period"][1] == (NINE, said)
    assert told(found).count(("period", HOUR_AT)) == 1


def test_an_hour_put_into_a_closed_month_is_not_under_its_root(
    fleet: SmallFleet, rogue: psycopg.Connection[Any]
) -> None:
    done = close(fleet)
    late_noon(fleet)
    assert look(fleet, document=done.document).problems == ()
    rogue.execute("DELETE FROM ledger_corrections")
    rogue.execute(
        "UPDATE ledger_hours SET revision = shadow_revision, run_id = shadow_run_id, shadow_revision = NULL, shadow_run_id = NULL, "
        "frozen_period_id = NULL WHERE hour_at = %s",
        [NOON],
    )
    found = look(fleet, document=done.document)
    assert ("period", NOON) in told(found)
    assert found.problems[0].what == "counts revision 1 in 2026-11 number 1 and is not under its root"


def test_a_document_is_out_of_date_once_its_month_was_opened_again(fleet: SmallFleet) -> None:
    first = close(fleet).document
    tariff_was(fleet, "0.51")
    with fleet.database.connect("owner", autocommit=True) as owner:
        reopen(owner, "2026-11", None, by="ada", reason="wrong tariff", now=IN_DECEMBER)
    (problem,) = look(fleet, document=first).problems
    at = "2026-12-02T00:00:00Z by ada: wrong tariff"
    assert problem.what == f"the document of 2026-11 number 1 is out of date: reopened {at}"
    second = close(fleet).document
    (problem,) = look(fleet, document=first).problems
    assert problem.what.endswith(f"reopened {at}; number 2 took its place")
    assert look(fleet, document=second).problems == ()


def test_who_closed_a_month_and_when_is_under_its_root(fleet: SmallFleet, rogue: psycopg.Connection[Any]) -> None:
    done = close(fleet)
    for change in ("closed_by = 'eve'", "closed_at = closed_at + interval '1 minute'", "apart_site_ids = ARRAY[1]"):
        kept = rogue.execute("SELECT closed_by, closed_at, apart_site_ids FROM ledger_periods").fetchone()
        rogue.execute(f"UPDATE ledger_periods SET {change}".encode())
        (problem, *_) = look(fleet, document=done.document).problems
        assert "its hours and figures lead to the root" in problem.what
        rogue.execute("UPDATE ledger_periods SET closed_by = %s, closed_at = %s, apart_site_ids = %s", kept)
    assert look(fleet, document=done.document).problems == ()


def test_a_person_who_is_forgotten_breaks_no_root_of_a_second_close(fleet: SmallFleet) -> None:
    """Two keys, of which the one that comes last by name is called otherwise: the lines that moved stay in their order."""
    with fleet.admin() as connection:
        connection.execute("SELECT ensure_partitions(%s, %s, NULL)", (HOUR_AT.date(), HOUR_AT.date()))
        connection.execute(
            "INSERT INTO prices (provider, model, meter, amount, unit, currency, source, valid_from) "
            "VALUES ('openai', 'm', 'input_tokens', 0.000001, 'token', 'USD', 'test', '2026-10-01Z')"
        )
        connection.execute(
            "INSERT INTO api_calls (called_at, dedupe_key, site_id, provider, model, api_key, input_uncached_tokens, usage_known, source, origin) "
            "VALUES (%s, 'a', %s, 'openai', 'm', 'zoe', 1001, true, 'log', 1), (%s, 'b', %s, 'openai', 'm', 'mid', 500, true, 'log', 1)",
            (HOUR_AT, fleet.site_id, HOUR_AT, fleet.site_id),
        )
        fleet.changed("api_calls", HOUR_AT, NINE, connection)
    compute(fleet)
    close(fleet)
    fleet.rows("UPDATE prices SET superseded_at = now() WHERE provider = 'openai' RETURNING 1")
    with fleet.admin() as connection:
        connection.execute(
            "INSERT INTO prices (provider, model, meter, amount, unit, currency, source, valid_from) "
            "VALUES ('openai', 'm', 'input_tokens', 0.000003, 'token', 'USD', 'test', '2026-10-01Z')"
        )
        fleet.changed("prices", HOUR_AT, NINE, connection)
    compute(fleet)
    with fleet.database.connect("owner", autocommit=True) as owner:
        reopen(owner, "2026-11", None, by="ada", reason="wrong price", now=IN_DECEMBER)
        done = close(fleet)
        assert [row["billed_cost"] for row in done.document["moved"]["told"]] == ["0.001000000", "0.002002000"]
        for table in ("ledger_lines", "ledger_corrections"):
            owner.execute(f"UPDATE {table} SET api_key = 'erased-1' WHERE api_key = 'zoe'".encode())
    found = look(fleet, document=done.document)
    assert (found.problems, found.forgotten) == ((), 4)  # of two revisions, of what was posted and what took it back


def test_what_is_on_record_says_when_a_month_was(fleet: SmallFleet, rogue: psycopg.Connection[Any]) -> None:
    close(fleet, month("2026-11", "Europe/Berlin"))
    assert look(fleet, name="2026-11").problems == ()
    rogue.execute("UPDATE ledger_periods SET root_sha256 = '\\x00'")
    for found in (look(fleet, name="2026-11"), look(fleet)):  # by name, and as a month that reaches into the span
        (problem,) = found.problems
        assert "its hours and figures lead to the root" in problem.what


def test_of_a_document_of_all_sites_the_hours_of_one_are_looked_at(fleet: SmallFleet) -> None:
    fleet.rows("INSERT INTO sites (name, grid_zone) VALUES ('s2', 'TEST') RETURNING 1")
    document = close(fleet, accepted=["coverage", "hours", "mapped"]).document
    for site, hours in (("s1", 3), ("s2", 0)):
        found = look(fleet, name="2026-11", document=document, site=site)
        assert (found.problems, found.hours) == ((), hours)
    document["period"]["site"] = "s1"
    with pytest.raises(CloseError, match="the document is of the site s1, and --site says s2"):
        look(fleet, document=document, site="s2")


def test_usage_hours_and_the_jobs_of_lines_are_held_against_what_was_written(
    fleet: SmallFleet, rogue: psycopg.Connection[Any]
) -> None:
    changes = {
        "UPDATE usage_hours SET idle_us = idle_us + 1, active_us = active_us - 1 WHERE job_id IS NOT NULL": ["usage"],
        "UPDATE usage_hours SET held_us = held_us / 2, covered_us = covered_us / 2 WHERE job_id IS NOT NULL": [
            "usage",
            "sums",
        ],
        "UPDATE ledger_lines SET job_id = job_id + 1 WHERE pool = 'job'": ["altered"],
        "UPDATE ledger_lines SET job_id = NULL WHERE pool = 'job'": ["altered"],
        "INSERT INTO usage_hours SELECT (jsonb_populate_record(u, jsonb_build_object('holder', 'idle:x', 'energy_mj', 0, 'estimated_mj', 0, "
        "'held_us', 0, 'covered_us', 0))).* FROM usage_hours AS u WHERE job_id IS NOT NULL": ["usage"],
        "INSERT INTO usage_hours SELECT (jsonb_populate_record(u, jsonb_build_object('revision', 9))).* FROM usage_hours AS u "
        "WHERE job_id IS NOT NULL": ["invented"],
    }
    assert look(fleet).problems == ()
    for change, says in changes.items():
        with rogue.transaction(force_rollback=True):
            rogue.execute(change.encode())
            (hour,) = hours_between(rogue, HOUR_AT, NINE)
            found = [problem.kind for problem in look_at(rogue, hour).problems]
        assert (change, found) == (change, says)
