"""Concludes what a budget says about a tenant's spend: frozen budget and figures in, a :class:`Decision` out.

Pure: ``now`` and every figure are arguments. It acts on nothing and asks nobody; what is done about a decision, and whether
anything may be done at all, is ``analytics.actions``. It refuses to go beyond ``warn`` on thin evidence: coverage below the
required one, stale books, or figures that were not born live.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal
from enum import StrEnum
from fractions import Fraction
from typing import Final

from analytics.model.period import Period, bounds
from collector.wire import Origin

NINE_PLACES: Final = Decimal("1E-9")
EXACT: Final = Context(prec=60)
HOUR: Final = timedelta(hours=1)
MICROSECOND: Final = timedelta(microseconds=1)


class Measure(StrEnum):
    """What a limit counts; the value is also the unit."""

    COST = "cost"
    ENERGY_KWH = "energy_kwh"
    CARBON_KGCO2E = "carbon_kgco2e"
    ACCELERATOR_HOURS = "accelerator_hours"
    TOKENS = "tokens"


class Step(StrEnum):
    """What a rung does, mildest first."""

    WARN = "warn"
    SUSPEND = "suspend"
    CANCEL = "cancel"


class Approval(StrEnum):
    AUTOMATIC = "AUTOMATIC"
    MANUAL = "MANUAL"


class Verdict(StrEnum):
    """The answer a caller acts on, mildest first."""

    ALLOW = "allow"
    WARN = "warn"
    DENY = "deny"


STEP_SEVERITY: Final = {step: position for position, step in enumerate(Step, start=1)}
VERDICT_SEVERITY: Final = {verdict: position for position, verdict in enumerate(Verdict)}


@dataclass(frozen=True, slots=True)
class Webhook:
    """A receiver by name; ``url`` and ``secret`` are references like ``${NAME}``, never the values."""

    name: str
    url: str
    secret: str


@dataclass(frozen=True, slots=True)
class Rung:
    """What happens when spend reaches ``at_ratio`` of the limit."""

    at_ratio: Decimal
    do: Step
    approval: Approval = Approval.MANUAL
    grace_s: int = 0
    webhook: Webhook | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit for a tenant subtree and period. ``protect``: globs by job attribute that no rung may touch."""

    budget_id: int
    tenant_id: int
    tenant_path: str
    name: str
    period: Period
    time_zone: str
    measure: Measure
    limit: Decimal
    currency: str | None
    ladder: tuple[Rung, ...]
    armed: bool = False
    protect: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        return self.currency or self.measure.value


@dataclass(frozen=True, slots=True)
class Spend:
    """What a budget's subtree used in the period so far, in the budget's unit.

    ``own`` is the tenant's own usage as first closed, at the rate card in force then. ``other`` is everything that came on
    top by no doing of the tenant: spread idle, corrections, re-rating, mapping changes, imports, late data. ``coverage`` is
    the measured share of the held time behind the figures (None: nothing held). ``as_of_at``: the books reach to here.

    Three gaps make the figures a lower bound, each counted where the measure can have it: lines of which the price in the
    budget's currency is unknown (cost), API calls that told no usage (cost, tokens), lines of which the amount is unknown
    (energy, carbon).
    """

    own: Decimal
    other: Decimal
    own_origins: frozenset[Origin]
    other_origins: frozenset[Origin]
    coverage: float | None
    as_of_at: datetime | None
    unpriced_lines: int = 0
    usage_unknown_calls: int = 0
    unmeasured_lines: int = 0

    @property
    def total(self) -> Decimal:
        return EXACT.add(self.own, self.other)

    @property
    def origin(self) -> Origin:
        """The worst origin among the figures; no figures at all are as good as live."""
        return max(self.own_origins | self.other_origins, default=Origin.LIVE)


@dataclass(frozen=True, slots=True)
class Required:
    """The evidence a step above ``warn`` needs.

    An hour closes 15 minutes after its end, so healthy books are at most
    about 80 minutes behind; three hours means that closing has stopped.
    """

    coverage: float = 0.9
    max_age: timedelta = timedelta(hours=3)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy concluded. ``rung`` is the one in force (None: below all), ``armed`` whether it may be carried out.

    ``needs_approval``: a person has to agree, because the rung says so or because only figures that are not the tenant's own
    usage reach it. ``forecast`` is the spend at the end of the period, by ``forecast_basis``.
    """

    budget: Budget
    verdict: Verdict
    rung: Rung | None
    needs_approval: bool
    armed: bool
    spent: Decimal
    limit: Decimal
    forecast: Decimal | None
    forecast_basis: str
    reason: str
    evidence: Mapping[str, str]
    origin: Origin
    period_start_at: datetime
    period_end_at: datetime
    decided_at: datetime

    @property
    def left(self) -> Decimal:
        """What is left of the limit; negative when overspent."""
        return EXACT.subtract(self.limit, self.spent)


def decide(budget: Budget, spend: Spend, now: datetime, required: Required | None = None) -> Decision:
    """Return what ``budget`` concludes from ``spend`` at ``now``; never milder for more spend, all else equal."""
    required = required or Required()
    start_at, end_at = bounds(budget.period, budget.time_zone, now)
    enforceable = min(
        spend.own, spend.total
    )  # a correction in the tenant's favour counts at once, one against them does not
    by_own = _reached(budget, enforceable)
    by_total = _reached(budget, max(spend.own, spend.total))
    weak = _weaknesses(spend, now, required)
    rung = by_total
    if weak and rung is not None and rung.do is not Step.WARN:
        rung = _reached(budget, max(spend.own, spend.total), mildest_only=True)
    beyond_warn = rung is not None and rung.do is not Step.WARN
    own_suffices = _severity(by_own) >= _severity(rung)
    needs_approval = beyond_warn and (not own_suffices or (rung is not None and rung.approval is Approval.MANUAL))
    verdict = _verdict(budget, spend, by_total)
    forecast, basis = forecast_linear(spend, start_at, end_at)
    notes = [*gaps(spend), *weak]
    if beyond_warn and not own_suffices:
        notes.append("the tenant's own usage alone does not reach this rung, so it needs approval")
    if not _live(spend):
        notes.append(f"figures are {spend.origin.name.lower()}, so nothing is armed")
    return Decision(
        budget=budget,
        verdict=verdict,
        rung=rung,
        needs_approval=needs_approval,
        armed=budget.armed and _live(spend) and not weak,
        spent=spend.total,
        limit=budget.limit,
        forecast=forecast,
        forecast_basis=basis,
        reason="; ".join([_headline(budget, spend, rung), *notes]),
        evidence={
            "own": str(spend.own),
            "other": str(spend.other),
            "coverage": "none" if spend.coverage is None else f"{spend.coverage:.4f}",
            "books_as_of_at": "none" if spend.as_of_at is None else spend.as_of_at.isoformat(),
            "unpriced_lines": str(spend.unpriced_lines),
            "usage_unknown_calls": str(spend.usage_unknown_calls),
            "unmeasured_lines": str(spend.unmeasured_lines),
            "forecast_basis": basis,
        },
        origin=spend.origin,
        period_start_at=start_at,
        period_end_at=end_at,
        decided_at=now,
    )


def gaps(spend: Spend) -> tuple[str, ...]:
    """Return in words why more was spent than the figures say; nothing where all is known."""
    counts = (
        (spend.unpriced_lines, "line", "without a price"),
        (spend.usage_unknown_calls, "API call", "that told no usage"),
        (spend.unmeasured_lines, "line", "without a reading"),
    )
    found = [f"{count} {what}{'s' * (count != 1)} {why}" for count, what, why in counts if count]
    return (f"not counted: {', '.join(found)}",) if found else ()


def forecast_linear(spend: Spend, start_at: datetime, end_at: datetime) -> tuple[Decimal | None, str]:
    """Return spend at the end of the period if it goes on at the mean rate so far, and the basis in words."""
    if spend.as_of_at is None or spend.as_of_at - start_at < HOUR:
        return None, "no forecast: less than one closed hour in this period"
    elapsed = min(spend.as_of_at, end_at) - start_at
    scaled = Fraction(spend.total) * ((end_at - start_at) // MICROSECOND) / (elapsed // MICROSECOND)
    forecast = EXACT.divide(Decimal(scaled.numerator), Decimal(scaled.denominator))
    basis = f"linear run rate over {elapsed / HOUR:.1f} of {(end_at - start_at) / HOUR:.1f} hours"
    return forecast.quantize(NINE_PLACES, ROUND_HALF_EVEN, context=EXACT), basis


def _reached(budget: Budget, amount: Decimal, *, mildest_only: bool = False) -> Rung | None:
    reached = [
        rung
        for rung in budget.ladder
        if amount >= EXACT.multiply(rung.at_ratio, budget.limit) and (rung.do is Step.WARN or not mildest_only)
    ]
    return max(reached, key=lambda rung: (STEP_SEVERITY[rung.do], rung.at_ratio), default=None)


def _severity(rung: Rung | None) -> int:
    return STEP_SEVERITY[rung.do] if rung else 0


def _verdict(budget: Budget, spend: Spend, by_total: Rung | None) -> Verdict:
    if spend.total >= budget.limit or _severity(by_total) > STEP_SEVERITY[Step.WARN]:
        return Verdict.DENY
    return Verdict.WARN if by_total else Verdict.ALLOW


def _live(spend: Spend) -> bool:
    return spend.own_origins <= {Origin.LIVE} and Origin.SIMULATED not in spend.other_origins


def _weaknesses(spend: Spend, now: datetime, required: Required) -> list[str]:
    weak = []
    if spend.as_of_at is None:
        weak.append("no hour of this period is closed yet")
    elif now - spend.as_of_at > required.max_age:
        weak.append(f"the books end at {spend.as_of_at.isoformat()}, more than {required.max_age} ago")
    if spend.coverage is not None and spend.coverage < required.coverage:
        weak.append(f"coverage {spend.coverage:.3f} is below {required.coverage}")
    return weak


def _headline(budget: Budget, spend: Spend, rung: Rung | None) -> str:
    percent = EXACT.divide(spend.total * 100, budget.limit) if budget.limit else Decimal(100)
    state = f"{rung.do.value} from {_percent(rung.at_ratio * 100)}" if rung else "below every rung"
    return (
        f"budget {budget.name!r}: {spend.total.normalize(EXACT):f} of {budget.limit.normalize(EXACT):f} {budget.unit} "
        f"({_percent(percent)}), {state}"
    )


def _percent(value: Decimal) -> str:
    return f"{value.quantize(Decimal('0.1'), context=EXACT)} %"
