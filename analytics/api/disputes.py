"""/v1/disputes: lines of a bill that somebody says are wrong. A tenant disputes its own lines; who may close answers. No figure moves."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from analytics.api.cursors import cursor_of, id_position
from analytics.api.problems import RESPONSES, ApiError
from analytics.api.service import Api, Approver, Closer, Reader
from analytics.errors import CloseError
from analytics.io.disputes import MAX_WORDS, Dispute, dispute_dict, listed, open_dispute, resolve

router = APIRouter(responses=RESPONSES)
Words = Annotated[str, Field(min_length=1, max_length=MAX_WORDS)]


class DisputeRequest(BaseModel):
    """``line``: its name as GET /v1/lines tells it."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"line": "2026-10-03T08:00Z/3f2a91c0de11", "reason": "ended at 8:10"}]},
    )

    line: Annotated[str, Field(min_length=1, max_length=100)]
    reason: Words


class ResolutionRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    resolution: Words


class DisputeModel(BaseModel):
    id: int
    line_name: str
    site: str
    hour_at: str
    line: str
    tenant: str | None
    billed_cost: str | None
    currency: str
    opened_by: str
    opened_at: str
    reason: str
    resolved_at: str | None
    resolved_by: str | None
    resolution: str | None
    status: str


class DisputeList(BaseModel):
    disputes: list[DisputeModel]
    next_cursor: str | None


@router.get("/v1/disputes", response_model=DisputeList, tags=["disputes"])
def get_disputes(
    api: Api,
    reader: Reader,
    *,
    resolved: Annotated[bool, Query(description="those that are resolved, too")] = False,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """Return the disputes of the token's subtree, the newest first, by pages."""
    with api.scoped(reader) as conn:
        found = listed(conn, resolved=resolved, before_id=id_position(cursor), limit=limit + 1)
    return {
        "disputes": [dispute_dict(each) for each in found[:limit]],
        "next_cursor": cursor_of(found[limit - 1].id) if len(found) > limit else None,
    }


@router.post("/v1/disputes", response_model=DisputeModel, tags=["disputes"])
def post_dispute(told: DisputeRequest, api: Api, approver: Approver) -> dict[str, Any]:
    """Dispute a line of the token's subtree; one that is disputed already stays as it is and is returned."""
    try:
        with api.writing(approver) as conn:
            made = open_dispute(conn, told.line, told.reason, by=f"token {approver.token.name}", again=True)
    except CloseError as error:
        raise ApiError(404, "no_such_line", str(error)) from None
    return dispute_dict(made)


@router.post("/v1/disputes/{number}/resolution", response_model=DisputeModel, tags=["disputes"])
def post_resolution(
    number: Annotated[int, Path(ge=1, le=2**31 - 1)], told: ResolutionRequest, api: Api, closer: Closer
) -> dict[str, Any]:
    """Answer an open dispute."""
    try:
        with api.writing(None) as conn:
            done: Dispute = resolve(conn, number, told.resolution, by=f"token {closer.token.name}", now=api.clock())
    except CloseError as error:
        raise ApiError(404, "no_such_dispute", str(error)) from None
    return dispute_dict(done)
