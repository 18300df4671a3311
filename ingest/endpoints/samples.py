"""The native wire: batches of agents, answered after their commit."""

from __future__ import annotations

from typing import Final

import orjson

from collector.wire import CONTENT_TYPE, MAX_BODY_BYTES, SAMPLES_PATH, SENT_AT_HEADER, Stream
from ingest.auth import Principal
from ingest.endpoints.post import Post
from ingest.http import Answer, Request
from ingest.receivers.arrow_check import CheckedStream
from ingest.receivers.native import check_media_type, decode
from ingest.runtime import Runtime
from ingest.store.dead_letters import DeadLetter
from ingest.store.group import Outcome
from ingest.store.prepare import Submission
from ingest.store.tokens import Scope

_SENT_AT: Final = SENT_AT_HEADER.lower().encode()
_RUN: Final = ("cluster", "native_job_id", "job_started_at_us")


async def take_samples(runtime: Runtime, request: Request) -> Answer:
    """Take one native body: answered after its commit, 202 if it went to the dead letters; raises IngestError."""
    principal = await runtime.principal(request.headers.get(b"authorization"))
    principal.require(Scope.AGENT)
    check_media_type(request.text(b"content-type"), request.text(b"content-encoding"))
    body = await runtime.read(request.body)
    principal.require_node(body.meta.node)
    runtime.newcomers.admit(
        principal.token.id, runtime.settings.new_per_h(bound=principal.token.node_id is not None), body.meta
    )
    jobs = [stream for stream in body.streams if stream.schema.stream is Stream.ALLOCATION and stream.rows]
    if jobs:
        await runtime.in_thread(_make_room, runtime, principal, jobs)
    for stream, _ in body.unknown_columns:
        runtime.metrics.unknown_columns.add(1, {"stream": stream.value})
    skew_us = runtime.skew_us(request.headers.get(_SENT_AT))
    if skew_us is not None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers.items()}
        detail = f"the sender's clock is {skew_us / 1e6:+.1f} s off; its times cannot be believed"
        letter = DeadLetter(
            principal.site_id, principal.token.node_id, "clock_skew", detail, request.body, headers, skew_us
        )
        await runtime.bury(letter)
        answer = {
            "dead_letter": True,
            "reason": "clock_skew",
            "skew_us": skew_us,
            "detail": detail + "; kept for replay",
        }
        return Answer(202, orjson.dumps(answer), outcome="clock_skew")
    return _answer(await runtime.keep(Submission(principal.site_id, body, sent=request.body)))


def _make_room(runtime: Runtime, principal: Principal, events: list[CheckedStream]) -> None:
    """Raise TooManyError where the jobs that events name are more than an hour has room for."""
    named = [row for stream in events for row in decode([stream]).select(_RUN).iter_rows()]
    quota = runtime.settings.jobs(bound=principal.token.node_id is not None)
    (full,) = runtime.newcomers.room(principal.token.id, quota, [named])
    if full is not None:
        runtime.metrics.refused.add(len(named), {"stream": Stream.ALLOCATION.value, "reason": full.reason})
        raise full


def _answer(outcome: Outcome) -> Answer:
    if outcome.duplicate:
        return Answer(200, b'{"accepted_rows":0,"duplicate":true,"refused":[]}', outcome="duplicate")
    refused = [
        {"stream": refusal.stream.value, "reason": refusal.reason, "rows": refusal.rows} for refusal in outcome.refusals
    ]
    return Answer(200, orjson.dumps({"accepted_rows": outcome.accepted_rows, "duplicate": False, "refused": refused}))


ENDPOINTS: Final = (Post("samples", SAMPLES_PATH, take_samples, MAX_BODY_BYTES, media=(CONTENT_TYPE,)),)
