"""GET /v1/tenants/energy: what each tenant draws, step by step. For pictures and alarms; what is owed is the bill's to say."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Final

import orjson
import psycopg
from fastapi import APIRouter, Query, Response
from pydantic import BaseModel

from analytics.api.cursors import cursor_of, position_of
from analytics.api.problems import RESPONSES, ApiError
from analytics.api.service import Api, Label, Reader, aware, covered
from analytics.io.rollups import Provenance, TenantEnergy, energy_by_tenant, provenance_by_tenant
from analytics.io.statement_formats import rfc3339

router = APIRouter(responses=RESPONSES)
MAX_STEPS: Final = 5_000
MAX_POINTS: Final = 500_000
"""Of one answer: 4 MB, and a fifth of a second."""
_UNTOLD: Final = Provenance((), (), None)


class TenantEnergyModel(BaseModel):
    """``energy_mj``: millijoules, one a step from the first on; null where no meter spans any of it, never zero.

    Divided by 1000 and the step's seconds it is the step's mean power in watts. Sources, origins and coverage are those of
    the hours the period touches, as the books have them. A null tenant is what nobody held, or whose job has no tenant.
    """

    tenant: str | None
    energy_mj: list[int | None]
    sources: list[str]
    origins: list[str]
    coverage_ratio: float | None


class TenantEnergyPage(BaseModel):
    from_at: str
    to_at: str
    step_s: int
    tenants: list[TenantEnergyModel]
    next_cursor: str | None


@router.get("/v1/tenants/energy", response_model=TenantEnergyPage, tags=["tenants"])
def get_tenants_energy(
    api: Api,
    reader: Reader,
    from_at: Annotated[datetime, Query(alias="from", description="full minute", examples=["2026-11-01T00:00:00Z"])],
    to_at: Annotated[datetime, Query(alias="to", description="a whole number of steps later, not included")],
    step_s: Annotated[int, Query(ge=60, le=86_400, multiple_of=60)] = 60,
    tenant: Annotated[Label | None, Query(description="a subtree of what the token covers")] = None,
    cursor: str | None = None,
    limit: Annotated[
        int | None, Query(ge=1, le=10_000, description="tenants a page; as many as fit by default")
    ] = None,
) -> Response:
    """Return the energy of each tenant the token covers, by path; nobody's comes last, and for tokens for all tenants only.

    Hours are there from their first minutes on: the open one as far as the books have come.
    """
    from_at, to_at = aware("from", from_at), aware("to", to_at)
    steps = _steps(from_at, to_at, step_s)
    fit = MAX_POINTS // steps
    if limit is not None and limit > fit:
        raise ApiError(
            400,
            "too_many_points",
            f"{limit} tenants of {steps} steps are more than {MAX_POINTS} points; limit={fit} fits",
        )
    if tenant is not None:
        covered(reader, tenant)
    most, after = limit or min(fit, 10_000), _after(cursor)
    with api.scoped(reader) as conn:
        driver: psycopg.Connection[Any] | None = conn.connection.driver_connection
        assert driver is not None  # noqa: S101 - a checked-out connection has one
        found = energy_by_tenant(driver, from_at, to_at, step_s, subtree=tenant, after=after, most=most + 1)
        told = provenance_by_tenant(driver, from_at, to_at)
    page = found[:most]
    answer = {
        "from_at": rfc3339(from_at),
        "to_at": rfc3339(to_at),
        "step_s": step_s,
        "tenants": [_series(each, told.get(each.tenant, _UNTOLD)) for each in page],
        "next_cursor": cursor_of(str(page[-1].tenant)) if len(found) > most else None,
    }
    # Made into text at once: to have a hundred thousand points checked by their model takes longer than to find them.
    return Response(orjson.dumps(answer), media_type="application/json")


def _steps(from_at: datetime, to_at: datetime, step_s: int) -> int:
    step = timedelta(seconds=step_s)
    if from_at.second or from_at.microsecond:
        raise ApiError(400, "invalid_period", "from must be a full minute, like 2026-11-01T00:05:00Z")
    if not timedelta(0) < to_at - from_at <= MAX_STEPS * step:
        raise ApiError(400, "invalid_period", f"give a period of 1 to {MAX_STEPS} steps; raise step_s for a longer one")
    if (to_at - from_at) % step:
        raise ApiError(400, "invalid_period", f"to must be a whole number of steps of {step_s} s after from")
    return (to_at - from_at) // step


def _after(cursor: str | None) -> str | None:
    """Return the path a page begins behind; what is no path (or a NUL, which the database would choke on) is no cursor of ours."""
    position = position_of(cursor)
    if position is not None and not position.isprintable():
        raise ApiError(400, "invalid_cursor", "this cursor is not one this API gave; start without it")
    return position


def _series(series: TenantEnergy, told: Provenance) -> dict[str, Any]:
    return {
        "tenant": series.tenant,
        "energy_mj": series.energy_mj,
        "sources": told.sources,
        "origins": told.origins,
        "coverage_ratio": told.coverage_ratio,
    }
