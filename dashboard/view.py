"""What the pages say in words and rows: periods, amounts, origins, states. Pure; the pages only place it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from dashboard.data import Bill, Budget, Figures, Finding, TenantSteps

SIMULATED: Final = "simulated"
UNIT_NAMES: Final = {"energy_kwh": "kWh", "carbon_kgco2e": "kgCO2e", "accelerator_hours": "GPU-h"}
VERDICT_NAMES: Final = {"allow": "within", "warn": "warning", "deny": "exceeded"}
VERDICT_COLORS: Final = {"within": "green", "warning": "orange", "exceeded": "red"}
KIND_NAMES: Final = {"idle_waste": "idle, but held", "throttling": "throttled"}
_DEVICE_TAIL: Final = 13
_MJ_PER_KWH: Final = 3_600_000_000
_SMALLEST_SHARE: Final = Decimal("0.001")


@dataclass(frozen=True, slots=True)
class Period:
    """How far back a page looks, and in which steps power is drawn (about 300 of them)."""

    label: str
    hours: int
    step_s: int

    def bill_window(self, now: datetime) -> tuple[datetime, datetime]:
        """Return full UTC hours that end with the hour now open."""
        end = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
        return end - timedelta(hours=self.hours), end

    def power_window(self, now: datetime) -> tuple[datetime, datetime]:
        """Return whole steps up to the last one that is over; an open step would look like a drop."""
        step = timedelta(seconds=self.step_s)
        epoch = datetime(2000, 1, 1, tzinfo=UTC)
        end = epoch + (now - timedelta(minutes=1) - epoch) // step * step
        return end - timedelta(hours=self.hours), end


PERIODS: Final = (
    Period("6 h", 6, 60),
    Period("24 h", 24, 300),
    Period("48 h", 48, 600),
    Period("7 d", 168, 1_800),
    Period("30 d", 720, 7_200),
)
DEFAULT_PERIOD: Final = PERIODS[2]


def amount(value: Decimal | None, unit: str = "", places: int | None = None) -> str:
    """Return an amount for reading: about four digits, thousands separated; unknown is a dash, never 0."""
    if value is None:
        return "–"
    if places is None:
        places = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2
    return f"{value:,.{places}f} {unit}".strip()


def percent(ratio: Decimal | float | None) -> str:
    return "–" if ratio is None else f"{100 * float(ratio):.1f} %"


def unit_name(unit: str) -> str:
    """Return a budget's unit as people write it: a measure of the API or a currency."""
    return UNIT_NAMES.get(unit, unit)


def wasted(bill: Bill) -> str:
    """Return what waste costs in cash and in capacity, each with its share."""
    total = bill.total
    cash = total.idle_waste + total.throttle_waste
    parts = [f"{amount(cash, bill.currency or '')} of the cost ({_share(cash, total.cost)}) could have been avoided"]
    for hours, what in ((total.idle_accelerator_hours, "idle"), (total.throttled_accelerator_hours, "throttled")):
        if hours:
            parts.append(f"{amount(hours, 'GPU-h')} {what} ({_share(hours, total.accelerator_hours)} of the time held)")
    return "; ".join(parts) + "."


def _share(part: Decimal, whole: Decimal) -> str:
    if part and whole and part / whole < _SMALLEST_SHARE:
        return "less than 0.1 %"
    return percent(part / whole if whole else None)


def origins_note(origins: Iterable[str]) -> str | None:
    """Return the sentence that marks simulated data, None where there is none."""
    found = set(origins)
    if SIMULATED not in found:
        return None
    if found == {SIMULATED}:
        return (
            "**SIMULATED DATA.** Everything here was invented by the fleet simulator: no real hardware, no real money."
        )
    real = ", ".join(sorted(found - {SIMULATED}))
    return f"**PARTLY SIMULATED DATA.** These figures mix simulated with {real} data; do not bill by them."


def heading(text: str, origins: Iterable[str]) -> str:
    """Return a section's heading, marked where what is below it is simulated."""
    return f"{text} :orange-badge[SIMULATED]" if SIMULATED in set(origins) else text


def provenance(bill: Bill) -> str:
    """Return where the bill's figures come from and how much of them was measured."""
    total = bill.total
    parts = [
        f"source: {', '.join(total.sources) or 'none'}",
        f"coverage {percent(total.coverage_ratio)}",
        f"origin: {', '.join(total.origins) or 'none'}",
        f"{bill.hours_closed} hours closed, the rest provisional"
        if bill.status == "provisional"
        else "all hours closed",
    ]
    if bill.books_as_of_at is not None:
        parts.append(f"books to {bill.books_as_of_at.astimezone(UTC):%d %b %H:%M} UTC")
    if total.unpriced_lines:
        parts.append(f"**{_lines(total.unpriced_lines)} no price: the cost is at least this**")
    if total.usage_unknown_calls:
        parts.append(f"{_calls(total.usage_unknown_calls)} told no usage and cost nothing here")
    return " · ".join(parts)


def _lines(count: int) -> str:
    return "1 line has" if count == 1 else f"{count:,} lines have"


def _calls(count: int) -> str:
    return "1 API call" if count == 1 else f"{count:,} API calls"


def tenants_provenance(steps: TenantSteps) -> str:
    """Return how much energy the steps hold, and where it comes from."""
    sources = sorted({source for each in steps.tenants for source in each.sources})
    origins = sorted({origin for each in steps.tenants for origin in each.origins})
    known = [each.coverage_ratio for each in steps.tenants if each.coverage_ratio is not None]
    total_mj = sum(mj or 0 for each in steps.tenants for mj in each.energy_mj)
    energy_kwh = Decimal(total_mj) / _MJ_PER_KWH
    return (
        f"{amount(energy_kwh, 'kWh')} of IT energy in all · source: {', '.join(sources) or 'none'} · lowest coverage of a "
        f"tenant {percent(min(known, default=None))} · origin: {', '.join(origins) or 'none'}"
    )


def headline(bill: Bill) -> list[tuple[str, str, str]]:
    """Return the figures above everything: label with unit, value, and what it means."""
    total: Figures = bill.total
    currency = bill.currency or "no currency"
    return [
        (f"Cost ({currency})", amount(total.cost), "Own GPUs at the published rate, electricity and API tokens."),
        ("Energy (kWh)", amount(total.energy_kwh), "IT energy from the devices' counters, before facility overhead."),
        ("Carbon (kgCO2e)", amount(total.carbon_kgco2e), "Location-based, with the site's facility factor."),
        (
            f"Idle waste ({currency})",
            amount(total.idle_waste),
            "Avoidable cash of held but idle time: a part of the cost. The capacity it freed is below.",
        ),
        (
            f"Throttled ({currency})",
            amount(total.throttle_waste),
            "Avoidable cash of slowed-down time: a part of the cost. What throttling loses is assumed.",
        ),
        ("Mapped", percent(bill.mapped_share_ratio), "Share of used cost that a binding gives to a tenant."),
    ]


def budget_rows(budgets: Sequence[Budget]) -> list[dict[str, Any]]:
    """Return budgets as table rows, the fullest first."""
    rows = [
        {
            "budget": budget.name,
            "tenant": budget.tenant,
            "state": [VERDICT_NAMES.get(budget.verdict, budget.verdict)],
            "due": _due(budget),
            "used_percent": float(100 * budget.spent / budget.limit) if budget.limit else None,
            "spent": amount(budget.spent, unit_name(budget.unit)),
            "limit": amount(budget.limit, unit_name(budget.unit)),
            "forecast": amount(budget.forecast, unit_name(budget.unit)),
            "period": f"{budget.period} to {budget.period_end_at.astimezone(UTC):%d %b}",
            "mode": "armed" if budget.armed else "dry run",
            "origin": budget.origin,
        }
        for budget in budgets
    ]
    return sorted(rows, key=lambda row: (-(row["used_percent"] or 0.0), row["tenant"], row["budget"]))


def finding_rows(findings: Sequence[Finding], most: int = 20) -> list[dict[str, Any]]:
    """Return the dearest findings as table rows."""
    zero = Decimal(0)
    dearest = sorted(
        findings,
        key=lambda finding: (
            -(finding.avoidable_cash or zero),
            -(finding.capacity_freed_accelerator_hours or zero),
            finding.start_at,
        ),
    )
    return [
        {
            "kind": KIND_NAMES.get(finding.kind, finding.kind.replace("_", " ")),
            "tenant": finding.tenant or "unmapped",
            "job": finding.job or "–",
            "device": "–" if finding.device is None else f"…{finding.device[-_DEVICE_TAIL:]}",
            "start": finding.start_at.astimezone(UTC),
            "minutes": round((finding.end_at - finding.start_at).total_seconds() / 60),
            "cash": None if finding.avoidable_cash is None else float(finding.avoidable_cash),
            "energy_kwh": None if finding.waste_energy_kwh is None else float(finding.waste_energy_kwh),
            "freed_h": None
            if finding.capacity_freed_accelerator_hours is None
            else float(finding.capacity_freed_accelerator_hours),
            "confidence_percent": 100 * finding.confidence_ratio,
            "origin": finding.origin,
        }
        for finding in dearest[:most]
    ]


def _due(budget: Budget) -> str:
    """Name the rung that is reached, above a mere warning."""
    return "–" if budget.rung in {None, "warn"} else str(budget.rung)
