"""A span as it is kept for tracing: which step of a trace, how long, of which model. Pure; holds no message content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class KeptSpan:
    """One step of a trace; ids are hex.

    ``kind`` is an operation of the OpenTelemetry convention (chat, embeddings, execute_tool, invoke_agent,
    invoke_workflow, ...) or other; ``attributes`` are the few that are allowed, bounded. Not frozen, as one is made for each span there is: a frozen one takes four times as long to make.
    """

    started_at_us: int
    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    kind: str
    duration_us: int | None
    model: str | None
    status: str
    attributes: Mapping[str, str]
    origin: int
