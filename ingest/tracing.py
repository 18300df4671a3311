"""A span around each body, where the process has a tracer; a group's commit links to those of its bodies.

A sender's own trace is not continued: whoever holds a token would decide what of ours is sampled. Bodies of spans get none,
since a collector that sends to us what it gets from us would never come to an end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer

from ingest.errors import IngestError
from ingest.http import Answer, Request

_OUR_FAULT: Final = 500
Handle = Callable[[Request], Awaitable[Answer]]


def traced(tracer: Tracer, path: str, handle: Handle) -> Handle:
    """Return ``handle`` with a span around each body; refusals go on as they are."""

    async def with_span(request: Request) -> Answer:
        attributes: dict[str, str | int] = {
            "http.request.method": "POST",
            "http.route": path,
            "http.request.body.size": len(request.body),
        }
        with tracer.start_as_current_span(
            f"POST {path}", kind=SpanKind.SERVER, attributes=attributes, record_exception=False
        ) as span:
            try:
                answer = await handle(request)
            except IngestError as error:
                span.set_attributes({"http.response.status_code": error.status, "error.type": error.reason})
                if error.status >= _OUR_FAULT:
                    span.set_status(Status(StatusCode.ERROR, error.reason))
                refusal = error
            else:
                span.set_attributes({"http.response.status_code": answer.status, "wattledger.outcome": answer.outcome})
                return answer
        raise refusal

    return with_span
