"""OTLP logs: evaluations of responses are committed before the answer; every other record is declined by a partial success."""

from __future__ import annotations

import time
from typing import Final

from ingest.endpoints.outcomes import keep_evaluations
from ingest.endpoints.post import Post
from ingest.http import Answer, Request
from ingest.receivers import otlp
from ingest.receivers.otlp_logs import Logs, read_logs
from ingest.receivers.outcomes import evaluation_records
from ingest.runtime import Runtime
from ingest.store.tokens import Scope

_WHY: Final = (
    "Wattledger keeps no logs but gen_ai.evaluation.result events: they hold message content, and calls are counted from "
    "spans. Send traces to /v1/traces and take other logs out of this exporter's pipeline"
)


async def take_logs(runtime: Runtime, request: Request) -> Answer:
    """Keep the evaluations of one OTLP log export and decline the rest of it; raises IngestError."""
    principal = await runtime.principal(request.headers.get(b"authorization"))
    principal.require_any(Scope.WRITE, Scope.AGENT)
    media = otlp.media_type(request.text(b"content-type"))
    logs = await runtime.in_lane("traces", len(request.body), _read, request, media)
    outcomes, refused = evaluation_records(logs.evaluations, time.time_ns() // 1_000)
    kept, full = await keep_evaluations(runtime, principal, outcomes)
    bad = len(refused) + logs.malformed
    declined = logs.records - len(outcomes) - bad
    if declined:
        runtime.metrics.refused.add(declined, {"stream": "logs", "reason": "logs_declined"})
    if bad:
        runtime.metrics.refused.add(bad, {"stream": "logs", "reason": "bad_evaluation"})
    told = [_WHY] if declined else []
    if full is not None:
        told.append(f"{len(outcomes) - kept} evaluations are not kept: {full}")
    if bad:
        told.append(f"{bad} evaluations cannot be kept ({refused[0] if refused else 'they cannot be read'})")
    answer = otlp.response(media, declined + bad + len(outcomes) - kept, "; ".join(told), otlp.Signal.LOGS)
    return Answer(200, answer, media, "declined" if logs.records and not outcomes else "accepted")


def _read(request: Request, media: str) -> Logs:
    return read_logs(request.decoded(otlp.MAX_DECODED_BYTES), media)


ENDPOINTS: Final = (
    Post(
        "logs",
        otlp.LOGS_PATH,
        take_logs,
        otlp.MAX_BODY_BYTES,
        otlp.failure,
        media=otlp.MEDIA,
        answers=otlp.MEDIA,
        sent_again=otlp.SENT_AGAIN,
    ),
)
