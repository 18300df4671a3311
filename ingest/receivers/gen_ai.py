"""Makes of spans what is kept: LLM calls with what they used, in each dialect, and the steps of their traces. Pure.

A span without usage is a call whose usage is unknown, never one of zero tokens. What each dialect calls things is in
:mod:`ingest.receivers.gen_ai_names`, which spans are calls in :mod:`ingest.receivers.gen_ai_kinds`, how one is read in
:mod:`ingest.receivers.gen_ai_span`, how many that are alike are in :mod:`ingest.receivers.gen_ai_alike`, how token parts are
made disjoint in :mod:`ingest.receivers.gen_ai_tokens`. No message content is kept: what is not named there is never read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from collector.wire import MAX_CLOCK_SKEW_US
from ingest.accept import EARLIEST_AT_US
from ingest.calls import ApiCall
from ingest.receivers.gen_ai_alike import calls_alike, kept_alike, sound_alike
from ingest.receivers.gen_ai_kinds import CALLS, OTHER, kind_of
from ingest.receivers.gen_ai_span import Window, call_of, fault_of, kept_of
from ingest.receivers.otlp_spans import Alike, Export, Span
from ingest.rows import Rows
from ingest.spans import KeptSpan


@dataclass(frozen=True, slots=True)
class Read:
    """What an export holds: calls and steps to keep, spans that are neither, and spans refused by reason."""

    calls: Rows[ApiCall]
    spans: Rows[KeptSpan]
    other_spans: int
    refused: Mapping[str, int]


def read_calls(export: Export, now_us: int, oldest_us: int = EARLIEST_AT_US) -> Read:
    """Return the calls among the spans, and the steps of the traces they belong to.

    Those that began before ``oldest_us``, or more than a wrong clock's worth after ``now_us``, are refused by reason.
    A span that is no step of generative AI is kept where its trace has one in this export, so that the trace is whole.
    """
    window = Window(oldest_us, now_us + MAX_CLOCK_SKEW_US)
    refused = dict(export.refused)
    traces: set[str] = set()
    alike: list[tuple[Alike, str]] = []
    alone = [*export.spans]
    for group in export.alike:
        kind = kind_of(group.first)
        if kind == OTHER or not sound_alike(group, window):
            alone += group.spans()
        else:
            alike.append((group, kind))
            traces.update(group.found.trace_ids)
    calls: list[ApiCall] = []
    told: list[tuple[Span, str]] = []
    for span in alone:
        kind = kind_of(span)
        if kind != OTHER:
            reason = fault_of(span, window)
            if reason is not None:
                refused[reason] = refused.get(reason, 0) + 1
                continue
            traces.add(span.trace_id)
            if kind in CALLS:
                calls.append(call_of(span))
        told.append((span, kind))
    kept = [
        kept_of(span, kind)
        for span, kind in told
        if kind != OTHER or (span.trace_id in traces and fault_of(span, window) is None)
    ]
    all_calls: list[Sequence[ApiCall]] = [calls, *(calls_alike(group) for group, kind in alike if kind in CALLS)]
    all_kept: list[Sequence[KeptSpan]] = [kept, *(kept_alike(group, kind) for group, kind in alike)]
    return Read(Rows.joined(ApiCall, all_calls), Rows.joined(KeptSpan, all_kept), len(told) - len(kept), refused)
