"""What the metrics of vLLM and SGLang mean, as columns of the engine stream.

Pure: samples in, one row a model out. Counters stay raw and cumulative. Series of one model are added up over data-parallel
engines and reasons; ranks that repeat what rank 0 says are left out.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from typing import Final

from collector.probe import Row
from collector.probe.prometheus_text import Sample
from collector.wire import MAX_STRING_BYTES

_COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    # Of several names the first that is there counts: where a new name came, an engine gives the old one beside it for a while.
    "requests_running": ("vllm:num_requests_running", "sglang:num_running_reqs"),
    "requests_waiting": ("vllm:num_requests_waiting", "sglang:num_queue_reqs"),
    "prompt_tokens": ("vllm:prompt_tokens_total", "sglang:prompt_tokens_total"),
    "generation_tokens": ("vllm:generation_tokens_total", "sglang:generation_tokens_total"),
    "prefix_cache_hits": (
        "vllm:prefix_cache_hits_total",
        "vllm:gpu_prefix_cache_hits_total",
        "sglang:cached_tokens_total",
    ),
    # SGLang looks every prompt token up.
    "prefix_cache_queries": (
        "vllm:prefix_cache_queries_total",
        "vllm:gpu_prefix_cache_queries_total",
        "sglang:prompt_tokens_total",
    ),
    "requests_finished": ("vllm:request_success_total", "sglang:num_requests_total"),
    # sglang:num_retracted_reqs without "total" is the last batch's gauge.
    "preemptions": (
        "vllm:num_preemptions_total",
        "sglang:num_retracted_requests_total",
        "sglang:num_retracted_reqs_total",
    ),
}
_USAGE: Final = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage")
_HISTOGRAMS: Final[dict[str, tuple[str, ...]]] = {
    "ttft_histogram": ("vllm:time_to_first_token_seconds", "sglang:time_to_first_token_seconds"),
    "itl_histogram": (
        "vllm:inter_token_latency_seconds",
        "vllm:time_per_output_token_seconds",
        "sglang:inter_token_latency_seconds",
        "sglang:time_per_output_token_seconds",
    ),
    "request_histogram": ("vllm:e2e_request_latency_seconds", "sglang:e2e_request_latency_seconds"),
}
WANTED: Final = frozenset(
    {name for names in _COLUMNS.values() for name in names}
    | set(_USAGE)
    | {name + end for names in _HISTOGRAMS.values() for name in names for end in ("_bucket", "_sum", "_count")}
)
_RANKS: Final = ("tp_rank", "pp_rank")
_MAX_MODELS: Final = 64
_DIGITS: Final = 16
"""Room for a count, so that which bounds fit depends on the bounds alone and not on how long the engine has run."""
_UNKNOWN_MODEL: Final = "unknown"


def rows_of(samples: Iterable[Sample], errors: Counter[str]) -> list[Row]:
    """Return a row for each model, without engine and span; histograms as the wire wants them."""
    models: dict[str, dict[str, list[Sample]]] = {}
    for sample in samples:
        labels = sample.labels
        # Schedulers of every tensor and pipeline rank tell the same requests where all of them report.
        if any(labels.get(rank, "0") != "0" for rank in _RANKS) or labels.get("cache_source") == "total":
            continue
        model = labels.get("model_name") or _UNKNOWN_MODEL
        if model not in models and len(models) >= _MAX_MODELS:
            errors["engines:too_many_models"] += 1
            continue
        models.setdefault(model, {}).setdefault(sample.name, []).append(sample)
    rows: list[Row] = []
    for model, series in models.items():
        row: Row = {"model": model}
        for column, names in _COLUMNS.items():
            told = next((series[name] for name in names if name in series), None)
            if told is not None:
                row[column] = _sum(told, column, errors)
        usage = next((series[name] for name in _USAGE if name in series), None)
        if usage is not None:
            row["kv_cache_usage_ratio"] = _mean_ratio(usage, errors)
        for column, names in _HISTOGRAMS.items():
            name = next((name for name in names if name + "_bucket" in series), None)
            if name is not None:
                buckets, sums = series[name + "_bucket"], series.get(name + "_sum", [])
                row[column] = _histogram(buckets, sums, column, errors)
        if len(row) > 1:
            rows.append(row)
    return rows


def _sum(samples: list[Sample], column: str, errors: Counter[str]) -> int | None:
    total = 0
    for sample in samples:
        number = sample.integer() if math.isfinite(sample.value) else None
        if number is None or number < 0:
            errors[f"engines:unusable:{column}"] += 1
            return None
        total += number
    return total


def _mean_ratio(samples: list[Sample], errors: Counter[str]) -> float | None:
    values = [sample.value for sample in samples]
    if not all(0 <= value <= 1 for value in values):
        errors["engines:unusable:kv_cache_usage_ratio"] += 1
        return None
    return math.fsum(values) / len(values)


def _histogram(buckets: list[Sample], sums: list[Sample], column: str, errors: Counter[str]) -> str | None:
    """Return JSON: ``le`` the bounds in seconds, ``n`` the requests up to each and, last, all of them, ``sum`` in seconds."""
    counts: Counter[float] = Counter()
    engines: Counter[float] = Counter()
    for sample in buckets:
        try:
            bound = float(sample.labels.get("le", ""))
        except ValueError:
            bound = math.nan
        number = sample.integer() if math.isfinite(sample.value) else None
        if math.isnan(bound) or number is None or number < 0:
            errors[f"engines:unusable:{column}"] += 1
            return None
        counts[bound] += number
        engines[bound] += 1
    bounds = sorted(counts)
    numbers = [counts[bound] for bound in bounds]
    # Engines with other bounds do not add up, and a histogram that is not cumulative or not whole is none.
    whole = bounds[-1] == math.inf and len(set(engines.values())) == 1 and numbers == sorted(numbers)
    total_s = math.fsum(sample.value for sample in sums)
    if not whole or not sums or not math.isfinite(total_s):
        errors[f"engines:unusable:{column}"] += 1
        return None
    kept = _fitting(bounds[:-1])
    text = json.dumps(
        {"le": kept, "n": [counts[bound] for bound in kept] + numbers[-1:], "sum": round(total_s, 6)},
        separators=(",", ":"),
    )
    return text if len(text) <= MAX_STRING_BYTES else None


def _fitting(bounds: list[float]) -> list[float]:
    """Return the bounds, every second one of them as often as it takes to fit: leaving a bound out merges two buckets."""
    kept = bounds
    while len(json.dumps(kept, separators=(",", ":"))) + (_DIGITS + 1) * (len(kept) + 1) + 48 > MAX_STRING_BYTES:
        kept = kept[1::2]
    return kept
