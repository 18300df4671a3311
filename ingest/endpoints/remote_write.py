"""Prometheus remote write: 204 once what has a place is committed, 400 where something in it is not to be sent again."""

from __future__ import annotations

import time
from functools import partial
from typing import Final

from ingest.endpoints import series
from ingest.endpoints.post import Post
from ingest.errors import BadBodyError
from ingest.http import Answer, Request
from ingest.receivers import remote_write
from ingest.runtime import Runtime


async def take_remote_write(runtime: Runtime, request: Request) -> Answer:
    """Take one write request; raises IngestError.

    What of it is good is committed whatever the answer, as the protocol has it: 400 says that some is not.
    """
    principal = await series.sender(runtime, request)
    remote_write.check_headers(
        request.text(b"content-type"),
        request.text(b"content-encoding"),
        request.text(b"x-prometheus-remote-write-version"),
    )
    cadence_us = series.cadence_us(request)
    now_us = time.time_ns() // 1_000
    read = partial(runtime.series.remote_write, request.body, principal.site_id, principal.node, now_us, cadence_us)
    taken = await runtime.in_lane("series", len(request.body), read)
    refused = await series.keep(runtime, principal, "remote_write", taken)
    if refused:
        raise BadBodyError("series_refused", f"kept but for what cannot be: {series.told(refused)}")
    return Answer(204, b"")


ENDPOINTS: Final = (
    Post(
        "remote_write",
        remote_write.PATH,
        take_remote_write,
        remote_write.MAX_BODY_BYTES,
        media=("application/x-protobuf",),
        success=204,
        # Prometheus sends again after 5xx alone, unless retry_on_http_429 is set.
        sent_again=frozenset(),
    ),
)
