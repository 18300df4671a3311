"""What schedulers and prologs tell of jobs, allocations, the queue and where nodes stand: committed before the answer."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Final

import orjson

from ingest.auth import Principal
from ingest.endpoints.post import Post
from ingest.errors import UnsupportedError
from ingest.http import Answer, Request
from ingest.newcomers import TOO_MANY
from ingest.receivers.work import MAX_BODY_BYTES, MAX_DECODED_BYTES, Refused, Work, named, read_work
from ingest.receivers.work_events import PATH
from ingest.runtime import Runtime
from ingest.store.job_events import Kept, keep
from ingest.store.tokens import Scope

MAX_NAMED: Final = 100
"""Refusals named one by one in an answer, beside all that may be told again; all are counted."""


async def take_events(runtime: Runtime, request: Request) -> Answer:
    """Take one body of events: those that are good are committed, the others named; raises IngestError."""
    principal = await runtime.principal(request.headers.get(b"authorization"))
    if principal.node is None:
        principal.require(Scope.WRITE)
    else:
        principal.require_any(Scope.WRITE, Scope.AGENT)  # a prolog with the token of its node, for that node alone
    media = (request.text(b"content-type") or "application/json").partition(";")[0].strip().lower()
    if media != "application/json":
        raise UnsupportedError(f"content type {media!r:.60}; send application/json")
    work, kept = await runtime.in_lane("jobs", len(request.body), _take, runtime, principal, request)
    refused = sorted((*work.refused, *kept.refused), key=lambda each: each.index)
    for each in refused:
        runtime.metrics.refused.add(1, {"stream": "work", "reason": each.reason})
    answer = {
        "accepted": kept.accepted,
        "refused_count": len(refused),
        "refused": [asdict(e) for at, e in enumerate(refused) if at < MAX_NAMED or e.reason == TOO_MANY],
    }
    return Answer(200, orjson.dumps(answer))


def _take(runtime: Runtime, principal: Principal, request: Request) -> tuple[Work, Kept]:
    """Read and keep a body; in one go, so that no more than one lies about unpacked."""
    now = datetime.now(UTC)
    work = read_work(request.decoded(MAX_DECODED_BYTES), now)
    _make_room(runtime, principal, work)
    return work, keep(runtime.engine, principal.site_id, work, node=principal.node, now=now)


def _make_room(runtime: Runtime, principal: Principal, work: Work) -> None:
    """Refuse the events for whose names this hour has no room; raises TooManyError where nothing would be left."""
    told = list(work.events())
    quota = runtime.settings.jobs(bound=principal.token.node_id is not None)
    found = runtime.newcomers.room(principal.token.id, quota, [named(each) for _, each in told])
    full = [(index, why) for (index, _), why in zip(told, found, strict=True) if why is not None]
    if full and len(full) == len(told):
        runtime.metrics.refused.add(len(full), {"stream": "work", "reason": TOO_MANY})
        raise full[0][1]
    work.refuse([Refused(index, why.reason, why.detail) for index, why in full])


ENDPOINTS: Final = (Post("jobs", PATH, take_events, MAX_BODY_BYTES),)
