"""GET /v1/why: a line of a bill, or an hour of a job, explained with every step of its arithmetic. A token sees its own subtree's.

From the stored usage hours: samples are the operator's to read. What other tenants' lines a rounding group holds is not told, so that for
such a token a figure is held to the last place of its exact share.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import psycopg
from fastapi import APIRouter, Query
from pydantic import BaseModel

from analytics.api.problems import RESPONSES, ApiError
from analytics.api.service import Api, Label, Reader, aware
from analytics.io.explain_reads import WhyError
from analytics.io.why import answer, ask, why_dict
from ingest.store.tenancy import ALL_TENANTS

router = APIRouter(responses=RESPONSES)


class StepModel(BaseModel):
    """``value``: the exact figure as text, thousands apart, or a fraction with its rounded value; null = words alone."""

    part: str
    words: str
    value: str | None
    unit: str | None
    of: str | None


class WhyLineModel(BaseModel):
    """``differs``: what does not come out as it is stored; ``unseen``: what is held to its exact share alone."""

    name: str | None
    tenant: str | None
    pool: str
    holder_key: str
    device_model: str | None
    charge_category: str
    quantity: int
    quantity_unit: str
    energy_mj: int | None
    energy_low_mj: int | None
    energy_high_mj: int | None
    facility_mj: int | None
    carbon_gco2e: str | None
    billed_cost: str | None
    currency: str
    status: str
    source: str
    coverage: float
    method: str | None
    reason: str | None
    corrects_hour_at: str | None
    steps: list[StepModel]
    differs: list[str]
    unseen: list[str]


class JobHourModel(BaseModel):
    hour_at: str
    billed_cost: str | None
    currency: str
    energy_mj: int | None
    carbon_gco2e: str | None
    lines: int
    is_open: bool


class WhyJobModel(BaseModel):
    name: str
    hours: list[JobHourModel]


class WhyModel(BaseModel):
    """``holds``: whether every figure comes out as it is stored. ``ground``: what energy was followed to.

    ``why_not_samples``: why it was not followed to samples, or what of it was not; null = all of it was.
    """

    asked: str
    site: str
    hour_at: str
    ground: str
    why_not_samples: str | None
    simulated: bool
    holds: bool
    differs: list[str]
    job: WhyJobModel | None
    steps: list[StepModel]
    lines: list[WhyLineModel]


@router.get("/v1/why", response_model=WhyModel, tags=["bill"])
def get_why(
    api: Api,
    reader: Reader,
    what: Annotated[
        Label, Query(description="a line's name as of /v1/lines, or a job", examples=["2026-10-03T08:00Z/3f2a91c0de11"])
    ],
    hour: Annotated[datetime | None, Query(description="of a job; the one that cost most by default")] = None,
) -> dict[str, Any]:
    """Explain a line or an hour of a job of the token's subtree; what is another's is not there."""
    path = reader.token.tenant_path
    try:
        with api.scoped(reader) as conn:
            driver: psycopg.Connection[Any] | None = conn.connection.driver_connection
            assert driver is not None  # noqa: S101 - a checked-out connection has one
            at = None if hour is None else aware("hour", hour)
            asked = ask(driver, what, at, now=api.clock(), is_whole=path == ALL_TENANTS)
        return why_dict(answer(asked))
    except WhyError as error:
        raise ApiError(404, "nothing_to_explain", str(error)) from None
