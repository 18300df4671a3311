"""What an accelerator-hour came to, and what went into work that came to nothing. Figures are worked out beside each test."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa

from analytics.io import statement_formats as formats
from analytics.io.bill_spans import sum_spans
from analytics.io.statements import Bill, BillRow, Figures, GroupBy, bill
from analytics.io.unit_figures import NOTHING, UnitFigures, idle_of, unit_figures
from ingest.store.engine import Database
from ingest.store.tables import books, work
from tests.fakes.books import HOUR_US, KWH_MJ, Books, hour, usage

pytestmark = pytest.mark.db


@pytest.fixture
def filled(db: Database) -> Iterator[Books]:
    """Two hours: run 1 of acme/nlp fails after the first and ends well in the second; beside it idle time, then a preempted job."""
    engine = db.create_engine("admin")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        made = Books.open(conn)
        one, two = made.device_ids
        nlp = made.tenant("acme/nlp")
        training = {"workload_kind": "training", "workload_kind_source": "test"}
        first = made.job("acme/nlp", "1", start=0, end=1, state="failed", **training)
        again = made.job("acme/nlp", "1", start=1, end=2, state="completed", **training)
        other = made.job("acme/nlp", "2", start=1, end=2, state="preempted")
        made.close(
            0,
            [
                usage(job_id=first, tenant_id=nlp, devices={one: KWH_MJ}, cost="3", electricity="0.5", carbon_g="400"),
                usage(holder="idle", devices={two: KWH_MJ // 10}, cost="3", electricity="0.05", carbon_g="40"),
            ],
        )
        made.close(
            1,
            [
                usage(job_id=again, tenant_id=nlp, devices={one: KWH_MJ}, cost="3", electricity="0.5", carbon_g="400"),
                usage(job_id=other, tenant_id=nlp, devices={two: KWH_MJ}, cost="3", electricity="0.5", carbon_g="400"),
            ],
        )
        # Work in three quarters of the first hour, in all of the others.
        conn.execute(
            sa.update(books.usage_hours)
            .where(books.usage_hours.c.job_id.is_not(None))
            .values(active_us=sa.case((books.usage_hours.c.job_id == first, HOUR_US * 3 // 4), else_=HOUR_US))
        )
        yield made
    engine.dispose()


def asked(db: Database, group_by: GroupBy, **more: Any) -> Bill:
    engine = db.create_engine("worker")
    try:
        with engine.connect() as conn:
            return bill(conn, hour(0), hour(2), group_by, **more)
    finally:
        engine.dispose()


def test_a_tenants_hours_carry_all_its_cost_energy_and_carbon(db: Database, filled: Books) -> None:
    row = next(row for row in asked(db, GroupBy.TENANT).rows if row.key == "acme/nlp")
    made = unit_figures(row.figures)
    # 10.50 USD, 3 kWh and 1.2 kg over 3 hours held, of which 2.75 had work.
    assert made["allocated"] == UnitFigures(Decimal("3.5"), Decimal(1), Decimal("0.4"))
    assert made["active"] == UnitFigures(Decimal("3.818181818"), Decimal("1.090909091"), Decimal("0.436363636"))
    assert made["idle"] == NOTHING


def test_an_idle_hour_is_the_idle_pools(db: Database, filled: Books) -> None:
    whole = asked(db, GroupBy.TENANT)
    pool = next(row for row in whole.rows if row.key == "(platform)/idle")
    assert unit_figures(pool.figures, idle=idle_of(pool))["idle"] == UnitFigures(
        Decimal("3.05"), Decimal("0.1"), Decimal("0.04")
    )
    assert unit_figures(pool.figures)["allocated"] == NOTHING
    total = formats.as_dict(whole)["total"]
    # All 13.55 USD over the 3 hours held by jobs: what an allocated hour costs with the idle one it has to carry.
    assert total["cost_per_allocated_accelerator_hour"] == "4.516666667"
    assert total["cost_per_idle_accelerator_hour"] == "3.05"


def test_sums_say_the_same_as_the_hours(db: Database, filled: Books) -> None:
    before = formats.as_dict(asked(db, GroupBy.TENANT, outcomes=True))
    with db.connect("worker", autocommit=True) as connection:
        sum_spans(connection, for_s=60.0)
    assert formats.as_dict(asked(db, GroupBy.TENANT, outcomes=True)) == before


def test_a_training_run_is_all_its_starts(db: Database, filled: Books) -> None:
    whole = asked(db, GroupBy.RUN)
    rows = {row.key: row for row in whole.rows}
    assert set(rows) == {"lab/1", "(no training run)"}
    run = rows["lab/1"].figures
    assert (run.cost, run.held_us, run.energy_mj) == (Decimal(7), 2 * HOUR_US, 2 * KWH_MJ)
    assert rows["lab/1"].details["native_id"] == "1"
    assert whole.total.cost == asked(db, GroupBy.TENANT).total.cost


@pytest.mark.parametrize("group_by", [GroupBy.TENANT, GroupBy.JOB, GroupBy.RUN])
def test_work_that_came_to_nothing_has_its_cost_beside_the_whole(
    db: Database, filled: Books, group_by: GroupBy
) -> None:
    total = asked(db, group_by, outcomes=True).total
    assert total.cost == Decimal("13.55")
    assert total.cost_of == {"failed": Decimal("3.5"), "preempted": Decimal("3.5"), "cancelled": Decimal(0)}


def test_by_tenant_it_is_said_only_where_it_is_asked_for(db: Database, filled: Books) -> None:
    row = formats.as_dict(asked(db, GroupBy.TENANT))["rows"][1]
    assert (row["key"], row["cost_failed"]) == ("acme/nlp", None)


def test_a_job_that_fails_later_moves_its_cost_without_another_revision(db: Database, filled: Books) -> None:
    filled.conn.execute(sa.update(work.jobs).where(work.jobs.c.state == "completed").values(state="timeout"))
    made = asked(db, GroupBy.TENANT, outcomes=True).total.cost_of
    assert made is not None
    assert made["failed"] == Decimal(7)


def test_a_row_with_a_gap_in_its_cost_has_no_cost_per_hour() -> None:
    figures = Figures(
        {"gpu_owned": Decimal(7)}, unpriced_lines=1, energy_mj=KWH_MJ, allocated_us=HOUR_US, held_us=HOUR_US
    )
    assert unit_figures(figures)["allocated"] == UnitFigures(None, Decimal(1), None)


def test_the_spreadsheet_has_a_column_each(db: Database, filled: Books) -> None:
    rows = list(csv.DictReader(io.StringIO(formats.as_csv(asked(db, GroupBy.JOB)))))
    failed = next(row for row in rows if row["state"] == "failed")
    assert failed["cost_failed"] == "3.5"
    assert failed["cost_per_active_accelerator_hour"] == "4.666666667"  # 3.50 over three quarters of an hour


def test_of_a_device_the_idle_part_is_no_allocated_time() -> None:
    row = BillRow("GPU-1", "(platform)/idle", Figures(held_us=HOUR_US, energy_mj=KWH_MJ))
    assert unit_figures(row.figures, idle=idle_of(row))["idle"] == UnitFigures(None, Decimal(1), None)
