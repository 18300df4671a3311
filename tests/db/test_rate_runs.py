"""What only tenants and prices hang on is rated again on the usage hours there are: no sample is read and no usage hour written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from analytics.closing import hours
from analytics.io.book_rows import bind_jobs
from analytics.io.hours import due_hours
from analytics.io.load_rating import load_rating
from analytics.io.periods import close_month
from analytics.io.runs import HourState
from analytics.jobs import HourCloser, WorkerSettings
from analytics.minutes import MinutesMaker
from analytics.model.month import month
from ingest.store import migrate, tenancy
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db
SETTINGS = WorkerSettings(code_version="test")
LATER = HOUR_AT + 6 * HOUR
NINE = HOUR_AT + HOUR
RUNS = "SELECT kind, revision, coalesce(usage_revision, revision) FROM ledger_runs WHERE hour_at = %s ORDER BY id"
USAGE = "SELECT hour_at, revision, device_id, holder, tenant_id, energy_mj, method FROM usage_hours ORDER BY 1, 2, 3, 4"
LINES = (
    "SELECT hour_at, tenant_id, pool, charge_category, effective_cost, energy_mj, carbon_gco2e FROM current_ledger_lines "
    "ORDER BY hour_at, charge_category, line_key"
)


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    """100 W from 8:00 to 10:00: one job all the time, another tenant's for its first half, one of nobody's account after that."""
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + 2 * HOUR)
    fleet.rows("UPDATE device_samples SET gpu_util_percent = 0 RETURNING 1")
    fleet.job("7", HOUR_AT, NINE)
    fleet.job("8", NINE, NINE + timedelta(minutes=30), account="vision")
    return fleet


@pytest.fixture
def closer(fleet: SmallFleet) -> HourCloser:
    closer = HourCloser(fleet.database, SETTINGS)
    closer.run(LATER)
    return closer


def rebound(fleet: SmallFleet) -> int:
    """Bind the account of the first job to another tenant, from ever, and announce it; return the tenant."""
    ((tenant_id,),) = fleet.rows("INSERT INTO tenants (path) VALUES ('globex') RETURNING id")
    bind_nlp(fleet, int(tenant_id))
    return int(tenant_id)


def bind_nlp(fleet: SmallFleet, tenant_id: int) -> None:
    fleet.rows("UPDATE bindings SET superseded_at = now() WHERE superseded_at IS NULL RETURNING 1")
    fleet.rows(
        "INSERT INTO bindings (position, tenant_id, account, valid_from) VALUES (1, %s, 'nlp', '2026-10-01Z') RETURNING 1",
        tenant_id,
    )
    announce(fleet, "bindings")


def announce(fleet: SmallFleet, kind: str) -> None:
    with fleet.admin() as connection:
        fleet.changed(kind, HOUR_AT, HOUR_AT + 2 * HOUR, connection)


def no_readings(*_: Any, **__: Any) -> Any:
    raise AssertionError("a rating reads no sample")


def test_a_corrected_binding_moves_lines_and_no_usage_hour(
    fleet: SmallFleet, closer: HourCloser, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = fleet.rows(USAGE)
    monkeypatch.setattr(hours, "begin_batch", no_readings)
    tenant_id = rebound(fleet)

    done = closer.run(LATER)

    # Only at 8:00 a job changed hands. 0.1 kWh at 0.20 USD and 400 g, and an hour at 2 USD. The last reading is right on 10:00.
    assert (done.rated, done.restated, done.unchanged, done.failed) == (1, 1, 2, 0)
    assert fleet.rows(USAGE) == usage
    assert fleet.rows(RUNS, HOUR_AT) == [("close", 1, 1), ("rate", 2, 1)]
    assert fleet.rows(RUNS, NINE) == [("close", 1, 1)]
    assert [row[1:] for row in fleet.rows(LINES) if row[0] == HOUR_AT] == [
        (tenant_id, "job", "electricity", Decimal("0.020000000"), None, None),
        (tenant_id, "job", "gpu_owned", Decimal("2.000000000"), 360_000_000, Decimal("40.000000000")),
    ]
    shown = "SELECT tenant_id, energy_mj FROM current_usage_hours WHERE hour_at = %s"
    assert fleet.rows(shown, HOUR_AT) == [(tenant_id, 360_000_000)]
    assert fleet.rows("SELECT tenant_id FROM jobs WHERE native_id = '7'") == [(tenant_id,)]
    found = fleet.rows(
        "SELECT tenant_id FROM findings WHERE kind = 'idle_waste' AND withdrawn_at IS NULL AND start_at < %s", NINE
    )
    assert found == [(tenant_id,)]
    with fleet.admin() as connection:
        assert due_hours(connection, LATER) == []


def test_a_corrected_price_and_tariff_rate_the_same_usage_and_its_findings(
    fleet: SmallFleet, closer: HourCloser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hours, "begin_batch", no_readings)
    for table, column in (("prices", "amount"), ("tariffs", "amount_per_kwh")):
        fleet.rows(f"UPDATE {table} SET {column} = {column} * 2 RETURNING 1")
        announce(fleet, table)

    done = closer.run(LATER)

    assert (done.rated, done.failed) == (3, 0)
    costs = "SELECT revision, sum(effective_cost) FROM ledger_lines WHERE hour_at = %s GROUP BY 1 ORDER BY 1"
    assert fleet.rows(costs, HOUR_AT) == [(1, Decimal("2.020000000")), (2, Decimal("4.040000000"))]
    ((cash,),) = fleet.rows("SELECT avoidable_cash FROM findings WHERE kind = 'idle_waste' AND start_at < %s", NINE)
    assert cash == Decimal("0.040000000")  # all of 0.1 kWh
    ((difference,),) = fleet.rows("SELECT diff FROM ledger_runs WHERE hour_at = %s AND kind = 'rate'", HOUR_AT)
    assert (difference["before"]["effective_cost"], difference["after"]["effective_cost"]) == (
        "2.020000000",
        "4.040000000",
    )


def test_a_rating_is_what_closing_as_a_whole_gives(fleet: SmallFleet, closer: HourCloser) -> None:
    rebound(fleet)
    closer.run(LATER)
    rated = fleet.rows(LINES)
    announce(fleet, "allocations")

    done = closer.run(LATER)

    assert (done.unchanged, done.restated) == (3, 0)  # to the hash of its content
    assert fleet.rows(LINES) == rated
    assert fleet.rows(RUNS, HOUR_AT) == [("close", 1, 1), ("rate", 2, 1), ("attest", 2, 1)]
    assert fleet.rows("SELECT sum(energy_mj)::bigint FROM current_usage_hours") == [(720_000_000,)]


def test_an_hour_rated_after_a_later_one_was_leaves_the_job_with_the_tenant_of_the_later(
    fleet: SmallFleet, closer: HourCloser
) -> None:
    """The later hour's usage is of revision 1, and counts by the rating of revision 2 that names it."""
    ((seven,),) = fleet.rows("SELECT id FROM jobs WHERE native_id = '7'")
    fleet.rows("UPDATE allocations SET end_at = %s WHERE job_id = %s RETURNING 1", NINE + timedelta(minutes=10), seven)
    fleet.rows(
        "UPDATE allocations SET start_at = %s WHERE job_id <> %s RETURNING 1", NINE + timedelta(minutes=10), seven
    )
    announce(fleet, "allocations")
    closer.run(LATER)
    later = rebound(fleet)
    closer.run(LATER)
    assert fleet.rows(
        "SELECT revision, usage_revision FROM ledger_runs WHERE kind = 'rate' AND hour_at = %s", NINE
    ) == [(3, 2)]

    ((binding,),) = fleet.rows("SELECT min(id) FROM bindings")
    of_then = pl.DataFrame({"job_id": [seven], "tenant_id": [fleet.tenant_id], "binding_id": [binding]})
    with fleet.database.connect("worker") as connection:
        bind_jobs(connection, HourState(fleet.site_id, HOUR_AT, None, None, None, None), of_then)
    assert fleet.rows("SELECT tenant_id FROM jobs WHERE id = %s", seven) == [(later,)]


def test_what_else_changed_has_the_hour_closed_as_a_whole(fleet: SmallFleet, closer: HourCloser) -> None:
    rebound(fleet)
    fleet.rows(
        "UPDATE device_samples SET energy_mj = energy_mj + 1000000 WHERE at > %s RETURNING 1",
        HOUR_AT + timedelta(minutes=59),
    )
    announce(fleet, "device_samples")
    done = closer.run(LATER)
    assert (done.rated, done.restated) == (0, 1)  # 9:00 only moved along
    assert fleet.rows(RUNS, HOUR_AT) == [("close", 1, 1), ("close", 2, 2)]
    assert fleet.rows("SELECT count(*) FROM hour_jobs") == [(0,)]


def test_a_holding_told_of_while_a_rating_begins_is_not_taken_for_seen(
    fleet: SmallFleet, closer: HourCloser, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebound(fleet)

    def just_after_a_job_came(*arguments: Any) -> Any:
        if not fleet.rows("SELECT 1 FROM jobs WHERE native_id = '9'"):
            fleet.job("9", NINE + timedelta(minutes=30), HOUR_AT + 2 * HOUR)
        return load_rating(*arguments)

    monkeypatch.setattr(hours, "load_rating", just_after_a_job_came)
    closer.run(LATER)

    assert [row[0] for row in fleet.rows(RUNS, NINE)] == ["close", "close"]
    held = "SELECT count(*) FROM current_usage_hours WHERE hour_at = %s AND job_id IS NOT NULL"
    assert fleet.rows(held, NINE) == [(2,)]


def seen(fleet: SmallFleet, path: str, of: str = "current_usage_hours") -> list[int]:
    """Return the energy of the usage hours a tenant sees."""
    engine = fleet.database.create_engine("api")
    with engine.connect() as connection, tenancy.tenant_scope(connection, path):
        found = connection.exec_driver_sql(f"SELECT energy_mj FROM {of} WHERE energy_mj IS NOT NULL").scalars().all()
    engine.dispose()
    return list(found)


def test_a_tenant_sees_what_was_rated_to_it_and_no_more_what_it_had(fleet: SmallFleet, closer: HourCloser) -> None:
    rebound(fleet)
    closer.run(LATER)
    assert seen(fleet, "globex") == [360_000_000]
    assert seen(fleet, "acme") == []
    assert sum(seen(fleet, "*")) == 720_000_000


def test_what_was_rated_to_a_tenant_and_taken_back_it_sees_no_more(fleet: SmallFleet, closer: HourCloser) -> None:
    rebound(fleet)
    closer.run(LATER)
    bind_nlp(fleet, fleet.tenant_id)
    announce(fleet, "device_samples")  # so the hour is closed as a whole, and its usage hours name their tenants again
    assert closer.run(LATER).restated == 1
    assert seen(fleet, "globex") == seen(fleet, "globex", "usage_hours") == []
    assert seen(fleet, "acme") == [360_000_000]


def test_what_a_closed_month_would_be_shows_a_tenant_nothing_of_what_it_is(
    fleet: SmallFleet, closer: HourCloser
) -> None:
    with fleet.database.connect("owner", autocommit=True) as connection:
        december = datetime(2026, 12, 2, tzinfo=UTC)
        accepted = ["coverage", "mapped"]
        close_month(
            connection, month("2026-11"), None, now=december, lateness=timedelta(0), by="ada", accepted=accepted
        )
    rebound(fleet)
    closer.run(LATER)
    assert [row[0] for row in fleet.rows(RUNS, HOUR_AT)] == ["close", "rate"]
    assert seen(fleet, "globex") == seen(fleet, "globex", "usage_hours") == []
    assert seen(fleet, "acme") == [360_000_000]


def test_minutes_by_tenant_of_a_job_that_changed_hands_are_made_anew(fleet: SmallFleet, closer: HourCloser) -> None:
    maker = MinutesMaker(fleet.database, SETTINGS)
    maker.step()
    tenant_id = rebound(fleet)
    closer.run(LATER)
    fleet.rows("UPDATE minute_rollups SET temp_c = 99 RETURNING 1")
    assert maker.step().made >= 1
    minutes = "SELECT tenant_id, sum(energy_mj)::bigint FROM tenant_minutes WHERE minute_at < %s GROUP BY 1"
    assert fleet.rows(minutes, NINE) == [(tenant_id, 360_000_000)]
    assert fleet.rows("SELECT DISTINCT temp_c FROM minute_rollups") == [(99,)]  # those by device stand


def test_a_price_has_no_minute_made_anew(fleet: SmallFleet, closer: HourCloser) -> None:
    maker = MinutesMaker(fleet.database, SETTINGS)
    maker.step()
    fleet.rows("UPDATE prices SET amount = amount * 2 RETURNING 1")
    announce(fleet, "prices")
    assert closer.run(LATER).rated == 3
    assert maker.step().made == 0


def test_on_the_way_back_rated_usage_is_written_out(fleet: SmallFleet, closer: HourCloser) -> None:
    rebound(fleet)
    closer.run(LATER)
    current = "SELECT hour_at, device_id, holder, tenant_id, energy_mj FROM current_usage_hours ORDER BY 1, 2, 3"
    shown = fleet.rows(current)
    migrate.downgrade(fleet.database.url, "0039_series_xids")
    assert fleet.rows(current) == shown
    migrate.upgrade(fleet.database.url)
    assert fleet.rows(current) == shown


def test_a_corrected_intensity_and_a_facility_factor_rate_the_same_usage(
    fleet: SmallFleet, closer: HourCloser, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 0.1 kWh of the first job: at 400 g/kWh 40 g; at 300 and a facility factor of 1.2 it is 0.12 kWh and 36 g.
    carried = (
        "SELECT carbon_gco2e, facility_mj, facility_category FROM current_ledger_lines "
        "WHERE hour_at = %s AND energy_mj IS NOT NULL"
    )
    assert fleet.rows(carried, HOUR_AT) == [(Decimal("40.000000000"), None, None)]
    usage = fleet.rows(USAGE)
    monkeypatch.setattr(hours, "begin_batch", no_readings)
    fleet.rows("UPDATE intensity SET superseded_at = now() RETURNING 1")
    fleet.rows(
        "INSERT INTO intensity (grid_zone, basis, gco2e_per_kwh, life_cycle, source, valid_from) "
        "SELECT grid_zone, basis, 300, life_cycle, source, valid_from FROM intensity RETURNING 1"
    )
    announce(fleet, "intensity")
    fleet.rows(
        "INSERT INTO facility_factors (site_id, factor, category, source, valid_from) VALUES (%s, 1.2, 2, 'test', '2020-01-01Z') "
        "RETURNING 1",
        fleet.site_id,
    )
    announce(fleet, "facility_factors")

    made = closer.run(LATER)

    assert (made.failed, made.rated) == (0, 2)
    assert fleet.rows(carried, HOUR_AT) == [(Decimal("36.000000000"), 432_000_000, 2)]
    assert fleet.rows(RUNS, HOUR_AT) == [("close", 1, 1), ("rate", 2, 1)]
    assert fleet.rows(USAGE) == usage
