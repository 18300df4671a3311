"""Bills from the books: exact sums, whoever they are grouped by. Expected figures are worked out beside each test."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal

import pytest
import sqlalchemy as sa

from analytics.io import statement_formats as formats
from analytics.io.statement_table import as_table
from analytics.io.statements import Bill, GroupBy, StatementError, bill
from collector.wire import Origin
from ingest.store.engine import Database
from ingest.store.tables import books as tables
from ingest.store.tenancy import tenant_scope
from tests.fakes.books import HOUR_US, KWH_MJ, Books, hour, tokens, usage


@pytest.fixture
def filled(db: Database) -> Iterator[Books]:
    """Three hours: a job of acme/nlp, one of acme/vision, one of nobody, idle time, API calls, and a superseded revision."""
    engine = db.create_engine("admin")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        books = Books.open(conn)
        one, two = books.device_ids
        nlp, vision = books.tenant("acme/nlp"), books.tenant("acme/vision")
        first = books.job("acme/nlp", "1")
        second = books.job("acme/vision", "2", user_name="bob")
        nobodys = books.job(None, "3")
        train = usage(
            job_id=first,
            tenant_id=nlp,
            devices={one: KWH_MJ, two: 2 * KWH_MJ},
            cost="7.000000001",
            electricity="0.333333333",
            carbon_g="900",
            idle_us=HOUR_US // 4,
        )
        books.close(
            0,
            [
                usage(job_id=first, tenant_id=nlp, devices={one: 1, two: 1}, cost="999")
            ],  # the revision before: not billed
            [train],
        )
        books.close(
            1,
            [
                usage(
                    job_id=second,
                    tenant_id=vision,
                    devices={one: KWH_MJ},
                    cost="3.5",
                    covered_us=HOUR_US // 2,
                    throttled_us=HOUR_US // 10,
                ),
                usage(holder="idle", devices={two: KWH_MJ // 10}, cost="3.5"),
                tokens(tenant_id=nlp, count=1500, cost="0.000000007"),
            ],
        )
        books.close(
            2,
            [
                usage(job_id=nobodys, devices={one: KWH_MJ}, cost="3.5"),
                tokens(tenant_id=nlp, count=10, cost=None, origin=Origin.SIMULATED),
                tokens(tenant_id=nlp, count=4, cost=None, unit="request"),
            ],
            status="provisional",
        )
        _finding(conn, books, second, vision, "throttling", "0.07")
        _finding(conn, books, first, nlp, "idle_waste", "1.75")
        yield books
    engine.dispose()


def _finding(conn: sa.Connection, books: Books, job_id: int, tenant_id: int, kind: str, cash: str) -> None:
    conn.execute(
        sa.insert(tables.findings).values(
            dedupe_key=kind, site_id=books.site_id, kind=kind, job_id=job_id, tenant_id=tenant_id, device_id=books.device_ids[0],
            start_at=hour(0), end_at=hour(1), evidence={}, avoidable_cash=Decimal(cash), currency="USD", confidence=1.0, origin=1,
        )
    )  # fmt: skip


@pytest.fixture
def conn(db: Database, filled: Books) -> Iterator[sa.Connection]:
    engine = db.create_engine("worker")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def whole(conn: sa.Connection, group_by: GroupBy = GroupBy.TENANT, tenant: str | None = None) -> Bill:
    return bill(conn, hour(0), hour(3), group_by, tenant=tenant)


def test_each_tenant_gets_what_its_lines_say_to_the_last_decimal(conn: sa.Connection) -> None:
    made = {row.key: row.figures for row in whole(conn).rows}
    assert {key: figures.cost for key, figures in made.items()} == {
        "(platform)/idle": Decimal("3.5"),
        "acme/nlp": Decimal("7.333333341"),  # 7.000000001 + 0.333333333 + 0.000000007
        "acme/vision": Decimal("3.5"),
        "unmapped": Decimal("3.5"),
    }
    nlp = made["acme/nlp"]
    assert nlp.cost_by_category == {
        "api_tokens": Decimal("0.000000007"),
        "electricity": Decimal("0.333333333"),
        "gpu_owned": Decimal("7.000000001"),
    }
    assert (nlp.energy_kwh, nlp.carbon_kgco2e, nlp.tokens) == (Decimal(3), Decimal("0.9"), 1510)
    assert (nlp.held_us, nlp.idle_us) == (2 * HOUR_US, HOUR_US // 2)
    assert nlp.idle_waste == Decimal("1.75")
    assert nlp.origins == {Origin.LIVE, Origin.SIMULATED}
    assert made["acme/vision"].coverage == Decimal("0.5")
    assert made["acme/vision"].throttle_waste == Decimal("0.07")


def test_a_missing_price_and_calls_that_told_no_usage_are_two_gaps(conn: sa.Connection) -> None:
    made = {row.key: row.figures for row in whole(conn).rows}
    assert (made["acme/nlp"].unpriced_lines, made["acme/nlp"].usage_unknown_calls) == (1, 4)
    assert (made["acme/vision"].unpriced_lines, made["acme/vision"].usage_unknown_calls) == (0, 0)


def test_calls_without_usage_lack_no_price_even_where_nothing_has_a_currency(db: Database, filled: Books) -> None:
    filled.close(7, [tokens(tenant_id=None, count=3, cost=None, unit="request")])
    engine = db.create_engine("worker")
    with engine.connect() as conn:
        total = bill(conn, hour(7), hour(8)).total
    engine.dispose()
    assert (total.unpriced_lines, total.usage_unknown_calls, total.tokens) == (0, 3, 0)


def test_the_head_says_how_much_is_mapped_and_how_final_it_is(conn: sa.Connection) -> None:
    made = whole(conn)
    # used: 7.333333341 + 3.5 + 3.5; of it nobody's: 3.5
    assert made.mapped_share == (Decimal("10.833333341") / Decimal("14.333333341")).quantize(Decimal("1E-6"))
    assert (made.status, made.hours_closed, made.as_of_at, made.currency) == ("provisional", 2, hour(3), "USD")
    assert bill(conn, hour(0), hour(2)).status == "closed"


@pytest.mark.parametrize("group_by", list(GroupBy))
def test_every_grouping_adds_up_to_the_same_bill(conn: sa.Connection, group_by: GroupBy) -> None:
    total = whole(conn, group_by).total
    assert total.cost == Decimal("17.833333341")
    assert total.cost_by_category == whole(conn).total.cost_by_category
    assert total.energy_mj == 5 * KWH_MJ + KWH_MJ // 10
    assert (total.held_us, total.tokens, total.unpriced_lines) == (5 * HOUR_US, 1510, 1)
    assert total.usage_unknown_calls == 4
    assert total.carbon_gco2e == 900
    assert (total.idle_waste, total.throttle_waste) == (Decimal("1.75"), Decimal("0.07"))


def test_paths_roll_up(conn: sa.Connection) -> None:
    sums = {row.key: row.figures.cost for row in whole(conn).rollups}
    assert sums["acme"] == Decimal("10.833333341")
    assert sums["(platform)"] == Decimal("3.5")


def test_a_bill_by_job_names_the_run(conn: sa.Connection) -> None:
    rows = {row.key: row for row in whole(conn, GroupBy.JOB).rows}
    assert set(rows) == {
        "lab/1@2026-11-11T00:00:00Z",
        "lab/2@2026-11-11T00:00:00Z",
        "lab/3@2026-11-11T00:00:00Z",
        "key/key-1",
        "(platform)/idle",
    }
    second = rows["lab/2@2026-11-11T00:00:00Z"]
    assert (second.tenant, second.details["user_name"], second.details["native_id"]) == ("acme/vision", "bob", "2")


def test_a_bill_by_device_splits_each_line_exactly(conn: sa.Connection) -> None:
    rows = {(row.key, row.tenant): row.figures for row in whole(conn, GroupBy.DEVICE).rows}
    # 7.000000001 over equal hours: the odd billionth goes to the first by name; 0.333333333 over 1 : 2 kWh
    assert rows["GPU-0", "acme/nlp"].cost_by_category == {
        "electricity": Decimal("0.111111111"),
        "gpu_owned": Decimal("3.500000001"),
    }
    assert rows["GPU-1", "acme/nlp"].cost_by_category == {
        "electricity": Decimal("0.222222222"),
        "gpu_owned": Decimal("3.5"),
    }
    assert rows["(no device)", "acme/nlp"].cost == Decimal("0.000000007")
    # 900 g over 1 : 2 kWh; who has none is not said to have 0
    assert [rows[f"GPU-{n}", "acme/nlp"].carbon_gco2e for n in (0, 1)] == [Decimal(300), Decimal(600)]
    assert rows["(no device)", "acme/nlp"].carbon_gco2e is None
    assert rows["GPU-1", "(platform)/idle"].energy_mj == KWH_MJ // 10


def test_one_subtree_can_be_asked_for(conn: sa.Connection) -> None:
    assert [row.key for row in whole(conn, tenant="acme").rows] == ["acme/nlp", "acme/vision"]
    assert whole(conn, tenant="acm").rows == ()


def test_a_tenant_sees_its_own_rows_and_nothing_else(db: Database, filled: Books) -> None:
    engine = db.create_engine("api")
    with engine.connect() as api, tenant_scope(api, "acme/nlp"):
        for group_by in GroupBy:
            made = whole(api, group_by)
            assert {row.tenant for row in made.rows} == {"acme/nlp"}
            assert made.total.cost == Decimal("7.333333341")
    with engine.connect() as api:
        assert whole(api).rows == ()
    engine.dispose()


def test_two_currencies_are_not_added(conn: sa.Connection, filled: Books) -> None:
    filled.close(
        5,
        [
            usage(
                job_id=1,
                tenant_id=filled.tenant("acme/nlp"),
                devices={filled.device_ids[0]: 1},
                cost="2",
                currency="EUR",
            )
        ],
    )
    with pytest.raises(StatementError, match="EUR, USD; name one"):
        bill(conn, hour(0), hour(6))
    euros = bill(conn, hour(0), hour(6), currency="EUR")
    assert euros.total.cost == 2
    assert euros.total.unpriced_lines > 0


def test_a_period_that_cuts_an_hour_is_refused(conn: sa.Connection) -> None:
    with pytest.raises(StatementError, match="full UTC hour"):
        bill(conn, hour(0) + timedelta(minutes=30), hour(2))
    with pytest.raises(StatementError, match="not after"):
        bill(conn, hour(2), hour(2))
    with pytest.raises(StatementError, match="no time zone"):
        bill(conn, hour(0).replace(tzinfo=None), hour(2))


def test_an_empty_period_is_an_empty_bill(conn: sa.Connection) -> None:
    made = bill(conn, hour(100), hour(101))
    assert (made.rows, made.total.cost, made.mapped_share, made.currency) == ((), Decimal(0), None, None)
    assert formats.as_csv(made).count("\n") == 1


def test_formats_say_the_same_figures(conn: sa.Connection) -> None:
    made = whole(conn)
    data = json.loads(json.dumps(formats.as_dict(made)))
    assert data["total"]["cost"] == "17.833333341"
    assert data["from_at"] == "2026-11-11T00:00:00Z"
    rows = list(csv.DictReader(io.StringIO(formats.as_csv(made))))
    assert [row["key"] for row in rows] == [row["key"] for row in data["rows"]]
    assert sum(Decimal(row["cost"]) for row in rows) == Decimal("17.833333341")
    assert sum(int(row["unpriced_lines"]) for row in rows) == data["total"]["unpriced_lines"] == 1
    assert sum(int(row["usage_unknown_calls"]) for row in rows) == data["total"]["usage_unknown_calls"] == 4


def test_the_table_says_first_what_is_simulated_and_what_is_not_known(conn: sa.Connection) -> None:
    table = as_table(whole(conn))
    assert table.splitlines()[:6] == [
        "PARTLY SIMULATED: do not bill by this",
        "2026-11-11T00:00:00Z to 2026-11-11T03:00:00Z, provisional, 2 hours closed",
        "75.6 % of used cost is mapped to a tenant",
        "1 line has no price in USD: the cost is at least what stands here",
        "4 API calls told no token counts: their cost is unknown",
        "",
    ]
    assert "live, simulated" in table


def test_on_a_narrow_screen_whole_columns_stay_out_and_nothing_is_cut(conn: sa.Connection) -> None:
    made = whole(conn, tenant="acme/vision")
    assert as_table(made).splitlines()[3:] == [
        "",
        "             cost                         idle  throttle      time",
        "tenant        USD    kWh  kgCO2e  GPU-h  waste     waste  measured",
        "-----------  ----  -----  ------  -----  -----  --------  --------",
        "acme/vision  3.50  1.000   0.000    1.0   0.00      0.07    50.0 %",
        "-----------  ----  -----  ------  -----  -----  --------  --------",
        "total        3.50  1.000   0.000    1.0   0.00      0.07    50.0 %",
    ]
    narrow = as_table(made, width=60).splitlines()
    assert narrow[3] == "no room here for GPU-h: use a wider screen, or --format csv"
    assert narrow[8] == "acme/vision  3.50  1.000   0.000   0.00      0.07    50.0 %"
    assert "GPU-h and time measured" in as_table(made, width=20)
