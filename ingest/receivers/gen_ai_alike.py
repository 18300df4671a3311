"""Reads spans that are alike: what is the same in all of them once, what differs in columns. Pure.

The outcome is that of :mod:`ingest.receivers.gen_ai_span` for each of them, which is asked about the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from ingest.accept import EARLIEST_AT_US
from ingest.calls import ApiCall
from ingest.receivers import gen_ai_names as names
from ingest.receivers.gen_ai_span import (
    ID_DIGITS,
    MAX_DURATION_US,
    Window,
    api_key_of,
    call_of,
    clean,
    first_token_us_of,
    id_in_output,
    kept_attributes,
    kept_of,
    streamed_of,
    text_of,
)
from ingest.receivers.gen_ai_tokens import Parts, number, parts_of, passes_on
from ingest.receivers.otlp_spans import Alike, Span
from ingest.rows import Rows
from ingest.spans import KeptSpan

_PARTS: Final = {
    "input_uncached_tokens": "input_uncached",
    "cache_read_tokens": "cache_read",
    "cache_write_tokens": "cache_write",
    "output_text_tokens": "output_text",
    "reasoning_tokens": "reasoning",
    "cache_write_1h_tokens": "cache_write_1h",
    "audio_input_tokens": "audio_in",
    "audio_output_tokens": "audio_out",
    "usage_known": "known",
}
"""Columns of calls, and what they are among the parts."""
_NO_TRACE, _NO_SPAN = ("0" * digits for digits in ID_DIGITS)
_FIRST_CHUNK: Final = frozenset(("first_chunk_ms", "first_chunk_s"))


def sound_alike(alike: Alike, window: Window) -> bool:
    """Whether all of them may be kept; their ids are whole, or they would not be alike."""
    starts = alike.found.start_ns
    return (
        min(starts) // 1_000 >= max(EARLIEST_AT_US, window.earliest_us)
        and max(starts) // 1_000 <= window.latest_us
        and _NO_TRACE not in alike.found.trace_ids
        and _NO_SPAN not in alike.found.span_ids
    )


def calls_alike(alike: Alike) -> Rows[ApiCall]:
    """Return the calls these spans tell of, if they are of a kind that is one."""
    found = alike.found
    values = found.values
    first = call_of(alike.first)
    columns: dict[str, list[Any]] = {name: [getattr(first, name)] * len(alike) for name in ApiCall.__dataclass_fields__}
    columns["called_at_us"] = [start_ns // 1_000 for start_ns in found.start_ns]
    columns["dedupe_key"] = [
        f"span/{trace_id}/{span_id}" for trace_id, span_id in zip(found.trace_ids, found.span_ids, strict=True)
    ]
    columns["trace_id"], columns["span_id"] = found.trace_ids, found.span_ids
    columns["duration_us"] = _durations_us(alike)
    if "api_key" in values:
        columns["api_key"] = _once_each(values["api_key"], lambda key: api_key_of(_like(alike, api_key=key)))
    if "request_id" in values:
        columns["request_id"] = _texts(values["request_id"])
    if "response_id" in values:
        columns["response_id"] = _texts(values["response_id"])
    elif names.OUTPUT_VALUE in values:
        columns["response_id"] = [text_of(alike.first.attributes, "response_id")] * len(alike)
    if names.OUTPUT_VALUE in values:
        columns["response_id"] = [
            known or id_in_output({names.OUTPUT_VALUE: output})
            for known, output in zip(columns["response_id"], values[names.OUTPUT_VALUE], strict=True)
        ]
    if values.keys() & _FIRST_CHUNK:
        firsts = [first_token_us_of(span) for span in alike.spans()]
        columns["time_to_first_token_us"] = firsts
        columns["streamed"] = [streamed_of(alike.first.attributes, first_us) for first_us in firsts]
    if values.keys() & names.TOKENS:
        columns |= _tokens(alike, columns["provider"][0])
    return Rows(ApiCall, columns)


def kept_alike(alike: Alike, kind: str) -> Rows[KeptSpan]:
    """Return what is kept of these spans as steps of their traces."""
    found = alike.found
    first = kept_of(alike.first, kind)
    columns: dict[str, list[Any]] = {
        name: [getattr(first, name)] * len(alike) for name in KeptSpan.__dataclass_fields__
    }
    columns["started_at_us"] = [start_ns // 1_000 for start_ns in found.start_ns]
    columns["trace_id"], columns["span_id"] = found.trace_ids, found.span_ids
    if found.parent_span_ids is not None:
        columns["parent_span_id"] = found.parent_span_ids
    columns["duration_us"] = _durations_us(alike)
    kept = {name: column for name, column in found.values.items() if name in names.KEPT_NAMES}
    if kept:
        columns["attributes"] = [
            {**first.attributes, **kept_attributes(dict(zip(kept, row, strict=True)))}
            for row in zip(*kept.values(), strict=True)
        ]
    return Rows(KeptSpan, columns)


def _durations_us(alike: Alike) -> list[int | None]:
    # As Python's own integers: a span may say that it ended 2**64 ns after the epoch.
    durations = [(end - start) // 1_000 for start, end in zip(alike.found.start_ns, alike.found.end_ns, strict=True)]
    return [duration if 0 <= duration <= MAX_DURATION_US else None for duration in durations]


def _texts(given: Sequence[Any]) -> list[str | None]:
    return [clean(text) or None if isinstance(text, str) else None for text in given]


def _once_each(given: Sequence[Any], read: Any) -> list[Any]:
    known = {value: read(value) for value in set(given)}
    return [known[value] for value in given]


def _like(alike: Alike, **attributes: Any) -> Span:
    return replace(alike.first, attributes=alike.first.attributes | attributes)


def _tokens(alike: Alike, provider: str) -> dict[str, list[Any]]:
    """Return the columns of token parts: by arithmetic on all where the convention plainly holds, else one by one."""
    values, told = alike.found.values, alike.first.attributes
    if any(isinstance(values[name][0], float | str) for name in values.keys() & names.TOKENS):
        rows = range(len(alike))
        return _one_by_one(alike, provider, rows, {name: [None] * len(alike) for name in _PARTS})
    counts: dict[str, Any] = {
        name: np.array(values[name], dtype=np.int64) if name in values else number(told, name) for name in names.TOKENS
    }
    given, produced = counts["input"], counts["output"]
    cached, reasoning = _sum(counts["cache_read"], counts["cache_write"]), _sum(counts["reasoning"])
    plain = np.zeros(len(alike), dtype=bool)
    apart = any(counts[name] is not None for name in ("audio_in", "audio_out", "cache_write_1h"))
    if not apart and not passes_on(told, provider):
        plain |= (
            (cached <= _sum(given)) & (reasoning <= _sum(produced)) & (_sum(counts["total"]) <= _sum(given, produced))
        )
    known = given is not None or produced is not None
    columns = {name: [None] * len(alike) for name in _PARTS} | {
        "usage_known": [known] * len(alike),
    }
    if known:
        columns |= {
            "input_uncached_tokens": _column(None if given is None else given - cached, len(alike)),
            "cache_read_tokens": _column(counts["cache_read"], len(alike)),
            "cache_write_tokens": _column(counts["cache_write"], len(alike)),
            "output_text_tokens": _column(None if produced is None else produced - reasoning, len(alike)),
            "reasoning_tokens": _column(counts["reasoning"], len(alike)),
        }
    return columns if plain.all() else _one_by_one(alike, provider, np.flatnonzero(~plain).tolist(), columns)


def _one_by_one(
    alike: Alike, provider: str, rows: Sequence[int], columns: dict[str, list[Any]]
) -> dict[str, list[Any]]:
    values = alike.found.values
    for row in rows:
        parts: Parts = parts_of(alike.first.attributes | {name: values[name][row] for name in values}, provider)
        for name, part in _PARTS.items():
            columns[name][row] = getattr(parts, part)
    return columns


def _sum(*counts: Any) -> Any:
    return sum((count for count in counts if count is not None), 0)


def _column(counts: Any, rows: int) -> list[Any]:
    return counts.tolist() if isinstance(counts, np.ndarray) else [counts] * rows
