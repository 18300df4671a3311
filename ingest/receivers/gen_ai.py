"""Tells which spans are LLM calls, in each dialect senders speak, and what they used. Pure; keeps no message content.

Dialects, as captured from the real senders: OpenTelemetry ``gen_ai.*`` (current and 2025 names), Traceloop ``llm.*``,
OpenInference ``llm.token_count.*``. Spans of agents, tools and workflows repeat the usage of the calls inside them and are
not calls. A span without usage is a call whose usage is unknown, never one of zero tokens.

Token parts are disjoint: what was read from or written to the cache, and audio, is taken out of the input total;
reasoning and audio out of the output total. A part larger than its total shows a sender that counts it beside the total
(Anthropic's own API does); then the total stands as it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from collector.wire import MAX_CLOCK_SKEW_US, Origin
from ingest.accept import EARLIEST_AT_US
from ingest.calls import ApiCall
from ingest.receivers.otlp import Attribute, Span

API_KEY: Final = "wattledger.api_key"
ORIGIN: Final = "wattledger.origin"
MAX_TEXT: Final = 255
MAX_DURATION_US: Final = 7 * 86_400_000_000
_CALLS: Final = frozenset(
    ("chat", "completion", "text_completion", "generate_content", "embeddings", "embedding", "responses", "rerank")
)
_PROVIDER: Final = ("gen_ai.provider.name", "gen_ai.system", "llm.provider", "llm.system")
_MODEL: Final = (
    "gen_ai.response.model",
    "gen_ai.request.model",
    "llm.model_name",
    "embedding.model_name",
    "llm.request.model",
)
_INPUT: Final = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt")
_OUTPUT: Final = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion")
_CACHE_READ: Final = (
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.cache_read_input_tokens",
    "llm.token_count.prompt_details.cache_read",
)
_CACHE_WRITE: Final = (
    "gen_ai.usage.cache_creation.input_tokens",
    "gen_ai.usage.cache_creation_input_tokens",
    "llm.token_count.prompt_details.cache_write",
)
_REASONING: Final = (
    "gen_ai.usage.reasoning.output_tokens",
    "gen_ai.usage.reasoning_tokens",
    "llm.token_count.completion_details.reasoning",
)
_AUDIO_IN: Final = ("llm.token_count.prompt_details.audio",)
_AUDIO_OUT: Final = ("llm.token_count.completion_details.audio",)
_STREAMED: Final = ("gen_ai.is_streaming", "llm.is_streaming", "gen_ai.request.stream")
# Who called, best first. service.name is the last resort: it says which program, which is often one key.
_KEY_ON_SPAN: Final = (
    API_KEY,
    "metadata.user_api_key_alias",
    "enduser.id",
    "user.id",
    "traceloop.association.properties.user_id",
)
_KEY_ON_RESOURCE: Final = (API_KEY, "service.name")
_FIRST_TOKEN: Final = re.compile(r"first token|content\.completion\.chunk", re.IGNORECASE)
_SECRET: Final = re.compile(r"(sk|pk|rk|key|api)[-_][A-Za-z0-9_-]{16,}|[A-Za-z0-9+/_=-]{40,}")


@dataclass(frozen=True, slots=True)
class Read:
    """What an export holds: calls (each once), spans that are no calls, and spans refused by reason."""

    calls: tuple[ApiCall, ...]
    other_spans: int
    refused: Mapping[str, int]


def read_calls(spans: Iterable[Span], now_us: int) -> Read:
    """Return the calls among spans. Of one call reported twice the report with usage is kept."""
    calls: dict[str, ApiCall] = {}
    refused: dict[str, int] = {}
    others = 0
    for span in spans:
        if not _is_call(span.attributes):
            others += 1
            continue
        reason = _fault(span, now_us)
        if reason is not None:
            refused[reason] = refused.get(reason, 0) + 1
            continue
        call = _call(span)
        known = calls.get(call.dedupe_key)
        if known is None or (call.usage_known and not known.usage_known):
            calls[call.dedupe_key] = call
    return Read(tuple(calls.values()), others, refused)


def _is_call(attributes: Mapping[str, Attribute]) -> bool:
    kind = attributes.get("openinference.span.kind")
    if kind is not None:
        return kind in ("LLM", "EMBEDDING")
    operation = attributes.get("gen_ai.operation.name") or attributes.get("llm.request.type")
    if operation is not None:
        return operation in _CALLS
    if "traceloop.span.kind" in attributes:
        return False
    # Older senders name no operation; a provider and a model together are only on calls.
    return _text(attributes, _PROVIDER) is not None and _text(attributes, _MODEL) is not None


def _fault(span: Span, now_us: int) -> str | None:
    start_us = span.start_ns // 1_000
    if start_us < EARLIEST_AT_US:
        return "before_2000"
    if start_us > now_us + MAX_CLOCK_SKEW_US:
        return "from_the_future"
    return "no_ids" if not span.trace_id or not span.span_id else None


def _call(span: Span) -> ApiCall:
    attributes = span.attributes
    given, produced = _tokens(attributes, _INPUT), _tokens(attributes, _OUTPUT)
    cache_read, cache_write = _tokens(attributes, _CACHE_READ), _tokens(attributes, _CACHE_WRITE)
    reasoning = _tokens(attributes, _REASONING)
    audio_in, audio_out = _tokens(attributes, _AUDIO_IN), _tokens(attributes, _AUDIO_OUT)
    response_id = _text(attributes, ("gen_ai.response.id",))
    first_ns = min((at for name, at in span.events if at >= span.start_ns and _FIRST_TOKEN.search(name)), default=None)
    streamed = next((attributes[key] for key in _STREAMED if key in attributes), None)
    return ApiCall(
        called_at_us=span.start_ns // 1_000,
        dedupe_key=f"response/{response_id}" if response_id else f"span/{span.trace_id}/{span.span_id}",
        api_key=_api_key(span),
        provider=_text(attributes, _PROVIDER) or "unknown",
        model=_text(attributes, _MODEL) or "unknown",
        response_id=response_id,
        trace_id=span.trace_id,
        span_id=span.span_id,
        input_uncached_tokens=_remainder(given, cache_read, cache_write, audio_in),
        cache_read_tokens=cache_read,
        cache_write_tokens=cache_write,
        output_text_tokens=_remainder(produced, reasoning, audio_out),
        reasoning_tokens=reasoning,
        audio_tokens=None if audio_in is None and audio_out is None else (audio_in or 0) + (audio_out or 0),
        usage_known=given is not None or produced is not None,
        status="error" if span.is_error else "ok",
        streamed=None if streamed is None else str(streamed).lower() == "true",
        duration_us=_duration_us(span.start_ns, span.end_ns),
        time_to_first_token_us=None if first_ns is None else _duration_us(span.start_ns, first_ns),
        origin=_origin(span),
    )


def _duration_us(start_ns: int, end_ns: int) -> int | None:
    """Return how long it took; None for what no call takes: JSON spells any number, and the store holds 64 bits."""
    duration_us = (end_ns - start_ns) // 1_000
    return duration_us if 0 <= duration_us <= MAX_DURATION_US else None


def _remainder(total: int | None, *parts: int | None) -> int | None:
    if total is None:
        return None
    taken = sum(part or 0 for part in parts)
    return total - taken if taken <= total else total


def _tokens(attributes: Mapping[str, Attribute], keys: Iterable[str]) -> int | None:
    for key in keys:
        value = attributes.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40:
            return value
    return None


def _text(attributes: Mapping[str, Attribute], keys: Iterable[str]) -> str | None:
    for key in keys:
        value = attributes.get(key)
        if isinstance(value, str) and value.strip():
            return clean(value)
    return None


def clean(text: str) -> str:
    """Return a text the store takes: no control characters (NUL is none of PostgreSQL's), bounded."""
    return "".join(character for character in text if character.isprintable()).strip()[:MAX_TEXT]


def _api_key(span: Span) -> str | None:
    name = _text(span.attributes, _KEY_ON_SPAN) or _text(span.resource, _KEY_ON_RESOURCE)
    if name is not None and _SECRET.fullmatch(name):
        # Somebody put the secret where its name belongs. A fingerprint still tells keys apart.
        return f"fingerprint:{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return name


def _origin(span: Span) -> int:
    named = span.attributes.get(ORIGIN) or span.resource.get(ORIGIN)
    return (
        int(Origin[named.upper()])
        if isinstance(named, str) and named.upper() in Origin.__members__
        else int(Origin.LIVE)
    )
