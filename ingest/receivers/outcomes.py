"""Reads what became of a response: posted outcomes, and ``gen_ai.evaluation.*`` of traces. Pure; keeps no text that was said.

An outcome names its response by the id the provider gave, or by trace and span. Explanations of evaluations are content
and are dropped with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from re import compile as pattern
from typing import Any, Final

from collector.wire import MAX_CLOCK_SKEW_US, Origin
from ingest.accept import EARLIEST_AT_US
from ingest.receivers.gen_ai_names import EVALUATION, ORIGIN
from ingest.receivers.json_body import ItemError, Refused, exact, finite, instant_us, items, mapping, text
from ingest.receivers.otlp_attributes import Attribute
from ingest.receivers.otlp_logs import EvaluationRecord
from ingest.receivers.otlp_spans import Span

OUTCOMES_PATH: Final = "/v1/outcomes"
MAX_OUTCOMES: Final = 5_000
MAX_DATASETS: Final = 100
EVALUATION_NAME, _SCORE, _LABEL, _RESPONSE = EVALUATION
_HEX: Final = {"trace_id": pattern(r"[0-9a-f]{32}"), "span_id": pattern(r"[0-9a-f]{16}")}
_FIELDS: Final = frozenset(
    (
        *("id", "response_id", "trace_id", "span_id", "kind", "value", "value_unit", "score", "label", "at"),
        *("serving_id", "model", "fine_tune_id", "dataset_ids", "origin"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeReport:
    """One outcome as ``outcomes`` keeps it; None = not said. ``dedupe_key`` is the same however often it is sent."""

    dedupe_key: str
    kind: str
    judged_at_us: int
    source: str
    origin: int
    response_id: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    value: Decimal | None = None
    value_unit: str | None = None
    score: float | None = None
    label: str | None = None
    serving_id: str | None = None
    model: str | None = None
    fine_tune_id: str | None = None
    dataset_ids: tuple[str, ...] | None = None


@dataclass
class ReadOutcomes:
    received: int = 0
    outcomes: list[OutcomeReport] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    """Of the outcomes, in the body."""

    def cut(self, most: int, why: str) -> None:
        """Refuse all outcomes but the first ``most``."""
        self.refused += [Refused(place, why) for place in self.places[most:]]
        del self.outcomes[most:], self.places[most:]


def read_outcomes(body: bytes, now_us: int) -> ReadOutcomes:
    """Return the outcomes of one body, one object or an array; raises BadBodyError if it is neither."""
    read = ReadOutcomes()
    for place, given in enumerate(items(body, MAX_OUTCOMES, "an outcome or an array of them")):
        read.received += 1
        try:
            read.outcomes.append(_outcome(mapping(given, "outcome"), now_us))
            read.places.append(place)
        except ItemError as fault:
            read.refused.append(Refused(place, str(fault)))
    return read


def evaluations(spans: Iterable[Span], now_us: int) -> tuple[OutcomeReport, ...]:
    """Return the evaluations spans carry, on themselves or on their ``gen_ai.evaluation.result`` events.

    One without a score and a label, with values of other types or a time that cannot be says nothing and is left out.
    """
    found: list[OutcomeReport] = []
    for span in spans:
        if span.evaluations or EVALUATION_NAME in span.attributes:
            found += _evaluated(span, now_us)
    return tuple(found)


def evaluation_records(
    records: Iterable[EvaluationRecord], now_us: int
) -> tuple[tuple[OutcomeReport, ...], Sequence[str]]:
    """Return the evaluations that log records are, and of each that says nothing of a response why."""
    found: list[OutcomeReport] = []
    refused: list[str] = []
    for record in records:
        said = _Said(record.trace_id, record.span_id, record.attributes, record.resource, None)
        try:
            outcome = _evaluation(said, record.attributes, record.at_ns // 1_000, now_us)
        except ItemError as fault:
            refused.append(str(fault))
            continue
        found.append(replace(outcome, source="log"))
    return tuple(found), refused


@dataclass(frozen=True, slots=True)
class _Said:
    """Where an evaluation was said, and of which response if it does not say it itself."""

    trace_id: str
    span_id: str
    attributes: Mapping[str, Attribute]
    resource: Mapping[str, Attribute]
    response_id: Attribute | None


def _evaluated(span: Span, now_us: int) -> Iterator[OutcomeReport]:
    ended_us = (span.end_ns or span.start_ns) // 1_000
    given = [(at_ns // 1_000 or ended_us, values) for at_ns, values in span.evaluations]
    if EVALUATION_NAME in span.attributes:
        given.append((ended_us, span.attributes))
    said = _Said(span.trace_id, span.span_id, span.attributes, span.resource, span.attributes.get("response_id"))
    for at_us, values in given:
        with suppress(ItemError):
            yield _evaluation(said, values, at_us, now_us)


def _evaluation(said: _Said, values: Mapping[str, Attribute], at_us: int, now_us: int) -> OutcomeReport:
    """Return one evaluation; raises ItemError where it says nothing, or of no response."""
    kind = text(values.get(EVALUATION_NAME), EVALUATION_NAME, required=True)
    label, score = text(values.get(_LABEL), _LABEL), finite(values.get(_SCORE), _SCORE)
    response_id = text(values.get(_RESPONSE) or said.response_id, _RESPONSE)
    if score is None and label is None:
        raise ItemError("no score and no label")
    if not EARLIEST_AT_US <= at_us <= now_us + MAX_CLOCK_SKEW_US:
        raise ItemError("a time that cannot be")
    trace_id, span_id = _hex(said.trace_id or None, "trace_id"), _hex(said.span_id or None, "span_id")
    if response_id is None and trace_id is None:
        raise ItemError("no response id and no trace")
    # The same words on a span's event and in a log record are one evaluation.
    facts = (trace_id, span_id, kind, at_us, score, label, response_id)
    named = str(said.attributes.get(ORIGIN) or said.resource.get(ORIGIN) or "").upper()
    return OutcomeReport(
        dedupe_key=f"span/{_hashed(facts)}",
        kind=kind,
        judged_at_us=at_us,
        source="span",
        origin=int(Origin[named] if named in Origin.__members__ else Origin.LIVE),
        response_id=response_id,
        score=score,
        label=label,
        trace_id=trace_id,
        span_id=span_id,
    )


def _outcome(given: Mapping[str, Any], now_us: int) -> OutcomeReport:
    unknown = sorted(set(given) - _FIELDS)
    if unknown:
        raise ItemError(f"{unknown[0]!r:.60} is no field of an outcome; those are {', '.join(sorted(_FIELDS))}")
    texts = {
        name: text(given.get(name), name) for name in ("id", "response_id", "value_unit", "label", "model", "origin")
    }
    ids = {name: _hex(given.get(name), name) for name in _HEX}
    if texts["response_id"] is None and ids["trace_id"] is None:
        raise ItemError("an outcome is of a response: give response_id, or trace_id and span_id")
    kind = text(given.get("kind"), "kind", required=True)
    value, score = exact(given.get("value"), "value"), finite(given.get("score"), "score")
    if value is None and score is None and texts["label"] is None:
        raise ItemError("an outcome without value, score and label says nothing")
    at_us = instant_us(given.get("at"), "at", now_us)
    hops = {name: text(given.get(name), name) for name in ("serving_id", "fine_tune_id")}
    datasets = _datasets(given.get("dataset_ids"))
    own = texts.pop("id")
    origin = _origin(texts.pop("origin"))
    said = (
        kind,
        at_us,
        None if value is None else value.normalize(),
        score,
        *texts.values(),
        *ids.values(),
        *hops.values(),
        datasets,
    )
    return OutcomeReport(
        dedupe_key=f"id/{own}" if own else f"hash/{_hashed(said)}",
        kind=kind,
        judged_at_us=at_us,
        source="api",
        origin=origin,
        value=value,
        score=score,
        dataset_ids=datasets,
        **texts,
        **ids,
        **hops,
    )


def _hex(given: Any, name: str) -> str | None:
    if given is None:
        return None
    folded = given.lower() if isinstance(given, str) else ""
    if not _HEX[name].fullmatch(folded):
        raise ItemError(f"{name} {given!r:.60} is not {32 if name == 'trace_id' else 16} hex digits")
    return folded


def _datasets(given: Any) -> tuple[str, ...] | None:
    if given is None:
        return None
    if not isinstance(given, list) or len(given) > MAX_DATASETS:
        raise ItemError(f"dataset_ids is no array of at most {MAX_DATASETS} ids")
    return tuple(text(each, "dataset_ids", required=True) for each in given)


def _origin(named: str | None) -> int:
    if named is None:
        return int(Origin.LIVE)
    if named.upper() not in Origin.__members__:
        raise ItemError(f"origin {named!r:.40} is none of {', '.join(Origin.__members__).lower()}")
    return int(Origin[named.upper()])


def _hashed(parts: Sequence[object]) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
