"""Laws of budget decisions, for any ladder and any spend."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from analytics.model.budget import (
    STEP_SEVERITY,
    VERDICT_SEVERITY,
    Approval,
    Budget,
    Decision,
    Measure,
    Rung,
    Spend,
    Step,
    decide,
)
from analytics.model.period import Period, bounds
from collector.wire import Origin

NOW = datetime(2026, 11, 11, 12, 30, tzinfo=UTC)
amounts = st.decimals(min_value=0, max_value=10**9, places=9, allow_nan=False)
rungs = st.builds(
    Rung,
    st.decimals(min_value="0.01", max_value="2", places=2),
    st.sampled_from(Step),
    st.sampled_from(Approval),
)
budgets = st.builds(
    Budget,
    st.just(1),
    st.just(1),
    st.just("acme"),
    st.just("b"),
    st.sampled_from(Period),
    st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kolkata"]),
    st.sampled_from(Measure),
    st.decimals(min_value="0.000000001", max_value=10**8, places=9),
    st.just("USD"),
    st.lists(rungs, max_size=5).map(tuple),
    st.booleans(),
)
spends = st.builds(
    Spend,
    amounts,
    amounts,
    st.frozensets(st.sampled_from(Origin)),
    st.frozensets(st.sampled_from(Origin)),
    st.none() | st.floats(0, 1),
    st.none() | st.just(NOW - timedelta(minutes=30)),
)


def severity(decision: Decision) -> tuple[int, int]:
    return STEP_SEVERITY[decision.rung.do] if decision.rung else 0, VERDICT_SEVERITY[decision.verdict]


@given(budgets, spends, amounts, amounts)
def test_more_spend_never_gives_a_milder_decision(
    budget: Budget, spend: Spend, more_own: Decimal, more_other: Decimal
) -> None:
    before = severity(decide(budget, spend, NOW))
    after = severity(decide(budget, replace(spend, own=spend.own + more_own, other=spend.other + more_other), NOW))
    assert after[0] >= before[0]
    assert after[1] >= before[1]


@given(budgets, spends)
def test_simulated_figures_never_arm_anything(budget: Budget, spend: Spend) -> None:
    marked = replace(spend, other_origins=spend.other_origins | {Origin.SIMULATED})
    assert not decide(budget, marked, NOW).armed


@given(budgets, spends)
def test_a_step_beyond_warn_without_approval_rests_on_own_usage(budget: Budget, spend: Spend) -> None:
    decision = decide(budget, spend, NOW)
    if decision.rung and decision.rung.do is not Step.WARN and not decision.needs_approval:
        alone = decide(budget, replace(spend, other=Decimal(0), other_origins=frozenset()), NOW)
        assert alone.rung is not None
        assert STEP_SEVERITY[alone.rung.do] >= STEP_SEVERITY[decision.rung.do]


@given(
    st.sampled_from(Period),
    st.sampled_from(["UTC", "America/Sao_Paulo", "Pacific/Apia"]),
    st.datetimes(
        datetime(2005, 1, 1),  # noqa: DTZ001 (hypothesis wants naive bounds)
        datetime(2040, 1, 1),  # noqa: DTZ001
        timezones=st.just(UTC),
    ),
)
def test_every_instant_lies_in_its_period_and_periods_touch(period: Period, zone: str, at: datetime) -> None:
    start, end = bounds(period, zone, at)
    assert start <= at < end
    assert bounds(period, zone, end)[0] == end
