"""Keeps what waits: one entry a wait, its reasons with their instants, made from events in whatever order they come."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import psycopg
from psycopg.types.json import Jsonb

from ingest.receivers.work import WaitTold
from ingest.store.job_facts import Words, merged, words

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_INSTANTS: Final = ("eligible_at", "left_at")
_PLAIN: Final = (
    "outcome",
    "account",
    "user_name",
    "partition",
    "qos",
    "namespace",
    "label",
    "name",
    "workload",
    "accelerators",
    "tasks",
)
_COLUMNS: Final = (*_INSTANTS, *_PLAIN)


class WaitKey(NamedTuple):
    cluster: str
    native_id: str
    submitted_at: datetime


def keep(conn: psycopg.Connection[Any], site_id: int, source: str, origin: int, told: Sequence[WaitTold]) -> None:
    """Merge what is told of waits into their entries. Two reasons of one instant: the first in the alphabet is kept."""
    keyed = [(WaitKey(one.cluster, one.native_id, _instant(one.submitted_at_us)), one) for one in told]
    if not keyed:
        return
    entries = _entries(conn, site_id, source, origin, sorted({key for key, _ in keyed}))
    facts: dict[int, Words] = {}
    for key, one in keyed:
        identity, known = entries[key]
        facts[identity] = merged(facts.get(identity, known), words(one.at_us, one.facts))
    before = dict(entries.values())
    _update(conn, {identity: new for identity, new in facts.items() if new != before[identity]})
    reasons = sorted(
        {(entries[key][0], _instant(one.since_us), one.reason) for key, one in keyed if one.reason is not None}
    )
    with conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO queue_reasons (entry_id, since_at, reason) VALUES (%s, %s, %s) "
            "ON CONFLICT (entry_id, since_at) DO UPDATE SET reason = excluded.reason "
            'WHERE excluded.reason COLLATE "C" < queue_reasons.reason COLLATE "C"',
            reasons,
        )


def _entries(
    conn: psycopg.Connection[Any], site_id: int, source: str, origin: int, keys: Sequence[WaitKey]
) -> dict[WaitKey, tuple[int, Words]]:
    arrays = [[key.cluster for key in keys], [key.native_id for key in keys], [key.submitted_at for key in keys]]
    conn.execute(
        "INSERT INTO queue_entries (site_id, cluster, native_id, submitted_at, source, facts, origin) "
        "SELECT %s, cluster, native_id, submitted_at, %s, '{}', %s FROM unnest(%s::text[], %s::text[], %s::timestamptz[]) "
        "AS new (cluster, native_id, submitted_at) ORDER BY cluster, native_id, submitted_at "
        "ON CONFLICT (site_id, cluster, native_id, submitted_at) DO NOTHING",
        [site_id, source, origin, *arrays],
    )
    rows = conn.execute(
        "SELECT entry.cluster, entry.native_id, entry.submitted_at, entry.id, entry.facts FROM queue_entries AS entry "
        "JOIN unnest(%s::text[], %s::text[], %s::timestamptz[]) AS given (cluster, native_id, submitted_at) "
        "USING (cluster, native_id, submitted_at) WHERE entry.site_id = %s "
        "ORDER BY entry.cluster, entry.native_id, entry.submitted_at FOR UPDATE OF entry",
        [*arrays, site_id],
    )
    return {WaitKey(*key): (identity, facts) for *key, identity, facts in rows}


def _update(conn: psycopg.Connection[Any], facts: dict[int, Words]) -> None:
    values = ", ".join(f"{name} = %s" for name in _COLUMNS)
    with conn.cursor() as cursor:
        cursor.executemany(
            f"UPDATE queue_entries SET facts = %s, {values} WHERE id = %s",  # noqa: S608 (our own names)
            [(Jsonb(new), *(_value(new, name) for name in _COLUMNS), identity) for identity, new in facts.items()],
        )


def _value(facts: Words, name: str) -> Any:
    value = facts[name][1] if name in facts else None
    return _instant(value) if name in _INSTANTS and value is not None else value


def _instant(at_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at_us)
