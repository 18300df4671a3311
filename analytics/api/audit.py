"""GET /v1/audit: who did what to the installation. About everybody, so for tokens with the scope audit alone."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict

from analytics.api.cursors import cursor_of, id_position
from analytics.api.problems import RESPONSES
from analytics.api.service import Api, Auditor, Label, aware
from analytics.io.statement_formats import rfc3339
from ingest.store import audit

router = APIRouter(responses=RESPONSES)


class ActModel(BaseModel):
    """``detail`` holds what the act was about; where something was changed, as ``before`` and ``after``. Never a secret."""

    id: int
    at: str
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": 12,
                    "at": "2026-11-20T09:14:00Z",
                    "actor": "ada (command line)",
                    "action": "token.revoke",
                    "subject": "token/4",
                    "detail": {"before": {"revoked_at": None}, "after": {"revoked_at": "2026-11-20T09:14:00+00:00"}},
                }
            ]
        }
    )


class ActPage(BaseModel):
    acts: list[ActModel]
    next_cursor: str | None


@router.get("/v1/audit", response_model=ActPage, tags=["audit"])
def get_audit(
    api: Api,
    _: Auditor,
    from_at: Annotated[datetime | None, Query(alias="from")] = None,
    to_at: Annotated[datetime | None, Query(alias="to")] = None,
    actor: Label | None = None,
    action: Annotated[Label | None, Query(description="a kind (token.create), or what it begins with (token)")] = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """Return administrative acts, newest first."""
    with api.unscoped() as conn:
        found = audit.acts(
            conn,
            before_id=id_position(cursor),
            from_at=None if from_at is None else aware("from", from_at),
            to_at=None if to_at is None else aware("to", to_at),
            actor=actor,
            action=action,
            limit=limit + 1,
        )
    page = found[:limit]
    return {
        "acts": [
            {
                "id": act.id,
                "at": rfc3339(act.at),
                "actor": act.actor,
                "action": act.action,
                "subject": act.subject,
                "detail": dict(act.detail),
            }
            for act in page
        ],
        "next_cursor": cursor_of(page[-1].id) if len(found) > limit else None,
    }
