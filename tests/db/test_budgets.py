"""Budgets as dated rows, and what counts as spent, on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

import pytest
import sqlalchemy as sa

from analytics.io import budgets
from analytics.io.budget_policy import PolicyError
from analytics.io.budgets import Applied
from analytics.io.spend import load_spend
from analytics.model.budget import Budget, Measure, Spend, Step
from collector.wire import Origin
from ingest.store.engine import Database
from ingest.store.tables import control
from tests.fakes.books import KWH_MJ, Books, hour, tokens, usage

NOW = datetime(2026, 11, 11, 12, 30, tzinfo=UTC)
POLICY = """\
version: 1
webhooks:
  ops: {url: "${OPS_URL}", secret: "${OPS_SECRET}"}
protect: {names: ["release-*"]}
budgets:
  - name: nlp
    tenant: acme/nlp
    period: day
    currency: USD
    limits: {cost: 100, energy_kwh: 50, carbon_kgco2e: 20, accelerator_hours: 24}
    armed: true
    protect: {users: [root]}
    ladder:
      - {at: 80%, do: warn, webhook: ops}
      - {at: 100%, do: cancel, approval: AUTOMATIC, grace: 10m}
  - name: tokens
    tenant: acme
    period: day
    limits: {tokens: 1000}
    ladder: [{at: 100%, do: warn}]
"""


@pytest.fixture
def conn(db: Database) -> Iterator[sa.Connection]:
    engine = db.create_engine("owner")  # who applies policies; what the worker may read, tests/db/test_work.py shows
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def made(db: Database) -> Iterator[Books]:
    engine = db.create_engine("admin")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield Books.open(connection)
    engine.dispose()


def limit_of(conn: sa.Connection, measure: Measure, now: datetime = NOW) -> Budget:
    return next(budget for budget in budgets.in_force(conn, now) if budget.measure is measure)


def spent(conn: sa.Connection, measure: Measure) -> Spend:
    budgets.apply(conn, POLICY, hour(0), actor="test")
    return load_spend(conn, limit_of(conn, measure), NOW)


def test_applying_a_policy_twice_changes_nothing_the_second_time(conn: sa.Connection) -> None:
    assert budgets.apply(conn, POLICY, hour(0), actor="ada") == Applied(5, 0, 0, 0)
    assert budgets.apply(conn, POLICY, hour(1), actor="ada") == Applied(0, 0, 0, 5)
    assert conn.execute(sa.select(sa.func.count()).select_from(control.budgets)).scalar_one() == 5


def test_what_was_written_is_what_is_in_force(conn: sa.Connection) -> None:
    budgets.apply(conn, POLICY, hour(0), actor="ada")
    cost = limit_of(conn, Measure.COST)
    assert (cost.tenant_path, cost.limit, cost.currency, cost.armed) == ("acme/nlp", Decimal(100), "USD", True)
    assert [(rung.at_ratio, rung.do, rung.grace_s) for rung in cost.ladder] == [
        (Decimal("0.8"), Step.WARN, 0),
        (Decimal(1), Step.CANCEL, 600),
    ]
    assert cost.protect == {"names": ("release-*",), "users": ("root",)}
    assert limit_of(conn, Measure.TOKENS).tenant_path == "acme"
    assert budgets.webhooks(conn)["ops"].url == "${OPS_URL}"


def test_a_changed_limit_is_a_new_row_and_the_old_one_stays_known(conn: sa.Connection) -> None:
    budgets.apply(conn, POLICY, hour(0), actor="ada")
    old = limit_of(conn, Measure.COST)
    changed = POLICY.replace("cost: 100", "cost: 70")
    assert budgets.apply(conn, changed, hour(5), actor="ada") == Applied(0, 1, 0, 4)
    assert limit_of(conn, Measure.COST).limit == 70
    assert limit_of(conn, Measure.COST, hour(3)).limit == 100  # what held then
    assert budgets.current(conn, old.budget_id) is None
    kept = conn.execute(sa.select(control.budgets).where(control.budgets.c.id == old.budget_id)).one()
    assert (kept.limit_value, kept.superseded_at) == (100, hour(5))


def test_a_budget_taken_out_of_the_file_ends(conn: sa.Connection) -> None:
    budgets.apply(conn, POLICY, hour(0), actor="ada")
    only_first = POLICY[: POLICY.index("  - name: tokens")]
    assert budgets.apply(conn, only_first, hour(5), actor="ada") == Applied(0, 0, 1, 4)
    assert {budget.name for budget in budgets.in_force(conn, NOW)} == {"nlp"}


def test_a_file_with_a_fault_changes_nothing(conn: sa.Connection) -> None:
    budgets.apply(conn, POLICY, hour(0), actor="ada")
    with pytest.raises(PolicyError, match="line 19"):
        budgets.apply(conn, POLICY.replace("tokens: 1000", "tokens: -1"), hour(5), actor="ada")
    assert len(budgets.in_force(conn, NOW)) == 5


def test_each_measure_adds_up_over_the_subtree(conn: sa.Connection, made: Books) -> None:
    job = made.job("acme/nlp/deep", "1")
    tenant = made.tenant("acme/nlp/deep")
    # 2 devices, 1 kWh each, 0.5 kg: 3.5 USD standard rate + 0.25 USD of power, in each of two hours
    row = usage(
        job_id=job,
        tenant_id=tenant,
        devices=dict.fromkeys(made.device_ids, KWH_MJ),
        cost="3.5",
        electricity="0.25",
        carbon_g="500",
    )
    made.close(0, [row])
    made.close(1, [row, tokens(tenant_id=tenant, count=77, cost="0.125")])
    assert spent(conn, Measure.COST).own == Decimal("7.625")
    assert spent(conn, Measure.ENERGY_KWH).own == 4
    assert spent(conn, Measure.CARBON_KGCO2E).own == 1
    assert spent(conn, Measure.ACCELERATOR_HOURS).own == 4
    assert spent(conn, Measure.TOKENS).own == 77
    cost = spent(conn, Measure.COST)
    assert cost.other == 0
    assert (cost.coverage, cost.as_of_at, cost.origin) == (1.0, hour(2), Origin.LIVE)


def test_usage_of_a_namesake_tenant_does_not_count(conn: sa.Connection, made: Books) -> None:
    made.close(
        0,
        [
            usage(
                job_id=made.job("acme/nlp2", "1"),
                tenant_id=made.tenant("acme/nlp2"),
                devices={made.device_ids[0]: 1},
                cost="9",
            )
        ],
    )
    assert spent(conn, Measure.COST).total == 0


def test_hours_outside_the_period_do_not_count(conn: sa.Connection, made: Books) -> None:
    row = usage(
        job_id=made.job("acme/nlp", "1"), tenant_id=made.tenant("acme/nlp"), devices={made.device_ids[0]: 1}, cost="9"
    )
    made.close(-1, [row])
    made.close(0, [row])
    assert spent(conn, Measure.COST).total == 9


def test_what_a_later_revision_adds_is_not_the_tenants_own_doing(conn: sa.Connection, made: Books) -> None:
    job, tenant, device = made.job("acme/nlp", "1"), made.tenant("acme/nlp"), made.device_ids[0]

    def costs(amount: str) -> list[dict[str, object]]:
        return [usage(job_id=job, tenant_id=tenant, devices={device: 1}, cost=amount)]

    made.close(0, costs("10"), costs("16"))  # late data: 6 more
    made.close(1, costs("10"), costs("4"))  # a correction in its favour counts at once
    spend = spent(conn, Measure.COST)
    assert (spend.total, spend.own) == (Decimal(20), Decimal(14))


def test_imports_and_spread_idle_are_not_the_tenants_own_doing(conn: sa.Connection, made: Books) -> None:
    job, tenant, device = made.job("acme/nlp", "1"), made.tenant("acme/nlp"), made.device_ids[0]
    made.close(
        0,
        [
            usage(job_id=job, tenant_id=tenant, devices={device: 1}, cost="10"),
            usage(tenant_id=tenant, holder="idle", devices={device: 1}, cost="3"),
            tokens(tenant_id=tenant, count=5, cost="2", origin=Origin.IMPORTED),
        ],
    )
    spend = spent(conn, Measure.COST)
    assert (spend.total, spend.own) == (Decimal(15), Decimal(10))
    assert spend.own_origins == {Origin.LIVE}
    assert spend.other_origins == {Origin.LIVE, Origin.IMPORTED}


def test_simulated_usage_marks_the_spend(conn: sa.Connection, made: Books) -> None:
    made.close(11, [tokens(tenant_id=made.tenant("acme/nlp"), count=5, cost="200", origin=Origin.SIMULATED)])
    (decision,) = [found.decision for found in _evaluated(conn) if found.decision.budget.measure is Measure.COST]
    assert decision.origin is Origin.SIMULATED
    assert decision.rung is not None
    assert decision.rung.do is Step.CANCEL
    assert not decision.armed


def test_what_could_not_be_counted_is_counted_by_its_kind(conn: sa.Connection, made: Books) -> None:
    tenant, device = made.tenant("acme/nlp"), made.device_ids[0]
    unread = usage(job_id=made.job("acme/nlp", "1"), tenant_id=tenant, devices={device: 1}, cost="9")
    unread["lines"] = [line | {"energy_mj": None, "carbon_gco2e": None} for line in unread["lines"]]
    made.close(
        0,
        [
            tokens(tenant_id=tenant, count=5, cost=None),
            tokens(tenant_id=tenant, count=70, cost=None, unit="request"),
            unread,
        ],
    )

    def gaps(measure: Measure) -> tuple[int, int, int, int]:
        spend = spent(conn, measure)
        return int(spend.total), spend.unpriced_lines, spend.usage_unknown_calls, spend.unmeasured_lines

    assert gaps(Measure.COST) == (9, 1, 70, 0)
    assert gaps(Measure.TOKENS) == (5, 0, 70, 0)
    assert gaps(Measure.ENERGY_KWH) == (0, 0, 0, 1)
    assert gaps(Measure.CARBON_KGCO2E) == (0, 0, 0, 1)
    assert gaps(Measure.ACCELERATOR_HOURS) == (1, 0, 0, 0)


def test_every_decision_is_recorded(conn: sa.Connection, made: Books) -> None:
    made.close(11, [tokens(tenant_id=made.tenant("acme/nlp"), count=999, cost="85")])
    _evaluated(conn)
    rows = conn.execute(sa.select(control.decisions).order_by(control.decisions.c.spent.desc())).all()
    assert len(rows) == 5
    by_limit = {row.limit_value: row for row in rows}
    assert (by_limit[100].rung, by_limit[100].spent, by_limit[1000].rung) == ("warn", 85, "none")
    assert by_limit[100].evidence["own"] == "85.000000000"


def _evaluated(conn: sa.Connection) -> tuple[budgets.RecordedDecision, ...]:
    budgets.apply(conn, POLICY, hour(0), actor="test")
    return budgets.evaluate(conn, NOW)
