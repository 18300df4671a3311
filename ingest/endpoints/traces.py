"""OTLP traces: the LLM calls among the spans are committed before the answer."""

from __future__ import annotations

import time
from functools import partial
from typing import Final

from ingest.calls import CallSource
from ingest.endpoints.post import Post
from ingest.http import Answer, Request, decoded
from ingest.receivers import otlp
from ingest.receivers.gen_ai import Read, read_calls
from ingest.runtime import Runtime
from ingest.store.calls import write_calls
from ingest.store.tokens import Scope


async def take_traces(runtime: Runtime, request: Request) -> Answer:
    """Take one OTLP trace export: its LLM calls are committed before the answer; raises IngestError."""
    principal = await runtime.principal(request.headers.get(b"authorization"))
    principal.require_any(Scope.WRITE, Scope.AGENT)  # an agent forwards what its node's programs say
    media = otlp.media_type(request.text(b"content-type"))
    encoding = request.text(b"content-encoding")
    read = await runtime.in_thread(_read_calls, request.body, encoding, media)
    keep = partial(write_calls, source=CallSource.SPAN)
    await runtime.in_thread(keep, runtime.engine, runtime.registry, principal.site_id, read.calls)
    refused = sum(read.refused.values())
    for reason, spans in read.refused.items():
        runtime.metrics.refused.add(spans, {"stream": "spans", "reason": reason})
    message = "; ".join(f"{spans} spans {reason}" for reason, spans in sorted(read.refused.items()))
    return Answer(200, otlp.response(media, refused, message), media)


def _read_calls(body: bytes, encoding: str | None, media: str) -> Read:
    spans = otlp.read_spans(decoded(body, encoding, otlp.MAX_DECODED_BYTES), media)
    return read_calls(spans, time.time_ns() // 1_000)


ENDPOINTS: Final = (Post("traces", otlp.TRACES_PATH, take_traces, otlp.MAX_BODY_BYTES),)
