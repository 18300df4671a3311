"""Reads one span: the LLM call it is, and the step of a trace that is kept of it, in each dialect. Pure.

No message content is kept: what is not named in :mod:`ingest.receivers.gen_ai_names` is never read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from collector.wire import Origin
from ingest.accept import EARLIEST_AT_US
from ingest.calls import MAX_COUNT, MAX_MEDIA_MS, MAX_TOKENS, ApiCall, tier_of, tools_told
from ingest.receivers import gen_ai_names as names
from ingest.receivers.gen_ai_kinds import CALLS
from ingest.receivers.gen_ai_tokens import number, parts_of
from ingest.receivers.otlp_attributes import Attribute
from ingest.receivers.otlp_spans import Span
from ingest.spans import KeptSpan

MAX_TEXT: Final = 255
MAX_DURATION_US: Final = 7 * 86_400_000_000
_FIRST_TOKEN: Final = re.compile(r"first token|content\.completion\.chunk|firstChunk", re.IGNORECASE)
_SECRET: Final = re.compile(r"(sk|pk|rk|key|api)[-_][A-Za-z0-9_-]{16,}|[A-Za-z0-9+/_=-]{40,}")
_ID_OF_RESPONSE: Final = re.compile(r'\s*\{\s*"id"\s*:\s*"((?:chatcmpl|cmpl|resp|msg|gen)[-_][A-Za-z0-9_-]{1,200})"')
_CANCELLED: Final = re.compile(r"cancel", re.IGNORECASE)
_ORIGINS: Final = {origin.name: int(origin) for origin in Origin}
_NO_NAME: Final = "unknown_service"
"""What the SDKs call a program that was given no name."""
_FIRST_CHUNK: Final = (("first_chunk_ms", 1_000), ("first_chunk_s", 1_000_000))
ID_DIGITS: Final = (32, 16)
TOO_OLD: Final = "too_old"


@dataclass(frozen=True, slots=True)
class Window:
    """When spans may begin, in microseconds since the Unix epoch: each day of them is kept apart, and made for the first."""

    earliest_us: int
    latest_us: int


def fault_of(span: Span, window: Window) -> str | None:
    """Return why a span cannot be kept, None if it can."""
    start_us = span.start_ns // 1_000
    if start_us < EARLIEST_AT_US:
        return "before_2000"
    if start_us < window.earliest_us:
        return TOO_OLD
    if start_us > window.latest_us:
        return "from_the_future"
    # The specification calls ids of zeros alone invalid: all calls of a site that has no others would be one.
    ids = span.trace_id, span.span_id
    return "no_ids" if (len(ids[0]), len(ids[1])) != ID_DIGITS or not all(each.strip("0") for each in ids) else None


def call_of(span: Span) -> ApiCall:
    """Return the call a span of a kind that is one tells of."""
    attributes = span.attributes
    provider = _provider(attributes)
    parts = parts_of(attributes, provider)
    first_us = first_token_us_of(span)
    return ApiCall(
        called_at_us=span.start_ns // 1_000,
        dedupe_key=f"span/{span.trace_id}/{span.span_id}",
        api_key=api_key_of(span),
        provider=provider,
        model=_model(span) or "unknown",
        response_id=text_of(attributes, "response_id") or id_in_output(attributes),
        request_id=text_of(attributes, "request_id"),
        trace_id=span.trace_id,
        span_id=span.span_id,
        input_uncached_tokens=parts.input_uncached,
        cache_read_tokens=parts.cache_read,
        cache_write_tokens=parts.cache_write,
        output_text_tokens=parts.output_text,
        reasoning_tokens=parts.reasoning,
        audio_input_tokens=parts.audio_in,
        audio_output_tokens=parts.audio_out,
        cache_write_1h_tokens=parts.cache_write_1h,
        **billed_of(attributes),
        usage_known=parts.known,
        status=_status(span),
        streamed=streamed_of(attributes, first_us),
        duration_us=duration_us_of(span.start_ns, span.end_ns),
        time_to_first_token_us=first_us,
        origin=_origin(span),
    )


def billed_of(attributes: Mapping[str, Attribute]) -> dict[str, Any]:
    """Return what decides at which price a call is billed, and what is billed beside its tokens; nothing that is not told."""
    if attributes.keys().isdisjoint(names.TERMS):
        return {}
    tier, batch = tier_of(attributes.get("service_tier")), attributes.get("batch")
    told: dict[str, Any] = {
        "service_tier": tier,
        "is_batch": None if batch is None else str(batch).casefold() in {"true", "1"},
        "deployment": text_of(attributes, "deployment"),
        "tool_calls": tools_told({name: number(attributes, f"tool/{name}") or 0 for name in names.TOOL_USES}),
    }
    for name in names.BILLED:
        count = number(attributes, name)
        most = MAX_MEDIA_MS if name == "media_ms" else MAX_TOKENS if name == "characters" else MAX_COUNT
        told[name] = count if count is not None and count <= most else None
    return told


def kept_of(span: Span, kind: str) -> KeptSpan:
    """Return what is kept of a span as a step of its trace."""
    attributes = span.attributes
    kept = kept_attributes(attributes)
    is_call = kind in CALLS
    return KeptSpan(
        span.start_ns // 1_000,
        span.trace_id,
        span.span_id,
        span.parent_span_id if len(span.parent_span_id) == ID_DIGITS[1] else None,
        clean(span.name) or kind,
        clean(kind),
        duration_us_of(span.start_ns, span.end_ns),
        _model(span) if is_call else None,
        _status(span),
        kept,
        _origin(span),
    )


def kept_attributes(attributes: Mapping[str, Attribute]) -> dict[str, str]:
    """Return the few attributes that are kept with a span."""
    return {name: clean(str(attributes[name])) for name in attributes.keys() & names.KEPT_NAMES}


def _provider(attributes: Mapping[str, Attribute]) -> str:
    provider = text_of(attributes, "provider") or "unknown"
    if names.VERCEL_OPERATION in attributes:
        return provider.partition(".")[0]  # openai.responses, anthropic.messages: the interface is no provider
    return provider


def _model(span: Span) -> str | None:
    model = text_of(span.attributes, "model")
    if model is None:
        operation, _, rest = span.name.partition(" ")
        return clean(rest) or None if operation in CALLS else None
    return model


def _status(span: Span) -> str:
    error = span.attributes.get(names.ERROR_TYPE)
    if isinstance(error, str) and _CANCELLED.search(error):
        return "cancelled"
    return "error" if span.is_error or error else "ok"


def first_token_us_of(span: Span) -> int | None:
    """Return how long the first token took, None where nothing says so."""
    for name, unit_us in _FIRST_CHUNK:
        value = span.attributes.get(name)
        if isinstance(value, int | float) and 0 < value * unit_us <= MAX_DURATION_US:
            return round(value * unit_us)
    if not span.events:
        return None
    first_ns = min((at for name, at in span.events if at >= span.start_ns and _FIRST_TOKEN.search(name)), default=None)
    return None if first_ns is None else duration_us_of(span.start_ns, first_ns)


def streamed_of(attributes: Mapping[str, Attribute], first_token_us: int | None) -> bool | None:
    """Return whether the answer came in pieces, None where nothing says so."""
    told = attributes.get("streamed")
    if told is not None:
        return str(told).lower() == "true"
    vercel = attributes.get(names.VERCEL_OPERATION)
    if isinstance(vercel, str):
        return vercel.endswith("doStream")
    return True if first_token_us is not None else None


def duration_us_of(start_ns: int, end_ns: int) -> int | None:
    """Return how long it took; None for what no call takes: JSON spells any number, and the store holds 64 bits."""
    duration_us = (end_ns - start_ns) // 1_000
    return duration_us if 0 <= duration_us <= MAX_DURATION_US else None


def id_in_output(attributes: Mapping[str, Attribute]) -> str | None:
    """OpenInference has no attribute for the response's id; the response itself begins with it."""
    output = attributes.get(names.OUTPUT_VALUE)
    found = _ID_OF_RESPONSE.match(output) if isinstance(output, str) else None
    return found[1] if found else None


def text_of(attributes: Mapping[str, Attribute], name: str) -> str | None:
    """Return this attribute as the store takes texts, None where it is none or empty."""
    value = attributes.get(name)
    return clean(value) or None if isinstance(value, str) else None


def clean(text: str) -> str:
    """Return a text the store takes: no control characters (NUL is none of PostgreSQL's), bounded."""
    if len(text) <= MAX_TEXT and text.isprintable():  # nearly always, and ten times as fast
        return text.strip()
    text = text[: 4 * MAX_TEXT]
    if not text.isprintable():
        text = "".join(character for character in text if character.isprintable())
    return text.strip()[:MAX_TEXT]


def api_key_of(span: Span) -> str | None:
    """Return the name of the key a call was made with, None where nothing says so."""
    name = text_of(span.attributes, "api_key") or text_of(span.resource, "api_key")
    if name is None or name.startswith(_NO_NAME):
        return None
    if _SECRET.fullmatch(name):
        # Somebody put the secret where its name belongs. A fingerprint still tells keys apart.
        return f"fingerprint:{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return name


def _origin(span: Span) -> int:
    named = span.attributes.get(names.ORIGIN) or span.resource.get(names.ORIGIN)
    return _ORIGINS.get(str(named).upper(), int(Origin.LIVE)) if named else int(Origin.LIVE)
