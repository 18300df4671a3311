"""Checks JSON that people's programs post: bounded lists, texts, instants. Each fault names the field and the value.

A fault is an ItemError: of one item in a body, which refuses itself and leaves the others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Literal, overload

import orjson

from collector.wire import MAX_CLOCK_SKEW_US
from ingest.accept import EARLIEST_AT_US
from ingest.errors import BadBodyError, TooLargeError

MAX_TEXT: Final = 255
MAX_VALUE: Final = Decimal(10) ** 15
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class ItemError(ValueError):
    """One item of a body cannot be taken; the message says which field and why."""


@dataclass(frozen=True, slots=True)
class Refused:
    """An item that was not taken: its place in the body, from 0, and why."""

    index: int
    reason: str


def items(body: bytes, most: int, what: str) -> list[Any]:
    """Return a body's items, one object being one; raises BadBodyError or TooLargeError."""
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadBodyError("malformed", f"the body is not JSON: {error}") from error
    if isinstance(given, dict):
        return [given]
    if not isinstance(given, list) or not given:
        raise BadBodyError("malformed", f"send {what}")
    if len(given) > most:
        raise TooLargeError(f"{len(given)} items in one body; at most {most} are taken")
    return given


def answer(received: int, successful: int, known: int, refused: list[Refused], **more: Any) -> bytes:
    """Spell what became of a body, in the form OpenLineage's batch endpoints answer with."""
    return orjson.dumps(
        {
            "status": "success" if successful == received else "partial_success",
            "summary": {"received": received, "successful": successful, "failed": len(refused), "known": known, **more},
            "failed_events": [{"index": each.index, "reason": each.reason} for each in refused[:100]],
        }
    )


def mapping(given: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(given, dict):
        raise ItemError(f"{where} is no object" if given is not None else f"{where} is missing")
    return given


@overload
def text(given: Any, where: str, *, required: Literal[True]) -> str: ...
@overload
def text(given: Any, where: str, *, required: bool = ...) -> str | None: ...
def text(given: Any, where: str, *, required: bool = False) -> str | None:
    """Return a text the store takes, None where there is none; raises ItemError."""
    if given is None or given == "":
        if required:
            raise ItemError(f"{where} is missing")
        return None
    if not isinstance(given, str) or not given.isprintable() or len(given) > MAX_TEXT:
        raise ItemError(f"{where} {given!r:.60} is no printable text of at most {MAX_TEXT} characters")
    return given


def instant_us(given: Any, where: str, now_us: int) -> int:
    """Return microseconds since the Unix epoch of an RFC 3339 text; raises ItemError, also for the future."""
    try:
        moment = datetime.fromisoformat(given)
    except (ValueError, TypeError):
        raise ItemError(f"{where} {given!r:.60} is no RFC 3339 instant") from None
    if moment.tzinfo is None:
        raise ItemError(f"{where} {given!r:.60} has no time zone")
    at_us = (moment - _EPOCH) // timedelta(microseconds=1)
    if at_us < EARLIEST_AT_US:
        raise ItemError(f"{where} {given!r:.60} is before the year 2000")
    if at_us > now_us + MAX_CLOCK_SKEW_US:
        raise ItemError(f"{where} {given!r:.60} is in the future")
    return at_us


def finite(given: Any, where: str) -> float | None:
    """Return a number, None where there is none; raises ItemError."""
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(float(given)):
        raise ItemError(f"{where} {given!r:.60} is no number")
    return float(given)


def exact(given: Any, where: str) -> Decimal | None:
    """Return an exact decimal of a JSON number or a text, None where there is none; raises ItemError."""
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise ItemError(f"{where} {json.dumps(given)!r:.60} is no number")
    try:
        number = Decimal(repr(given) if isinstance(given, float) else given)
    except InvalidOperation:
        raise ItemError(f"{where} {given!r:.60} is no number") from None
    if not number.is_finite() or abs(number) >= MAX_VALUE or (number and number.adjusted() < -30):
        raise ItemError(f"{where} {given!r:.60} is out of range")
    return number
