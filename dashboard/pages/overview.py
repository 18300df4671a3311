"""The overview: what the fleet draws, what it costs whom, what is wasted, and how the budgets stand."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

import streamlit as st

from dashboard import charts, view
from dashboard.data import Api, ApiError, Bill, Budget, Finding, PowerPoint, TenantSteps

REFRESH_S = 30

Choice = TypeVar("Choice", bound=StrEnum)


def page() -> None:
    """Lay out the page; the fragment below it renews itself."""
    st.html("<style>.block-container { padding-top: 1.6rem; padding-bottom: 2rem; max-width: 1500px }</style>")
    labels = {period.label: period for period in view.PERIODS}
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        st.markdown("## :material/bolt: Wattledger", width="content")
        chosen = st.segmented_control(
            "Period",
            list(labels),
            default=view.DEFAULT_PERIOD.label,
            required=True,
            label_visibility="collapsed",
            width="content",
        )
    overview(labels[chosen or view.DEFAULT_PERIOD.label])


@st.fragment(run_every=REFRESH_S)
def overview(period: view.Period) -> None:
    now = datetime.now(UTC)
    try:
        with Api.from_env(os.environ) as api:
            bill = api.bill(*period.bill_window(now))
            power = api.fleet_power(*period.power_window(now), period.step_s)
            drawn = api.tenants_energy(*period.power_window(now), period.step_s)
            findings = api.findings(*period.bill_window(now))
            budgets = api.budgets()
    except ApiError as error:
        st.error(f"**No data: {error}**\n\nWhat to do: {error.remedy}.", icon=":material/cloud_off:")
        st.caption(f"This page tries again every {REFRESH_S} seconds.")
        return
    origins = {*bill.total.origins, *(origin for point in power for origin in point.origins), *_origins(drawn)}
    note = view.origins_note(origins)
    if note is not None:
        st.warning(note, icon=":material/science:")
    if not bill.rows and not power:
        _nothing_yet(period)
        return
    _headline(bill)
    _power(power, period)
    _tenant_power(drawn, period)
    cost, waste = st.columns(2, gap="medium")
    with cost:
        _tenants(bill)
    with waste:
        _waste(bill)
    _budgets(budgets)
    _findings(findings)


def _nothing_yet(period: view.Period) -> None:
    st.info(
        f"**There is nothing in the books of the last {period.label}.** Agents that send now show up here within a minute; "
        "hours close 15 minutes after their end.\n\nNo fleet at hand? `wattledger demo` simulates one. "
        "`wattledger doctor` says whether everything runs.",
        icon=":material/hourglass_empty:",
    )


def _headline(bill: Bill) -> None:
    figures = view.headline(bill)
    for column, (label, value, meaning) in zip(st.columns(len(figures)), figures, strict=True):
        column.metric(label, value, help=meaning, border=True)
    st.caption(view.provenance(bill))


def _power(points: Sequence[PowerPoint], period: view.Period) -> None:
    origins = {origin for point in points for origin in point.origins}
    with st.container(border=True):
        st.markdown(view.heading("##### Fleet power", origins))
        if not points:
            st.caption(f"No device reported in the last {period.label}.")
            return
        _draw(charts.power_chart(points, period.step_s), origins)
        least = min(point.coverage_ratio for point in points)
        st.caption(
            f"Mean IT power over {period.step_s // 60} min steps, by site and device model. Facility overhead (cooling, power "
            f"conversion) is not in it. Lowest coverage of a step: {view.percent(least)}."
        )


def _tenant_power(drawn: TenantSteps, period: view.Period) -> None:
    with st.container(border=True):
        origins = _origins(drawn)
        flow = _heading_with_choice("##### Power by tenant", origins, "Over time", charts.Flow, charts.Flow.POWER)
        if not drawn.tenants:
            st.caption(f"No hour of the last {period.label} has minutes by tenant yet.")
            return
        _draw(charts.tenants_over_time(drawn, flow), origins)
        st.caption(
            f"IT power and energy in steps of {drawn.step_s // 60} min, by who held the devices; `{charts.NOBODY}` is idle and "
            f"unattributed devices and jobs no binding names. {view.tenants_provenance(drawn)}. For looking at: the bill is below."
        )


def _origins(drawn: TenantSteps) -> set[str]:
    return {origin for each in drawn.tenants for origin in each.origins}


def _tenants(bill: Bill) -> None:
    with st.container(border=True, height="stretch"):
        measure = _heading_with_choice(
            "##### By tenant", bill.total.origins, "Measure", charts.Measure, charts.Measure.COST
        )
        _draw(charts.tenant_chart(bill.rows, measure, bill.currency), bill.total.origins)
        st.caption("`(platform)` is idle and unattributed time; `unmapped` is what no binding names.")


def _waste(bill: Bill) -> None:
    with st.container(border=True, height="stretch"):
        waste = _heading_with_choice("##### Waste", bill.total.origins, "Waste in", charts.Waste, charts.Waste.CASH)
        _draw(charts.waste_chart(bill.rows, waste, bill.currency), bill.total.origins)
        st.caption(f"{view.wasted(bill)} What throttling loses is assumed, not measured.")


def _heading_with_choice(
    heading: str, origins: Iterable[str], label: str, choices: type[Choice], default: Choice
) -> Choice:
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        st.markdown(view.heading(heading, origins), width="content")
        chosen = st.segmented_control(
            label,
            [choice.value for choice in choices],
            default=default.value,
            required=True,
            label_visibility="collapsed",
            width="content",
        )
    return choices(chosen)


def _budgets(budgets: Sequence[Budget]) -> None:
    with st.container(border=True):
        st.markdown(view.heading("##### Budgets", {budget.origin for budget in budgets}))
        if not budgets:
            st.caption("No budget is in force; `wattledger policy apply budgets.yaml` sets some.")
            return
        columns: dict[str, Any] = {
            "budget": "Budget",
            "tenant": "Tenant",
            "state": st.column_config.MultiselectColumn(
                "State", options=list(view.VERDICT_COLORS), color=list(view.VERDICT_COLORS.values())
            ),
            "due": "Due",
            "used_percent": st.column_config.ProgressColumn("Used (%)", format="%.1f %%", min_value=0, max_value=100),
            "spent": "Spent",
            "limit": "Limit",
            "forecast": "Forecast",
            "period": "Period",
            "mode": "Mode",
            "origin": "Origin",
        }
        st.dataframe(view.budget_rows(budgets), hide_index=True, column_config=columns)


def _findings(findings: Sequence[Finding]) -> None:
    with st.container(border=True):
        st.markdown(view.heading("##### Dearest findings", {finding.origin for finding in findings}))
        if not findings:
            st.caption("Nothing was found in this period.")
            return
        currency = next((finding.currency for finding in findings if finding.currency), "no currency")
        columns: dict[str, Any] = {
            "kind": "Finding",
            "tenant": "Tenant",
            "job": "Job",
            "device": "Device",
            "start": st.column_config.DatetimeColumn("Start (UTC)", format="DD MMM HH:mm", timezone="UTC"),
            "minutes": st.column_config.NumberColumn("Min"),
            "cash": st.column_config.NumberColumn(f"Cost ({currency})", format="%.2f"),
            "energy_kwh": st.column_config.NumberColumn("Energy (kWh)", format="%.2f"),
            "freed_h": st.column_config.NumberColumn("Freed (GPU-h)", format="%.2f"),
            "confidence_percent": st.column_config.NumberColumn("Confidence (%)", format="%.0f"),
            "origin": "Origin",
        }
        st.dataframe(view.finding_rows(findings), hide_index=True, column_config=columns)


def _draw(chart: Any, origins: Any) -> None:
    st.altair_chart(charts.styled(chart, is_simulated=view.SIMULATED in set(origins)), width="stretch", theme=None)


page()
