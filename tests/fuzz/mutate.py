"""Changes bytes: flips, cuts, repeats, numbers at their bounds, words of the formats, pieces of other inputs.

All of it comes from one ``random.Random``, so a seed and a count name an input. It knows no format; what it should say in a
format's own words comes as ``words``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

MAX_INPUT_BYTES: Final = 256 * 1024
"""Decoders are slow on purpose-made large inputs only in ways the bounds' own tests look at; small ones are many."""
_NUMBERS: Final = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
_DIGITS: Final = (
    b"-1",
    b"0",
    b"9" * 19,
    b"9" * 40,
    b"1e400",
    b"-0",
    b"NaN",
    b"Infinity",
    b"1e-400",
    b"0x10",
    b"1_000",
    b"\xd9\xa3",
)
_TEXTS: Final = (
    b"\x00",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xe2\x80\xae",
    b"%s",
    b"../../../etc/passwd",
    b"'; DROP TABLE nodes; --",
    b'"},"',
    b"[" * 2_000,
    b'{"a":' * 1_500,
    b"null",
    b"true",
    b"A" * 70_000,
    b"\n",
    b"\r",
)


def mutated(data: bytes, chance: random.Random, others: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Return ``data`` with one to a dozen changes, at most :data:`MAX_INPUT_BYTES` long."""
    spoiled = bytearray(data)
    for _ in range(1 if chance.random() < 0.6 else chance.randint(2, 12)):  # one alone often keeps the frame whole
        _change(spoiled, chance, others, words)
        if len(spoiled) > MAX_INPUT_BYTES:
            del spoiled[MAX_INPUT_BYTES:]
    return bytes(spoiled)


def _change(data: bytearray, chance: random.Random, others: Sequence[bytes], words: Sequence[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    kind = chance.randrange(10)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 1 and at < len(data):
        data[at] = chance.randrange(256)
    elif kind == 2:
        del data[at : at + chance.randint(1, 1 << chance.randrange(1, 10))]
    elif kind == 3:
        data[at:at] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 9)))
    elif kind == 4:
        piece = data[max(0, at - chance.randint(1, 200)) : at]
        data[at:at] = piece * (1 if chance.random() < 0.8 else chance.randint(2, 300))
    elif kind == 5:
        width = chance.choice((1, 2, 4, 8))
        number = chance.choice(_NUMBERS) & ((1 << 8 * width) - 1)
        data[at : at + width] = number.to_bytes(width, chance.choice(("little", "big")))
    elif kind == 6:
        _replace_digits(data, at, chance)
    elif kind == 7:
        data[at : at + chance.randrange(8)] = chance.choice(_TEXTS)
    elif kind == 8 and words:
        data[at : at + chance.randrange(8)] = chance.choice(words)
    elif kind == 9 and others:
        other = chance.choice(others)
        begin = chance.randrange(len(other) + 1)
        data[at : at + chance.randrange(64)] = other[begin : begin + chance.randint(1, 400)]


def _replace_digits(data: bytearray, at: int, chance: random.Random) -> None:
    """Give the next number written in digits another value."""
    while at < len(data) and not 0x30 <= data[at] <= 0x39:
        at += 1
    end = at
    while end < len(data) and 0x30 <= data[end] <= 0x39:
        end += 1
    if end > at:
        data[at:end] = chance.choice(_DIGITS)
