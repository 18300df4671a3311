"""OTLP metrics: what has a place is committed before the answer, which says how many points were refused and why.

A point whose name means nothing here is not refused: it is counted by name. The sender has done nothing wrong, and a
collector would report each export as partly failed for ever.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Final

from ingest.endpoints import series
from ingest.endpoints.post import Post
from ingest.http import Answer, Request
from ingest.receivers import otlp, otlp_metrics
from ingest.runtime import Runtime
from ingest.series.intake import Taken


async def take_metrics(runtime: Runtime, request: Request) -> Answer:
    """Take one OTLP metrics export; raises IngestError."""
    principal = await series.sender(runtime, request)
    media = otlp.media_type(request.text(b"content-type"))
    cadence_us = series.cadence_us(request)
    read = partial(_read, runtime, request, media, principal.site_id, principal.node, cadence_us)
    taken = await runtime.in_lane("series", len(request.body), read)
    refused = await series.keep(runtime, principal, "otlp", taken)
    for reason in ("delta", "bad_labels"):
        refused[reason] += sum(count for (_, why), count in taken.tally.by_name.items() if why == reason)
    refused = +refused
    return Answer(200, otlp.response(media, refused.total(), series.told(refused), otlp.Signal.METRICS), media)


def _read(
    runtime: Runtime,
    request: Request,
    media: str,
    site_id: int,
    own_node: str | None,
    cadence_us: int | None,
) -> Taken:
    data = request.decoded(otlp_metrics.MAX_DECODED_BYTES)
    now_us = time.time_ns() // 1_000
    return runtime.series.otlp(data, site_id, own_node, now_us, cadence_us, is_json=media == otlp.JSON)


ENDPOINTS: Final = (
    Post(
        "metrics",
        otlp_metrics.PATH,
        take_metrics,
        otlp_metrics.MAX_BODY_BYTES,
        otlp.failure,
        media=otlp.MEDIA,
        answers=otlp.MEDIA,
        sent_again=otlp.SENT_AGAIN,
    ),
)
