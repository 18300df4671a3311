"""Imports logs of LLM requests: when, which model, how many tokens of each part. Prompts and answers are never read.

A token count that includes its cached part is split, since the store keeps parts disjoint. A row without counts is kept as a
call of unknown usage, never as one of 0 tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from collector.wire import Origin
from ingest.calls import MAX_COUNT, MAX_MEDIA_MS, MAX_TOKENS, ApiCall, CallSource, tier_of, tools_told, written
from ingest.importers.columns import DURATION_UNITS, Chunk, Field, Source, read
from ingest.importers.errors import OptionError, RowError
from ingest.importers.instants import EPOCH
from ingest.importers.report import ImportReport, ProgressCallback, RowLog
from ingest.importers.run import check_tenant, importing
from ingest.store.import_calls import keep_reports

MAX_AHEAD: Final = timedelta(minutes=5)
STATUSES: Final = ("ok", "error", "cancelled")
_COUNTS: Final = (
    *("input", "output", "cache_read", "cache_write", "cache_write_1h"),
    *("reasoning", "audio_in", "audio_out", "image"),
)
_USAGE: Final = ("input", "output", "images", "media", "characters", "pages")
"""What any of tells that usage is known."""
_YES: Final = frozenset(("true", "1", "yes", "t"))
_NO: Final = frozenset(("", "false", "0", "no", "f"))
_US_PER_MS: Final = 1_000


def _names(*names: str, **units: str) -> dict[str, str | None]:
    return {**dict.fromkeys(names), **units}


FIELDS: Final = (
    Field(
        "at",
        "instant",
        _names(
            "timestamp",
            "called_at",
            "at",
            "time",
            "created_at",
            "start_time",
            timestamp_ms="ms",
            created="s",
            ts_ms="ms",
        ),
        required=True,
        filled=True,
    ),
    Field(
        "input",
        "integer",
        _names("input_tokens", "prompt_tokens", "contexttokens", "context_tokens", "n_input", "in_len"),
    ),
    Field(
        "output",
        "integer",
        _names("output_tokens", "completion_tokens", "generatedtokens", "generated_tokens", "out_len"),
    ),
    Field("cache_read", "integer", _names("cache_read_tokens", "cached_tokens", "cache_read_input_tokens")),
    Field("cache_write", "integer", _names("cache_write_tokens", "cache_creation_input_tokens")),
    Field("cache_write_1h", "integer", _names("cache_write_1h_tokens", "ephemeral_1h_input_tokens")),
    Field("reasoning", "integer", _names("reasoning_tokens")),
    Field("audio_in", "integer", _names("audio_input_tokens", "input_audio_tokens")),
    Field("audio_out", "integer", _names("audio_output_tokens", "output_audio_tokens")),
    Field("image", "integer", _names("image_tokens")),
    Field("tier", "text", _names("service_tier")),
    Field("batch", "text", _names("batch", "is_batch")),
    Field("web_search", "integer", _names("web_search_requests", "web_searches")),
    Field("images", "integer", _names("images", "output_images")),
    Field(
        "media", "quantity", {"media_ms": "ms", "audio_s": "s", "video_s": "s", "media_s": "s"}, units=DURATION_UNITS
    ),
    Field("characters", "integer", _names("characters", "input_characters")),
    Field("pages", "integer", _names("pages")),
    Field("deployment", "text", _names("deployment", "deployment_name")),
    Field("model", "text", _names("model", "model_name")),
    Field("provider", "text", _names("provider", "llm_provider")),
    Field("api_key", "text", _names("key_name", "key_alias", "api_key_name")),
    Field("response_id", "text", _names("response_id", "request_id", "call_id")),
    Field("status", "text", _names("status")),
    Field(
        "duration",
        "quantity",
        _names("duration", "latency", duration_s="s", duration_ms="ms", latency_ms="ms"),
        units=DURATION_UNITS,
    ),
    Field(
        "ttft",
        "quantity",
        {"ttft": None, "ttft_s": "s", "ttft_ms": "ms", "time_to_first_token_s": "s"},
        units=DURATION_UNITS,
    ),
)


@dataclass(frozen=True, slots=True)
class LlmLogOptions:
    """What a log does not say of itself."""

    site: str
    model: str | None = None
    provider: str | None = None
    tenant: str | None = None
    """Who pays; otherwise the bindings say, by key."""
    api_key: str | None = None
    """The key's public name."""
    input_excludes_cache: bool = False
    """True where the input column leaves cached tokens out (Anthropic's usage), False where it includes them (OpenAI's)."""


def import_llm_log(
    conn: sa.Connection,
    source: Source,
    options: LlmLogOptions,
    *,
    now: datetime,
    dry_run: bool = False,
    progress: ProgressCallback | None = None,
) -> ImportReport:
    """Import one log. Raises ImportFileError."""
    check_tenant(options.tenant)
    with importing(conn, source, kind="llm-log", site=options.site, dry_run=dry_run) as (report, site_id):
        if site_id is None:
            return report
        unknown = superseded = 0
        for chunk in read(source, FIELDS, report, progress):
            calls = list(parse_calls(chunk, report.rejections, options, report.sha256, now))
            unknown += sum(not call.usage_known for call in calls)
            kept = keep_reports(conn, site_id, calls, CallSource.LOG, tenant=options.tenant)
            report.written["api_calls"] += kept.counted
            report.unchanged += kept.repeated
            superseded += kept.superseded
            if calls:
                report.saw(min(call.called_at_us for call in calls), max(call.called_at_us for call in calls))
        if superseded:
            report.note(
                f"{superseded} calls are known from a better source (a span, a settlement) and are not counted again"
            )
        if unknown:
            report.note(f"{unknown} calls do not say how many tokens they used: they are kept as unknown")
    return report


def parse_calls(chunk: Chunk, log: RowLog, options: LlmLogOptions, sha256: str, now: datetime) -> Iterator[ApiCall]:
    """Yield the calls of a chunk; what cannot be one goes to the log."""
    latest_us = (now + MAX_AHEAD - EPOCH) // timedelta(microseconds=1)
    names = list(chunk.values)
    for line, *values in chunk.rows(*names):
        row = dict(zip(names, values, strict=True))
        try:
            yield _call(line, row, options, sha256, latest_us)
        except RowError as error:
            log.reject(line, error.reason, error.detail)


def _call(line: int, row: Mapping[str, Any], options: LlmLogOptions, sha256: str, latest_us: int) -> ApiCall:
    if row["at"] > latest_us:
        raise RowError("in the future")
    model, provider = row["model"] or options.model, row["provider"] or options.provider
    if model is None:
        raise OptionError(f"line {line} does not say which model was called; add --model")
    if provider is None:
        raise OptionError(f"line {line} does not say who provides {model}; add --provider")
    status = (row["status"] or "ok").casefold()
    response_id = row["response_id"]
    parts = token_parts(row, excludes_cache=options.input_excludes_cache)
    return ApiCall(
        called_at_us=row["at"],
        dedupe_key=f"{provider}/{response_id}" if response_id else f"{sha256}:{line}",
        api_key=row["api_key"] or options.api_key,
        provider=provider,
        model=model,
        origin=int(Origin.IMPORTED),
        response_id=response_id,
        **parts,
        **_billed(row),
        usage_known=any(row[name] is not None for name in _USAGE),
        status=status if status in STATUSES else "ok" if status in {"success", "200"} else "error",
        duration_us=row["duration"],
        time_to_first_token_us=row["ttft"],
    )


def token_parts(row: Mapping[str, Any], *, excludes_cache: bool) -> dict[str, Any]:
    """Return the disjoint token parts of a row; raise where a part exceeds its whole."""
    counts = {name: row[name] for name in _COUNTS}
    for count in counts.values():
        if count is not None and not 0 <= count <= MAX_TOKENS:
            raise RowError("tokens out of range", str(count))
    hour = counts["cache_write_1h"]
    if counts["cache_write"] is None:
        counts["cache_write"] = hour
    if hour is not None and hour > counts["cache_write"]:
        raise RowError(
            "token parts exceed their whole", f"cache written {counts['cache_write']}, {hour} of it for an hour"
        )
    inside = () if excludes_cache else ("cache_read", "cache_write")
    uncached = _left(counts, "input", *inside, "audio_in")
    text = _left(counts, "output", "reasoning", "audio_out", "image")
    minutes, hour = written(counts["cache_write"], hour)
    return {
        "input_uncached_tokens": uncached,
        "cache_read_tokens": counts["cache_read"],
        "cache_write_tokens": minutes,
        "cache_write_1h_tokens": hour,
        "audio_input_tokens": counts["audio_in"],
        "output_text_tokens": text,
        "reasoning_tokens": counts["reasoning"],
        "audio_output_tokens": counts["audio_out"],
        "image_tokens": counts["image"],
    }


def _left(counts: Mapping[str, int | None], whole: str, *parts: str) -> int | None:
    total = counts[whole]
    if total is None:
        return None
    left = total - sum(counts[part] or 0 for part in parts)
    if left < 0:
        raise RowError("token parts exceed their whole", f"input {counts['input']}, output {counts['output']}")
    return left


def _billed(row: Mapping[str, Any]) -> dict[str, Any]:
    batch = (row["batch"] or "").strip().casefold()
    if batch not in _YES | _NO:
        raise RowError("batch is neither true nor false", row["batch"])
    for name, most in (
        ("images", MAX_COUNT),
        ("pages", MAX_COUNT),
        ("web_search", MAX_COUNT),
        ("characters", MAX_TOKENS),
    ):
        if row[name] is not None and not 0 <= row[name] <= most:
            raise RowError(f"{name} out of range", str(row[name]))
    media_us = row["media"]
    if media_us is not None and not 0 <= media_us <= MAX_MEDIA_MS * _US_PER_MS:
        raise RowError("media out of range", str(media_us))
    return {
        "service_tier": tier_of(row["tier"]),
        "is_batch": batch in _YES if batch else None,
        "tool_calls": tools_told({"web_search": row["web_search"] or 0}),
        "images": row["images"],
        "media_ms": None if media_us is None else media_us // _US_PER_MS,
        "characters": row["characters"],
        "pages": row["pages"],
        "deployment": row["deployment"],
    }
