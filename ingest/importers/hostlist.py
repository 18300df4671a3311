"""Expands Slurm's host lists (``node[01-04,7],gpu1``) with their leading zeros, bounded; refuses anything malformed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice, product
from typing import Final

from ingest.importers.errors import RowError

MAX_HOSTS: Final = 100_000
"""Of one job; the largest clusters have a tenth."""
_PART = re.compile(r"([^\[\],\s]+|\[[0-9,\-]+\])")
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


def expand(text: str) -> list[str]:
    """Return the host names in the list's order; raise RowError for what is no host list."""
    hosts: list[str] = []
    for word in _words(text):
        parts = _PART.findall(word)
        if not parts or "".join(parts) != word:
            raise RowError("not a host list", f"{text!r:.200}")
        choices: list[list[str]] = []
        size = 1
        for part in parts:
            # Bounded while they are made: a line of ranges is short, and what it names is not.
            choices.append(list(islice(_numbers(part, text), MAX_HOSTS + 1)) if part.startswith("[") else [part])
            size = min(size * len(choices[-1]), MAX_HOSTS + 1)
        if size + len(hosts) > MAX_HOSTS:
            raise RowError("too many hosts", f"{text!r:.200} names more than {MAX_HOSTS}")
        hosts += ["".join(combination) for combination in product(*choices)]
    return hosts


def _words(text: str) -> Iterator[str]:
    depth, start = 0, 0
    for position, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if character == "," and depth == 0:
            yield text[start:position]
            start = position + 1
    yield text[start:]


def _numbers(part: str, text: str) -> Iterator[str]:
    for piece in part[1:-1].split(","):
        match = _RANGE.fullmatch(piece)
        if match is None:
            raise RowError("not a host list", f"{text!r:.200}")
        first, last = match.group(1), match.group(2) or match.group(1)
        if not int(first) <= int(last) < int(first) + MAX_HOSTS:
            raise RowError("not a host list", f"{piece:.40} in {text!r:.200}")
        width = len(first)
        yield from (f"{number:0{width}d}" for number in range(int(first), int(last) + 1))
