"""GET /v1/budgets and /v1/budgets/{path}: what is left of each budget, decided from the books as they are now."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from analytics.api.problems import RESPONSES, ApiError
from analytics.api.service import Api, Reader, covered
from analytics.io import budgets as store
from analytics.io.spend import load_spend
from analytics.io.statement_formats import rfc3339, text
from analytics.model.budget import Decision, decide

router = APIRouter(responses=RESPONSES)


class BudgetModel(BaseModel):
    """Amounts are decimal strings in ``unit``. ``armed``: whether the rung in force could act, were the deployment to enforce.

    Where one of the last three counts is not 0, more was spent than ``spent`` says: lines without a price, API calls that
    told no usage, lines without a reading of what the budget limits.
    """

    name: str
    tenant: str
    measure: str
    unit: str
    period: str
    time_zone: str
    period_start_at: str
    period_end_at: str
    limit: str
    spent: str
    spent_own: str
    left: str
    forecast: str | None
    forecast_basis: str
    verdict: str
    rung: str | None
    needs_approval: bool
    armed: bool
    reason: str
    coverage_ratio: str | None
    books_as_of_at: str | None
    origin: str
    unpriced_lines: int
    usage_unknown_calls: int
    unmeasured_lines: int

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "nlp-monthly",
                    "tenant": "acme/research/nlp",
                    "measure": "cost",
                    "unit": "EUR",
                    "period": "month",
                    "time_zone": "Europe/Berlin",
                    "period_start_at": "2026-10-31T23:00:00Z",
                    "period_end_at": "2026-11-30T23:00:00Z",
                    "limit": "50000",
                    "spent": "41250.5",
                    "spent_own": "41000",
                    "left": "8749.5",
                    "forecast": "61875.75",
                    "forecast_basis": "linear run rate over 480.0 of 720.0 hours",
                    "verdict": "warn",
                    "rung": "warn",
                    "needs_approval": False,
                    "armed": False,
                    "reason": "budget 'nlp-monthly': 41250.5 of 50000 EUR (82.5 %), warn from 80.0 %",
                    "coverage_ratio": "0.9991",
                    "books_as_of_at": "2026-11-20T23:00:00Z",
                    "origin": "live",
                    "unpriced_lines": 0,
                    "usage_unknown_calls": 0,
                    "unmeasured_lines": 0,
                }
            ]
        }
    )


class BudgetList(BaseModel):
    budgets: list[BudgetModel]


@router.get("/v1/budgets", response_model=BudgetList, tags=["budgets"])
def list_budgets(api: Api, reader: Reader) -> dict[str, Any]:
    """Return every budget in force that the token covers."""
    return {"budgets": _decided(api, reader, None)}


@router.get("/v1/budgets/{path:path}", response_model=BudgetList, tags=["budgets"])
def get_budgets(path: str, api: Api, reader: Reader) -> dict[str, Any]:
    """Return the budgets of exactly this tenant path."""
    found = _decided(api, reader, (covered(reader, path),))
    if not found:
        raise ApiError(404, "no_budget", f"no budget is in force for {path!r}; see GET /v1/budgets for those that are")
    return {"budgets": found}


def _decided(api: Api, reader: Reader, paths: tuple[str, ...] | None) -> list[dict[str, Any]]:
    now = api.clock()
    with api.scoped(reader) as conn:
        return [
            as_dict(decide(budget, load_spend(conn, budget, now), now))
            for budget in store.in_force(conn, now, tenant_paths=paths)
        ]


def as_dict(decision: Decision) -> dict[str, Any]:
    """Return a decision as the API shows it."""
    budget, evidence = decision.budget, decision.evidence
    as_of_at = evidence["books_as_of_at"]
    return {
        "name": budget.name,
        "tenant": budget.tenant_path,
        "measure": budget.measure.value,
        "unit": budget.unit,
        "period": budget.period.value,
        "time_zone": budget.time_zone,
        "period_start_at": rfc3339(decision.period_start_at),
        "period_end_at": rfc3339(decision.period_end_at),
        "limit": text(decision.limit),
        "spent": text(decision.spent),
        "spent_own": evidence["own"],
        "left": text(decision.left),
        "forecast": text(decision.forecast),
        "forecast_basis": decision.forecast_basis,
        "verdict": decision.verdict.value,
        "rung": decision.rung.do.value if decision.rung else None,
        "needs_approval": decision.needs_approval,
        "armed": decision.armed,
        "reason": decision.reason,
        "coverage_ratio": None if evidence["coverage"] == "none" else evidence["coverage"],
        "books_as_of_at": None if as_of_at == "none" else as_of_at.replace("+00:00", "Z"),
        "origin": decision.origin.name.lower(),
        **gaps_of(decision),
    }


def gaps_of(decision: Decision) -> dict[str, int]:
    """Return what the figures of a decision leave out, as the API shows it."""
    return {
        name: int(decision.evidence[name]) for name in ("unpriced_lines", "usage_unknown_calls", "unmeasured_lines")
    }
