"""GET /v1/lineage/{response_id}: what an answer came from, hop by hop, with cost and energy."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel

from analytics.api.problems import RESPONSES, ApiError
from analytics.api.service import Api, Label, Reader
from analytics.io import lineage, lineage_formats, lineage_rows
from ingest.store.tenancy import ALL_TENANTS, covers

router = APIRouter(responses=RESPONSES)
ResponseId = Annotated[Label, Path(description="id of the response as its provider gave it")]


class HopModel(BaseModel):
    """One station of the chain. A figure that is null is unknown, never zero, and ``unknown`` says why.

    ``found`` false: the hop is missing, and ``reason`` says why. ``depth`` 1 and more: of the model this one was made from.
    The figures are of ``job_count`` scheduler jobs, the first hundred of them in ``jobs``: one run can be several.
    """

    hop: str
    found: bool
    name: str | None
    run_id: str | None
    job: str | None
    jobs: list[str]
    job_count: int
    tenant: str | None
    start_at: str | None
    end_at: str | None
    state: str | None
    depth: int
    cost: str | None
    currency: str | None
    unpriced_lines: int
    energy_kwh: str | None
    carbon_gco2e: str | None
    coverage_ratio: float | None
    books: str | None
    basis: str | None
    sources: list[str]
    origins: list[str]
    reason: str | None
    unknown: list[str]


class OutcomeModel(BaseModel):
    kind: str
    at: str
    value: str | None
    value_unit: str | None
    score: float | None
    label: str | None
    source: str
    origin: str


class LineageModel(BaseModel):
    """``breaks_at`` is the first hop that is missing; null where the chain reaches its datasets."""

    response_id: str
    complete: bool
    breaks_at: str | None
    break_reason: str | None
    hops: list[HopModel]
    outcomes: list[OutcomeModel]


@router.get("/v1/lineage/{response_id:path}", response_model=LineageModel, tags=["lineage"])
def get_lineage(
    api: Api,
    reader: Reader,
    response_id: ResponseId,
    site: Annotated[Label | None, Query(description="where several sites know this response id, which")] = None,
) -> dict[str, Any]:
    """Return response, serving, fine-tune and datasets with cost and energy of each, as far as the token may see.

    A response of another tenant is answered like one that nobody knows.
    """
    scope = reader.token.tenant_path
    with api.unscoped() as whole:
        # Whose a call is, the bindings say, and nobody but the platform sees all of them. Nothing found here leaves
        # before the token was found to cover that tenant.
        found = [(call, lineage_rows.owner(whole, call)) for call in lineage_rows.any_call(whole, response_id)]
        calls = [
            (call, owner)
            for call, owner in found
            if site in {None, call.site} and (scope == ALL_TENANTS or (owner.path and covers(scope, owner.path)))
        ]
        if len(calls) > 1:
            sites = ", ".join(sorted({call.site for call, _ in calls}))
            raise ApiError(409, "ambiguous", f"{len(calls)} calls have this response id; say which site: {sites}")
        call, owner = calls[0] if calls else (None, None)
        outcomes = [] if call is None else lineage_rows.outcomes_of(whole, response_id, call, owner)
    with api.scoped(reader) as conn:
        if call is None:
            outcomes = lineage_rows.outcomes_of(conn, response_id, None, None)
        if call is None and not outcomes:
            raise ApiError(404, "unknown_response", "no response of this id is known to this token")
        made = lineage.chain(conn, response_id, call, owner, outcomes)
    if scope != ALL_TENANTS:
        with api.unscoped() as whole:
            made = lineage.with_unseen(whole, made)
    return lineage_formats.as_dict(made)
