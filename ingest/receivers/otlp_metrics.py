"""Reads OTLP metric exports in protobuf into columns: where each number lies is found once, then numbers are gathered.

A steady sender's body differs from its last only in instants and values, which are eight bytes each wherever they are.
So the places found in one body are kept with all its other bytes: a body that equals it in every one of those is read by
gathering (:class:`_Layout`); one that does not is walked, which checks every length. There is no third way, so a changed
layout can cost time, never a wrong value. A histogram is one point, its count. Everything wrong ends in BadBodyError.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from ingest.errors import TooLargeError, malformed
from ingest.receivers.wire_format import FIXED64, LENGTH, VARINT, fields, gathered, signed, skipped, varint
from ingest.series.book import MAX_LABELS, MAX_LABELS_BYTES, Book
from ingest.series.places import is_known
from ingest.series.samples import Samples

PATH: Final = "/v1/metrics"
MAX_BODY_BYTES: Final = 16 * 1024 * 1024
MAX_DECODED_BYTES: Final = 32 * 1024 * 1024
MAX_POINTS: Final = 200_000
_KINDS: Final = {5: "gauge", 7: "sum", 9: "histogram", 10: "exponential_histogram", 11: "summary"}
_GAUGE, _SUM, _HISTOGRAM = 5, 7, 9
CUMULATIVE: Final = 2
NO_VALUE: Final = 1
"""DataPointFlags: the sender says that there is none."""
_STALE: Final = -1
_LAYOUTS: Final = 64
_LAYOUT_BYTES: Final = 64 * 1024 * 1024
_NS_PER_US: Final = 1_000
# Tags of a point's fields, and the bytes of an instant and a value with theirs.
_FIRST_FIELD, _START, _INSTANT, _DOUBLE_VALUE, _INT_VALUE = 0x0A, 0x11, 0x19, 0x21, 0x31
_VALUES: Final = frozenset((_DOUBLE_VALUE, _INT_VALUE))
_USUAL_BYTES: Final = 18
_LONG: Final = 0x80
"""A length from here on takes more than a byte."""


@dataclass(slots=True)
class _Found:
    """Where the numbers of one body lie."""

    series: list[int] = field(default_factory=list)
    """Number of the series, or ``_STALE``."""
    at: list[int] = field(default_factory=list)
    """Where the instant lies; -1 where there is none."""
    value: list[int] = field(default_factory=list)
    is_int: list[bool] = field(default_factory=list)
    varying: list[tuple[int, int]] = field(default_factory=list)
    """Where other numbers lie that differ each time, and how many bytes they are."""
    invalid: Counter[str] = field(default_factory=Counter)
    uncounted: Counter[str] = field(default_factory=Counter)


class MetricsReader:
    """Reads exports; remembers the layouts of steady senders, within bounds. Used by one thread at a time."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._layouts: OrderedDict[tuple[int, bytes], _Layout] = OrderedDict()
        self._bytes = 0

    def read(self, data: bytes) -> Samples:
        """Return the points of an ExportMetricsServiceRequest; raises BadBodyError."""
        # By length and beginning, which holds the resource: senders of one length differ there.
        key = (len(data), data[:256])
        layout = self._layouts.get(key)
        if layout is not None and layout.generation == self._book.generation and layout.fits(data):
            self._layouts.move_to_end(key)
            return layout.samples(data)
        found = _walk(data, self._book)
        made = _Layout.of(data, found, self._book.generation)
        self._keep(key, made)
        return made.samples(data)

    def _keep(self, key: tuple[int, bytes], layout: _Layout) -> None:
        old = self._layouts.pop(key, None)
        self._bytes -= 0 if old is None else old.size
        if layout.size > _LAYOUT_BYTES // 4:
            return
        self._layouts[key] = layout
        self._bytes += layout.size
        while len(self._layouts) > _LAYOUTS or self._bytes > _LAYOUT_BYTES:
            _, dropped = self._layouts.popitem(last=False)
            self._bytes -= dropped.size


@dataclass(frozen=True, slots=True)
class _Layout:
    """A body with its numbers left out, and where they were."""

    generation: int
    rest: np.ndarray[Any, Any]
    """The body's bytes, 0 where numbers are."""
    mask: np.ndarray[Any, Any]
    """255 where they must be equal, 0 where numbers are."""
    series: np.ndarray[Any, Any]
    at: np.ndarray[Any, Any]
    value: np.ndarray[Any, Any]
    is_int: np.ndarray[Any, Any]
    invalid: Counter[str]
    uncounted: Counter[str]

    @classmethod
    def of(cls, data: bytes, found: _Found, generation: int) -> _Layout:
        octets = np.frombuffer(data, np.uint8)
        mask = np.full(len(octets), 255, np.uint8)
        at, value = np.array(found.at, dtype=np.int64), np.array(found.value, dtype=np.int64)
        for where in (at[at >= 0], value):
            mask[(where[:, None] + np.arange(8)).reshape(-1)] = 0
        for start, size in found.varying:
            mask[start : start + size] = 0
        series, is_int = np.array(found.series, dtype=np.int32), np.array(found.is_int, dtype=bool)
        return cls(generation, octets & mask, mask, series, at, value, is_int, found.invalid, found.uncounted)

    @property
    def size(self) -> int:
        return 2 * len(self.rest) + 21 * len(self.series)

    def fits(self, data: bytes) -> bool:
        """Whether a body of this length is the same but for its numbers."""
        octets = np.frombuffer(data, np.uint8)
        return bool(np.array_equal(octets & self.mask, self.rest))

    def samples(self, data: bytes) -> Samples:
        octets = np.frombuffer(data, np.uint8)
        if not len(self.series):
            nothing = np.zeros(0)
            return Samples(
                self.series, nothing.astype(np.int64), nothing, Counter(self.invalid), Counter(self.uncounted)
            )
        dated = self.at >= 0
        at_ns = gathered(octets, self.at if dated.all() else np.where(dated, self.at, 0)).view(np.uint64)
        at_us = np.where(dated, at_ns // _NS_PER_US, 0).astype(np.int64)
        raw = gathered(octets, self.value)
        values = raw.view(np.float64)
        if self.is_int.any():
            values = np.where(self.is_int, raw.astype(np.float64), values)
        stale = self.series == _STALE
        series = self.series
        uncounted = Counter(self.uncounted)
        if stale.any():
            uncounted["no_value"] += int(stale.sum())
            series, at_us, values = series[~stale], at_us[~stale], values[~stale]
        return Samples(series, at_us, values, Counter(self.invalid), uncounted)


def _walk(data: bytes, book: Book) -> _Found:
    found = _Found()
    for number, wire, start, end in fields(data, 0, len(data)):
        if number == 1 and wire == LENGTH:
            _resource(data, start, end, book, found)
    return found


def _resource(data: bytes, start: int, end: int, book: Book, found: _Found) -> None:
    resource: list[tuple[int, int]] = []
    scopes: list[tuple[int, int]] = []
    for number, wire, first, last in fields(data, start, end):
        if wire == LENGTH and number in (1, 2):
            (resource if number == 1 else scopes).append((first, last))
    # What a resource says of itself is part of each of its series; its bytes stand for it.
    about = b"".join(data[first:last] for first, last in resource)
    for first, last in scopes:
        for number, wire, metric_at, metric_end in fields(data, first, last):
            if number == 2 and wire == LENGTH:
                _metric(_Metric(data, about, book, found), metric_at, metric_end)


@dataclass(slots=True)
class _Metric:
    """One metric while its points are walked."""

    data: bytes
    about: bytes
    book: Book
    found: _Found
    name: str = ""
    unnamed: str = "no_metric_name"
    """Why its points are refused where it has no name."""
    series: str = ""
    """The name its points go by."""
    is_delta: bool = False
    prefix: bytes = b""
    """What comes before a point's own bytes in the key of its series."""


def _metric(metric: _Metric, start: int, end: int) -> None:
    data = metric.data
    content: list[tuple[int, int, int]] = []
    for number, wire, first, last in fields(data, start, end):
        if number == 1 and wire == LENGTH:
            try:
                metric.name = data[first:last].decode()
            except UnicodeDecodeError:
                metric.unnamed = "name_not_utf8"
        elif number in _KINDS and wire == LENGTH:
            content.append((number, first, last))
    if len(content) > 1:
        raise malformed(f"metric {metric.name!r:.80} has data of several kinds")
    for kind, first, last in content:
        _content(metric, kind, first, last)


def _content(metric: _Metric, kind: int, start: int, end: int) -> None:
    found = metric.found
    points, temporality = _points_of(metric.data, start, end)
    if len(found.series) + sum(found.uncounted.values()) + len(points) > MAX_POINTS:
        raise TooLargeError(f"more than {MAX_POINTS} points in one request")
    if kind not in (_GAUGE, _SUM, _HISTOGRAM):
        found.uncounted[_KINDS[kind]] += len(points)
    elif not metric.name:
        found.invalid[metric.unnamed] += len(points)
    else:
        # Differences are no counters: a request sent twice, or lost, would change what they add up to.
        metric.is_delta = kind != _GAUGE and temporality != CUMULATIVE
        # A histogram's count is a series, named as Prometheus names it.
        metric.series = metric.name + "_count" if kind == _HISTOGRAM else metric.name
        # No UTF-8 has the byte 255 and no field begins with it, so keys of different series differ.
        mark = b"\xff\x00" if metric.is_delta else b"\xff\x01"
        metric.prefix = b"\xff" + metric.series.encode() + mark + metric.about + b"\xff"
        if kind == _HISTOGRAM:
            for first, last in points:
                _histogram_point(metric, first, last)
        else:
            _number_points(metric, points)


def _points_of(data: bytes, start: int, end: int) -> tuple[list[tuple[int, int]], int]:
    """Return where the points are, and their temporality."""
    points: list[tuple[int, int]] = []
    temporality = 0
    at = start
    while at < end:
        if data[at] == _FIRST_FIELD and at + 1 < end and data[at + 1] < _LONG and at + 2 + data[at + 1] <= end:
            first = at + 2
            at = first + data[at + 1]
            points.append((first, at))
            continue
        tag, first = varint(data, at, end)
        at = skipped(data, tag, first, end)
        if tag == (1 << 3 | LENGTH):
            size, first = varint(data, first, end)
            points.append((first, first + size))
        elif tag == (2 << 3 | VARINT):
            temporality, _ = varint(data, first, at)
    return points, temporality


def _number_points(metric: _Metric, points: list[tuple[int, int]]) -> None:
    data, found, known, prefix = metric.data, metric.found, metric.book.known, metric.prefix
    series, at, value, is_int, varying = found.series, found.at, found.value, found.is_int, found.varying
    for start, end in points:
        # As every sender writes a number: start, instant, value in this order, and then attributes and flags.
        first = start + 9 if end > start and data[start] == _START else start
        if end - first >= _USUAL_BYTES and data[first] == _INSTANT and data[first + 9] in _VALUES:
            number = known.get(prefix + data[first + 18 : end])
            if number is not None:
                series.append(number)
                at.append(first + 1)
                value.append(first + 10)
                is_int.append(data[first + 9] == _INT_VALUE)
                if first != start:
                    varying.append((start + 1, 8))
                continue
        _number_point(metric, start, end)


def _number_point(metric: _Metric, start: int, end: int) -> None:
    data, found = metric.data, metric.found
    at = value = -1
    is_int, flags = False, 0
    attributes: list[tuple[int, int]] = []
    varying: list[tuple[int, int]] = []
    for number, wire, first, last in fields(data, start, end):
        if wire == FIXED64 and number == 2:
            varying.append((first, 8))
        elif wire == FIXED64 and number == 3:
            at = first
        elif wire == FIXED64 and number in (4, 6):
            value, is_int = first, number == 6
        elif wire == LENGTH and number == 7:
            attributes.append((first, last))
        elif wire == VARINT and number == 8:
            flags, _ = varint(data, first, last)
    # Only what the quick way finds again may be remembered under the bytes after the value.
    is_usual = value >= 0 and at == value - 9 and value - 10 in (start, start + 9)
    tail = data[value + 8 : end] if is_usual else None
    _take(metric, _Point(at, value, is_int, flags, tail), attributes)
    found.varying += varying


def _histogram_point(metric: _Metric, start: int, end: int) -> None:
    data, found = metric.data, metric.found
    at = value = -1
    flags = 0
    attributes: list[tuple[int, int]] = []
    for number, wire, first, last in fields(data, start, end):
        if wire == FIXED64:
            if number == 3:
                at = first
            elif number == 4:
                value = first
            elif number in (2, 5, 11, 12):
                found.varying.append((first, 8))
        elif wire == LENGTH and number == 9:
            attributes.append((first, last))
        elif wire == LENGTH and number == 6 and (last - first) % 8 == 0:
            found.varying.append((first, last - first))
        elif wire == VARINT and number == 10:
            flags, _ = varint(data, first, last)
    _take(metric, _Point(at, value, is_int=True, flags=flags), attributes)


@dataclass(frozen=True, slots=True)
class _Point:
    at: int
    value: int
    is_int: bool
    flags: int
    tail: bytes | None = None
    """What the quick way would look the series up by; None where it cannot."""


def _take(metric: _Metric, point: _Point, attributes: list[tuple[int, int]]) -> None:
    """Note a point under its series."""
    found = metric.found
    if point.value < 0:
        found.uncounted["no_value"] += 1
        return
    size = sum(last - first for first, last in attributes) + len(metric.about)
    if len(attributes) > MAX_LABELS or size > MAX_LABELS_BYTES:
        found.invalid["too_many_labels" if len(attributes) > MAX_LABELS else "labels_too_long"] += 1
        return
    try:
        number = _STALE if point.flags & NO_VALUE else _series_number(metric, point.tail, attributes)
    except UnicodeDecodeError:
        found.invalid["labels_not_utf8"] += 1
        return
    found.series.append(number)
    found.at.append(point.at)
    found.value.append(point.value)
    found.is_int.append(point.is_int)


def _series_number(metric: _Metric, tail: bytes | None, attributes: list[tuple[int, int]]) -> int:
    data, book = metric.data, metric.book
    if tail is None:
        spelled = [(last - first).to_bytes(4) + data[first:last] for first, last in attributes]
        key = b"\xfe" + metric.prefix + b"".join(spelled)
    else:
        key = metric.prefix + tail
    number = book.known.get(key)
    if number is not None:
        return number
    if metric.is_delta and is_known(metric.series):
        return book.skipped(metric.series, "delta")
    return book.learn(key, metric.series, lambda: labels_of(data, attributes, metric.about))


def labels_of(data: bytes, attributes: list[tuple[int, int]], about: bytes) -> Mapping[str, str]:
    """Return a point's attributes as texts, and those of its resource; the point's own win. Raises UnicodeDecodeError."""
    labels: dict[str, str] = {}
    for number, wire, first, last in fields(about, 0, len(about)):
        if number == 1 and wire == LENGTH:
            _attribute(about, first, last, labels)
    for first, last in attributes:
        _attribute(data, first, last, labels)
    return labels


def _attribute(data: bytes, start: int, end: int, labels: dict[str, str]) -> None:
    key, value = "", ""
    for number, wire, first, last in fields(data, start, end):
        if wire != LENGTH:
            continue
        if number == 1:
            key = data[first:last].decode()
        elif number == 2:
            value = _any_value(data, first, last)
    labels[key] = value


def _any_value(data: bytes, start: int, end: int) -> str:
    """Return a text, number or truth as text; lists, maps and bytes name nothing of ours."""
    value = ""
    for number, wire, first, last in fields(data, start, end):
        if number == 1 and wire == LENGTH:
            value = data[first:last].decode()
        elif number == 2 and wire == VARINT:
            value = "true" if varint(data, first, last)[0] else "false"
        elif number == 3 and wire == VARINT:
            value = str(signed(varint(data, first, last)[0]))
        elif number == 4 and wire == FIXED64:
            value = repr(float(np.frombuffer(data, "<f8", 1, first)[0]))
    return value
