"""Which batches are in: what makes sending a batch twice a no-op.

A spool's committed sequences are one multirange that compacts itself. Rows are locked in spool order in the transaction
that copies the samples, so two writers with the same batch wait for each other, and the second finds it done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg


class BatchId(NamedTuple):
    """A batch: its spool (UUID text, lower case) and its sequence there."""

    spool: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Claim:
    """What became of the batches a group asked for."""

    new: frozenset[BatchId]
    foreign: frozenset[BatchId]
    """Batches whose spool belongs to another node, as after cloning a disk with its spool."""


def claim(conn: psycopg.Connection[Any], batches: Sequence[tuple[BatchId, int]]) -> Claim:
    """Record these batches (each with its node's id) as received in this transaction; return which were not there before."""
    if not batches:
        return Claim(frozenset(), frozenset())
    wanted: dict[str, set[int]] = {}
    nodes: dict[str, int] = {}
    for (spool, sequence), node_id in batches:
        wanted.setdefault(spool, set()).add(sequence)
        nodes.setdefault(spool, node_id)
    spools = sorted(wanted)
    held = _lock(conn, {spool: wanted[spool] for spool in spools})
    unknown = [spool for spool in spools if spool not in held]
    if unknown:
        conn.execute(
            "INSERT INTO spools (spool, node_id, received) "
            "SELECT spool, node_id, '{}' FROM unnest(%s::uuid[], %s::integer[]) AS new (spool, node_id) ORDER BY spool "
            "ON CONFLICT (spool) DO NOTHING",
            [_ids(unknown), [nodes[spool] for spool in unknown]],
        )
        held |= _lock(conn, {spool: wanted[spool] for spool in unknown})
    new: dict[str, set[int]] = {}
    foreign: set[BatchId] = set()
    for batch, node_id in batches:
        owner, seen = held[batch.spool]
        if owner != node_id:
            foreign.add(batch)
        elif not any(start <= batch.sequence < end for start, end in seen):
            new.setdefault(batch.spool, set()).add(batch.sequence)
    if new:
        conn.execute(
            "UPDATE spools SET received = received + ranges, last_seen_at = now() "
            "FROM unnest(%s::uuid[], %s::int8multirange[]) AS new (id, ranges) WHERE spool = id",
            [_ids(new), _ranges(new.values())],
        )
    claimed = (BatchId(spool, sequence) for spool, sequences in new.items() for sequence in sequences)
    return Claim(frozenset(claimed), frozenset(foreign))


def _lock(
    conn: psycopg.Connection[Any], wanted: Mapping[str, set[int]]
) -> dict[str, tuple[int, list[tuple[int, int]]]]:
    """Lock known spools; return each one's node and the part of the ranges that is in already."""
    rows = conn.execute(
        "SELECT spool::text, node_id, (received * ranges)::text FROM spools "
        "JOIN unnest(%s::uuid[], %s::int8multirange[]) AS new (id, ranges) ON spool = id ORDER BY spool FOR UPDATE OF spools",
        [_ids(wanted), _ranges(wanted.values())],
    )
    return {spool: (node_id, _parsed(seen)) for spool, node_id, seen in rows}


def _ids(spools: Iterable[str]) -> str:
    """Spell an array of UUIDs, which the wire's contract has checked; the driver takes twice as long for claim as a whole."""
    return "{" + ",".join(spools) + "}"


def _ranges(sets: Iterable[set[int]]) -> str:
    return "{" + ",".join([f'"{_multirange(sequences)}"' for sequences in sets]) + "}"


def _multirange(sequences: set[int]) -> str:
    return "{" + ",".join([f"[{sequence},{sequence}]" for sequence in sorted(sequences)]) + "}"


def _parsed(multirange: str) -> list[tuple[int, int]]:
    """Read ``{[1,3),[7,8)}``, PostgreSQL's canonical spelling for whole numbers."""
    if multirange == "{}":
        return []
    bounds = [part.strip("[)") for part in multirange.strip("{}").split(",")]
    return [(int(start), int(end)) for start, end in zip(bounds[::2], bounds[1::2], strict=True)]
