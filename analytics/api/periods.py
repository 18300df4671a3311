"""GET /v1/periods: which months are closed, for everybody; what they came to, for who may close; lines of an hour, for their tenant.

A month is closed and reopened on the command line: its key is in nobody's server. Nothing here writes.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any

import psycopg
import sqlalchemy as sa
from fastapi import APIRouter, Path, Query
from pydantic import BaseModel

from analytics.api.cursors import cursor_of, position_of
from analytics.api.problems import RESPONSES, ApiError
from analytics.api.service import Api, Closer, Reader, aware, covered
from analytics.io.disputes import line_dict, page_of_lines
from analytics.io.periods import Period, exported, find, listed
from analytics.io.statement_formats import rfc3339

router = APIRouter(responses=RESPONSES)
MonthName = Annotated[str, Path(pattern=r"^\d{4}-\d{2}$", examples=["2026-10"])]


class PeriodModel(BaseModel):
    """A closing of a month. ``site`` ``*``: all sites that have none of their own. ``number`` counts its closings."""

    name: str
    site: str
    number: int
    from_at: str
    to_at: str
    status: str
    root_sha256: str
    key_id: str | None
    closed_at: str
    reopened_at: str | None
    reopen_reason: str | None


class PeriodList(BaseModel):
    periods: list[PeriodModel]


class DocumentModel(BaseModel):
    """``document``: what `wattledger close` wrote, made once more from what is on record."""

    period: PeriodModel
    document: dict[str, Any]


class LineModel(BaseModel):
    """A line as it counts, or a correction of a closed month (``corrects_hour_at`` set) in the hour it is posted in.

    ``name`` is what it is disputed by; null in the open window. Amounts are decimal strings, null is unknown.
    """

    name: str | None
    site: str
    hour_at: str
    tenant: str | None
    pool: str
    holder: str | None
    api_key: str | None
    model: str | None
    category: str
    quantity: int
    quantity_unit: str
    energy_mj: int | None
    carbon_gco2e: str | None
    billed_cost: str | None
    currency: str
    status: str
    reason: str | None
    corrects_hour_at: str | None
    is_disputed: bool


class LineList(BaseModel):
    lines: list[LineModel]
    next_cursor: str | None


@router.get("/v1/periods", response_model=PeriodList, tags=["periods"])
def get_periods(api: Api, _: Reader) -> dict[str, Any]:
    """Return the closings of months, the newest first: that they are closed, and the root each had. No figure is in it."""
    with api.unscoped() as conn:
        return {"periods": [_dict(period) for period in listed(_driver(conn))]}


@router.get("/v1/periods/{name}", response_model=DocumentModel, tags=["periods"])
def get_period(name: MonthName, api: Api, _: Closer, site: str | None = None) -> dict[str, Any]:
    """Return the newest closing of a month with its figures, its checklist and the head of every hour; for the scope close."""
    with api.unscoped() as conn:
        period = find(_driver(conn), name, site)
        if period is None:
            raise ApiError(404, "not_closed", f"{name} was never closed{f' for {site}' if site else ''}")
        return {"period": _dict(period), "document": exported(_driver(conn), period)}


@router.get("/v1/lines", response_model=LineList, tags=["periods"])
def get_lines(
    api: Api,
    reader: Reader,
    hour: Annotated[datetime, Query(description="full UTC hour", examples=["2026-10-03T08:00:00Z"])],
    tenant: Annotated[str | None, Query(description="a subtree of what the token covers")] = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000,
) -> dict[str, Any]:
    """Return the lines of an hour with the names they are disputed by, by site and pages."""
    at = aware("hour", hour)
    if at.replace(minute=0, second=0, microsecond=0) != at:
        raise ApiError(400, "invalid_hour", "hour must be a full UTC hour, like 2026-10-03T08:00:00Z")
    if tenant is not None:
        covered(reader, tenant)
    with api.scoped(reader) as conn:
        found, place = page_of_lines(conn, at, tenant, after=_place(cursor), limit=limit)
    return {
        "lines": [line_dict(line) for line in found],
        "next_cursor": None if place is None else cursor_of(json.dumps(place)),
    }


def _place(cursor: str | None) -> list[str] | None:
    position = position_of(cursor)
    try:
        place = None if position is None else json.loads(position)
    except ValueError:
        place = ()
    if place is not None and not (
        isinstance(place, list) and len(place) == 3 and all(isinstance(part, str) for part in place)
    ):
        raise ApiError(400, "invalid_cursor", "this cursor is not one this API gave; start without it")
    return place


def _driver(conn: sa.Connection) -> psycopg.Connection[Any]:
    driver = conn.connection.driver_connection
    if not isinstance(driver, psycopg.Connection):
        raise TypeError(f"the API's engine speaks through {type(driver).__name__}, not psycopg")
    return driver


def _dict(period: Period) -> dict[str, Any]:
    return {
        "name": period.name,
        "site": period.site or "*",
        "number": period.number,
        "from_at": rfc3339(period.from_at),
        "to_at": rfc3339(period.to_at),
        "status": period.status,
        "root_sha256": period.root_sha256.hex(),
        "key_id": period.key_id,
        "closed_at": rfc3339(period.closed_at),
        "reopened_at": None if period.reopened_at is None else rfc3339(period.reopened_at),
        "reopen_reason": period.reopen_reason,
    }
