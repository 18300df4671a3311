"""Folds node names the way schedulers write them: ``node[001-003,007]``. Folding only; nothing here needs to unfold.

Slurm's own hostlists have one bracket; so have these, at the last number of a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_NAME: Final = re.compile(r"(?P<before>.*?)(?P<number>\d{1,18})(?P<after>\D*)", re.DOTALL)


def fold(names: Iterable[str]) -> str:
    """Return the names as one text, in order, each once: ``gpu[01-04],login``.

    Names with numbers of different widths are kept apart (``n9`` and ``n09`` are two nodes), unless the wider ones
    need no leading zero, as in ``n[9-11]``.
    """
    groups: dict[tuple[str, str, int], set[int]] = {}
    plain: set[str] = set()
    for name in set(names):
        match = _NAME.fullmatch(name)
        if match is None:
            plain.add(name)
            continue
        digits = match["number"]
        width = len(digits) if digits.startswith("0") and digits != "0" else 0
        groups.setdefault((match["before"], match["after"], width), set()).add(int(digits))
    _take_in_unpadded(groups)
    folded = [_folded(*key, numbers) for key, numbers in groups.items()]
    return ",".join(sorted([*folded, *plain]))


def _take_in_unpadded(groups: dict[tuple[str, str, int], set[int]]) -> None:
    """Let ``010`` join ``009``: a number as wide as its padded neighbours belongs to them."""
    for before, after, width in sorted(key for key in groups if key[2]):
        unpadded = groups.get((before, after, 0), set())
        fitting = {number for number in unpadded if len(str(number)) == width}
        groups[before, after, width] |= fitting
        unpadded -= fitting
        if not unpadded:
            groups.pop((before, after, 0), None)


def _folded(before: str, after: str, width: int, numbers: set[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    if len(numbers) == 1:
        return f"{before}{runs[0][0]:0{width}d}{after}"
    parts = [f"{first:0{width}d}" if first == last else f"{first:0{width}d}-{last:0{width}d}" for first, last in runs]
    return f"{before}[{','.join(parts)}]{after}"
