"""GET /v1/bill: the bill of a period for whatever the token may see."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict

from analytics.api.problems import RESPONSES, ApiError
from analytics.api.service import MAX_PERIOD_DAYS, Api, Reader, aware, covered
from analytics.api.snapshots import Snapshot
from analytics.io import statement_formats as formats
from analytics.io.statements import GroupBy, StatementError, bill, mapped_share
from ingest.store.tenancy import ALL_TENANTS

router = APIRouter(responses=RESPONSES)


class FiguresModel(BaseModel):
    """Costs are decimal strings in the bill's currency; null is unknown, never zero.

    Two gaps make a cost a lower bound: lines without a price, and API calls whose sender told no token counts.
    """

    model_config = ConfigDict(extra="allow")

    cost: str
    cost_by_category: dict[str, str]
    unpriced_lines: int
    usage_unknown_calls: int
    energy_kwh: str | None
    carbon_kgco2e: str | None
    tokens: int
    cost_failed: str | None
    """Of the cost, that of jobs that failed or ran into their time limit; like the next two null where it was not asked for."""
    cost_preempted: str | None
    cost_cancelled: str | None
    accelerator_hours: str
    allocated_accelerator_hours: str
    active_accelerator_hours: str
    idle_accelerator_hours: str
    throttled_accelerator_hours: str
    idle_waste: str
    throttle_waste: str
    coverage_ratio: str | None
    sources: list[str]
    origins: list[str]
    cost_per_allocated_accelerator_hour: str | None
    cost_per_active_accelerator_hour: str | None
    cost_per_idle_accelerator_hour: str | None
    energy_kwh_per_allocated_accelerator_hour: str | None
    energy_kwh_per_active_accelerator_hour: str | None
    energy_kwh_per_idle_accelerator_hour: str | None
    carbon_kgco2e_per_allocated_accelerator_hour: str | None
    carbon_kgco2e_per_active_accelerator_hour: str | None
    carbon_kgco2e_per_idle_accelerator_hour: str | None


class RowModel(FiguresModel):
    """``key`` is the tenant path, the run of a job, or the device's UUID; by job and device more fields name it."""

    key: str
    tenant: str | None


class CorrectionModel(BaseModel):
    """What later changes of hours of a closed month come to, counted in this bill: differences, of either sign."""

    tenant: str
    category: str
    reason: str
    first_at: str
    last_at: str
    lines: int
    cost: str | None
    energy_mj: int | None
    carbon_gco2e: str | None


class DisputedModel(BaseModel):
    lines: int
    cost: str


class BillModel(BaseModel):
    """``mapped_share_ratio`` is of the whole deployment: how much of what was used some binding gave to a tenant."""

    from_at: str
    to_at: str
    group_by: GroupBy
    currency: str | None
    status: str
    hours_closed: int
    books_as_of_at: str | None
    mapped_share_ratio: str | None
    total: FiguresModel
    corrections: list[CorrectionModel]
    disputed: DisputedModel
    rows: list[RowModel]
    rollups: list[RowModel]
    next_cursor: str | None

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "from_at": "2026-11-01T00:00:00Z",
                    "to_at": "2026-11-02T00:00:00Z",
                    "group_by": "tenant",
                    "currency": "USD",
                    "status": "closed",
                    "hours_closed": 24,
                    "books_as_of_at": "2026-11-02T00:00:00Z",
                    "mapped_share_ratio": "0.973",
                    "total": {
                        "cost": "84.333333341",
                        "cost_by_category": {"electricity": "0.333333341", "gpu_owned": "84"},
                        "unpriced_lines": 0,
                        "usage_unknown_calls": 0,
                        "energy_kwh": "9.6",
                        "carbon_kgco2e": "3.12",
                        "tokens": 0,
                        "cost_failed": None,
                        "cost_preempted": None,
                        "cost_cancelled": None,
                        "accelerator_hours": "24",
                        "allocated_accelerator_hours": "20",
                        "active_accelerator_hours": "18.5",
                        "idle_accelerator_hours": "1.5",
                        "throttled_accelerator_hours": "0",
                        "idle_waste": "5.25",
                        "throttle_waste": "0",
                        "coverage_ratio": "0.998",
                        "sources": ["measured"],
                        "origins": ["live"],
                        "cost_per_allocated_accelerator_hour": "4.216666667",
                        "cost_per_active_accelerator_hour": "4.558558559",
                        "cost_per_idle_accelerator_hour": "3.51",
                        "energy_kwh_per_allocated_accelerator_hour": "0.48",
                        "energy_kwh_per_active_accelerator_hour": "0.518918919",
                        "energy_kwh_per_idle_accelerator_hour": "0.1",
                        "carbon_kgco2e_per_allocated_accelerator_hour": "0.156",
                        "carbon_kgco2e_per_active_accelerator_hour": "0.168648649",
                        "carbon_kgco2e_per_idle_accelerator_hour": "0.033",
                    },
                    "corrections": [],
                    "disputed": {"lines": 0, "cost": "0"},
                    "rows": [],
                    "rollups": [],
                    "next_cursor": None,
                }
            ]
        }
    )


@router.get("/v1/bill", response_model=BillModel, tags=["bill"])
def get_bill(  # noqa: PLR0913, PLR0917 - query parameters
    api: Api,
    reader: Reader,
    from_at: Annotated[datetime, Query(alias="from", description="full UTC hour", examples=["2026-11-01T00:00:00Z"])],
    to_at: Annotated[datetime, Query(alias="to", description="full UTC hour, not included")],
    group_by: GroupBy = GroupBy.TENANT,
    tenant: Annotated[str | None, Query(description="a subtree of what the token covers")] = None,
    currency: Annotated[str | None, Query(pattern="^[A-Z]{3}$")] = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    *,
    outcomes: Annotated[
        bool, Query(description="by tenant: also what failed, preempted and cancelled work cost")
    ] = False,
) -> dict[str, Any]:
    """Return the bill, rows sorted by key; the total is of the whole period, whatever page is asked for.

    All pages are of the bill as it was when the first was asked for; a later page costs no query while that is kept, ten
    minutes. After that it is built again, and 409 where it came out different.
    """
    from_at, to_at = aware("from", from_at), aware("to", to_at)
    if to_at - from_at > timedelta(days=MAX_PERIOD_DAYS):
        raise ApiError(400, "period_too_long", f"more than {MAX_PERIOD_DAYS} days; ask in parts")
    if tenant is not None:
        covered(reader, tenant)

    def built() -> Snapshot:
        with api.scoped(reader) as conn:
            made = bill(conn, from_at, to_at, group_by, tenant=tenant, currency=currency, outcomes=outcomes)
        share = made.mapped_share
        if reader.token.tenant_path != ALL_TENANTS:
            with api.unscoped() as conn:
                share = mapped_share(conn, from_at, to_at, made.currency)
        whole = formats.as_dict(made) | {"mapped_share_ratio": formats.text(share)}
        rows = whole.pop("rows")
        return Snapshot.of(whole, rows)

    # Of this subtree's view: a cursor that another tenant got hold of finds nothing.
    key = (reader.token.tenant_path, from_at, to_at, group_by, tenant, currency, outcomes)
    try:
        whole, start, rows, following = api.snapshots.page(key, built, cursor, limit)
    except StatementError as error:
        raise ApiError(400, "invalid_period", str(error)) from None
    return {
        **whole.head,
        "rows": rows,
        "rollups": [] if start else whole.head["rollups"],
        "next_cursor": following,
    }
