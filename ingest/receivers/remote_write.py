"""Reads Prometheus remote write 1.0: a snappy block holding a protobuf WriteRequest, into columns.

Strict within bounds: every length is checked against what is there and what is allowed, and everything wrong ends in
BadBodyError. A series is recognised by the bytes of its labels, so what a steady sender repeats is read once; what its
values mean is :mod:`ingest.series`' business. Exemplars, metadata and native histograms are counted and passed over.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import cramjam
import numpy as np

from ingest.errors import TooLargeError, UnsupportedError, malformed
from ingest.receivers.wire_format import FIXED64, LENGTH, VARINT, fields, gathered, signed, skipped, varint
from ingest.series.book import MAX_LABELS, MAX_LABELS_BYTES, Book
from ingest.series.places import is_known
from ingest.series.samples import Samples

PATH: Final = "/api/v1/write"
MAX_BODY_BYTES: Final = 8 * 1024 * 1024
MAX_DECODED_BYTES: Final = 32 * 1024 * 1024
MAX_SAMPLES: Final = 200_000
"""In one request; Prometheus sends 2,000 at most by default."""
_CONTENT_TYPE: Final = "application/x-protobuf"
_MESSAGE_1_0: Final = "prometheus.WriteRequest"
_US_PER_MS: Final = 1_000
_SAMPLE_BYTES: Final = 18
"""Tag and length, tag and value, tag and an instant of this century: how nearly every series ends."""
_ZERO_SAMPLE_BYTES: Final = 9
"""The same with the value 0, which is left out."""
_SERIES: Final = 1 << 3 | LENGTH
_SERIES_HEAD: Final = 3
_LONG: Final = 0x80
"""A length from here on takes more than a byte."""
_NAME_FIRST: Final = b"\x0a\x08__name__\x12"


def check_headers(content_type: str | None, content_encoding: str | None, version: str | None) -> None:
    """Raise UnsupportedError for anything but remote write 1.0; a 2.0 sender falls back to 1.0 on that answer."""
    kind, _, parameters = (content_type or "").partition(";")
    message = _MESSAGE_1_0
    for parameter in parameters.split(";"):
        key, _, value = parameter.strip().partition("=")
        if key.lower() == "proto":
            message = value.strip('"')
    if kind.strip().lower() != _CONTENT_TYPE or message != _MESSAGE_1_0:
        raise UnsupportedError(f"content type {content_type!r:.80}; send {_CONTENT_TYPE};proto={_MESSAGE_1_0}")
    if (content_encoding or "").strip().lower() != "snappy":
        raise UnsupportedError(f"content encoding {content_encoding!r:.40}; send snappy")
    if version is not None and not version.startswith(("0.", "1.")):
        raise UnsupportedError(f"remote write version {version!r:.40}; this side speaks 1.0")


def decompressed(body: bytes) -> bytes:
    """Undo the snappy block; raises BadBodyError. What the header claims is what would be allocated: it is bounded first."""
    claimed, start = varint(body, 0, len(body))
    if claimed > MAX_DECODED_BYTES:
        raise TooLargeError(f"{claimed} bytes when decompressed; at most {MAX_DECODED_BYTES} are taken")
    if start == len(body):
        if claimed:
            raise malformed("an empty snappy block that claims bytes")
        return b""
    try:
        data = bytes(cramjam.snappy.decompress_raw(body))
    except cramjam.DecompressionError as error:
        raise malformed(f"not a snappy block: {str(error)!r:.120}") from error
    except BaseException as error:
        # A Rust panic is a BaseException of a module that cannot be imported; everything else of that kind is not ours.
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise malformed("the snappy decoder gave up on it") from error
    if len(data) != claimed:
        raise malformed(f"{claimed} bytes claimed, {len(data)} decompressed")
    return data


def read(data: bytes, book: Book) -> Samples:
    """Return the samples of a WriteRequest; raises BadBodyError."""
    reader = _Reader(data, book)
    at, end = 0, len(data)
    while at < end:
        # A series of 128 to 16,383 bytes, as nearly all are: its tag, and its length in two bytes.
        if end - at > _SERIES_HEAD and data[at] == _SERIES and data[at + 1] >= _LONG > data[at + 2]:
            start = at + _SERIES_HEAD
            at = start + (data[start - 2] & 0x7F) + (data[start - 1] << 7)
            if at > end:
                raise malformed(f"a series claims {at - start} bytes, {end - start} are there")
            reader.series(start, at)
            continue
        tag, at = varint(data, at, end)
        if tag == _SERIES:
            size, at = varint(data, at, end)
            if size > end - at:
                raise malformed(f"a series claims {size} bytes, {end - at} are there")
            reader.series(at, at + size)
            at += size
        else:
            at = skipped(data, tag, at, end)
            reader.uncounted["metadata" if tag >> 3 == 3 else "unknown_field"] += 1
    return reader.samples()


class _Reader:
    """Gathers the samples of one request."""

    def __init__(self, data: bytes, book: Book) -> None:
        self._data = data
        self._book = book
        self._known = book.known
        self._instants: dict[bytes, int] = {}
        self._numbers: list[int] = []
        self._at_ms: list[int] = []
        self._values_at: list[int] = []
        """Where each value lies; -1 where it is the zero that is left out."""
        self.invalid: Counter[str] = Counter()
        self.uncounted: Counter[str] = Counter()

    def series(self, start: int, end: int) -> None:
        """Take one TimeSeries. What ends in one ordinary sample and has known labels before it needs no reading."""
        data = self._data
        if end - start > _SAMPLE_BYTES and data[end - 18 : end - 15] == b"\x12\x10\x09" and data[end - 7] == 0x10:
            number = self._known.get(data[start : end - 18])
            if number is None:
                number = self._by_name(start)
            if number is not None:
                at_ms = self._instant(data[end - 6 : end])
                if at_ms is not None:
                    self._add(number, at_ms, end - 15)
                    return
        elif end - start > _ZERO_SAMPLE_BYTES and data[end - 9 : end - 6] == b"\x12\x07\x10":
            number = self._known.get(data[start : end - 9])
            if number is None:
                number = self._by_name(start)
            if number is not None:
                at_ms = self._instant(data[end - 6 : end])
                if at_ms is not None:
                    self._add(number, at_ms, -1)
                    return
        self._read_series(start, end)

    def _by_name(self, start: int) -> int | None:
        """Return the number of a series that begins with a name without a place: nothing of its labels is needed."""
        data = self._data
        if not data.startswith(_NAME_FIRST, start + 2):
            return None
        name_at = start + 3 + len(_NAME_FIRST)
        return self._book.unplaced.get(data[name_at : name_at + data[name_at - 1]])

    def _instant(self, spelled: bytes) -> int | None:
        """Return what six bytes say if they are exactly one varint; a request has few instants."""
        known = self._instants.get(spelled)
        if known is not None:
            return known
        if spelled[5] & 0x80 or not all(byte & 0x80 for byte in spelled[:5]):
            return None
        value = sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(spelled))
        if len(self._instants) < 100_000:
            self._instants[spelled] = value
        return value

    def _add(self, number: int, at_ms: int, value_at: int) -> None:
        if len(self._numbers) >= MAX_SAMPLES:
            raise TooLargeError(f"more than {MAX_SAMPLES} samples in one request")
        self._numbers.append(number)
        self._at_ms.append(at_ms)
        self._values_at.append(value_at)

    def _read_series(self, start: int, end: int) -> None:
        data = self._data
        labels: list[tuple[int, int]] = []
        found: list[tuple[int, int]] = []
        at = labels_end = start
        while at < end:
            tag, at = varint(data, at, end)
            if tag == (1 << 3 | LENGTH) or tag == (2 << 3 | LENGTH):
                size, at = varint(data, at, end)
                if size > end - at:
                    raise malformed(f"a part of a series claims {size} bytes, {end - at} are there")
                if tag >> 3 == 1:
                    labels.append((at, at + size))
                    labels_end = at + size
                    if len(labels) > MAX_LABELS:
                        break
                else:
                    found.append(self._sample(at, at + size))
                at += size
            else:
                at = skipped(data, tag, at, end)
                # Field 3 holds exemplars, field 4 native histograms.
                self.uncounted[{3: "exemplars", 4: "native_histograms"}.get(tag >> 3, "unknown_field")] += 1
        number = self._number_of(labels, start, labels_end)
        for at_ms, value_at in found if number is not None else ():
            self._add(number, at_ms, value_at)  # type: ignore[arg-type]

    def _sample(self, start: int, end: int) -> tuple[int, int]:
        """Return the instant in ms and where the value lies."""
        data, value_at, at_ms, at = self._data, -1, 0, start
        while at < end:
            tag, at = varint(data, at, end)
            if tag == (1 << 3 | FIXED64):
                if end - at < 8:
                    raise malformed("a sample's value is cut off")
                value_at, at = at, at + 8
            elif tag == (2 << 3 | VARINT):
                at_ms, at = varint(data, at, end)
            else:
                at = skipped(data, tag, at, end)
        return signed(at_ms), value_at

    def _number_of(self, labels: list[tuple[int, int]], start: int, labels_end: int) -> int | None:
        """Return the series' number, None (counted) where its labels are none that a receiver may take."""
        if len(labels) > MAX_LABELS:
            self.invalid["too_many_labels"] += 1
            return None
        if labels_end - start > MAX_LABELS_BYTES:
            self.invalid["labels_too_long"] += 1
            return None
        pairs: dict[str, str] = {}
        try:
            for first, last in labels:
                key, value = _pair(self._data, first, last)
                if not key or key in pairs:
                    self.invalid["repeated_label" if key else "empty_label_name"] += 1
                    return None
                pairs[key] = value
        except UnicodeDecodeError:
            self.invalid["labels_not_utf8"] += 1
            return None
        name = pairs.pop("__name__", "")
        if not name:
            self.invalid["no_metric_name"] += 1
            return None
        if not is_known(name) and self._data.startswith(_NAME_FIRST, labels[0][0]):
            # Most series of a node exporter: they are remembered by name, not one by one.
            return self._book.learn_name(name)
        return self._book.learn(self._data[start:labels_end], name, lambda: pairs)

    def samples(self) -> Samples:
        """Return what was gathered."""
        where = np.array(self._values_at, dtype=np.int64)
        values = np.zeros(len(where))
        written = where >= 0
        if written.any():
            octets = np.frombuffer(self._data, np.uint8)
            values[written] = gathered(octets, where[written]).view(np.float64)
        at_ms = np.array(self._at_ms, dtype=np.int64)
        limit = np.iinfo(np.int64).max // _US_PER_MS
        at_us = np.clip(at_ms, -limit, limit) * _US_PER_MS
        return Samples(np.array(self._numbers, dtype=np.int32), at_us, values, self.invalid, self.uncounted)


def _pair(data: bytes, start: int, end: int) -> tuple[str, str]:
    key = value = ""
    for number, wire, first, last in fields(data, start, end):
        if wire == LENGTH and number == 1:
            key = data[first:last].decode()
        elif wire == LENGTH and number == 2:
            value = data[first:last].decode()
    return key, value
