"""OTLP logs are declined: answered with a partial success that rejects each record and says why."""

from __future__ import annotations

from typing import Final

from ingest.endpoints.post import Post
from ingest.http import Answer, Request, decoded
from ingest.receivers import otlp
from ingest.receivers.otlp_logs import count_records
from ingest.runtime import Runtime
from ingest.store.tokens import Scope

_WHY: Final = (
    "Wattledger keeps no logs: they hold message content, and calls are counted from spans. "
    "Send traces to /v1/traces and take logs out of this exporter's pipeline"
)


async def decline_logs(runtime: Runtime, request: Request) -> Answer:
    """Answer one OTLP log export; nothing of it is kept. An empty one is answered with success; raises IngestError."""
    principal = await runtime.principal(request.headers.get(b"authorization"))
    principal.require_any(Scope.WRITE, Scope.AGENT)
    media = otlp.media_type(request.text(b"content-type"))
    encoding = request.text(b"content-encoding")
    records = await runtime.in_thread(_count, request.body, encoding, media)
    if records:
        runtime.metrics.refused.add(records, {"stream": "logs", "reason": "logs_declined"})
    answer = otlp.response(media, records, _WHY if records else "", otlp.Signal.LOGS)
    return Answer(200, answer, media, "declined" if records else "accepted")


def _count(body: bytes, encoding: str | None, media: str) -> int:
    return count_records(decoded(body, encoding, otlp.MAX_DECODED_BYTES), media)


ENDPOINTS: Final = (
    Post("logs", otlp.LOGS_PATH, decline_logs, otlp.MAX_BODY_BYTES, otlp.failure, media=otlp.MEDIA, answers=otlp.MEDIA),
)
