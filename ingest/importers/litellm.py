"""Imports LiteLLM's SpendLogs (CSV, JSON or Parquet export) as logs of LLM calls. Prompts, answers and users are never read.

LiteLLM logs a response's id as its request's, so that a span of the same call and its log are one call. Its own ``spend`` bills
nothing: it is added up for the report. Rows answered from LiteLLM's cache called nobody and are counted and left out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa

from collector.wire import Origin
from ingest.calls import MAX_COUNT, MAX_TOKENS, ApiCall, CallSource, disjoint, tier_of, tools_told, written
from ingest.importers.columns import Chunk, Field, Source, read
from ingest.importers.errors import OptionError, RowError
from ingest.importers.instants import EPOCH
from ingest.importers.report import ImportReport, ProgressCallback
from ingest.importers.run import check_tenant, importing
from ingest.store.import_calls import keep_reports

MAX_AHEAD: Final = timedelta(minutes=5)
MAX_DURATION_US: Final = 7 * 86_400_000_000
_1H: Final = "ephemeral_1h_input_tokens"
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_SECRET: Final = re.compile(r"sk-[A-Za-z0-9_-]{8,}")


def _field(name: str, kind: Any, *theirs: str, required: bool = False, filled: bool = False) -> Field:
    return Field(name, kind, dict.fromkeys(theirs), required=required, filled=filled)


FIELDS: Final = (
    _field("request_id", "text", "request_id", required=True, filled=True),
    _field("call_type", "text", "call_type"),
    _field("api_key", "text", "api_key"),
    _field("spend", "decimal", "spend"),
    _field("prompt", "integer", "prompt_tokens", required=True),
    _field("completion", "integer", "completion_tokens", required=True),
    _field("start", "instant", "starttime", "start_time", required=True, filled=True),
    _field("end", "instant", "endtime", "end_time"),
    _field("first_token", "instant", "completionstarttime", "completion_start_time"),
    _field("model", "text", "model", required=True),
    _field("provider", "text", "custom_llm_provider"),
    _field("metadata", "object", "metadata"),
    _field("cache_hit", "text", "cache_hit"),
    _field("status", "text", "status"),
)


@dataclass(frozen=True, slots=True)
class LitellmOptions:
    """What the log does not say of itself."""

    site: str
    tenant: str | None = None
    """Who pays; otherwise the bindings say, by key."""
    provider: str | None = None
    """Of rows that name none."""


def import_litellm(
    conn: sa.Connection,
    source: Source,
    options: LitellmOptions,
    *,
    now: datetime,
    dry_run: bool = False,
    progress: ProgressCallback | None = None,
) -> ImportReport:
    """Import one export. Raises ImportFileError."""
    check_tenant(options.tenant)
    # The table holds times without a zone, in UTC.
    source = replace(source, tz=source.tz or "UTC")
    with importing(conn, source, kind="litellm", site=options.site, dry_run=dry_run) as (report, site_id):
        if site_id is None:
            return report
        seen = Seen()
        for chunk in read(source, FIELDS, report, progress):
            calls = list(parse_calls(chunk, report, options, now, seen))
            kept = keep_reports(conn, site_id, calls, CallSource.LOG, tenant=options.tenant)
            report.written["api_calls"] += kept.counted
            report.unchanged += kept.repeated
            seen.superseded += kept.superseded
        _tell(report, seen)
    return report


@dataclass
class Seen:
    """What was counted over a file. ``spend``: LiteLLM's own figure, in USD, of the calls taken."""

    cached: int = 0
    no_call: int = 0
    unknown: int = 0
    superseded: int = 0
    spend: Decimal = Decimal(0)
    without_spend: int = 0


def _tell(report: ImportReport, seen: Seen) -> None:
    if seen.superseded:
        report.note(
            f"{seen.superseded} calls are known from a better source (a span, a settlement) and are not counted again"
        )
    if seen.cached:
        report.note(f"{seen.cached} rows were answered from LiteLLM's cache: no provider was called")
    if seen.no_call:
        report.note(f"{seen.no_call} rows call no model (tools, health checks)")
    if seen.unknown:
        report.note(f"{seen.unknown} calls do not say how many tokens they used: they are kept as unknown")
    blank = f", {seen.without_spend} of them without one" if seen.without_spend else ""
    report.note(f"LiteLLM's own spend of these calls is {seen.spend.normalize():f} USD{blank}; it bills nothing here")


def parse_calls(
    chunk: Chunk, report: ImportReport, options: LitellmOptions, now: datetime, seen: Seen
) -> Iterator[ApiCall]:
    """Yield the calls of a chunk; what cannot be one goes to the report's log, what is none is counted in ``seen``."""
    latest_us = (now + MAX_AHEAD - EPOCH) // timedelta(microseconds=1)
    names = list(chunk.values)
    for line, *values in chunk.rows(*names):
        row = dict(zip(names, values, strict=True))
        if (row["cache_hit"] or "").casefold() in {"true", "1", "t"}:
            seen.cached += 1
        elif not row["model"] and _failed(row) is False:
            seen.no_call += 1
        else:
            try:
                call = _call(line, row, options, latest_us)
            except RowError as error:
                report.rejections.reject(line, error.reason, error.detail)
                continue
            report.saw(call.called_at_us, call.called_at_us)
            seen.unknown += not call.usage_known
            seen.spend += row["spend"] or 0
            seen.without_spend += row["spend"] is None
            yield call


def _call(line: int, row: Mapping[str, Any], options: LitellmOptions, latest_us: int) -> ApiCall:
    start_us = row["start"]
    if start_us > latest_us:
        raise RowError("in the future")
    if not row["model"]:
        raise RowError("model is empty", row["request_id"])
    provider, model = _model(row, options.provider, line)
    tokens = token_parts(row)
    return ApiCall(
        called_at_us=start_us,
        dedupe_key=f"litellm/{row['request_id']}",
        provider=provider,
        model=model,
        usage_known=bool(tokens),
        origin=int(Origin.IMPORTED),
        api_key=key_name(row),
        response_id=row["request_id"],
        status="error" if _failed(row) else "ok",
        duration_us=_after(start_us, row["end"]),
        # Where nothing was streamed LiteLLM writes the end here, which says nothing of a first token.
        time_to_first_token_us=None if row["first_token"] == row["end"] else _after(start_us, row["first_token"]),
        **tokens,
        **billed_parts(row),
    )


def _failed(row: Mapping[str, Any]) -> bool:
    return (row["status"] or "success").casefold() not in {"success", "ok", "200"}


def _model(row: Mapping[str, Any], default: str | None, line: int) -> tuple[str, str]:
    model = row["model"]
    prefix, slash, rest = model.partition("/")
    provider = row["provider"] or default or (prefix if slash else None)
    if provider is None:
        raise OptionError(f"line {line} does not say who provides {model}; add --provider")
    return provider, rest if slash and prefix == provider else model


def key_name(row: Mapping[str, Any]) -> str | None:
    """Return the key's public name: its alias, else the first 16 digits of the hash LiteLLM keeps of it."""
    alias = (row["metadata"] or {}).get("user_api_key_alias")
    name = alias if isinstance(alias, str) and alias.strip() else row["api_key"]
    if not name:
        return None
    if _SECRET.fullmatch(name):
        name = hashlib.sha256(name.encode()).hexdigest()
    return f"fingerprint:{name[:16]}" if _HASH.fullmatch(name) else str(name)[:255]


def token_parts(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the disjoint token parts a row reports; empty = it reports no usage, which is never a use of 0 tokens.

    LiteLLM's totals include what was cached and what was reasoning. A part larger than its total shows one that does not,
    and then the total stands as it is. Audio gives way to both: cached audio is told as cached and as audio.
    """
    given, produced = row["prompt"], row["completion"]
    for count in (given, produced):
        if count is not None and not 0 <= count <= MAX_TOKENS:
            raise RowError("tokens out of range", str(count))
    if not given and not produced:
        return {}
    usage = _object((row["metadata"] or {}).get("usage_object"))
    prompt, completion = _object(usage.get("prompt_tokens_details")), _object(usage.get("completion_tokens_details"))
    read_part = _count(usage.get("cache_read_input_tokens"), prompt.get("cached_tokens"))
    write_part = _count(usage.get("cache_creation_input_tokens"), prompt.get("cache_creation_tokens"))
    audio_in, audio_out = _count(prompt.get("audio_tokens")), _count(completion.get("audio_tokens"))
    reasoning = _count(completion.get("reasoning_tokens"))
    uncached, audio_in = _rest(given, (read_part or 0) + (write_part or 0), audio_in)
    write_part, hour = written(write_part, _count(_object(prompt.get("cache_creation_token_details")).get(_1H)))
    text, audio_out = _rest(produced, reasoning or 0, audio_out)
    parts: dict[str, Any] = {
        "input_uncached_tokens": uncached,
        "cache_read_tokens": read_part,
        "cache_write_tokens": write_part,
        "output_text_tokens": text,
        "reasoning_tokens": reasoning,
        "cache_write_1h_tokens": hour,
        "audio_input_tokens": audio_in,
        "audio_output_tokens": audio_out,
    }
    return {name: count for name, count in parts.items() if count is not None}


def billed_parts(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides at which price a row's call is billed, and what is billed beside its tokens; nothing that is not told."""
    metadata = _object(row["metadata"])
    usage = _object(metadata.get("usage_object"))
    prompt = _object(usage.get("prompt_tokens_details"))
    tools = dict(_object(usage.get("server_tool_use")))
    tools.setdefault("web_search_requests", prompt.get("web_search_requests"))
    deployment = metadata.get("model_id") or metadata.get("deployment")
    parts: dict[str, Any] = {
        "service_tier": tier_of(usage.get("service_tier") or metadata.get("service_tier")),
        "is_batch": True if "batch" in (row["call_type"] or "").casefold() else None,
        "tool_calls": tools_told(
            {name.removesuffix("_requests"): _count(uses) or 0 for name, uses in tools.items() if name.isidentifier()}
        ),
        "characters": _count(prompt.get("character_count")),
        "deployment": deployment[:255] if isinstance(deployment, str) and deployment.strip() else None,
    }
    images = _count(usage.get("images"), prompt.get("image_count") if _makes_images(row) else None)
    parts["images"] = images if images is not None and images <= MAX_COUNT else None
    return {name: value for name, value in parts.items() if value is not None}


def _makes_images(row: Mapping[str, Any]) -> bool:
    return "image" in (row["call_type"] or "").casefold()


def _object(given: Any) -> Mapping[str, Any]:
    return given if isinstance(given, dict) else {}


def _count(*given: Any) -> int | None:
    return next((n for n in given if isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= MAX_TOKENS), None)


def _rest(total: int | None, inside: int, audio: int | None) -> tuple[int | None, int | None]:
    return disjoint(total, 0 if total is not None and inside > total else inside, audio)


def _after(start_us: int, end_us: int | None) -> int | None:
    return None if end_us is None or not 0 <= end_us - start_us <= MAX_DURATION_US else end_us - start_us
