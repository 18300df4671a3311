"""Sums of days and hours: a bill made of them is the bill made of the lines, and never of revisions that count no more."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from analytics.io import bill_spans
from analytics.io.bill_spans import SpanSums, Summed, forget_spans, sum_spans
from analytics.io.findings import withdraw_findings
from analytics.io.statements import Bill, bill, mapped_share
from collector.wire import Origin
from ingest.store.engine import Database
from ingest.store.tables import bills, books
from ingest.store.tenancy import tenant_scope
from tests.fakes.books import HOUR_US, KWH_MJ, Books, hour, tokens, usage

pytestmark = pytest.mark.db

TWO_DAYS = (hour(0), hour(48))


@pytest.fixture
def filled(db: Database) -> Iterator[Books]:
    """A day and a bit: hours 0 to 25 of acme/nlp, idle time beside it, unpriced calls in hour 3 and a dollar and a euro."""
    engine = db.create_engine("admin")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        made = Books.open(conn)
        nlp = made.tenant("acme/nlp")
        job = made.job("acme/nlp", "1")
        one, two = made.device_ids
        for number in range(26):
            rows = [
                usage(job_id=job, tenant_id=nlp, devices={one: KWH_MJ}, cost="2.000000001", carbon_g="300", idle_us=HOUR_US // 4),
                usage(holder="idle", devices={two: KWH_MJ // 10}, cost="2", origin=Origin.SIMULATED),
            ]  # fmt: skip
            if number == 3:
                rows += [
                    tokens(tenant_id=nlp, count=7, cost=None),
                    tokens(tenant_id=nlp, count=2, cost=None, unit="request"),
                ]
            made.close(number, rows, status="provisional" if number == 25 else "closed")
        yield made
    engine.dispose()


def summed(db: Database, for_s: float = 60.0) -> Summed:
    with db.connect("worker", autocommit=True) as connection:
        return sum_spans(connection, for_s=for_s)


def billed(db: Database, role: str = "worker", period: tuple[datetime, datetime] = TWO_DAYS) -> Bill:
    engine = db.create_engine(role)  # type: ignore[arg-type]
    try:
        with engine.connect() as conn:
            return bill(conn, *period, currency="USD")
    finally:
        engine.dispose()


def spans(books_: Books) -> list[tuple[datetime, datetime]]:
    chosen = sa.select(bills.bill_spans.c.from_at, bills.bill_spans.c.to_at).order_by(bills.bill_spans.c.from_at)
    return [(row.from_at, row.to_at) for row in books_.conn.execute(chosen)]


def test_a_bill_of_sums_is_the_bill_of_the_lines(db: Database, filled: Books) -> None:
    of_lines = billed(db)
    assert summed(db) == Summed(made=2, left=0)
    assert spans(filled) == [(hour(0), hour(24)), (hour(24), hour(25))]  # hour 25 is open
    assert billed(db) == of_lines
    nlp = next(row.figures for row in of_lines.rows if row.key == "acme/nlp")
    assert nlp.cost == Decimal("52.000000026")  # 26 hours at 2.000000001
    assert (nlp.unpriced_lines, nlp.usage_unknown_calls, nlp.tokens) == (1, 2, 7)
    assert (nlp.held_us, nlp.idle_us) == (26 * HOUR_US, 26 * HOUR_US // 4)
    platform = next(row.figures for row in of_lines.rows if row.key == "(platform)/idle")
    assert platform.origins == {Origin.SIMULATED}


def test_the_sums_are_what_is_read(db: Database, filled: Books) -> None:
    summed(db)
    filled.conn.execute(sa.delete(books.usage_hours))
    assert billed(db).total.held_us == 26 * 2 * HOUR_US - 2 * HOUR_US, "only the open hour is read from its rows"


def test_an_hour_with_another_revision_is_read_from_its_lines_until_it_is_summed_again(
    db: Database, filled: Books
) -> None:
    summed(db)
    dearer = usage(job_id=None, holder="idle", devices={filled.device_ids[0]: 5}, cost="100")
    filled.close(7, [], [dearer])
    changed = billed(db)
    assert changed.total.cost == Decimal("104.000000026") - Decimal("4.000000001") + 100
    assert summed(db).made == 1
    assert billed(db) == changed


@pytest.mark.parametrize(
    "period", [(hour(0), hour(24)), (hour(1), hour(24)), (hour(24), hour(25)), (hour(23), hour(26))]
)
def test_any_period_adds_up_alike(db: Database, filled: Books, period: tuple[datetime, datetime]) -> None:
    of_lines = billed(db, period=period)
    summed(db)
    assert billed(db, period=period) == of_lines
    assert of_lines.rows


def test_a_tenant_sees_its_own_sums_and_nothing_else(db: Database, filled: Books) -> None:
    summed(db)
    other = filled.tenant("rival")
    engine = db.create_engine("api")
    try:
        with engine.begin() as conn, tenant_scope(conn, "acme"):
            own = bill(conn, *TWO_DAYS, currency="USD")
        with engine.begin() as conn, tenant_scope(conn, "rival"):
            theirs = bill(conn, *TWO_DAYS, currency="USD")
            for table in (bills.bill_lines, bills.bill_times, bills.bill_waste):
                assert conn.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() == 0
    finally:
        engine.dispose()
    assert other
    assert [row.key for row in own.rows] == ["acme/nlp"]
    assert own.total.cost == Decimal("52.000000026")
    assert theirs.rows == ()


def test_a_finding_that_is_withdrawn_takes_the_sums_of_its_hour_along(db: Database, filled: Books) -> None:
    nlp = filled.tenant("acme/nlp")
    _waste(filled, nlp, 2, "1.75")
    with_waste = billed(db)
    assert with_waste.total.idle_waste == Decimal("1.75")
    summed(db)
    assert billed(db) == with_waste
    with db.connect("worker", autocommit=True) as connection:
        withdraw_findings(connection, filled.site_id, hour(2), keep=[])
    assert billed(db).total.idle_waste == 0
    assert summed(db).made == 1
    assert billed(db).total.idle_waste == 0


def test_sums_that_take_long_are_made_in_several_passes(db: Database, filled: Books) -> None:
    assert summed(db, for_s=-1.0) == Summed(made=0, left=2)
    assert summed(db) == Summed(made=2, left=0)
    assert summed(db) == Summed(made=0, left=0)


def test_an_hour_that_is_being_closed_is_left_for_the_next_pass(db: Database, filled: Books) -> None:
    with db.connect("worker") as busy:
        busy.execute("SELECT FROM ledger_hours WHERE hour_at = %s FOR UPDATE", (hour(5),))
        assert summed(db) == Summed(made=1, left=1)
    assert spans(filled) == [(hour(24), hour(25))]
    assert summed(db) == Summed(made=1, left=0)


def test_a_day_that_is_over_replaces_its_hours(db: Database, filled: Books) -> None:
    summed(db)
    rows: list[dict[str, Any]] = [usage(holder="idle", devices={filled.device_ids[0]: 5}, cost="1")]
    for number in range(25, 49):
        filled.close(number, rows)
    expected = billed(db)
    summed(db)
    assert spans(filled) == [(hour(0), hour(24)), (hour(24), hour(48)), (hour(48), hour(49))]
    assert billed(db) == expected


def test_the_mapped_share_is_read_from_sums_too(db: Database, filled: Books) -> None:
    engine = db.create_engine("worker")
    try:
        with engine.connect() as conn:
            before = mapped_share(conn, *TWO_DAYS, "USD")
        summed(db)
        with engine.connect() as conn:
            assert mapped_share(conn, *TWO_DAYS, "USD") == before == 1
    finally:
        engine.dispose()


def test_sums_can_be_dropped_at_any_time(db: Database, filled: Books) -> None:
    expected = billed(db)
    summed(db)
    with db.connect("worker", autocommit=True) as connection:
        forget_spans(connection, filled.site_id, hour(4))
    assert spans(filled) == [(hour(24), hour(25))]
    assert billed(db) == expected


def _waste(made: Books, tenant_id: int, number: int, cash: str) -> None:
    made.conn.execute(
        sa.insert(books.findings).values(
            dedupe_key=f"idle|{number}",
            site_id=made.site_id,
            kind="idle_waste",
            tenant_id=tenant_id,
            start_at=hour(number),
            end_at=hour(number + 1),
            evidence={},
            avoidable_cash=Decimal(cash),
            currency="USD",
            confidence=1.0,
            origin=int(Origin.LIVE),
        )
    )


def test_pass_after_pass_only_hours_that_runs_wrote_since_are_looked_at_and_all_of_them_now_and_then(
    db: Database, filled: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bill_spans, "_IN_FLIGHT", 0)  # 26 runs are fewer than those that may be in flight
    sums, idle = SpanSums(), usage(holder="idle", devices={filled.device_ids[0]: 5}, cost="1")
    with db.connect("worker", autocommit=True) as connection:

        def step(for_s: float = 60.0) -> tuple[int, int]:
            done = sums.step(connection, for_s=for_s)
            return done.made, done.left

        assert step(-1.0) == (0, 2)  # no time: nothing is made, and both are left
        assert step() == (2, 0)
        assert step() == (0, 0)
        filled.close(7, [], [idle])
        assert step() == (1, 0)
        forget_spans(connection, filled.site_id, hour(3))  # as where a finding changed: no run tells of it
        assert step() == (0, 0)
        monkeypatch.setattr(bill_spans, "_LOOK_AT_ALL_S", 0.0)
        assert step() == (1, 0)
        monkeypatch.setattr(bill_spans, "_LOOK_AT_ALL_S", 600.0)
        # The second day is over by an hour of the third, and summed as one.
        for number in range(25, 49):
            filled.close(number, [idle])
        assert step() == (2, 0)
        assert spans(filled) == [(hour(n), hour(m)) for n, m in ((0, 24), (24, 48), (48, 49))]
        assert billed(db, period=(hour(0), hour(49))).total.cost == billed_of_lines(db, filled)


def test_a_pass_that_fails_is_followed_by_one_over_all_hours(db: Database, filled: Books) -> None:
    sums = SpanSums()
    with db.connect("api", autocommit=True) as may_not, pytest.raises(psycopg.errors.InsufficientPrivilege):
        sums.step(may_not, for_s=60.0)
    with db.connect("worker", autocommit=True) as connection:
        assert sums.step(connection, for_s=60.0) == Summed(made=2, left=0)
    assert len(spans(filled)) == 2


def billed_of_lines(db: Database, books_: Books) -> Decimal:
    books_.conn.execute(sa.delete(bills.bill_spans))
    return billed(db, period=(hour(0), hour(49))).total.cost
