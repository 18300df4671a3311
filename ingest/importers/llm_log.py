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
from ingest.calls import ApiCall, CallSource
from ingest.importers.columns import DURATION_UNITS, Chunk, Field, Source, read
from ingest.importers.errors import OptionError, RowError
from ingest.importers.instants import EPOCH
from ingest.importers.report import ImportReport, ProgressCallback, RowLog
from ingest.importers.run import check_tenant, importing
from ingest.store.import_calls import keep_reports

MAX_AHEAD: Final = timedelta(minutes=5)
MAX_TOKENS: Final = 1 << 40
STATUSES: Final = ("ok", "error", "cancelled")


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
    Field("reasoning", "integer", _names("reasoning_tokens")),
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
    uncached, read_part, write_part, text, reasoning = token_parts(row, excludes_cache=options.input_excludes_cache)
    return ApiCall(
        called_at_us=row["at"],
        dedupe_key=f"{provider}/{response_id}" if response_id else f"{sha256}:{line}",
        api_key=row["api_key"] or options.api_key,
        provider=provider,
        model=model,
        origin=int(Origin.IMPORTED),
        response_id=response_id,
        input_uncached_tokens=uncached,
        cache_read_tokens=read_part,
        cache_write_tokens=write_part,
        output_text_tokens=text,
        reasoning_tokens=reasoning,
        usage_known=row["input"] is not None or row["output"] is not None,
        status=status if status in STATUSES else "ok" if status in {"success", "200"} else "error",
        duration_us=row["duration"],
        time_to_first_token_us=row["ttft"],
    )


def token_parts(row: Mapping[str, Any], *, excludes_cache: bool) -> tuple[int | None, ...]:
    """Return disjoint (uncached input, cache read, cache write, text output, reasoning); raise if a part exceeds its whole."""
    total_in, read_part, write_part = row["input"], row["cache_read"], row["cache_write"]
    total_out, reasoning = row["output"], row["reasoning"]
    for count in (total_in, read_part, write_part, total_out, reasoning):
        if count is not None and not 0 <= count <= MAX_TOKENS:
            raise RowError("tokens out of range", str(count))
    uncached, text = total_in, total_out
    if total_in is not None and not excludes_cache:
        uncached = total_in - (read_part or 0) - (write_part or 0)
    if total_out is not None:
        text = total_out - (reasoning or 0)
    if (uncached is not None and uncached < 0) or (text is not None and text < 0):
        raise RowError("token parts exceed their whole", f"input {total_in}, output {total_out}")
    return uncached, read_part, write_part, text, reasoning
