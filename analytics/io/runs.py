"""The record of a computation, and the row of its hour that names it: the compare-and-swap by which one of several counts.

Statements of single rows, for use inside the transaction that writes an hour; it decides nothing about what is written.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from analytics.io.manifest import Manifest
from analytics.io.references import Known
from analytics.model.uses import Uses
from analytics.policy import Policy
from analytics.version import METHOD_VERSION


class Saved(StrEnum):
    """What became of an hour."""

    WRITTEN = "written"
    UNCHANGED = "unchanged"
    LOST_RACE = "lost_race"


class Kind(StrEnum):
    """What a run did."""

    CLOSE = "close"
    RATE = "rate"
    ATTEST = "attest"


@dataclass(frozen=True, slots=True)
class HourState:
    """What ``ledger_hours`` said when the hour was picked; null fields = never closed."""

    site_id: int
    hour_at: datetime
    revision: int | None
    run_id: int | None
    status: str | None
    seen_xid: str | None
    """Changes of transactions before this one are in its books."""
    is_rating_only: bool = False
    """Closed, and of what it was computed from only prices, bindings or API calls changed since."""
    is_settled: bool = False
    """Closed of hot rows, and nothing changed since: it is computed once more to see that its sealed files give the same."""
    asked: str | None = None
    """Why somebody asked for it to be computed again; null = nobody did."""


@dataclass(frozen=True, slots=True)
class Run:
    """What is true of the computation behind the rows, enough to repeat it."""

    code_version: str
    as_of: Known
    seen_xid: str
    read: Manifest
    policy: Policy
    reason: str
    generation: int = 0
    """Of the sealed segments the hour's samples were read from; 0 = the hot tables."""


@dataclass(frozen=True, slots=True)
class Current:
    """The run an hour rests on now, and what it wrote."""

    run_id: int
    revision: int
    content: bytes
    usage_revision: int
    inputs_sha256: bytes
    generation: int
    seen_xid: str
    line_count: int | None
    head_sha256: bytes | None
    frozen_period_id: int | None
    chain_version: int = 1


@dataclass(frozen=True, slots=True)
class Made:
    """What a run wrote, or found to be so."""

    kind: Kind
    revision: int
    usage_revision: int
    """Of the usage hours its lines are made of."""
    content: bytes
    usage_sha256: bytes
    diff: dict[str, Any] | None = None
    """Against the revision before, where there was a closed one."""
    quality: dict[str, Any] | None = None
    """What was not used or not known, by reason; null = it read no sample."""
    line_count: int | None = None
    head_sha256: bytes | None = None
    """Of the chain of the revision's lines; null = the open window, which has none."""
    chain_version: int = 1
    """How the lines are chained; 1 is on record as null, as before there was another."""
    uses: Uses | None = None
    """What its lines are priced by; null = not said, and any price counts."""
    after_period_id: int | None = None
    """The closed month in which the hour is frozen: the run moved nothing there."""


class LostRaceError(Exception):
    """Another run took the hour; leaves the transaction so that it rolls back."""


def in_turn(connection: psycopg.Connection[Any], site_id: int) -> None:
    """Wait for whoever writes what hours of a site share, and keep others waiting until the transaction ends.

    Of two processes that save hours of a site the second sees what the first saved: a job of both gets the tenant of its later hour, as it
    would in order. What is an hour's own needs no turn, and is written before.
    """
    connection.execute("SELECT pg_advisory_xact_lock(1464616001, %s)", (site_id,))


def locked(connection: psycopg.Connection[Any], state: HourState) -> Current | None:
    """Return what the hour rests on, its row locked until the transaction ends; None = never closed.

    Raises LostRaceError where that is not what it rested on when the hour was picked, or others looked at it since: they may have found it
    unchanged by what is different again from what this one read.
    """
    # A month is closed under a lock of the whole table, which waits for whoever saves an hour, and they for it: none slips in between.
    connection.execute("LOCK TABLE ledger_hours IN ROW EXCLUSIVE MODE")
    row = connection.execute(
        """
        SELECT runs.id, runs.revision, CASE WHEN hours.shadow_run_id IS NULL THEN hours.content_sha256 ELSE runs.content_sha256 END,
               coalesce(runs.usage_revision, runs.revision), runs.inputs_sha256, runs.generation, hours.seen_xid::text, runs.line_count,
               runs.head_sha256, hours.frozen_period_id, coalesce(runs.chain_version, 1)
        FROM ledger_hours AS hours JOIN ledger_runs AS runs ON runs.id = coalesce(hours.shadow_run_id, hours.run_id)
        WHERE hours.site_id = %s AND hours.hour_at = %s FOR UPDATE OF hours
        """,
        (state.site_id, state.hour_at),
    ).fetchone()
    current = None
    if row is not None:
        (
            run_id,
            revision,
            content,
            usage_revision,
            inputs,
            generation,
            seen_xid,
            line_count,
            head,
            period_id,
            version,
        ) = row
        head = None if head is None else bytes(head)
        current = Current(
            run_id,
            revision,
            bytes(content),
            usage_revision,
            bytes(inputs),
            generation,
            seen_xid,
            line_count,
            head,
            period_id,
            version,
        )
    rests_on = (current.run_id, current.seen_xid) if current else (None, None)
    if rests_on != (state.run_id, state.seen_xid):
        raise LostRaceError
    return current


def insert_run(connection: psycopg.Connection[Any], state: HourState, run: Run, made: Made) -> int:
    """Put a run on record and return its id."""
    row = connection.execute(
        """
        INSERT INTO ledger_runs (site_id, hour_at, revision, usage_revision, kind, code_version, method_version, policy, as_of_at, snapshot, seen_xid,
                                 inputs, inputs_sha256, content_sha256, usage_sha256, reason, generation, diff, quality, line_count, head_sha256,
                                 after_period_id, chain_version, uses)
        VALUES (%(site_id)s, %(hour_at)s, %(revision)s, %(usage_revision)s, %(kind)s, %(code_version)s, %(method_version)s, %(policy)s, %(as_of_at)s,
                %(snapshot)s, %(seen_xid)s::xid8, %(inputs)s, %(inputs_sha256)s, %(content)s, %(usage)s, %(reason)s, %(generation)s,
                %(diff)s, %(quality)s, %(line_count)s, %(head_sha256)s, %(after_period_id)s, %(chain_version)s,
                CASE WHEN %(words)s::text[] IS NOT NULL THEN ARRAY(
                    SELECT lower(word) FROM unnest(%(words)s::text[]) AS word
                    UNION SELECT lower(provider || '/' || model) FROM prices WHERE id = ANY (%(price_ids)s::integer[]) ORDER BY 1) END)
        RETURNING id
        """,
        {
            "site_id": state.site_id,
            "hour_at": state.hour_at,
            "revision": made.revision,
            "usage_revision": made.usage_revision if made.usage_revision != made.revision else None,
            "kind": made.kind,
            "code_version": run.code_version,
            "method_version": METHOD_VERSION,
            "policy": Jsonb(asdict(run.policy)),
            "as_of_at": run.as_of.at,
            "snapshot": run.as_of.snapshot,
            "seen_xid": run.seen_xid,
            "inputs": Jsonb(run.read.as_json()),
            "inputs_sha256": run.read.sha256(),
            "content": made.content,
            "usage": made.usage_sha256,
            "reason": run.reason,
            "generation": run.generation,
            "diff": Jsonb(made.diff) if made.diff is not None else None,
            "quality": Jsonb(made.quality) if made.quality is not None else None,
            "line_count": made.line_count,
            "head_sha256": made.head_sha256,
            "after_period_id": made.after_period_id,
            "words": None if made.uses is None else list(made.uses.words),
            "price_ids": None if made.uses is None else list(made.uses.price_ids),
            "chain_version": None if made.chain_version == 1 else made.chain_version,
        },
    ).fetchone()
    if row is None:
        raise psycopg.DataError("INSERT INTO ledger_runs returned no id")
    return int(row[0])


def swap(
    connection: psycopg.Connection[Any],
    state: HourState,
    run: Run,
    *,
    revision: int,
    run_id: int,
    content: bytes,
    closed: bool,
) -> bool:
    """Make this run the one that counts, unless another run took its place since the hour was picked. Not of a frozen hour: ``shade``."""
    values = {
        "site_id": state.site_id,
        "hour_at": state.hour_at,
        "revision": revision,
        "run_id": run_id,
        "status": "closed" if closed else "provisional",
        "seen_xid": run.seen_xid,
        "content": content,
        "expected": state.run_id,
    }
    if state.run_id is None:
        cursor = connection.execute(
            """
            INSERT INTO ledger_hours (site_id, hour_at, revision, run_id, status, seen_xid, content_sha256)
            VALUES (%(site_id)s, %(hour_at)s, %(revision)s, %(run_id)s, %(status)s, %(seen_xid)s::xid8, %(content)s)
            ON CONFLICT DO NOTHING
            """,
            values,
        )
    else:
        cursor = connection.execute(
            """
            UPDATE ledger_hours SET revision = %(revision)s, run_id = %(run_id)s, status = %(status)s,
                   seen_xid = %(seen_xid)s::xid8, content_sha256 = %(content)s, closed_at = now()
            WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s AND run_id = %(expected)s
            """,
            values,
        )
    return cursor.rowcount == 1


def shade(
    connection: psycopg.Connection[Any],
    state: HourState,
    run: Run,
    *,
    revision: int,
    run_id: int,
    content: bytes,
    period_id: int,
) -> bool:
    """Note what a frozen hour would be by now, unless another run did since the hour was picked; what counts stays.

    An hour that had no books when its month was closed keeps none: it counts revision 0, which has no rows.
    """
    values = {
        "site_id": state.site_id,
        "hour_at": state.hour_at,
        "revision": revision,
        "run_id": run_id,
        "seen_xid": run.seen_xid,
        "content": content,
        "period_id": period_id,
        "expected": state.run_id,
    }
    if state.run_id is None:
        cursor = connection.execute(
            """
            INSERT INTO ledger_hours (site_id, hour_at, revision, run_id, status, seen_xid, content_sha256, frozen_period_id, shadow_revision,
                                      shadow_run_id)
            VALUES (%(site_id)s, %(hour_at)s, 0, %(run_id)s, 'closed', %(seen_xid)s::xid8, %(content)s, %(period_id)s, %(revision)s, %(run_id)s)
            ON CONFLICT DO NOTHING
            """,
            values,
        )
    else:
        cursor = connection.execute(
            """
            UPDATE ledger_hours SET shadow_revision = %(revision)s, shadow_run_id = %(run_id)s, seen_xid = %(seen_xid)s::xid8
            WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s AND coalesce(shadow_run_id, run_id) = %(expected)s
            """,
            values,
        )
    return cursor.rowcount == 1


def pin(connection: psycopg.Connection[Any], state: HourState, run: Run) -> None:
    """Keep the files a run has read when later generations take their place: it could not be repeated without them."""
    files = run.read.files
    if not files:
        return
    in_turn(connection, state.site_id)  # hours beside each other read the same files
    connection.execute(
        """
        UPDATE hour_segments AS files SET pinned = true
        FROM unnest(%s::timestamptz[], %s::text[], %s::integer[]) AS read (hour_at, stream, generation)
        WHERE files.site_id = %s AND files.hour_at = read.hour_at AND files.stream = read.stream
        AND files.generation = read.generation AND NOT files.pinned
        """,
        (
            [file.hour_at for file in files],
            [file.stream for file in files],
            [file.generation for file in files],
            state.site_id,
        ),
    )
