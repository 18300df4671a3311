"""Keeps the rows of allocations that were told lately, so that an agent that restarts tells them again, word for word.

They may not have reached the spool when the agent died. Told twice they change nothing, since the server takes an event of the same
job, device and instant once. The newest few are written with the ledger's state, at each event; the others are put away by parts,
each written once, whose places are used again after a quarter of an hour. It knows no job and no device.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from collector.probe import Row

KEPT_US: Final = 900_000_000
"""Far longer than a batch waits in memory before it is in the spool."""
MAX_ROWS: Final = 20_000
"""A thousand jobs of eight devices that began and ended while no agent ran."""
NEWEST: Final = 16
"""So many wait for a part of their own; more would be written anew at each event, fewer would make more parts."""
_FACT: Final = "jobs.told."


class Facts(Protocol):
    """What is asked of whoever keeps facts (the spool): recall and remember, which may raise an AgentError."""

    def recall(self, name: str) -> str | None:
        """Return a fact, or None."""
        ...

    def remember(self, name: str, value: str) -> None:
        """Keep a fact, durably."""
        ...


@dataclass(slots=True)
class Told:
    """A row of an allocation and when it was handed on."""

    at_us: int
    row: Row


@dataclass(slots=True)
class Part:
    """Rows that were put away."""

    place: int
    serial: int
    """Which rows they are: a place may hold others than the state, written a moment before or after, knows of."""
    at_us: int
    """When the newest was handed on."""
    rows: int


def put_away(told: list[Told], parts: list[Part], now_us: int, facts: Facts) -> None:
    """Drop what has long arrived from both lists; move ``told`` into a part where it has grown. Raises what ``facts`` raises.

    To be called before the state is written that names the parts.
    """
    parts[:] = [part for part in parts if now_us - part.at_us < KEPT_US]
    while parts and sum(part.rows for part in parts) + len(told) > MAX_ROWS:
        del parts[0]
    told[:] = [entry for entry in told if now_us - entry.at_us < KEPT_US][-MAX_ROWS:]
    if len(told) <= NEWEST:
        return
    taken = {part.place for part in parts}
    place = next(number for number in range(len(parts) + 1) if number not in taken)
    serial = max((now_us, *(part.serial + 1 for part in parts)))
    rows = [entry.row for entry in told]
    facts.remember(f"{_FACT}{place}", json.dumps([serial, rows], separators=(",", ":")))
    parts.append(Part(place, serial, max(entry.at_us for entry in told), len(rows)))
    told.clear()


def recall_told(parts: Iterable[Part], facts: Facts) -> tuple[list[Row], int]:
    """Return the rows of all parts and how many parts are not what they should be. Raises what ``facts`` raises."""
    rows: list[Row] = []
    damaged = 0
    for part in parts:
        found = _read(facts.recall(f"{_FACT}{part.place}"), part.serial)
        if found is None:
            damaged += 1
        else:
            rows += found
    return rows, damaged


def _read(text: str | None, serial: int) -> Sequence[Row] | None:
    try:
        found, rows = json.loads(text or "")
    except (ValueError, TypeError, RecursionError):
        return None
    return rows if found == serial and isinstance(rows, list) else None
