"""Undoes Content-Encoding within a cap: every member of gzip and every frame of zstd, and nothing after the last of them.

A body may consist of several (RFC 1952, RFC 8878): a sender that appends to what it has packed does it so, and what is
answered with 200 must have been read to its end. It knows nothing of what the bytes mean.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final

import zstandard

from ingest.errors import BadBodyError, TooLargeError, UnsupportedError, malformed

_ZSTD_WINDOW_BYTES: Final = 8 * 1024 * 1024
"""What RFC 8878 asks every decoder to take; a frame that wants more memory is refused."""
_ZSTD_STEP_BYTES: Final = 1024
"""Compressed bytes a step: at the format's best ratio these are 32 MiB, so a bomb is noticed after that."""
_GZIP_STEP_BYTES: Final = 32 * 1024
"""At the format's best ratio, 1,032, these are 32 MiB."""
_MOST_PIECES: Final = 4_096
"""Members or frames of one body; each costs a decoder and a copy of what follows it in its step."""
Took = Callable[[int], None]
"""Told of bytes as they are unpacked; raises what the body is to be refused with."""


def decoded(body: bytes, encoding: str | None, max_bytes: int, took: Took | None = None) -> bytes:
    """Return a body without its Content-Encoding gzip, zstd or identity; raises BadBodyError, UnsupportedError.

    ``max_bytes`` bounds the result; ``took`` hears of every piece of it, so that all bodies together can be bounded too.
    """
    name = (encoding or "identity").strip().lower()
    if name == "identity":
        return body
    room = _Room(max_bytes, took)
    if name in ("gzip", "x-gzip"):
        return _gunzipped(body, room)
    if name == "zstd":
        return _unzstd(body, room)
    raise UnsupportedError(f"content encoding {name!r:.40}; send gzip, zstd or none")


class _Room:
    """What has been unpacked so far."""

    def __init__(self, max_bytes: int, took: Took | None) -> None:
        self._max_bytes = max_bytes
        self._took = took
        self._parts: list[bytes] = []
        self.left_bytes = max_bytes

    def add(self, part: bytes) -> None:
        self.left_bytes -= len(part)
        if self.left_bytes < 0:
            raise TooLargeError(f"more than {self._max_bytes} bytes when decompressed")
        if part:
            if self._took is not None:
                self._took(len(part))
            self._parts.append(part)

    def whole(self) -> bytes:
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)


def _gunzipped(body: bytes, room: _Room) -> bytes:
    at = 0
    for _ in range(_MOST_PIECES):
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            step = body[at : at + _GZIP_STEP_BYTES]
            if not step:
                raise malformed("truncated gzip")
            at += len(step)
            try:
                room.add(member.decompress(step, room.left_bytes + 1))
            except zlib.error as error:
                raise malformed(f"damaged gzip, or something after its end: {error}") from error
        at -= len(member.unused_data)
        if at == len(body):
            return room.whole()
    raise TooLargeError(f"more than {_MOST_PIECES} members of gzip in one body")


def _unzstd(body: bytes, room: _Room) -> bytes:
    # An object each: a decompressor is not shared between threads. The frame's own claim of its size is not believed.
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    at = 0
    for _ in range(_MOST_PIECES):
        frame = decompressor.decompressobj()
        while not frame.eof:
            step = body[at : at + _ZSTD_STEP_BYTES]
            if not step:
                raise malformed("truncated zstd")
            at += len(step)
            try:
                room.add(frame.decompress(step))
            except zstandard.ZstdError as error:
                raise BadBodyError("malformed", f"damaged zstd, or something after its end: {error}") from error
        at -= len(frame.unused_data)
        if at == len(body):
            return room.whole()
    raise TooLargeError(f"more than {_MOST_PIECES} frames of zstd in one body")
