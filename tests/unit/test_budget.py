"""What a budget concludes, worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from analytics.model.budget import Approval, Budget, Measure, Rung, Spend, Step, Verdict, decide, gaps
from analytics.model.period import Period, bounds
from collector.wire import Origin

NOW = datetime(2026, 11, 11, 12, 30, tzinfo=UTC)
CLOSED_TO = datetime(2026, 11, 11, 12, 0, tzinfo=UTC)
LADDER = (Rung(Decimal("0.8"), Step.WARN), Rung(Decimal(1), Step.CANCEL, Approval.AUTOMATIC, grace_s=600))


def budget(*, armed: bool = True, ladder: tuple[Rung, ...] = LADDER) -> Budget:
    return Budget(7, 3, "acme/nlp", "nlp", Period.MONTH, "UTC", Measure.COST, Decimal(1000), "USD", ladder, armed)


def spend(
    own: str,
    other: str = "0",
    *,
    origins: frozenset[Origin] = frozenset({Origin.LIVE}),
    coverage: float | None = 1.0,
    as_of_at: datetime | None = CLOSED_TO,
) -> Spend:
    return Spend(Decimal(own), Decimal(other), origins, frozenset(), coverage, as_of_at)


def test_below_every_rung_nothing_is_in_force() -> None:
    decision = decide(budget(), spend("799.999999999"), NOW)
    assert (decision.verdict, decision.rung, decision.left) == (Verdict.ALLOW, None, Decimal("200.000000001"))


def test_a_rung_is_in_force_from_exactly_its_threshold() -> None:
    assert decide(budget(), spend("800"), NOW).rung == LADDER[0]
    assert decide(budget(), spend("800"), NOW).verdict is Verdict.WARN


def test_the_whole_limit_reached_by_own_live_usage_arms_the_last_rung() -> None:
    decision = decide(budget(), spend("1000"), NOW)
    assert (decision.verdict, decision.rung, decision.armed, decision.needs_approval) == (
        Verdict.DENY,
        LADDER[1],
        True,
        False,
    )


def test_a_policy_that_is_not_armed_never_yields_an_armed_decision() -> None:
    assert not decide(budget(armed=False), spend("5000"), NOW).armed


@pytest.mark.parametrize("origin", [Origin.SIMULATED, Origin.REPLAYED, Origin.IMPORTED])
def test_figures_that_were_not_born_live_never_arm(origin: Origin) -> None:
    decision = decide(budget(), spend("5000", origins=frozenset({Origin.LIVE, origin})), NOW)
    assert not decision.armed
    assert decision.origin is origin
    assert decision.rung == LADDER[1]  # what it would have done stays visible


def test_spend_that_is_not_the_tenants_own_reaches_a_rung_only_with_approval() -> None:
    decision = decide(budget(), spend("700", "400"), NOW)
    assert decision.rung == LADDER[1]
    assert decision.needs_approval
    assert "own usage alone does not reach" in decision.reason


def test_a_correction_in_the_tenants_favour_lifts_the_need_to_act_automatically() -> None:
    decision = decide(budget(), spend("1100", "-300"), NOW)
    assert decision.needs_approval


def test_manual_is_the_default_approval() -> None:
    ladder = (Rung(Decimal(1), Step.CANCEL),)
    assert decide(budget(ladder=ladder), spend("1000"), NOW).needs_approval


@pytest.mark.parametrize(
    "thin",
    [
        spend("5000", coverage=0.62),
        spend("5000", as_of_at=datetime(2026, 11, 11, 9, 0, tzinfo=UTC)),
        spend("5000", as_of_at=None),
    ],
)
def test_thin_or_stale_evidence_never_goes_beyond_warn(thin: Spend) -> None:
    decision = decide(budget(), thin, NOW)
    assert decision.rung == LADDER[0]
    assert not decision.armed


def test_thin_evidence_with_no_warn_rung_does_nothing() -> None:
    assert decide(budget(ladder=LADDER[1:]), spend("5000", coverage=0.1), NOW).rung is None


def test_the_forecast_is_the_mean_rate_to_the_end_of_the_period() -> None:
    # 252 hours of a 720-hour month are closed: 10 days and 12 hours. 350 / 252 * 720 = 1000.
    decision = decide(budget(), spend("350"), NOW)
    assert decision.forecast == Decimal("1000.000000000")
    assert decision.forecast_basis == "linear run rate over 252.0 of 720.0 hours"


def test_no_forecast_from_less_than_an_hour() -> None:
    early = datetime(2026, 11, 1, 0, 30, tzinfo=UTC)
    assert decide(budget(), spend("350", as_of_at=early), early).forecast is None


def test_the_reason_names_the_figures() -> None:
    reason = decide(budget(), spend("812.5"), NOW).reason
    assert reason == "budget 'nlp': 812.5 of 1000 USD (81.2 %), warn from 80.0 %"


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        (Period.DAY, "2026-10-24T22:00:00", "2026-10-25T23:00:00"),  # the 25-hour day
        (Period.WEEK, "2026-10-18T22:00:00", "2026-10-25T23:00:00"),
        (Period.MONTH, "2026-09-30T22:00:00", "2026-10-31T23:00:00"),
        (Period.QUARTER, "2026-09-30T22:00:00", "2026-12-31T23:00:00"),
        (Period.YEAR, "2025-12-31T23:00:00", "2026-12-31T23:00:00"),
    ],
)
def test_periods_begin_and_end_at_local_midnight(period: Period, start: str, end: str) -> None:
    around = datetime(2026, 10, 25, 12, tzinfo=UTC)
    assert bounds(period, "Europe/Berlin", around) == (
        datetime.fromisoformat(start).replace(tzinfo=UTC),
        datetime.fromisoformat(end).replace(tzinfo=UTC),
    )


def test_a_naive_now_is_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        bounds(Period.DAY, "UTC", datetime(2026, 1, 1))  # noqa: DTZ001


def test_without_a_ladder_the_limit_itself_denies_from_the_first_billionth_that_reaches_it() -> None:
    bare = budget(ladder=())
    assert decide(bare, spend("999.999999999"), NOW).verdict is Verdict.ALLOW
    assert decide(bare, spend("1000"), NOW).verdict is Verdict.DENY


def test_a_limit_of_nothing_is_spent_by_nothing() -> None:
    decision = decide(replace(budget(ladder=()), limit=Decimal(0)), spend("0"), NOW)
    assert decision.verdict is Verdict.DENY
    assert "0 of 0 USD (100.0 %), below every rung" in decision.reason


def test_what_is_not_counted_is_told_in_words_of_its_number() -> None:
    assert gaps(spend("1")) == ()
    one_and_two = replace(spend("1"), unpriced_lines=1, usage_unknown_calls=2)
    assert gaps(one_and_two) == ("not counted: 1 line without a price, 2 API calls that told no usage",)
    three_and_one = replace(spend("1"), unmeasured_lines=3, usage_unknown_calls=1)
    assert gaps(three_and_one) == ("not counted: 1 API call that told no usage, 3 lines without a reading",)
