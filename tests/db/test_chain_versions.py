"""Lines that say what came later stand beside lines of before: each in its own chain, found where altered, and summed where they count."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import polars as pl
import psycopg
import pytest

from analytics.inputs import Window
from analytics.io.bill_spans import sum_spans
from analytics.io.hours import due_hours
from analytics.io.load_rating import load_rating
from analytics.io.periods import close_month
from analytics.io.runs import Run, Saved
from analytics.io.save_rated import RatedBooks, save_rated
from analytics.io.verify_period import Verified, verify
from analytics.jobs import HourCloser, WorkerSettings
from analytics.model.month import month
from analytics.pipeline import rate_hours
from analytics.policy import Policy
from ingest.store.engine import Database
from tests.db.ledger_fixture import HOUR, HOUR_AT, SmallFleet, small_fleet

pytestmark = pytest.mark.db
NOVEMBER: Final = month("2026-11")
LATER: Final = datetime(2026, 12, 2, tzinfo=UTC)
MARKET: Final = Decimal("12.500000000")
CHAINED: Final = "SELECT chain_version FROM ledger_runs ORDER BY id"


@pytest.fixture
def fleet(db: Database) -> SmallFleet:
    """A job's hour, closed."""
    fleet = small_fleet(db)
    fleet.samples(HOUR_AT, HOUR_AT + HOUR - timedelta(seconds=10))
    fleet.job("7", HOUR_AT, HOUR_AT + HOUR)
    HourCloser(fleet.database, WorkerSettings(code_version="test")).run(LATER)
    return fleet


def rated(fleet: SmallFleet, *later: pl.Expr) -> Saved:
    """Rate the hour once more, as formulas would that say more of the job's own line."""
    with fleet.admin() as admin:
        fleet.changed("prices", HOUR_AT, HOUR_AT + HOUR, admin)
    with fleet.database.connect("worker", autocommit=True) as worker:
        (hour,) = [each for each in due_hours(worker, LATER) if each.hour_at == HOUR_AT]
        loaded = load_rating(worker, [hour], Window(HOUR_AT, HOUR_AT + HOUR, LATER), "USD")
        assert loaded is not None
        books = rate_hours(loaded.inputs)
        mine = (pl.col("pool") == "job") & (pl.col("charge_category") == "gpu_owned")
        said = books.lines.with_columns(
            pl.when(mine).then(each).otherwise(pl.col(each.meta.output_name())) for each in later
        )
        run = Run("test", loaded.as_of, loaded.seen_xid, loaded.read, Policy(), "test")
        return save_rated(worker, hour, RatedBooks(books.usage, said, books.findings, books.job_tenants), run)


def wider(fleet: SmallFleet) -> tuple[pl.Expr, ...]:
    ((number,),) = fleet.rows("SELECT min(id) FROM intensity")
    return (
        pl.lit(MARKET, pl.Decimal(38, 9)).alias("carbon_market_gco2e"),
        pl.lit(49_000, pl.Int64).alias("water_ml"),
        pl.lit("2").alias("ghg_scope"),
        pl.lit("spot").alias("terms"),
        pl.lit(number, pl.Int32).alias("intensity_id"),
        pl.lit("EUR").alias("source_currency"),
        pl.lit(Decimal("1.234567890123456789"), pl.Decimal(38, 18)).alias("source_cost"),
    )


def look(fleet: SmallFleet) -> Verified:
    with fleet.database.connect("worker", autocommit=True) as connection:
        return verify(connection, from_at=NOVEMBER.from_at, to_at=LATER)


def kinds(found: Verified) -> set[str]:
    return {problem.kind for problem in found.problems}


@pytest.fixture
def rogue(fleet: SmallFleet) -> Iterator[psycopg.Connection[Any]]:
    """A superuser whom no trigger and no policy sees."""
    with fleet.admin() as connection:
        connection.execute("SET session_replication_role = replica")
        yield connection


def freeze(fleet: SmallFleet) -> dict[str, Any]:
    with fleet.database.connect("owner", autocommit=True) as owner:
        accepted = ["coverage", "mapped"]
        closed = close_month(
            owner, NOVEMBER, None, now=LATER, lateness=timedelta(minutes=15), by="ada", accepted=accepted
        )
    return closed.document


def test_an_hour_that_says_nothing_more_is_no_new_revision_and_of_the_first_version(fleet: SmallFleet) -> None:
    assert rated(fleet) is Saved.UNCHANGED
    assert fleet.rows(CHAINED) == [(None,)]


def test_an_hour_that_says_more_is_chained_anew_and_holds(fleet: SmallFleet) -> None:
    assert rated(fleet, *wider(fleet)) is Saved.WRITTEN
    assert fleet.rows(CHAINED) == [(None,), (2,)]
    assert fleet.rows("SELECT carbon_market_gco2e, source_cost FROM current_ledger_lines WHERE terms = 'spot'") == [
        (MARKET, Decimal("1.234567890123456789"))
    ]
    assert look(fleet).problems == ()
    assert rated(fleet, *wider(fleet)) is Saved.UNCHANGED
    # And back: by the formulas of before it is what it was.
    assert rated(fleet) is Saved.WRITTEN
    assert fleet.rows(CHAINED) == [(None,), (2,), (None,)]
    ((first, last),) = fleet.rows("SELECT min(encode(head_sha256, 'hex')), max(encode(head_sha256, 'hex')) FROM ledger_runs WHERE chain_version IS NULL")  # fmt: skip
    assert first == last
    assert look(fleet).problems == ()


@pytest.mark.parametrize(
    "change",
    ["carbon_market_gco2e = carbon_market_gco2e + 0.000000001", "terms = NULL", "intensity_id = NULL", "source_cost = 1.234567890123456788", "basis = 'usage'"],
)  # fmt: skip
def test_what_came_later_cannot_be_altered_unseen(
    fleet: SmallFleet, rogue: psycopg.Connection[Any], change: str
) -> None:
    rated(fleet, *wider(fleet))
    rogue.execute(f"UPDATE ledger_lines SET {change} WHERE terms = 'spot'".encode())
    assert "altered" in kinds(look(fleet))


def test_what_is_put_into_a_line_of_before_is_found(fleet: SmallFleet, rogue: psycopg.Connection[Any]) -> None:
    rogue.execute("UPDATE ledger_lines SET water_ml = 1 WHERE pool = 'job' AND charge_category = 'gpu_owned'")
    assert kinds(look(fleet)) == {"altered"}


def test_a_version_that_was_changed_is_found(fleet: SmallFleet, rogue: psycopg.Connection[Any]) -> None:
    rogue.execute("UPDATE ledger_runs SET chain_version = 2")
    assert kinds(look(fleet)) == {"altered"}


def test_of_a_frozen_hour_what_came_later_is_posted_to_the_last_digit(
    fleet: SmallFleet, rogue: psycopg.Connection[Any]
) -> None:
    assert "carbon_market_gco2e" not in freeze(fleet)["totals"]
    rated(fleet, *wider(fleet))
    posted = "SELECT carbon_market_gco2e, water_ml, ghg_scope, terms, billed_cost FROM ledger_corrections ORDER BY id"
    assert fleet.rows(posted) == [(MARKET, 49_000, "2", "spot", Decimal(0))]
    assert look(fleet).problems == ()
    # By the formulas of before nothing is left of it.
    rated(fleet)
    assert fleet.rows(posted)[1][:2] == (-MARKET, -49_000)
    assert look(fleet).problems == ()
    rogue.execute("UPDATE ledger_corrections SET carbon_market_gco2e = carbon_market_gco2e + 0.000000001")
    assert kinds(look(fleet)) == {"altered", "sums"}


def test_a_month_that_says_more_tells_it_in_its_document(fleet: SmallFleet) -> None:
    rated(fleet, *wider(fleet))
    told = freeze(fleet)["totals"]
    assert (told["carbon_market_gco2e"], told["water_ml"]) == ("12.500000000", "49000")
    assert "embodied_gco2e" not in told
    assert look(fleet).problems == ()


def test_sums_of_before_are_made_again_with_what_came_later(fleet: SmallFleet, rogue: psycopg.Connection[Any]) -> None:
    rated(fleet, *wider(fleet))
    with fleet.database.connect("worker", autocommit=True) as worker:
        sum_spans(worker, for_s=60)
        # As a replica of the version before leaves them: without the mark, and without the columns.
        rogue.execute("UPDATE bill_lines SET carbon_market_gco2e = NULL")
        rogue.execute("UPDATE bill_spans SET revisions = substr(revisions, 3)")
        assert look(fleet).problems == ()
        sum_spans(worker, for_s=60)
    ((revisions,),) = fleet.rows("SELECT revisions FROM bill_spans")
    assert revisions == "3|08:2"
    assert fleet.rows("SELECT sum(carbon_market_gco2e), sum(water_ml) FROM bill_lines") == [(MARKET, 49_000)]
    assert look(fleet).problems == ()
