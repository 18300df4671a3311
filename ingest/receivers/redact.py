"""Looks for names in the texts of a native body, and blanks them where they stand. Pure.

A text is blanked to as many hyphens as it has bytes, so nothing else in the body moves and it can still be replayed. It refuses to
read a body that is no batch, and knows no person.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import Final

import numpy as np
import zstandard

from collector.wire import MAX_BODY_BYTES, MAX_DECODED_BYTES
from ingest.errors import TooLargeError, malformed
from ingest.receivers.arrow_check import Checker

_LEVEL: Final = 3
_BLANK: Final = ord("-")


def names(body: bytes, wanted: Collection[str]) -> bool:
    """Say whether a text of the body is one of these names, or holds one as in ``owner=ada``. Raises BadBodyError."""
    return any(True for _ in _places(_decompressed(body), wanted))


def blanked(body: bytes, wanted: Collection[str]) -> bytes | None:
    """Return the body without these names, None where it has none of them. Raises BadBodyError."""
    data = _decompressed(body)
    places = list(_places(data, wanted))
    if not places:
        return None
    changed = np.frombuffer(bytearray(data), np.uint8)
    for start, end in places:
        changed[start:end] = _BLANK
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(changed.tobytes())


def _decompressed(body: bytes) -> bytes:
    if len(body) > MAX_BODY_BYTES:
        raise TooLargeError(f"{len(body)} bytes; at most {MAX_BODY_BYTES} are taken")
    try:
        claimed = zstandard.frame_content_size(body)
        if not 0 <= claimed <= MAX_DECODED_BYTES:
            raise malformed(f"the zstd frame claims {claimed} bytes; at most {MAX_DECODED_BYTES} are taken")
        return zstandard.ZstdDecompressor().decompress(body, max_output_size=MAX_DECODED_BYTES)
    except zstandard.ZstdError as error:
        raise malformed(f"not a zstd frame, or a damaged one: {error}") from error


def _places(data: bytes, wanted: Collection[str]) -> Iterator[tuple[int, int]]:
    """Yield where names stand in a decompressed body, as half-open intervals of bytes."""
    sought = {name.encode() for name in wanted}
    whole = np.frombuffer(data, np.uint8).ctypes.data
    for stream in Checker().streams(data):
        for message, layout in zip(stream.messages, stream.layouts, strict=True):
            begin = np.frombuffer(message, np.uint8).ctypes.data - whole + len(message) - layout.body_bytes
            for offsets_at, _, texts_at, _ in layout.texts:
                offsets = np.frombuffer(data, "<i4", layout.rows + 1, begin + offsets_at).tolist()
                for low, high in pairwise(offsets):
                    start = begin + texts_at + low
                    for from_, to in _within(data[start : start + high - low], sought):
                        yield start + from_, start + to


def _within(text: bytes, sought: Collection[bytes]) -> Iterator[tuple[int, int]]:
    if text in sought:
        yield 0, len(text)
    elif b"=" in text:
        at = 0
        for pair in text.split(b","):
            key, equals, value = pair.partition(b"=")
            if equals and value in sought:
                yield at + len(key) + 1, at + len(pair)
            at += len(pair) + 1
