"""Charts as pure functions: typed rows in, Altair chart out. They fetch nothing, and every axis names its unit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import altair as alt

from dashboard.data import BillRow, PowerPoint, TenantSteps

W_PER_KW: Final = 1000
MJ_PER_J: Final = 1000
J_PER_KWH: Final = 3_600_000
MOST_SERIES: Final = 8
"""More areas than this cannot be told apart; the smallest are shown as one."""
MOST_TENANTS: Final = 15
OTHER: Final = "all others"
NOBODY: Final = "no tenant"
AREAS: Final = ("#0f766e", "#5aa9a1", "#2f5d8a", "#8fb3d9", "#7a5ea8", "#b9a4d6", "#6b7a89", "#b6c0ca", "#d5dbe1")
CATEGORY_NAMES: Final = {
    "gpu_owned": "own GPUs",
    "electricity": "electricity",
    "api_tokens": "API tokens",
    "idle_spread": "part of idle GPUs",
}
CATEGORY_COLORS: Final = ("#0f766e", "#d9a441", "#2f5d8a", "#8895a3")
WASTE_COLORS: Final = ("#8895a3", "#c2552d")
BAR_HEIGHT_PX: Final = 26
FRAME_HEIGHT_PX: Final = 105
"""Mark, legend and axis around the bars."""
_LABEL_LIMIT_PX: Final = 170
_TEXT: Final = "#46525e"
_MARK: Final = "#b45f06"


class Measure(StrEnum):
    """What the bars by tenant show."""

    COST = "Cost"
    ENERGY = "Energy"
    CARBON = "Carbon"


class Flow(StrEnum):
    """What is drawn of each tenant over time."""

    POWER = "Power"
    ENERGY = "Energy"


class Waste(StrEnum):
    """What the bars of waste show."""

    CASH = "Cost"
    TIME = "GPU-hours"


@dataclass(frozen=True, slots=True)
class Bar:
    """One segment of a bar."""

    tenant: str
    part: str
    amount: float


def power_chart(points: Sequence[PowerPoint], step_s: int, height_px: int = 250) -> alt.Chart:
    """Return power in kW over UTC time, stacked by site and model; a step without readings stays empty, never zero."""
    named = _named_series(points)
    shown = _largest(named)
    power_w: dict[tuple[datetime, str], float] = {}
    coverage: dict[tuple[datetime, str], float] = {}
    for point, name in zip(points, named, strict=True):
        key = (point.at, name if name in shown else OTHER)
        power_w[key] = power_w.get(key, 0.0) + point.power_w
        coverage[key] = min(coverage.get(key, 1.0), point.coverage_ratio)
    series = [*shown, OTHER] if any(name == OTHER for _, name in power_w) else shown
    values = [
        {
            "at": at.isoformat(),
            "until": (at + timedelta(seconds=step_s)).isoformat(),
            "series": name,
            "power_kw": watts / W_PER_KW,
            "coverage_percent": round(100 * coverage[at, name], 1),
        }
        for (at, name), watts in sorted(power_w.items())
    ]
    coverage_tip = alt.Tooltip("coverage_percent:Q", title="coverage (%)", format=".1f")
    return _over_time(values, series, "power_kw", "IT power (kW)", height_px, coverage_tip)


def tenants_over_time(steps: TenantSteps, flow: Flow, height_px: int = 250) -> alt.Chart:
    """Return each tenant's power in kW, or energy in kWh a step, stacked over UTC time; a step without meters stays empty.

    The largest tenants have an area of their own, the others one together; what is no tenant's always has: it is waste to look for.
    """
    totals = {each.tenant or NOBODY: sum(mj or 0 for mj in each.energy_mj) for each in steps.tenants}
    shown = sorted(sorted(totals, key=lambda name: (name != NOBODY, -totals[name], name))[:MOST_SERIES])
    energy_mj: dict[tuple[int, str], int] = {}
    for each in steps.tenants:
        name = each.tenant or NOBODY
        for number, mj in enumerate(each.energy_mj):
            if mj is not None:
                key = (number, name if name in shown else OTHER)
                energy_mj[key] = energy_mj.get(key, 0) + mj
    series = [*shown, OTHER] if len(totals) > len(shown) else shown
    step = timedelta(seconds=steps.step_s)
    values = [
        {
            "at": (steps.from_at + number * step).isoformat(),
            "until": (steps.from_at + (number + 1) * step).isoformat(),
            "series": name,
            "power_kw": mj / (MJ_PER_J * W_PER_KW * steps.step_s),
            "energy_kwh": mj / (MJ_PER_J * J_PER_KWH),
        }
        for (number, name), mj in sorted(energy_mj.items())
    ]
    if flow is Flow.POWER:
        other = alt.Tooltip("energy_kwh:Q", title="IT energy (kWh)", format=",.3f")
        return _over_time(values, series, "power_kw", "IT power (kW)", height_px, other)
    other = alt.Tooltip("power_kw:Q", title="IT power (kW)", format=",.2f")
    title = f"IT energy (kWh per {steps.step_s // 60} min)"
    return _over_time(values, series, "energy_kwh", title, height_px, other)


def _over_time(
    values: list[dict[str, Any]], series: Sequence[str], field: str, title: str, height_px: int, also: alt.Tooltip
) -> alt.Chart:
    """Return the stacked bars of ``values`` (at, until, series and ``field``, in the unit that ``title`` names)."""
    color_scale = alt.Scale(domain=list(series), range=list(AREAS[: len(series)]))
    legend = alt.Legend(title=None, orient="top", labelLimit=260) if len(series) > 1 else None
    chart: alt.Chart = (
        alt.Chart(alt.InlineData(values=values))
        .mark_bar(orient="vertical", binSpacing=0, strokeWidth=1.5)
        .encode(
            x=alt.X(
                "at:T",
                bin="binned",
                scale=alt.Scale(type="utc"),
                # A binned axis would format instants as numbers.
                axis=alt.Axis(
                    title="time (UTC)",
                    labelExpr="utcFormat(datum.value, '%d %b %H:%M')",
                    labelOverlap=True,
                    grid=False,
                    tickCount=8,
                ),
            ),
            x2="until:T",
            y=alt.Y(f"{field}:Q", stack="zero", axis=alt.Axis(title=title, format=",~f", tickCount=5)),
            color=alt.Color("series:N", scale=color_scale, legend=legend),
            # The same colour around each bar closes the hairlines between neighbours.
            stroke=alt.Stroke("series:N", scale=color_scale, legend=None),
            order=alt.Order("series:N"),
            tooltip=[
                alt.Tooltip("at:T", title="time (UTC)", format="%Y-%m-%d %H:%M", formatType="utc"),
                alt.Tooltip("series:N", title="series"),
                alt.Tooltip(f"{field}:Q", title=title, format=",.2f" if field == "power_kw" else ",.3f"),
                also,
            ],
        )
        .properties(height=height_px)
    )
    return chart


def tenant_chart(rows: Sequence[BillRow], measure: Measure, currency: str | None) -> alt.Chart:
    """Return one bar per tenant, largest first; cost in its categories."""
    match measure:
        case Measure.COST:
            bars = [
                Bar(row.tenant, CATEGORY_NAMES.get(name, name), float(amount))
                for row in rows
                for name, amount in row.figures.cost_by_category.items()
            ]
            # What a server of another version charges for has a part too: bars add up to the cost.
            others = sorted({bar.part for bar in bars} - set(CATEGORY_NAMES.values()))
            colors = (*CATEGORY_COLORS, *AREAS)
            return _bars(bars, f"cost ({currency or 'no currency'})", [*CATEGORY_NAMES.values(), *others], colors)
        case Measure.ENERGY:
            energy = [Bar(row.tenant, "energy", _known(row.figures.energy_kwh)) for row in rows]
            return _bars(energy, "IT energy (kWh)", ["energy"], CATEGORY_COLORS)
        case Measure.CARBON:
            carbon = [Bar(row.tenant, "carbon", _known(row.figures.carbon_kgco2e)) for row in rows]
            return _bars(carbon, "carbon, location-based (kgCO2e)", ["carbon"], CATEGORY_COLORS)


def waste_chart(rows: Sequence[BillRow], measure: Waste, currency: str | None) -> alt.Chart:
    """Return what idle and throttled time cost each tenant, or how much of it there was; a part, never on top."""
    if measure is Waste.TIME:
        hours = [
            Bar(row.tenant, name, float(amount))
            for row in rows
            for name, amount in (
                ("idle", row.figures.idle_accelerator_hours),
                ("throttled", row.figures.throttled_accelerator_hours),
            )
        ]
        return _bars(hours, "held without full use (GPU-h)", ["idle", "throttled"], WASTE_COLORS)
    bars = [
        Bar(row.tenant, name, float(amount))
        for row in rows
        for name, amount in (("idle", row.figures.idle_waste), ("throttled", row.figures.throttle_waste))
    ]
    return _bars(bars, f"avoidable cost ({currency or 'no currency'})", ["idle", "throttled"], WASTE_COLORS)


def _bars(bars: Iterable[Bar], title: str, parts: Sequence[str], colors: Sequence[str]) -> alt.Chart:
    totals: dict[str, float] = {}
    kept = [bar for bar in bars if bar.amount]
    for bar in kept:
        totals[bar.tenant] = totals.get(bar.tenant, 0.0) + bar.amount
    order = sorted(totals, key=lambda tenant: (-totals[tenant], tenant))[:MOST_TENANTS]
    position = {part: place for place, part in enumerate(parts)}
    values = [
        {"tenant": bar.tenant, "part": bar.part, "amount": bar.amount, "position": position.get(bar.part, len(parts))}
        for bar in kept
        if bar.tenant in order
    ]
    chart: alt.Chart = (
        alt.Chart(alt.InlineData(values=values))
        .mark_bar(height={"band": 0.62}, cornerRadiusEnd=2)
        .encode(
            y=alt.Y(
                "tenant:N",
                sort=order,
                axis=alt.Axis(title=None, labelLimit=_LABEL_LIMIT_PX, ticks=False, domain=False, labelPadding=8),
            ),
            x=alt.X("amount:Q", stack="zero", axis=alt.Axis(title=title, format=",~f", tickCount=5, domain=False)),
            color=alt.Color(
                "part:N",
                scale=alt.Scale(domain=list(parts), range=list(colors[: len(parts)])),
                legend=alt.Legend(title=None, orient="top") if len(parts) > 1 else None,
            ),
            order=alt.Order("position:Q"),
            tooltip=[
                alt.Tooltip("tenant:N", title="tenant"),
                alt.Tooltip("part:N", title="of which"),
                alt.Tooltip("amount:Q", title=title, format=",.2f"),
            ],
        )
        .properties(height=BAR_HEIGHT_PX * max(len(order), 2) + FRAME_HEIGHT_PX)
    )
    return chart


def styled(chart: alt.Chart, *, is_simulated: bool) -> alt.Chart:
    """Return the chart in the dashboard's look; simulated data says so inside the picture, so that a saved one does too."""
    if is_simulated:
        chart = chart.properties(title=alt.Title("simulated data", anchor="end", fontSize=11, color=_MARK, dy=4))
    styled_chart: alt.Chart = (
        chart.configure_view(stroke=None)
        .configure_axis(
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            titleColor=_TEXT,
            labelColor=_TEXT,
            gridColor="#e6eaee",
            domainColor="#c9d1d9",
            tickColor="#c9d1d9",
        )
        .configure_legend(labelFontSize=12, labelColor=_TEXT, symbolType="square", padding=0, offset=4)
    )
    return styled_chart


def _named_series(points: Sequence[PowerPoint]) -> list[str]:
    """Return each point's series by what tells the series apart: the site, the model, or both."""
    sites = {point.site for point in points}
    models = {point.model for point in points}
    if len(models) == 1:
        return [point.site for point in points]
    if len(sites) == 1:
        return [point.model for point in points]
    return [f"{point.site} · {point.model}" for point in points]


def _largest(names: Iterable[str]) -> list[str]:
    """Return the series seen most often, at most as many as can be told apart."""
    return sorted(name for name, _ in Counter(names).most_common(MOST_SERIES))


def _known(amount: Any) -> float:
    return 0.0 if amount is None else float(amount)
