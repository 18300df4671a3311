"""OpenLineage: run events, one or many in a body, each committed before the answer."""

from __future__ import annotations

import time
from typing import Final

from ingest.auth import Principal
from ingest.endpoints.post import Post
from ingest.errors import BadBodyError
from ingest.http import Answer, Request
from ingest.receivers.json_body import answer
from ingest.receivers.open_lineage import BATCH_PATH, LINEAGE_PATH, ReadEvents, read_events
from ingest.runtime import Runtime
from ingest.store.lineage import Kept, write_events
from ingest.store.tokens import Scope

MAX_BODY_BYTES: Final = 4 * 1024 * 1024
MAX_DECODED_BYTES: Final = 16 * 1024 * 1024


async def take_lineage(runtime: Runtime, request: Request) -> Answer:
    """Take run events; of several, those that cannot be read and those of no run are named and the others kept. Raises IngestError."""
    principal = await runtime.principal(request.headers.get(b"authorization"))
    principal.require(Scope.WRITE)
    read, kept = await runtime.in_lane("lineage", len(request.body), _take, runtime, principal, request)
    successful = read.received - len(read.refused) - read.without_run
    said = answer(
        read.received,
        successful,
        kept.known,
        read.refused,
        without_run=read.without_run,
        facets_ignored=dict(read.facets_ignored),
        left_out=dict(read.lost),
        not_kept=[{"index": each.index, "reason": each.reason} for each in read.not_kept[:100]],
    )
    return Answer(201, said)


def _take(runtime: Runtime, principal: Principal, request: Request) -> tuple[ReadEvents, Kept]:
    """Read and keep a body; in one go, so that no more than one lies about unpacked."""
    site_id, tenant_path = principal.site_id, principal.token.tenant_path
    read = read_events(request.decoded(MAX_DECODED_BYTES), time.time_ns() // 1_000)
    if read.refused:
        runtime.metrics.refused.add(len(read.refused), {"stream": "lineage", "reason": "bad_event"})
    if read.without_run:
        runtime.metrics.refused.add(read.without_run, {"stream": "lineage", "reason": "without_run"})
    for reason, count in read.lost.items():
        runtime.metrics.refused.add(count, {"stream": "lineage_words", "reason": reason})
    ignored = sum(read.facets_ignored.values())
    if ignored:
        runtime.metrics.refused.add(ignored, {"stream": "lineage_facets", "reason": "unknown_facet"})
    if len(read.refused) == read.received:
        raise BadBodyError("bad_event", f"event {read.refused[0].index}: {read.refused[0].reason}")
    _make_room(runtime, principal.token.id, read)
    return read, write_events(runtime.engine, site_id, tenant_path, read.events)


def _make_room(runtime: Runtime, token_id: int, read: ReadEvents) -> None:
    """Refuse the events for whose names this hour has no room; raises TooManyError where nothing would be left."""
    found = runtime.newcomers.room(token_id, runtime.settings.lineage, [event.named() for event in read.events])
    full = [each for each in found if each is not None]
    if not full:
        return
    runtime.metrics.refused.add(len(full), {"stream": "lineage", "reason": full[0].reason})
    if len(full) == len(found):
        raise full[0]
    read.refuse([None if each is None else each.detail for each in found])


ENDPOINTS: Final = (
    # OpenLineage's client sends again after 500, 502, 503 and 504.
    Post("lineage", LINEAGE_PATH, take_lineage, MAX_BODY_BYTES, success=201, sent_again=frozenset()),
    Post("lineage_batch", BATCH_PATH, take_lineage, MAX_BODY_BYTES, success=201, sent_again=frozenset()),
)
