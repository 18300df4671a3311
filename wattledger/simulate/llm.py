"""The LLM calls of the simulated organisations: which key asked which model for how many tokens, and when.

Calls are drawn per key and ten minutes, so any interval can be made on its own. Token counts are what the provider would
report; prices are not its business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from wattledger.simulate.plants import plants_between
from wattledger.simulate.seeds import rng
from wattledger.simulate.spec import CALL_DRAW, CONTAINER_S, US_PER_S, FleetSpec, PlantKind
from wattledger.simulate.tenants import API_KEYS, REASONING_MODELS, ApiKey

_BUCKET_US: Final = CONTAINER_S * US_PER_S
_LONGEST_CALL_US: Final = _BUCKET_US
_ERROR_RATIO: Final = 0.01
_TOKENS_PER_S: Final = 70.0


@dataclass(frozen=True, slots=True)
class ApiCall:
    """One call. ``input_tokens`` includes the cached ones, ``output_tokens`` the reasoning ones, as providers report them.

    A failed call reports no usage: ``usage_known`` is false and its tokens are zero here, absent in its span.
    """

    api_key: str
    tenant: str | None
    provider: str
    model: str
    response_id: str
    trace_id: bytes
    span_id: bytes
    start_us: int
    end_us: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    usage_known: bool


def calls_ended_between(spec: FleetSpec, start_us: int, end_us: int) -> list[ApiCall]:
    """Return the calls that ended during [start, end), by end and key: a span is sent when its call is over."""
    return [call for call in _drawn(spec, start_us - _LONGEST_CALL_US, end_us) if start_us <= call.end_us < end_us]


def calls_started_between(spec: FleetSpec, start_us: int, end_us: int) -> list[ApiCall]:
    """Return the calls that began during [start, end), by end and key: the calls that the interval is billed for."""
    return [call for call in _drawn(spec, start_us, end_us) if start_us <= call.start_us < end_us]


def _drawn(spec: FleetSpec, start_us: int, end_us: int) -> list[ApiCall]:
    first = max(0, (start_us - spec.start_at_us) // _BUCKET_US)
    last = (end_us - 1 - spec.start_at_us) // _BUCKET_US
    found = [
        call
        for bucket in range(first, last + 1)
        for number, key in enumerate(API_KEYS)
        for call in _bucket(spec, bucket, number, key)
    ]
    found.sort(key=lambda call: (call.end_us, call.api_key, call.response_id))
    return found


def _bucket(spec: FleetSpec, bucket: int, number: int, key: ApiKey) -> list[ApiCall]:
    begin_us = spec.start_at_us + bucket * _BUCKET_US
    day = (begin_us // US_PER_S % 86_400) / 86_400
    usual = 1 + 0.7 * float(np.sin(2 * np.pi * (day - 0.35)))
    bursts = [
        (event.start_us, event.end_us, float(event.detail["rate_factor"]))
        for event in plants_between(spec, begin_us, begin_us + _BUCKET_US)
        if event.kind is PlantKind.KEY_OVERSPEND and event.api_key == key.name
    ]
    # A burst runs at all hours alike. It is drawn for its whole bucket and thinned to its exact interval.
    factor = max((burst[2] for burst in bursts), default=usual)
    draw = rng(spec.seed, CALL_DRAW, number, bucket)
    count = int(draw.poisson(spec.llm_calls_per_hour / 6 * key.weight * factor))
    if not count:
        return []
    starts = np.sort(draw.integers(begin_us, begin_us + _BUCKET_US, count))
    kept = draw.random(count) < usual / factor
    models = draw.choice(len(key.models), size=count, p=_shares(key))
    inputs = _tokens(draw, key.input_tokens_median, 0.8, count, 180_000)
    cached = inputs * draw.beta(2, 3, count) * (draw.random(count) < key.cached_ratio * 1.6)
    outputs = _tokens(draw, key.output_tokens_median, 0.7, count, 16_000)
    thinking = outputs * draw.beta(2, 2, count) * 2.5
    failed = draw.random(count) < _ERROR_RATIO
    ids = draw.bytes(24 * count)
    found = []
    for index in range(count):
        start_us = int(starts[index])
        in_burst = any(begin <= start_us < end for begin, end, _ in bursts)
        if bursts and not in_burst and not kept[index]:
            continue
        provider, model, _ = key.models[int(models[index])]
        known = not failed[index]
        reasoning = int(thinking[index]) if known and model in REASONING_MODELS else 0
        output = int(outputs[index]) + reasoning if known else 0
        took_us = 350_000 + int(output / _TOKENS_PER_S * US_PER_S)
        identity = ids[24 * index : 24 * index + 24]
        found.append(
            ApiCall(
                api_key=key.name,
                tenant=key.path,
                provider=provider,
                model=model,
                response_id=f"sim-{identity[:16].hex()}",
                trace_id=identity[:16],
                span_id=identity[16:],
                start_us=start_us,
                end_us=start_us + min(took_us, _LONGEST_CALL_US - 1),
                input_tokens=int(inputs[index]) if known else 0,
                cached_tokens=int(cached[index]) // 64 * 64 if known else 0,
                output_tokens=output,
                reasoning_tokens=reasoning,
                usage_known=known,
            )
        )
    return found


def _tokens(draw: np.random.Generator, median: float, sigma: float, count: int, most: int) -> np.ndarray:
    return (median * np.exp(sigma * draw.standard_normal(count))).clip(1, most).astype(np.int64)


def _shares(key: ApiKey) -> list[float]:
    total = sum(weight for _, _, weight in key.models)
    return [weight / total for _, _, weight in key.models]
