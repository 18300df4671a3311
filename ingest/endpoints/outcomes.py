"""Outcomes of responses: evaluations, ratings, business results, each committed before the answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from ingest.auth import Principal
from ingest.endpoints.post import Post
from ingest.errors import BadBodyError
from ingest.http import Answer, Request
from ingest.receivers.json_body import answer
from ingest.receivers.outcomes import OUTCOMES_PATH, OutcomeReport, ReadOutcomes, read_outcomes
from ingest.runtime import Runtime
from ingest.store.lineage import Kept, write_outcomes
from ingest.store.tokens import Scope

MAX_BODY_BYTES: Final = 2 * 1024 * 1024
MAX_DECODED_BYTES: Final = 8 * 1024 * 1024


async def take_outcomes(runtime: Runtime, request: Request) -> Answer:
    """Take outcomes; of several, those that cannot be read are named and the others kept. Raises IngestError."""
    principal = await runtime.principal(request.headers.get(b"authorization"))
    principal.require(Scope.WRITE)
    read, kept = await runtime.in_lane("outcomes", len(request.body), _take, runtime, principal, request)
    return Answer(201, answer(read.received, len(read.outcomes), kept.known, read.refused))


def _take(runtime: Runtime, principal: Principal, request: Request) -> tuple[ReadOutcomes, Kept]:
    """Read and keep a body; in one go, so that no more than one lies about unpacked."""
    site_id, tenant_path = principal.site_id, principal.token.tenant_path
    read = read_outcomes(request.decoded(MAX_DECODED_BYTES), time.time_ns() // 1_000)
    if read.refused:
        runtime.metrics.refused.add(len(read.refused), {"stream": "outcomes", "reason": "bad_outcome"})
    if len(read.refused) == read.received:
        raise BadBodyError("bad_outcome", f"outcome {read.refused[0].index}: {read.refused[0].reason}")
    room, full = runtime.newcomers.count(principal.token.id, runtime.settings.outcomes, len(read.outcomes))
    if full is not None:
        runtime.metrics.refused.add(len(read.outcomes) - room, {"stream": "outcomes", "reason": full.reason})
        if not room:
            raise full
        read.cut(room, full.detail)
    return read, write_outcomes(runtime.engine, site_id, tenant_path, read.outcomes)


async def keep_evaluations(
    runtime: Runtime, principal: Principal, judged: Sequence[OutcomeReport]
) -> tuple[int, str | None]:
    """Commit the evaluations that telemetry brings, as many as this hour has room for; return how many, and why not all."""
    room, full = runtime.newcomers.count(principal.token.id, runtime.settings.outcomes, len(judged))
    if full is not None:
        runtime.metrics.refused.add(len(judged) - room, {"stream": "outcomes", "reason": full.reason})
    if room:
        tenant_path = principal.token.tenant_path
        site_id = principal.site_id
        await runtime.in_lane("outcomes", 0, write_outcomes, runtime.engine, site_id, tenant_path, judged[:room])
    return room, None if full is None else full.detail


ENDPOINTS: Final = (Post("outcomes", OUTCOMES_PATH, take_outcomes, MAX_BODY_BYTES, success=201),)
