"""Where nodes stand, dated twice: a rack, a switch or an NVLink domain that changes is a new row, never an update.

What is told of an instant holds from there until something else was told; what comes late takes its place in between, and
what is told of the same instant again is a correction. Telling what holds already changes nothing and is not kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psycopg

_ROWS: Final = (
    "SELECT id, node_id, rack, switch, nvlink_domain, valid_from, valid_to FROM topology "
    "WHERE node_id = ANY (%s) AND superseded_at IS NULL ORDER BY node_id, valid_from"
)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a node stands from ``valid_from`` on; null = not known."""

    valid_from: datetime
    rack: str | None
    switch: str | None
    nvlink_domain: str | None

    @property
    def place(self) -> tuple[str | None, str | None, str | None]:
        return self.rack, self.switch, self.nvlink_domain


def keep(conn: psycopg.Connection[Any], told: Mapping[int, Iterable[Standing]]) -> int:
    """Write where nodes (by id) stand; return how many nodes stand elsewhere than was known."""
    if not told:
        return 0
    conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('wattledger.topology', 0))")
    rows = conn.execute(_ROWS, [list(told)]).fetchall()
    changed = 0
    gone: list[int] = []
    made: list[tuple[Any, ...]] = []
    for node_id, standings in told.items():
        known = {Standing(row[5], *row[2:5]): (row[0], row[6]) for row in rows if row[1] == node_id}
        wanted = timeline(known, standings)
        ends = [one.valid_from for one in wanted[1:]] + [None]
        kept = {one for one, end in zip(wanted, ends, strict=True) if one in known and known[one][1] == end}
        fresh = [(one, end) for one, end in zip(wanted, ends, strict=True) if one not in kept]
        gone += [identity for one, (identity, _) in known.items() if one not in kept]
        made += [(node_id, *one.place, one.valid_from, end) for one, end in fresh]
        changed += bool(fresh)
    _write(conn, gone, made)
    return changed


def timeline(known: Iterable[Standing], told: Iterable[Standing]) -> list[Standing]:
    """Return standings in time order without repetitions; of one instant what is told last counts. Pure."""
    by_instant = {one.valid_from: one for one in (*known, *told)}
    found: list[Standing] = []
    for one in sorted(by_instant.values(), key=lambda each: each.valid_from):
        if not found or found[-1].place != one.place:
            found.append(one)
    return found


def _write(conn: psycopg.Connection[Any], gone: list[int], made: list[tuple[Any, ...]]) -> None:
    if gone:
        conn.execute("UPDATE topology SET superseded_at = clock_timestamp() WHERE id = ANY (%s)", [gone])
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO topology (node_id, rack, switch, nvlink_domain, valid_from, valid_to, recorded_at) "
            "VALUES (%s, %s, %s, %s, %s, %s, clock_timestamp())",
            made,
        )
