"""A month is closed: looked at, frozen, chained, signed; what comes later is posted in the open month and moves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from analytics.errors import InputError
from analytics.io.checklist import Verdict
from analytics.io.period_document import faults
from analytics.io.periods import NotReadyError, close_month, exported, find, look, reopen
from analytics.io.signing import make_key, read_key, read_public_key
from analytics.io.statements import GroupBy, bill
from analytics.io.verify import Problem, hours_between, look_at
from analytics.jobs import HourCloser, WorkerSettings
from analytics.model.month import Month, month
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db
NOVEMBER = month("2026-11")
LATER = datetime(2026, 12, 2, tzinfo=UTC)
LATENESS = timedelta(minutes=15)
NINE = HOUR_AT + HOUR
FIRST_OF_DECEMBER = datetime(2026, 12, 1, tzinfo=UTC)
COST = "SELECT coalesce(sum(billed_cost), 0) FROM current_ledger_lines WHERE hour_at >= %s AND hour_at < %s"
POSTED = "SELECT charge_category, holder_key, billed_cost, energy_mj, reason FROM ledger_corrections ORDER BY id"


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    """One job from 8:00 to 9:00 at 100 W, and the hour after it until its last reading: 2 x (2 USD + 0.1 kWh at 0.20)."""
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + 2 * HOUR)
    fleet.job("7", HOUR_AT, NINE)
    closed(fleet)
    return fleet


@pytest.fixture
def owner(fleet: SmallFleet) -> Iterator[psycopg.Connection[Any]]:
    with fleet.database.connect("owner", autocommit=True) as connection:
        yield connection


def closed(fleet: SmallFleet) -> None:
    HourCloser(fleet.database, WorkerSettings(code_version="test")).run(LATER)


def close(owner: psycopg.Connection[Any], **how: Any) -> Any:
    given: dict[str, Any] = {"now": LATER, "lateness": LATENESS, "by": "ada"} | how
    return close_month(owner, given.pop("month", NOVEMBER), given.pop("site", None), **given)


def problems(fleet: SmallFleet) -> list[Problem]:
    with fleet.admin() as connection:
        hours = hours_between(connection, NOVEMBER.from_at, LATER)
        return [problem for hour in hours for problem in look_at(connection, hour).problems]


def cost(fleet: SmallFleet, of: Month) -> Decimal:
    ((amount,),) = fleet.rows(COST, of.from_at, of.to_at)
    return Decimal(amount)


def tariff_was(fleet: SmallFleet, amount: str) -> None:
    """Correct the tariff of ever, and announce it."""
    fleet.tariff_was(amount)
    closed(fleet)


def test_the_checklist_says_each_with_its_figures(fleet: SmallFleet, owner: psycopg.Connection[Any]) -> None:
    items = {item.name: item for item in look(owner, NOVEMBER, None, now=LATER, lateness=LATENESS)}
    # The last reading is right on 10:00, and so the hour after it is in the books, with nothing known of it.
    assert items["hours"].figures == {"closed": 3, "open": 0, "due": 0, "without_books": 709}
    assert items["attested"].figures == {"hours": 3, "not_attested": 3}
    assert items["coverage"].figures == {"coverage_ratio": "0.666667"}
    assert items["coverage"].verdict is Verdict.STOP
    assert items["feeds"].figures["nodes"] == ["n1"]
    assert items["prices"].verdict is items["mapped"].verdict is items["disputes"].verdict is Verdict.OK
    early = {item.name: item for item in look(owner, NOVEMBER, None, now=HOUR_AT + 5 * HOUR, lateness=LATENESS)}
    assert early["hours"].verdict is Verdict.STOP
    with pytest.raises(InputError, match="--accept hours: that cannot be accepted: the month is over"):
        close(owner, now=HOUR_AT + 5 * HOUR, accepted=["coverage", "hours"])


def test_a_stop_stops_until_it_is_accepted_by_name(fleet: SmallFleet, owner: psycopg.Connection[Any]) -> None:
    with pytest.raises(NotReadyError, match="2026-11 is not closed: coverage; settle them"):
        close(owner)
    assert fleet.rows("SELECT count(*) FROM ledger_periods") == [(0,)]
    with pytest.raises(InputError, match="--accept everything: the checklist has hours"):
        close(owner, accepted=["everything"])
    done = close(owner, accepted=["coverage"])
    accepted = [item for item in done.period.checklist if "accepted_by" in item]
    assert [(item["name"], item["accepted_by"]) for item in accepted] == [("coverage", "ada")]
    ((actor, action, detail),) = fleet.rows("SELECT actor, action, detail FROM audit WHERE action LIKE 'close.%%'")
    assert (actor, action, detail["root"]) == ("ada", "close.month", done.period.root_sha256.hex())
    with pytest.raises(InputError, match="closed already, as number 1"):
        close(owner, accepted=["coverage"])


def test_the_root_is_signed_by_a_key_that_is_nowhere_in_the_database(
    fleet: SmallFleet, owner: psycopg.Connection[Any], tmp_path: Path
) -> None:
    public = make_key(tmp_path / "close.key")
    done = close(owner, accepted=["coverage"], key=read_key(tmp_path / "close.key"))
    assert faults(done.document, read_public_key(public)) == []
    assert done.document["totals"]["billed_cost"] == {"USD": "6.040000000"}
    again = exported(owner, done.period)
    assert {name: again[name] for name in again if name != "public_key"} == {
        name: done.document[name] for name in again if name != "public_key"
    }
    done.document["hours"][0][2] += 1
    assert any("lead to the root" in fault for fault in faults(done.document, read_public_key(public)))
    other = make_key(tmp_path / "other.key")
    assert any("is not by the key" in fault for fault in faults(again, read_public_key(other)))
    with pytest.raises(InputError, match="never written over"):
        make_key(tmp_path / "close.key")
    (tmp_path / "close.key").chmod(0o644)
    with pytest.raises(InputError, match="can be read by others"):
        read_key(tmp_path / "close.key")


def test_what_comes_after_the_close_moves_nothing_there_and_is_posted_in_december_to_the_last_digit(
    fleet: SmallFleet, owner: psycopg.Connection[Any]
) -> None:
    root = close(owner, accepted=["coverage"]).period.root_sha256
    before = cost(fleet, NOVEMBER)

    tariff_was(fleet, "0.51")  # 0.31 more for each of 0.2 kWh

    december = month("2026-12")
    assert cost(fleet, NOVEMBER) == before == Decimal("6.04")
    assert cost(fleet, december) == Decimal("0.062")
    assert fleet.rows(POSTED) == [
        ("electricity", "job:c1|7|1793520000.000000", Decimal("0.031000000"), None, "changed rates: tariffs"),
        ("electricity", "idle", Decimal("0.031000000"), None, "changed rates: tariffs"),
    ]
    again = find(owner, "2026-11", None)
    assert again is not None
    assert again.root_sha256 == root
    assert problems(fleet) == []
    runs = "SELECT kind, revision, after_period_id IS NOT NULL FROM ledger_runs WHERE hour_at = %s ORDER BY id"
    assert fleet.rows(runs, HOUR_AT) == [("close", 1, False), ("rate", 2, True)]

    tariff_was(fleet, "0.50")  # a second change posts the further difference only

    assert [row[2] for row in fleet.rows(POSTED)[2:]] == [Decimal("-0.001000000")] * 2
    assert cost(fleet, december) == Decimal("0.060")
    assert problems(fleet) == []


def test_late_readings_of_a_frozen_hour_and_of_one_that_had_no_books_are_posted(
    fleet: SmallFleet, owner: psycopg.Connection[Any]
) -> None:
    close(owner, accepted=["coverage"])
    noon = HOUR_AT + 4 * HOUR
    fleet.samples(noon, noon + HOUR - timedelta(seconds=10), start_mj=1_000_000_000)
    closed(fleet)
    counted = "SELECT revision, shadow_revision, frozen_period_id IS NOT NULL FROM ledger_hours WHERE hour_at = %s"
    assert fleet.rows(counted, noon) == [(0, 1, True)]
    assert fleet.rows("SELECT count(*) FROM current_ledger_lines WHERE hour_at = %s", noon) == [(0,)]
    assert cost(fleet, NOVEMBER) == Decimal("6.04")
    posted = "SELECT DISTINCT posted_hour_at FROM ledger_corrections"
    assert fleet.rows(posted) == [(FIRST_OF_DECEMBER,)]
    assert problems(fleet) == []


def test_a_reopened_month_counts_what_it_would_be_by_now_and_its_second_close_says_what_moved_and_why(
    fleet: SmallFleet, owner: psycopg.Connection[Any]
) -> None:
    close(owner, accepted=["coverage"])
    tariff_was(fleet, "0.51")

    reopened = reopen(owner, "2026-11", None, by="grace", reason="wrong tariff", now=LATER)

    assert (reopened.status, reopened.reopened_by) == ("reopened", "grace")
    assert cost(fleet, NOVEMBER) == Decimal("6.102")
    assert cost(fleet, month("2026-12")) == 0  # taken back where it was posted
    assert problems(fleet) == []
    with pytest.raises(InputError, match="2026-11 is not closed"):
        reopen(owner, "2026-11", None, by="grace", reason="again", now=LATER)

    second = close(owner, accepted=["coverage"])

    assert second.period.number == 2
    assert [(row["category"], row["billed_cost"], row["reasons"]) for row in second.document["moved"]["told"]] == [
        ("electricity", "0.031000000", ["changed rates: tariffs"]),
    ] * 2
    assert exported(owner, second.period)["moved"] == second.document["moved"]
    assert faults(second.document, None) == []
    assert problems(fleet) == []


def test_corrections_belong_to_the_month_they_are_posted_in_and_are_under_its_root(
    fleet: SmallFleet, owner: psycopg.Connection[Any]
) -> None:
    close(owner, accepted=["coverage"])
    tariff_was(fleet, "0.51")
    january = datetime(2027, 1, 2, tzinfo=UTC)

    with pytest.raises(NotReadyError):
        close(owner, month=month("2026-12"), now=january)
    done = close(owner, month=month("2026-12"), now=january, accepted=["hours"])

    assert (done.period.hours, done.period.corrections) == (0, 2)
    assert [row[4] for row in done.document["corrections"]] == ["changed rates: tariffs"] * 2
    tariff_was(fleet, "0.20")
    posted = "SELECT posted_hour_at, sum(billed_cost) FROM ledger_corrections GROUP BY 1 ORDER BY 1"
    assert fleet.rows(posted) == [
        (FIRST_OF_DECEMBER, Decimal("0.062000000")),
        (datetime(2027, 1, 1, tzinfo=UTC), Decimal("-0.062000000")),
    ]


def test_by_device_a_correction_is_of_none_whatever_stood_in_the_hour_it_is_posted_in(
    fleet: SmallFleet, owner: psycopg.Connection[Any]
) -> None:
    fleet.samples(FIRST_OF_DECEMBER, FIRST_OF_DECEMBER + HOUR, start_mj=9_000_000_000)
    closed(fleet)
    close(owner, accepted=["coverage", "hours"])
    before = by_device(fleet)
    fleet.rows("UPDATE intensity SET superseded_at = now() WHERE superseded_at IS NULL RETURNING 1")
    fleet.rows(
        "INSERT INTO intensity (grid_zone, basis, gco2e_per_kwh, life_cycle, source, valid_from) "
        "VALUES ('TEST', 'location', 1.23, false, 'test', '2026-10-01Z') RETURNING 1"
    )
    with fleet.admin() as connection:
        fleet.changed("intensity", HOUR_AT, HOUR_AT + 2 * HOUR, connection)
    tariff_was(fleet, "0.10")
    ((cost_owed, carbon_owed),) = fleet.rows("SELECT sum(billed_cost), sum(carbon_gco2e) FROM ledger_corrections")
    assert cost_owed == Decimal("-0.02")
    assert carbon_owed < -70
    assert by_device(fleet) == before | {"(no device)": (cost_owed, carbon_owed)}


def by_device(fleet: SmallFleet) -> dict[str, tuple[Decimal, Decimal]]:
    """Return cost and grams of December by device, of all tenants."""
    engine = fleet.database.create_engine("worker")
    with engine.connect() as connection:
        rows = bill(connection, FIRST_OF_DECEMBER, LATER, GroupBy.DEVICE).rows
    engine.dispose()
    found: dict[str, tuple[Decimal, Decimal]] = {}
    for row in rows:
        cost_so_far, grams_so_far = found.get(row.key, (Decimal(0), Decimal(0)))
        figures = row.figures
        found[row.key] = (cost_so_far + (figures.cost or 0), grams_so_far + (figures.carbon_gco2e or 0))
    return found


def test_a_site_of_its_own_is_closed_alone_and_the_rest_without_it(
    fleet: SmallFleet, owner: psycopg.Connection[Any]
) -> None:
    done = close(owner, site="s1", accepted=["coverage"])
    assert done.document["period"]["site"] == "s1"
    with pytest.raises(InputError, match="there is no site yet"):
        close(owner)
    with pytest.raises(InputError, match="there is no site fra9"):
        close(owner, site="fra9")


def test_a_site_closed_alone_beside_the_rest_is_opened_and_closed_again(
    fleet: SmallFleet, owner: psycopg.Connection[Any]
) -> None:
    fleet.rows("INSERT INTO sites (name, grid_zone) VALUES ('s2', 'TEST') RETURNING 1")
    close(owner, site="s1", accepted=["coverage"])
    rest = close(owner, accepted=["coverage", "hours", "mapped"])
    assert rest.document["apart"] == ["s1"]
    reopen(owner, "2026-11", "s1", by="ada", reason="wrong tariff", now=LATER)
    tariff_was(fleet, "0.51")
    assert fleet.rows("SELECT count(*) FROM ledger_corrections") == [(0,)]  # open, whatever the others are
    assert cost(fleet, NOVEMBER) == Decimal("6.102")
    again = close(owner, site="s1", accepted=["coverage"])
    assert (again.period.number, again.document["moved"]["lines"]) == (2, 2)
    assert fleet.rows("SELECT DISTINCT frozen_period_id FROM ledger_hours") == [(again.period.period_id,)]


def test_no_worker_lets_a_frozen_hour_go(fleet: SmallFleet, owner: psycopg.Connection[Any]) -> None:
    close(owner, accepted=["coverage"])
    with fleet.database.connect("worker", autocommit=True) as worker:
        for change in ("frozen_period_id = NULL", "revision = revision + 1", "status = 'provisional'"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="is frozen in a closed month"):
                worker.execute(f"UPDATE ledger_hours SET {change}".encode())
        assert worker.execute("UPDATE ledger_hours SET closed_at = now()").rowcount == 3
    reopen(owner, "2026-11", None, by="ada", reason="wrong tariff", now=LATER)
    assert fleet.rows("SELECT count(frozen_period_id) FROM ledger_hours") == [(0,)]


def test_lines_from_before_chains_are_followed_by_the_names_of_now(
    fleet: SmallFleet, owner: psycopg.Connection[Any]
) -> None:
    named = fleet.rows("SELECT line_key, holder_key FROM ledger_lines ORDER BY 1")
    with fleet.admin() as rogue:  # as they were written before migration 0044
        rogue.execute("SET session_replication_role = replica")
        rogue.execute("UPDATE ledger_lines SET holder_key = NULL, ordinal = NULL, chain_sha256 = NULL")
        rogue.execute("UPDATE ledger_runs SET head_sha256 = NULL, line_count = NULL")
    close(owner, accepted=["coverage"])
    assert fleet.rows("SELECT line_key, holder_key FROM ledger_lines ORDER BY 1") == named
    tariff_was(fleet, "0.51")
    # 0.1 kWh x 0.31 USD, of the job and of the idle hour after it, and nothing else.
    assert [row[2] for row in fleet.rows(POSTED)] == [Decimal("0.031"), Decimal("0.031")]
