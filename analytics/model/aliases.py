"""Finds which model of the price book a name that a provider answered with stands for. Pure.

A pattern is a person's or a package's: it is never given to an engine that goes back and forth. What is no plain text is matched by
Rust's regex (through polars), whose time grows with the length of the name alone, and which refuses what would not fit its bound.
It refuses patterns of more than :data:`MAX_PATTERN` characters, look-around and references back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import polars as pl

KINDS: Final = ("exact", "prefix", "regex")
MAX_PATTERN: Final = 255


def fault_of(kind: str, pattern: str) -> str | None:
    """Return why no alias can have this pattern, null if one can."""
    if kind not in KINDS:
        return f"{kind!r} is none of {', '.join(KINDS)}"
    if not pattern or len(pattern) > MAX_PATTERN or not pattern.isprintable():
        return f"a pattern is 1 to {MAX_PATTERN} printable characters"
    if kind != "regex":
        return None
    try:
        _found(pattern, "")
        _found(_whole(pattern), "")
    except pl.exceptions.ComputeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next((line.removeprefix("error: ") for line in lines if line.startswith("error:")), lines[0])
        return f"no pattern that can be matched in bounded time: {reason.removeprefix('regex error: ')}"
    return None


def matches(kind: str, pattern: str, name: str) -> bool:
    """Return whether a model's name is what the pattern says, whatever its case. A regex is of the whole name."""
    if kind == "exact":
        return name.casefold() == pattern.casefold()
    if kind == "prefix":
        return name.casefold().startswith(pattern.casefold())
    return _found(_whole(pattern), name)


def target_of(aliases: Sequence[Mapping[str, Any]], provider: str, name: str, at: datetime) -> str | None:
    """Return the model the first alias in force by ``position``, then id, makes of a name; null = none does."""
    for alias in sorted(aliases, key=lambda alias: (alias["position"], alias["alias_id"])):
        if (
            alias["provider"].casefold() == provider.casefold()
            and alias["valid_from"] <= at
            and (alias["valid_to"] is None or at < alias["valid_to"])
            and matches(alias["kind"], alias["pattern"], name)
        ):
            return str(alias["model"])
    return None


def _whole(pattern: str) -> str:
    return rf"\A(?i:{pattern})\z"


def _found(pattern: str, name: str) -> bool:
    return bool(pl.Series([name], dtype=pl.String).str.contains(pattern, strict=True).item())
