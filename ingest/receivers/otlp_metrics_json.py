"""Reads OTLP metric exports in JSON into columns, as :mod:`ingest.receivers.otlp_metrics` does the protobuf ones.

Numbers of 64 bits come as texts or numbers, names in lowerCamelCase. Nobody sends much of it: it is read plainly. A point,
metric or resource that cannot be read is refused by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import orjson

from ingest.errors import BadBodyError, TooLargeError
from ingest.receivers import otlp
from ingest.receivers.otlp_metrics import CUMULATIVE, MAX_POINTS, NO_VALUE
from ingest.series.book import MAX_LABELS, MAX_LABELS_BYTES, Book
from ingest.series.places import is_known
from ingest.series.samples import Samples

_NS_PER_US: Final = 1_000
_INT64: Final = range(-(2**63), 2**63)
_TEMPORALITIES: Final = {"AGGREGATION_TEMPORALITY_CUMULATIVE": 2, "AGGREGATION_TEMPORALITY_DELTA": 1}
_WRONG: Final = (TypeError, ValueError, KeyError, AttributeError, OverflowError, RecursionError)
"""What shapes raise that JSON allows and OTLP does not: a text where a list should be, a number that is none."""
MALFORMED: Final = "malformed_points"
_UNREAD: Final = {"exponentialHistogram": "exponential_histogram", "summary": "summary"}


@dataclass(slots=True)
class _Gathered:
    numbers: list[int] = field(default_factory=list)
    at_us: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    invalid: Counter[str] = field(default_factory=Counter)
    uncounted: Counter[str] = field(default_factory=Counter)


def read_json(data: bytes, book: Book) -> Samples:
    """Return the points of an export; raises BadBodyError."""
    found = _Gathered()
    export = otlp.parsed_json(data)
    try:
        for about, metric in _metrics(export):
            try:
                _metric(about, metric, book, found)
            except _WRONG:
                found.invalid[MALFORMED] += 1
    except _WRONG as error:
        raise BadBodyError("malformed", f"not an OTLP/JSON metrics export: {error!r:.200}") from error
    return Samples(
        np.array(found.numbers, dtype=np.int32),
        np.array(found.at_us, dtype=np.int64),
        np.array(found.values, dtype=np.float64),
        found.invalid,
        found.uncounted,
    )


def _metrics(export: Any) -> Iterator[tuple[Mapping[str, str] | None, Any]]:
    """Yield each metric with the labels of its resource, None where those cannot be read."""
    for resource in export.get("resourceMetrics") or []:
        about: Mapping[str, str] | None
        try:
            about = _labels((resource.get("resource") or {}).get("attributes"))
        except _WRONG:
            about = None
        for scope in resource.get("scopeMetrics") or []:
            for metric in scope.get("metrics") or []:
                yield about, metric


def _metric(about: Mapping[str, str] | None, metric: Any, book: Book, found: _Gathered) -> None:
    name = metric.get("name") or ""
    for kind, what in _UNREAD.items():
        found.uncounted[what] += len((metric.get(kind) or {}).get("dataPoints") or [])
    for kind in ("gauge", "sum", "histogram"):
        content = metric.get(kind)
        if content is None:
            continue
        points = content.get("dataPoints") or []
        if len(found.numbers) + sum(found.uncounted.values()) + len(points) > MAX_POINTS:
            raise TooLargeError(f"more than {MAX_POINTS} points in one request")
        if not isinstance(name, str) or not name:
            found.invalid["no_metric_name"] += len(points)
            continue
        temporality = content.get("aggregationTemporality", 0)
        is_delta = kind != "gauge" and _TEMPORALITIES.get(temporality, temporality) != CUMULATIVE
        series = f"{name}_count" if kind == "histogram" else name
        for point in points:
            try:
                if about is None:
                    raise TypeError("what its resource says cannot be read")
                _point(series, point, about, book, found, is_delta=is_delta)
            except _WRONG:
                found.invalid[MALFORMED] += 1


def _point(name: str, point: Any, about: Mapping[str, str], book: Book, found: _Gathered, *, is_delta: bool) -> None:
    value = _value(point)
    if value is None or int(point.get("flags") or 0) & NO_VALUE:
        found.uncounted["no_value"] += 1
        return
    at_us = min(max(int(point.get("timeUnixNano") or 0) // _NS_PER_US, 0), 2**62)
    labels = {**about, **_labels(point.get("attributes"))}
    spelled = orjson.dumps([name, is_delta, labels], option=orjson.OPT_SORT_KEYS)
    if len(labels) > MAX_LABELS or len(spelled) > MAX_LABELS_BYTES:
        found.invalid["too_many_labels" if len(labels) > MAX_LABELS else "labels_too_long"] += 1
        return
    # No key of the other encodings begins so.
    key = b"\xfd" + spelled
    number = book.known.get(key)
    if number is None:
        number = book.skipped(name, "delta") if is_delta and is_known(name) else book.learn(key, name, lambda: labels)
    found.numbers.append(number)
    found.at_us.append(at_us)
    found.values.append(value)


def _value(point: Any) -> float | None:
    if "asInt" in point or "count" in point:
        whole = int(point["asInt"] if "asInt" in point else point["count"])
        if whole not in _INT64:
            raise ValueError(f"{whole} does not fit 64 bits")
        return float(whole)
    return float(point["asDouble"]) if "asDouble" in point else None


def _labels(pairs: Any) -> dict[str, str]:
    labels: dict[str, str] = {}
    for pair in pairs or []:
        given = pair.get("value") or {}
        key = str(pair["key"])
        if "stringValue" in given:
            labels[key] = str(given["stringValue"])
        elif "boolValue" in given:
            labels[key] = "true" if given["boolValue"] is True else "false"
        elif "intValue" in given:
            labels[key] = str(int(given["intValue"]))
        elif "doubleValue" in given:
            labels[key] = repr(float(given["doubleValue"]))
        else:
            labels[key] = ""
    return labels
