"""OTLP traces: LLM calls, the steps of their traces and evaluations of responses are committed before the answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from ingest.endpoints.outcomes import keep_evaluations
from ingest.endpoints.post import Post
from ingest.errors import BadBodyError, ForbiddenError
from ingest.http import Answer, Request
from ingest.receivers import otlp
from ingest.receivers.gen_ai import Read, read_calls
from ingest.receivers.gen_ai_names import WANTED
from ingest.receivers.gen_ai_span import TOO_OLD
from ingest.receivers.otlp_spans import read_spans
from ingest.receivers.outcomes import OutcomeReport, evaluations
from ingest.runtime import Runtime
from ingest.store.tokens import Scope
from ingest.trace_writer import Traces

_DAY_US: Final = 86_400_000_000


async def take_traces(runtime: Runtime, request: Request) -> Answer:
    """Take one OTLP trace export: what it holds is committed before the answer; raises IngestError."""
    principal = await runtime.principal(request.headers.get(b"authorization"))
    principal.require_any(Scope.WRITE, Scope.AGENT)  # an agent forwards what its node's programs say
    media = otlp.media_type(request.text(b"content-type"))
    read, judged, why = await runtime.in_lane(
        "traces", len(request.body), _read, request, media, runtime.settings.trace_days
    )
    await runtime.traces.keep(Traces(principal.site_id, read.calls, read.spans))
    try:
        kept, full = await keep_evaluations(runtime, principal, judged)
    except (
        BadBodyError,
        ForbiddenError,
    ) as error:  # the spans are kept: what is refused of the body is this part of it
        runtime.metrics.refused.add(len(judged), {"stream": "outcomes", "reason": error.reason})
        kept, full = 0, error.detail
    refused = sum(read.refused.values())
    for reason, spans in read.refused.items():
        runtime.metrics.refused.add(spans, {"stream": "spans", "reason": reason})
    if read.other_spans:
        # Not a rejection: they are none of our business, and a sender that was told so could change nothing.
        runtime.metrics.refused.add(read.other_spans, {"stream": "spans", "reason": "no_llm_trace"})
    message = "; ".join(
        f"{spans} spans {reason}" + (f" ({why[reason]})" if reason in why else "")
        for reason, spans in sorted(read.refused.items())
    )
    if full is not None:
        message = "; ".join(filter(None, (message, f"{len(judged) - kept} evaluations are not kept: {full}")))
    return Answer(200, otlp.response(media, refused, message), media)


def _read(request: Request, media: str, days: int) -> tuple[Read, tuple[OutcomeReport, ...], Mapping[str, str]]:
    export = read_spans(request.decoded(otlp.MAX_DECODED_BYTES), media, WANTED)
    now_us = time.time_ns() // 1_000
    read = read_calls(export, now_us, now_us - days * _DAY_US)
    export.why.setdefault(TOO_OLD, f"more than {days} days ago; WATTLEDGER_INGEST_TRACE_DAYS")
    return read, evaluations(export.spans, now_us), export.why


ENDPOINTS: Final = (
    Post(
        "traces",
        otlp.TRACES_PATH,
        take_traces,
        otlp.MAX_BODY_BYTES,
        otlp.failure,
        media=otlp.MEDIA,
        answers=otlp.MEDIA,
        sent_again=otlp.SENT_AGAIN,
    ),
)
