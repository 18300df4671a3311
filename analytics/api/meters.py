"""GET /v1/meters/gap: what meters above the nodes showed, beside what the books have below them. Of whole sites, so for nobody's tenant."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Annotated, Any

import psycopg
from fastapi import APIRouter, Query
from pydantic import BaseModel

from analytics.api.problems import RESPONSES, ApiError
from analytics.api.service import MAX_PERIOD_DAYS, Api, Label, Reader, aware
from analytics.io.meter_gaps import gaps
from analytics.io.statement_formats import rfc3339
from ingest.errors import ForbiddenError
from ingest.store.tenancy import ALL_TENANTS

router = APIRouter(responses=RESPONSES)


class MeterGapModel(BaseModel):
    """Energies in millijoules; ``gap_ppm`` and ``error_ppm`` are parts per million of ``metered_mj``.

    ``meter`` null: all of the level together. ``hours`` of ``of_hours`` are compared: those that both sides know. ``is_explained``:
    the gap is within what the meters may be off; null where nothing could be compared.
    """

    site: str
    level: str
    meter: str | None
    below: str
    metered_mj: int
    below_mj: int
    gap_mj: int
    gap_ppm: int | None
    error_ppm: int | None
    hours: int
    of_hours: int
    is_explained: bool | None


class MeterGapPage(BaseModel):
    from_at: str
    to_at: str
    gaps: list[MeterGapModel]


@router.get("/v1/meters/gap", response_model=MeterGapPage, tags=["fleet"])
def get_meters_gap(
    api: Api,
    reader: Reader,
    from_at: Annotated[datetime, Query(alias="from", description="full hour", examples=["2026-11-01T00:00:00Z"])],
    to_at: Annotated[datetime, Query(alias="to", description="full hour, not included")],
    site: Label | None = None,
) -> dict[str, Any]:
    """Return each comparison of the period by site. The fleet belongs to no tenant: tokens for all tenants only."""
    if reader.token.tenant_path != ALL_TENANTS:
        raise ForbiddenError("fleet_not_covered", "meters of sites are for tokens that cover all tenants")
    from_at, to_at = aware("from", from_at), aware("to", to_at)
    if any(at.minute or at.second or at.microsecond for at in (from_at, to_at)):
        raise ApiError(400, "invalid_period", "books are kept by the hour: give full hours, like 2026-11-01T00:00:00Z")
    if not timedelta(0) < to_at - from_at <= timedelta(days=MAX_PERIOD_DAYS):
        raise ApiError(400, "invalid_period", f"give a period of 1 hour to {MAX_PERIOD_DAYS} days")
    with api.scoped(reader) as conn:
        driver: psycopg.Connection[Any] | None = conn.connection.driver_connection
        assert driver is not None  # noqa: S101 - a checked-out connection has one
        found = gaps(driver, from_at, to_at, site)
    return {
        "from_at": rfc3339(from_at),
        "to_at": rfc3339(to_at),
        "gaps": [asdict(each) | {"is_explained": each.is_explained} for each in found],
    }
