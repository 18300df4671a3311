"""Moves the times of a checked body: what a sender's clock, known to be off by so much, would have said if it were right.

Pure. It moves when rows were taken (``at_us``) and when the batch was made, and nothing else: a job's own start is part of
what identifies it and mostly comes from the controller's clock, so a moved one would be another job.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from ingest.receivers.arrow_check import CheckedStream, Layout
from ingest.receivers.native import Body

_MOVED: Final = "at_us"


def shifted(body: Body, by_us: int) -> Body:
    """Return the body with its times ``by_us`` later (negative: earlier)."""
    meta = replace(body.meta, created_at_us=max(0, body.meta.created_at_us + by_us))
    return replace(body, meta=meta, streams=tuple(_moved(stream, by_us) for stream in body.streams))


def _moved(stream: CheckedStream, by_us: int) -> CheckedStream:
    names = [column.name for column in stream.schema.columns]
    position = names.index(_MOVED)
    messages = tuple(
        _with_times(message, layout, position, by_us)
        for message, layout in zip(stream.messages, stream.layouts, strict=True)
    )
    return replace(stream, messages=messages, whole=None)


def _with_times(message: memoryview, layout: Layout, position: int, by_us: int) -> memoryview:
    data = bytearray(message)
    _, _, values_at = layout.columns[position]
    start = len(data) - layout.body_bytes + values_at
    times = np.frombuffer(data, "<i8", layout.rows, start)
    times += by_us
    return memoryview(bytes(data))
