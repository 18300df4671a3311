"""POST /v1/gate: may this job run? An estimate, and what it leaves of every budget on the way up the tenant tree.

It reserves nothing and stops nothing. A budget above the caller's subtree takes part in the verdict but shows no figures.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from analytics.api.budgets import gaps_of
from analytics.api.problems import RESPONSES, ApiError
from analytics.api.service import Api, Gatekeeper, Label, covered
from analytics.io import budgets as store
from analytics.io.gate_reads import SiteError, rates, site_id, tenant_of
from analytics.io.spend import load_spend
from analytics.io.statement_formats import text
from analytics.model.budget import VERDICT_SEVERITY, Decision, Measure, Verdict, decide
from analytics.model.estimate import Estimate, JobSpec, estimate
from ingest.store.tenancy import covers

router = APIRouter(responses=RESPONSES)


class GateRequest(BaseModel):
    """A job as it would be submitted. Without ``tenant`` the bindings decide from cluster, account, user and the rest."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"accelerators": 64, "model": "NVIDIA H100 80GB HBM3", "hours": "12", "tenant": "acme/research/nlp"}
            ]
        },
    )

    accelerators: Annotated[int, Field(gt=0, le=10_000_000)]
    model: Annotated[Label, Field(description="device model as on the bill")]
    hours: Annotated[Decimal, Field(gt=0, le=100_000, max_digits=14, decimal_places=6)]
    tenant: Label | None = None
    site: Label | None = None
    cluster: Label | None = None
    account: Label | None = None
    partition: Label | None = None
    user_name: Label | None = None
    namespace: Label | None = None
    label: Label | None = None


class GateBudget(BaseModel):
    """One budget on the way up. Above the token's subtree only measure and verdict are shown.

    The counts say what ``spent`` leaves out; where one is not 0, less is left than ``left``.
    """

    name: str | None
    tenant: str | None
    measure: str
    unit: str | None
    limit: str | None
    spent: str | None
    left: str | None
    left_after: str | None
    unpriced_lines: int | None
    usage_unknown_calls: int | None
    unmeasured_lines: int | None
    verdict: Verdict


class GateAnswer(BaseModel):
    """``source`` is always forecast: nothing here was measured of this job."""

    verdict: Verdict
    reason: str
    tenant: str
    currency: str | None
    cost: str | None
    energy_kwh: str | None
    carbon_kgco2e: str | None
    accelerator_hours: str
    source: str
    basis: list[str]
    origin: str
    budgets: list[GateBudget]


@router.post("/v1/gate", response_model=GateAnswer, tags=["gate"])
def ask_gate(spec: GateRequest, api: Api, caller: Gatekeeper) -> dict[str, Any]:
    """Return the verdict; 422 where an honest one cannot be given (no price, no site, unmapped account)."""
    now = api.clock()
    with api.unscoped() as conn:
        tenant = spec.tenant
        if tenant is None:
            tenant = tenant_of(
                conn,
                spec.model_dump(include={"cluster", "account", "partition", "user_name", "namespace", "label"}),
                now,
            )
        # Whose account somebody else's is, this answer does not tell: it reads like no binding at all.
        if tenant is None or (spec.tenant is None and not covers(caller.token.tenant_path, tenant)):
            raise ApiError(422, "unmapped", "no binding gives this job a tenant; name one, or add a binding")
        covered(caller, tenant)
        try:
            site = site_id(conn, spec.site)
        except SiteError as error:
            raise ApiError(422, "unknown_site", str(error)) from None
        in_force = rates(conn, site, spec.model, now)
        if in_force.price_per_accelerator_hour is None:
            raise ApiError(
                422, "no_price", f"no price is in force for {spec.model!r}; import one or name the model as on the bill"
            )
        made = estimate(JobSpec(spec.accelerators, spec.model, spec.hours), in_force)
        after: list[tuple[Decision, Decision]] = []
        for budget in store.in_force(conn, now, tenant_paths=_upwards(tenant)):
            name = (
                f"budget {budget.name!r}"
                if covers(caller.token.tenant_path, budget.tenant_path)
                else "a budget above it"
            )
            if budget.measure is Measure.COST and budget.currency != in_force.currency:
                raise ApiError(422, "currency", f"prices are in {in_force.currency}, {name} is not")
            amount = made.of(budget.measure)
            if amount is None:
                why = "; ".join(made.basis)
                raise ApiError(
                    422, "cannot_estimate", f"{name} limits {budget.measure}, which cannot be estimated: {why}"
                )
            spend = load_spend(conn, budget, now)
            after.append((decide(budget, spend, now), decide(budget, replace(spend, own=spend.own + amount), now)))
    return _answer(tenant, in_force.currency, made, after, caller.token.tenant_path)


def _answer(
    tenant: str, currency: str | None, made: Estimate, decisions: list[tuple[Decision, Decision]], subtree: str | None
) -> dict[str, Any]:
    worst = max(decisions, key=lambda pair: VERDICT_SEVERITY[pair[1].verdict], default=None)
    verdict = worst[1].verdict if worst else Verdict.ALLOW
    reason = "no budget is in force for this tenant"
    if worst is not None:
        visible = covers(subtree, worst[1].budget.tenant_path)
        reason = (
            f"with this job, {worst[1].reason}" if visible else f"a {worst[1].budget.measure} budget above {tenant}"
        )
    origins = [pair[0].origin for pair in decisions]
    return {
        "verdict": verdict,
        "reason": reason,
        "tenant": tenant,
        "currency": currency,
        "cost": text(made.cost),
        "energy_kwh": text(made.energy_kwh),
        "carbon_kgco2e": text(made.carbon_kgco2e),
        "accelerator_hours": text(made.accelerator_hours),
        "source": "forecast",
        "basis": list(made.basis),
        "origin": max(origins).name.lower() if origins else "live",
        "budgets": [_budget(before, after, subtree) for before, after in decisions],
    }


def _budget(before: Decision, after: Decision, subtree: str | None) -> dict[str, Any]:
    budget = before.budget
    shown = {"measure": budget.measure.value, "verdict": after.verdict}
    if not covers(subtree, budget.tenant_path):
        return dict.fromkeys(GateBudget.model_fields) | shown
    return shown | {
        "name": budget.name,
        "tenant": budget.tenant_path,
        "unit": budget.unit,
        "limit": text(budget.limit),
        "spent": text(before.spent),
        "left": text(before.left),
        "left_after": text(after.left),
        **gaps_of(before),
    }


def _upwards(path: str) -> tuple[str, ...]:
    parts = path.split("/")
    return tuple("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
