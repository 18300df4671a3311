"""Reads units of tokens as invoices write them: how many tokens one of the unit is. Pure; guesses nothing.

"1K tokens", "Thousand Tokens", "per 1M input tokens", "Tokens - input", "kTokens", "Tokens (1,000)". A unit that is of tokens
and says more than is known here (tokens per minute, token-hours) is not understood, which is not the same as not of tokens.
"""

from __future__ import annotations

import re
from decimal import Decimal
from enum import Enum
from typing import Final

MAX_TOKENS: Final = 1 << 60
_DOUBLE_ERROR: Final = Decimal(2) ** -50
"""Relative error of a count that went through a few operations on doubles: 0.30000000000000004 thousands are 300."""
_SCALES: Final = {
    **dict.fromkeys(("k", "thousand", "thousands"), 1_000),
    **dict.fromkeys(("m", "mm", "million", "millions", "mn"), 1_000_000),
    **dict.fromkeys(("b", "bn", "billion", "billions"), 1_000_000_000),
}
_PIECE: Final = re.compile(r"\d[\d,_]*|[^\W\d_]+")
_BETWEEN: Final = re.compile(r"[\s\-\u2013\u2014:/(),]*")
_TOKEN: Final = re.compile(r"([kmb]?)tok(?:en)?s?")
_NO_USE: Final = frozenset(
    {"hour", "hours", "minute", "minutes", "second", "seconds", "hr", "min", "sec", "rate", "limit"}
)
"""Words that make capacity of it."""
_AFTER: Final = frozenset(
    {"in", "of", "per", "count", "counts", "used", "usage", "consumed", "processed", "month", "day", "input", "output"}
    | {
        "prompt",
        "completion",
        "cached",
        "uncached",
        "cache",
        "read",
        "write",
        "reasoning",
        "text",
        "audio",
        "image",
        "batch",
    }
    | {"generated", "units", "unit"}
)
"""What may stand behind "tokens" and leave them a count of tokens."""


class Tokens(Enum):
    """Of a unit that no number of tokens can be said of."""

    NONE = "none"
    NOT_UNDERSTOOD = "not understood"


def tokens_of_unit(unit: str) -> int | Tokens:
    """Return how many tokens one of this unit is."""
    folded = unit.casefold()
    pieces = _PIECE.findall(folded)
    places = [place for place, piece in enumerate(pieces) if _TOKEN.fullmatch(piece)]
    if not places:
        return Tokens.NONE
    if len(places) > 1 or _BETWEEN.fullmatch(_PIECE.sub(" ", folded)) is None:
        return Tokens.NOT_UNDERSTOOD
    scales: list[int] = []
    numbers: list[int] = []
    for place, piece in enumerate(pieces):
        token = _TOKEN.fullmatch(piece)
        if piece[0].isdecimal():
            numbers.append(int(re.sub("[,_]", "", piece)))
        elif token is not None:
            scales += [_SCALES[token[1]]] if token[1] else []
        elif piece in _SCALES:
            scales.append(_SCALES[piece])
        elif piece in _NO_USE or (place > places[0] and piece not in _AFTER):
            return Tokens.NOT_UNDERSTOOD
    if len(scales) > 1 or len(numbers) > 1 or 0 in numbers:
        return Tokens.NOT_UNDERSTOOD
    each = (numbers or [1])[0] * (scales or [1])[0]
    return each if each < MAX_TOKENS else Tokens.NOT_UNDERSTOOD


def whole(quantity: Decimal, each: int) -> int | None:
    """Return this quantity of units as tokens, negative ones too; None where that is no whole number, or out of range."""
    count = quantity * each
    nearest = count.to_integral_value()
    if abs(nearest) >= MAX_TOKENS or abs(count - nearest) > abs(nearest) * _DOUBLE_ERROR:
        return None
    return int(nearest)
