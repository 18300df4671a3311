"""GET /v1/findings, /v1/actions and /v1/fleet/power: what was detected, what was done, what the fleet draws."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel

from analytics.api.cursors import cursor_of, id_position
from analytics.api.problems import RESPONSES, ApiError
from analytics.api.service import Api, Label, Reader, aware
from analytics.io import action_log, reads
from analytics.io.action_log import Action
from analytics.io.statement_formats import rfc3339, text
from analytics.units import MJ_PER_J, US_PER_HOUR, US_PER_SECOND
from collector.wire import Origin
from ingest.errors import ForbiddenError
from ingest.store.tenancy import ALL_TENANTS

router = APIRouter(responses=RESPONSES)
PageSize = Annotated[int, Query(ge=1, le=1000)]
MAX_STEPS = 5000


class FindingModel(BaseModel):
    id: int
    kind: str
    site: str
    tenant: str | None
    cluster: str | None
    native_id: str | None
    device: str | None
    start_at: str
    end_at: str
    avoidable_cash: str | None
    currency: str | None
    waste_energy_kwh: str | None
    capacity_freed_accelerator_hours: str | None
    confidence_ratio: float
    evidence: Any
    origin: str


class FindingPage(BaseModel):
    findings: list[FindingModel]
    next_cursor: str | None


class ActionModel(BaseModel):
    id: int
    tenant: str
    kind: str
    plane: str
    target: dict[str, Any]
    status: str
    dry_run: bool
    evidence: dict[str, Any]
    result: dict[str, Any] | None
    undo: dict[str, Any] | None
    planned_at: str
    executed_at: str | None
    reconciled_at: str | None


class ActionPage(BaseModel):
    actions: list[ActionModel]
    next_cursor: str | None


class PowerPoint(BaseModel):
    """Mean power over the step; ``coverage_ratio`` below 1 means the power is at least this."""

    at: str
    site: str
    model: str | None
    power_w: float
    coverage_ratio: float
    throttled_ratio: float
    origins: list[str]


class PowerSeries(BaseModel):
    step_s: int
    points: list[PowerPoint]


@router.get("/v1/findings", response_model=FindingPage, tags=["findings"])
def get_findings(
    api: Api,
    reader: Reader,
    from_at: Annotated[datetime | None, Query(alias="from")] = None,
    to_at: Annotated[datetime | None, Query(alias="to")] = None,
    kind: Label | None = None,
    cursor: str | None = None,
    limit: PageSize = 100,
) -> dict[str, Any]:
    """Return findings that touch the period, newest first."""
    with api.scoped(reader) as conn:
        rows = reads.findings(
            conn,
            from_at=None if from_at is None else aware("from", from_at),
            to_at=None if to_at is None else aware("to", to_at),
            kind=kind,
            before_id=id_position(cursor),
            limit=limit + 1,
        )
    page = rows[:limit]
    return {
        "findings": [_finding(row) for row in page],
        "next_cursor": cursor_of(page[-1].id) if len(rows) > limit else None,
    }


@router.get("/v1/actions", response_model=ActionPage, tags=["actions"])
def get_actions(api: Api, reader: Reader, cursor: str | None = None, limit: PageSize = 100) -> dict[str, Any]:
    """Return the action log, newest first: dry runs too, with what would have been done."""
    with api.scoped(reader) as conn:
        rows = action_log.find(conn, before_id=id_position(cursor), limit=limit + 1)
    page = rows[:limit]
    following = cursor_of(page[-1].action_id) if len(rows) > limit else None
    return {"actions": [_action(row) for row in page], "next_cursor": following}


@router.get("/v1/fleet/power", response_model=PowerSeries, tags=["fleet"])
def get_fleet_power(
    api: Api,
    reader: Reader,
    from_at: Annotated[datetime, Query(alias="from")],
    to_at: Annotated[datetime, Query(alias="to")],
    step_s: Annotated[int, Query(ge=60, le=86_400, multiple_of=60)] = 60,
    by_model: bool = False,  # noqa: FBT001, FBT002 - a query parameter
) -> dict[str, Any]:
    """Return mean power per step and site from minute rollups. The fleet belongs to no tenant: tokens for all tenants only."""
    if reader.token.tenant_path != ALL_TENANTS:
        raise ForbiddenError("fleet_not_covered", "fleet power is for tokens that cover all tenants")
    from_at, to_at = aware("from", from_at), aware("to", to_at)
    if not from_at < to_at <= from_at + MAX_STEPS * timedelta(seconds=step_s):
        raise ApiError(400, "invalid_period", f"give a period of 1 to {MAX_STEPS} steps; raise step_s for a longer one")
    with api.scoped(reader) as conn:
        rows = reads.fleet_power(conn, from_at, to_at, step_s, by_model=by_model)
    return {"step_s": step_s, "points": [_point(row, step_s) for row in rows]}


def _point(row: Any, step_s: int) -> dict[str, Any]:
    minutes_us = int(row.device_minutes) * 60 * US_PER_SECOND
    return {
        "at": rfc3339(row.at),
        "site": row.site,
        "model": row.model,
        "power_w": int(row.energy_mj or 0) / (MJ_PER_J * step_s),
        "coverage_ratio": int(row.covered_us) / minutes_us,
        "throttled_ratio": int(row.throttled_us or 0) / minutes_us,
        "origins": [Origin(origin).name.lower() for origin in sorted(row.origins)],
    }


def _finding(row: Any) -> dict[str, Any]:
    return {
        "id": row.id,
        "kind": row.kind,
        "site": row.site,
        "tenant": row.tenant,
        "cluster": row.cluster,
        "native_id": row.native_id,
        "device": row.device,
        "start_at": rfc3339(row.start_at),
        "end_at": rfc3339(row.end_at),
        "avoidable_cash": text(row.avoidable_cash),
        "currency": row.currency,
        "waste_energy_kwh": None
        if row.waste_energy_mj is None
        else f"{row.waste_energy_mj / (MJ_PER_J * 3_600_000):.6f}",
        "capacity_freed_accelerator_hours": None
        if row.capacity_freed_us is None
        else f"{row.capacity_freed_us / US_PER_HOUR:.6f}",
        "confidence_ratio": row.confidence,
        "evidence": row.evidence,
        "origin": Origin(row.origin).name.lower(),
    }


def _action(action: Action) -> dict[str, Any]:
    def at(instant: datetime | None) -> str | None:
        return None if instant is None else rfc3339(instant)

    return {
        "id": action.action_id,
        "tenant": action.tenant_path,
        "kind": action.kind,
        "plane": action.plane,
        "target": dict(action.target),
        "status": action.status.value,
        "dry_run": action.dry_run,
        "evidence": dict(action.evidence),
        "result": None if action.result is None else dict(action.result),
        "undo": None if action.undo is None else dict(action.undo),
        "planned_at": at(action.planned_at),
        "executed_at": at(action.executed_at),
        "reconciled_at": at(action.reconciled_at),
    }
