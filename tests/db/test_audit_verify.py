"""Whatever is done to stored books, past every trigger and right, is found and named."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analytics.io.periods import Closed, close_month
from analytics.io.signing import make_key, read_key, read_public_key
from analytics.io.verify_period import Verified, verify
from analytics.jobs import HourCloser, WorkerSettings
from analytics.model.month import month
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db
NOVEMBER = month("2026-11")
LATER = datetime(2026, 12, 2, tzinfo=UTC)
NANO: Final = "0.000000001"
AMOUNTS: Final = {
    "energy_mj": "1",
    "quantity": "1",
    "facility_mj": "1",
    "energy_low_mj": "1",
    "carbon_gco2e": NANO,
    "billed_cost": NANO,
    "effective_cost": NANO,
}


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    """Three hours at 100 W, in each a job of its own for half of it, and two calls of a person's key."""
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + 3 * HOUR)
    for number in range(3):
        at = HOUR_AT + number * HOUR
        fleet.job(str(number), at, at + timedelta(minutes=30))
    with fleet.admin() as connection:
        connection.execute("SELECT ensure_partitions(%s, %s, NULL)", (HOUR_AT.date(), HOUR_AT.date()))
        connection.execute(
            "INSERT INTO prices (provider, model, meter, amount, unit, currency, source, valid_from) "
            "VALUES ('openai', 'm', 'input_tokens', 0.000001, 'token', 'USD', 'test', '2026-10-01Z')"
        )
        connection.execute(
            "INSERT INTO api_calls (called_at, dedupe_key, site_id, provider, model, api_key, input_uncached_tokens, usage_known, source, origin) "
            "VALUES (%s, 'a', %s, 'openai', 'm', 'ada', 1001, true, 'log', 1), (%s, 'b', %s, 'openai', 'm', 'bob', 500, true, 'log', 1)",
            (HOUR_AT, fleet.site_id, HOUR_AT, fleet.site_id),
        )
        fleet.changed("api_calls", HOUR_AT, HOUR_AT + HOUR, connection)
    HourCloser(fleet.database, WorkerSettings(code_version="test")).run(LATER)
    return fleet


@pytest.fixture
def rogue(fleet: SmallFleet) -> Iterator[psycopg.Connection[Any]]:
    """A superuser whom no trigger and no policy sees."""
    with fleet.admin() as connection:
        connection.execute("SET session_replication_role = replica")
        yield connection


def look(fleet: SmallFleet, **how: Any) -> Verified:
    with fleet.database.connect("worker", autocommit=True) as connection:
        return verify(connection, from_at=NOVEMBER.from_at, to_at=NOVEMBER.to_at, **how)


def close(fleet: SmallFleet, path: Path | None = None) -> Closed:
    with fleet.database.connect("owner", autocommit=True) as owner:
        accepted = ["coverage", "mapped"]
        key = None if path is None else read_key(path)
        return close_month(
            owner, NOVEMBER, None, now=LATER, lateness=timedelta(minutes=15), by="ada", accepted=accepted, key=key
        )


def kinds(found: Verified) -> set[str]:
    return {problem.kind for problem in found.problems}


def test_books_that_nobody_touched_hold(fleet: SmallFleet, tmp_path: Path) -> None:
    public = make_key(tmp_path / "k")
    done = close(fleet, tmp_path / "k")
    found = look(fleet, document=done.document, key=read_public_key(public))
    assert found.problems == ()
    assert found.lines == done.period.lines
    assert found.periods == (("2026-11", 1, done.document["root_sha256"]),)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_least_amount_in_any_line_is_found_and_its_line_named(
    fleet: SmallFleet, rogue: psycopg.Connection[Any], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(AMOUNTS)))
    query = f"SELECT hour_at, line_key, holder_key, charge_category FROM ledger_lines WHERE {name} IS NOT NULL ORDER BY 1, 2"
    rows = rogue.execute(query.encode()).fetchall()
    if not rows:
        return
    at, key, holder, category = data.draw(st.sampled_from(rows))
    sign = data.draw(st.sampled_from("+-"))
    there = "WHERE hour_at = %s AND line_key = %s"
    rogue.execute(f"UPDATE ledger_lines SET {name} = {name} {sign} {AMOUNTS[name]} {there}".encode(), (at, key))
    try:
        found = look(fleet)
    finally:
        back = "-" if sign == "+" else "+"
        rogue.execute(f"UPDATE ledger_lines SET {name} = {name} {back} {AMOUNTS[name]} {there}".encode(), (at, key))
    first = found.problems[0]
    assert (first.kind, first.hour_at) == ("altered", at.astimezone(UTC))
    assert f"{holder}, " in first.what
    assert f", {category}: " in first.what
    assert look(fleet).problems == ()


def test_a_dropped_an_invented_and_two_exchanged_lines_are_named(
    fleet: SmallFleet, rogue: psycopg.Connection[Any]
) -> None:
    where = f"hour_at = '{HOUR_AT.isoformat()}'"
    rogue.execute(f"CREATE TABLE kept AS SELECT * FROM ledger_lines WHERE {where}".encode())

    def restored() -> None:
        rogue.execute(f"DELETE FROM ledger_lines WHERE {where}".encode())
        rogue.execute("INSERT INTO ledger_lines SELECT * FROM kept")

    rogue.execute(f"DELETE FROM ledger_lines WHERE {where} AND ordinal = 2".encode())
    dropped = look(fleet).problems
    assert (dropped[0].kind, dropped[0].hour_at) == ("dropped", HOUR_AT)
    assert "line 2 of " in dropped[0].what
    restored()
    rogue.execute(f"UPDATE ledger_lines SET ordinal = 3 - ordinal WHERE {where} AND ordinal <= 2".encode())
    assert [problem.kind for problem in look(fleet).problems] == ["reordered"]
    restored()
    rogue.execute(
        f"INSERT INTO ledger_lines SELECT (jsonb_populate_record(l, jsonb_build_object('line_key', 'mine', 'holder_key', 'ghost'))).* "
        f"FROM ledger_lines AS l WHERE {where} AND ordinal = 1".encode()
    )
    invented = look(fleet).problems[0]
    assert invented.kind == "invented"
    assert "ghost" in invented.what
    restored()
    assert look(fleet).problems == ()


def test_a_millijoule_in_a_usage_hour_is_found_by_the_lines_that_carry_it(
    fleet: SmallFleet, rogue: psycopg.Connection[Any]
) -> None:
    rogue.execute("UPDATE usage_hours SET energy_mj = energy_mj + 1 WHERE hour_at = %s AND holder = 'idle'", [HOUR_AT])
    problem, hashed = look(fleet).problems
    assert (problem.kind, problem.hour_at) == ("sums", HOUR_AT)
    assert (hashed.kind, hashed.what) == ("usage", "the usage hours of revision 1 are not those that its run wrote")
    assert "energy of idle: lines say 180000000 mJ, usage hours 180000001 mJ" in problem.what


def test_a_line_given_to_another_person_s_key_or_tenant_is_found(
    fleet: SmallFleet, rogue: psycopg.Connection[Any]
) -> None:
    rogue.execute("UPDATE ledger_lines SET api_key = 'eve' WHERE api_key = 'ada'")
    assert [problem.what for problem in look(fleet).problems] == [
        "the API key of a line is not the one that was chained"
    ]
    rogue.execute("UPDATE ledger_lines SET api_key = 'ada' WHERE api_key = 'eve'")
    rogue.execute("INSERT INTO tenants (path) VALUES ('umbrella')")
    rogue.execute(
        "UPDATE ledger_lines SET tenant_id = (SELECT id FROM tenants WHERE path = 'umbrella') WHERE pool = 'job'"
    )
    assert "umbrella" in look(fleet).problems[0].what


def test_a_forgotten_person_breaks_no_chain_and_is_counted(fleet: SmallFleet) -> None:
    done = close(fleet)
    with fleet.database.connect("owner", autocommit=True) as owner:
        owner.execute(
            "UPDATE ledger_lines SET api_key = 'erased-1' WHERE api_key = 'ada'"
        )  # as erasure does, triggers and all
    found = look(fleet, document=done.document)
    assert found.problems == ()
    assert found.forgotten == 1
    with fleet.admin() as connection:
        ((seal,),) = connection.execute("SELECT api_key_seal FROM ledger_lines WHERE api_key = 'erased-1'").fetchall()
    assert len(seal) == 32


def test_who_makes_all_links_anew_is_found_by_the_month_s_root_and_by_the_document_alone(
    fleet: SmallFleet, rogue: psycopg.Connection[Any], tmp_path: Path
) -> None:
    public = read_public_key(make_key(tmp_path / "k"))
    done = close(fleet, tmp_path / "k")
    document = copy.deepcopy(done.document)
    rogue.execute(
        "UPDATE usage_hours SET energy_mj = energy_mj + 1, estimated_mj = 0 WHERE hour_at = %s AND holder = 'idle'",
        [HOUR_AT],
    )
    rogue.execute(
        "UPDATE ledger_lines SET energy_mj = energy_mj + 1, quantity = quantity + 0 WHERE hour_at = %s AND line_key LIKE '%%|idle|%%' "
        "AND charge_category = 'gpu_owned'",
        [HOUR_AT],
    )
    rogue.execute("UPDATE ledger_runs SET head_sha256 = NULL, usage_sha256 = NULL WHERE hour_at = %s", [HOUR_AT])
    rogue.execute("UPDATE ledger_hours SET frozen_period_id = NULL")
    rogue.execute("DELETE FROM period_hours")
    rogue.execute("DELETE FROM ledger_periods")
    forged = close(fleet)  # which chains the lines as they lie there now

    assert look(fleet).problems == ()  # nothing inside tells
    found = look(fleet, document=document, key=public)
    assert [(problem.kind, problem.hour_at) for problem in found.problems] == [("period", None), ("period", HOUR_AT)]
    assert forged.document["root_sha256"] in found.problems[0].what
    signed = forged.document | {name: document[name] for name in ("signature", "key_id", "public_key")}
    assert "document" in kinds(look(fleet, document=signed, key=public))


def test_an_hour_swapped_to_another_revision_after_its_close_is_named(
    fleet: SmallFleet, rogue: psycopg.Connection[Any]
) -> None:
    close(fleet)
    rogue.execute("UPDATE ledger_hours SET frozen_period_id = NULL WHERE hour_at = %s", [HOUR_AT])
    (problem,) = look(fleet).problems
    assert (problem.kind, problem.hour_at) == ("period", HOUR_AT)
    rogue.execute("UPDATE period_hours SET lines = lines + 1 WHERE hour_at = %s", [HOUR_AT])
    assert {"period"} == kinds(look(fleet))


def test_a_correction_that_was_changed_or_taken_away_is_named(
    fleet: SmallFleet, rogue: psycopg.Connection[Any]
) -> None:
    close(fleet)
    rogue.execute("SET session_replication_role = origin")
    rogue.execute("UPDATE tariffs SET superseded_at = now()")
    rogue.execute(
        "INSERT INTO tariffs (site_id, metering_point, amount_per_kwh, currency, source, valid_from) VALUES (%s, 'it', 0.4, 'USD', 't', '2026-10-01Z')",
        [fleet.site_id],
    )
    rogue.execute("SET session_replication_role = replica")
    fleet.changed("tariffs", HOUR_AT, HOUR_AT + HOUR, rogue)
    HourCloser(fleet.database, WorkerSettings(code_version="test")).run(LATER)
    assert look(fleet).problems == ()
    rogue.execute(
        f"UPDATE ledger_corrections SET billed_cost = billed_cost + {NANO} WHERE ordinal = 1 AND hour_at = %s".encode(),
        [HOUR_AT],
    )
    found = look(fleet).problems
    assert [(problem.kind, problem.hour_at) for problem in found] == [("altered", HOUR_AT), ("sums", HOUR_AT)]
    rogue.execute("DELETE FROM ledger_corrections WHERE hour_at = %s", [HOUR_AT])
    assert kinds(look(fleet)) == {"sums"}
