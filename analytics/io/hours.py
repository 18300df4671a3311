"""Finds the ledger hours that need a close: never closed, changed since, at hand, or to be closed now.

It reads ``changes``, which every transaction that touches an hour's ingredients leaves behind. A closed hour is stale when
a change it did not see (written by a transaction from its ``seen_xid`` on) touches it, or comes as near to it as changes of its kind
reach (:data:`UNTIL`, :data:`SINCE`). Reference data (prices, bindings, ...) makes hours stale but never brings new hours into the books.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg

from analytics.io.runs import HourState
from analytics.version import METHOD_VERSION

REACH: Final = timedelta(hours=1)
"""A reading just after an hour, or just before it, moves the energy at its edges. Of kinds that come all the time an hour says itself
how far after its end it has listened: else each round of the next hour would have it computed again."""
DATA_KINDS: Final = ("device_samples", "node_samples", "allocations", "api_calls", "gap", "failed_close")
"""Kinds of change that bring an hour into the books."""
AT_HAND: Final = timedelta(minutes=1)
"""How long after its end an hour is still priced anew without a change, so that its last seconds are in the open window."""
RATING_KINDS: Final = (
    "prices",
    "tariffs",
    "bindings",
    "api_calls",
    "intensity",
    "facility_factors",
    "tenants",
    "idle_policies",
    "sites",
)
"""Kinds of change that move who pays, how much, or what an energy stands for, and leave usage hours as they are."""
OUTSIDE_THE_BOOKS: Final = (
    "fabric_samples",
    "engine_samples",
    "device_events",
    "device_health",
    "node_events",
    "agent_health",
)
"""Kinds of change that move no figure of a bill."""
RESTATE: Final = "restate"
"""Kind of change by which somebody asks for hours to be computed again: these and no neighbour."""
SILENCE: Final = "silence"
"""Kind of change by which an hour tells the one before that a silence over their edge ended, or is another than it was told."""
EXACT: Final = (RESTATE, SILENCE, "gap", "api_calls")
"""Kinds of change that concern the hours they name and no neighbour."""
STEADY: Final = ("device_samples", "device_shares", "allocations", "jobs")
"""Kinds that come all the time, and move an hour up to ``ledger_hours.heard_until``."""
METERED: Final = "node_samples"
"""Likewise, up to ``ledger_hours.meters_until``."""

ATTESTED_WITHIN: Final = timedelta(days=3)
"""How old an hour may be that is computed once more when it is sealed: later it was, or a version before closed it."""
_EXACT: Final = ", ".join(f"'{kind}'" for kind in EXACT)
_STEADY: Final = ", ".join(f"'{kind}'" for kind in STEADY)
_FURTHER: Final = f"interval '{REACH // timedelta(minutes=1)} minutes'"
UNTIL: Final = f"""
CASE WHEN changes.kind IN ({_EXACT}) THEN hours.hour_at + interval '1 hour'
    ELSE coalesce(CASE WHEN changes.kind IN ({_STEADY}) THEN hours.heard_until WHEN changes.kind = '{METERED}' THEN hours.meters_until END,
                  hours.hour_at + interval '1 hour' + {_FURTHER}) END
"""
"""Changes that begin from here on do not move an hour of ``hours``."""
SINCE: Final = f"hours.hour_at - CASE WHEN changes.kind IN ({_EXACT}) THEN interval '0' ELSE {_FURTHER} END"
"""Changes that end by here do not move it."""
_BOUNDS: Final = f"""
changes.from_at < hours.hour_at + interval '1 hour' + {_FURTHER} AND changes.to_at > hours.hour_at - {_FURTHER}
"""
_NEAR: Final = f"""
hours.hour_at > (SELECT min(from_at) FROM changes) - interval '1 hour' - {_FURTHER}
"""  # noqa: S608 (a constant of this module)
"""Of nearly all of thousands of hours this decides: changes are of the last hour or two, most of the time."""
TOUCHES: Final = f"""
(changes.site_id = hours.site_id OR changes.site_id IS NULL) AND {_BOUNDS.strip()}
    AND changes.from_at < {UNTIL.strip()} AND changes.to_at > {SINCE}
"""
"""Of a change and an hour of ``hours``. The bounds, which no kind passes, decide of most pairs without a look at the kind."""
_CONCERNS: Final = """
(changes.scope IS NULL OR coalesce((SELECT known.uses IS NULL OR changes.scope -> 'models' ?| known.uses
    FROM ledger_runs AS known WHERE known.id = coalesce(hours.shadow_run_id, hours.run_id)), true))
"""
"""A change of prices concerns the hours with lines of what it names; a run of before says none, and any concerns it."""
_UNSEEN: Final = f"""
EXISTS (
    SELECT FROM changes WHERE {TOUCHES.strip()}
    AND changes.written_xid >= hours.seen_xid AND changes.kind <> ALL (%(outside)s) AND changes.kind <> ALL ({{but}})
    AND {_CONCERNS.strip()})
"""
_SETTLED: Final = "hours.status = 'closed' AND NOT " + _UNSEEN.replace("{but}", "'{}'")
_RATING_ONLY: Final = "hours.status = 'closed' AND NOT " + _UNSEEN.replace("{but}", "%(rating)s")
_ASKED: Final = f"""
(SELECT note FROM changes WHERE kind = '{RESTATE}' AND (changes.site_id = hours.site_id OR changes.site_id IS NULL) AND hours.status = 'closed'
 AND changes.from_at <= hours.hour_at AND changes.to_at > hours.hour_at AND changes.written_xid >= hours.seen_xid
 ORDER BY changes.id DESC LIMIT 1)
"""  # noqa: S608 (a constant of this module)
MADE_OF: Final = """
SELECT used.inputs, used.generation, used.method_version FROM ledger_runs AS told JOIN ledger_runs AS used
ON used.site_id = hours.site_id AND used.hour_at = hours.hour_at AND used.id <= told.id AND used.kind <> 'rate'
AND coalesce(used.usage_revision, used.revision) = coalesce(told.usage_revision, told.revision)
WHERE told.id = hours.run_id ORDER BY used.id DESC LIMIT 1
"""
"""Of an hour of ``hours``, the run that read the samples its books are made of: its own, or that of the usage it was rated on."""
# Late rows that waited beside a segment were read with it, and are in the next one by now. A file of the same name with other bytes: so
# that a run that names this one finds nothing more to do.
_MERGED: Final = """
EXISTS (
    SELECT FROM hour_segments AS file CROSS JOIN LATERAL jsonb_array_elements(
        CASE jsonb_typeof(runs.inputs -> 'outside') WHEN 'array' THEN runs.inputs -> 'segments' ELSE '[]' END) AS named
    WHERE file.site_id = hours.site_id AND file.retired_at IS NULL AND file.generation > 1
    AND file.hour_at BETWEEN hours.hour_at - interval '1 hour' AND hours.hour_at + interval '1 hour'
    AND named ->> 0 = file.stream AND (named ->> 1)::timestamptz = file.hour_at AND named ->> 3 <> encode(file.sha256, 'hex'))
"""
_CANDIDATES: Final = (
    """
WITH data AS (
    SELECT site_id, hour_at, max(written_xid) AS last_xid
    FROM changes, LATERAL generate_series(
        date_trunc('hour', from_at, 'UTC'), LEAST(to_at, %(now)s) - interval '1 microsecond', interval '1 hour') AS hour_at
    WHERE kind = ANY (%(data_kinds)s) AND site_id IS NOT NULL
    GROUP BY site_id, hour_at
), held AS (
    -- A job still in a pool sends no samples that would announce its hours. Up to the last known one its import did.
    SELECT allocations.site_id, hour_at FROM allocations, LATERAL generate_series(
        date_trunc('hour', GREATEST(start_at, (SELECT max(ledger_hours.hour_at) FROM ledger_hours
                                               WHERE ledger_hours.site_id = allocations.site_id)), 'UTC'),
        %(now)s - interval '1 microsecond', interval '1 hour') AS hour_at
    WHERE pool IS NOT NULL AND end_at IS NULL AND superseded_at IS NULL
), due AS (
    SELECT data.site_id, data.hour_at FROM data LEFT JOIN ledger_hours USING (site_id, hour_at)
    WHERE ledger_hours.run_id IS NULL
    UNION
    SELECT held.site_id, held.hour_at FROM held LEFT JOIN ledger_hours USING (site_id, hour_at)
    WHERE ledger_hours.run_id IS NULL
    UNION
    SELECT hours.site_id, hours.hour_at FROM ledger_hours AS hours JOIN changes
        ON {touches} AND changes.written_xid >= hours.seen_xid AND changes.kind <> ALL (%(outside)s) AND {concerns}
    WHERE {near}
    UNION
    -- Time passes in the hour at hand, also where nothing is sent; one that is over waits for its close, or for a change.
    SELECT site_id, hour_at FROM ledger_hours AS hours WHERE status = 'provisional' AND (
        hour_at + interval '1 hour' > %(now)s - %(at_hand)s OR (hour_at + interval '1 hour' <= %(now)s - %(lateness)s
        AND NOT EXISTS (SELECT FROM unnest(%(awaited_sites)s::integer[], %(awaited_hours)s::timestamptz[]) AS awaited (site_id, hour_at)
                        WHERE awaited.site_id = hours.site_id AND awaited.hour_at <= hours.hour_at)))
    UNION
    -- Closed of rows outside of files, and now it and its neighbours are sealed: do the files give the same? Then its run names them.
    SELECT hours.site_id, hours.hour_at FROM ledger_hours AS hours CROSS JOIN LATERAL ({made_of}) AS runs
    WHERE hours.status = 'closed' AND hours.shadow_run_id IS NULL AND hours.hour_at >= %(attest_from)s
    AND runs.inputs IS NOT NULL AND (runs.generation = 0 OR {merged})
    AND runs.method_version = %(formulas)s AND ( -- other formulas give other books, and restate nothing by themselves
        SELECT count(*) FROM hour_catalog AS known WHERE known.site_id = hours.site_id AND known.state = 'sealed' AND known.expired_at IS NULL
        AND known.hour_at BETWEEN hours.hour_at - interval '1 hour' AND hours.hour_at + interval '1 hour') = 3
)
-- Of a frozen hour, what it would be by now: that is what a change is computed against.
SELECT due.site_id, due.hour_at, coalesce(hours.shadow_revision, hours.revision), coalesce(hours.shadow_run_id, hours.run_id), hours.status,
       hours.seen_xid::text, coalesce({rating_only}, false), coalesce({settled}, false), {asked}
FROM due LEFT JOIN ledger_hours AS hours USING (site_id, hour_at)
WHERE due.hour_at < %(now)s
ORDER BY due.site_id, due.hour_at
""".replace("{rating_only}", _RATING_ONLY)
    .replace("{settled}", _SETTLED)
    .replace("{asked}", _ASKED)
    .replace("{made_of}", MADE_OF)
    .replace("{merged}", _MERGED)
    .replace("{touches}", TOUCHES.strip())
    .replace("{near}", _NEAR.strip())
    .replace("{concerns}", _CONCERNS.strip())
)
_STILL: Final = """
SELECT coalesce(bool_and({rating_only}), false) AND count(*) = cardinality(%(hours)s::timestamptz[]) FROM ledger_hours AS hours
WHERE site_id = %(site_id)s AND hour_at = ANY (%(hours)s)
""".replace("{rating_only}", _RATING_ONLY)


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive hours of one site to be computed together, or rated: one load, one pass of the model."""

    site_id: int
    hours: tuple[HourState, ...]

    @property
    def from_at(self) -> datetime:
        return self.hours[0].hour_at

    @property
    def to_at(self) -> datetime:
        return self.hours[-1].hour_at + timedelta(hours=1)


def due_hours(
    connection: psycopg.Connection[Any],
    now: datetime,
    lateness: timedelta = timedelta(0),
    *,
    attest: bool = False,
    awaited: Mapping[int, datetime] | None = None,
) -> list[HourState]:
    """Return every hour up to ``now`` that needs a close, by site and time.

    ``attest``: also recent ones that were closed of hot rows and are sealed now, with their neighbours, once.
    An hour of the open window is due while it is at hand, when it is to be closed (``lateness`` after its end), and
    whenever a change touches it. From the hour on that ``awaited`` names for a site, none is to be closed.
    """
    waits = awaited or {}
    rows = connection.execute(
        _CANDIDATES,
        {
            "now": now,
            "data_kinds": list(DATA_KINDS),
            "outside": list(OUTSIDE_THE_BOOKS),
            "rating": list(RATING_KINDS),
            "at_hand": AT_HAND,
            "formulas": METHOD_VERSION,
            "attest_from": now - ATTESTED_WITHIN if attest else now,
            "lateness": lateness,
            "awaited_sites": list(waits),
            "awaited_hours": list(waits.values()),
        },
    ).fetchall()
    return [
        HourState(site_id, hour_at, revision, run_id, status, seen_xid, is_rated and not is_settled, is_settled, asked)
        for site_id, hour_at, revision, run_id, status, seen_xid, is_rated, is_settled, asked in rows
    ]


def still_rating_only(connection: psycopg.Connection[Any], hours: Sequence[HourState]) -> bool:
    """Say whether closed hours of one site need no more than a rating, as the transaction's snapshot sees it."""
    row = connection.execute(
        _STILL,
        {
            "site_id": hours[0].site_id,
            "hours": [hour.hour_at for hour in hours],
            "outside": list(OUTSIDE_THE_BOOKS),
            "rating": list(RATING_KINDS),
        },
    ).fetchone()
    return row is not None and bool(row[0])


def batches(hours: Sequence[HourState], most: int) -> list[Batch]:
    """Group hours (sorted by site and time) into runs of consecutive hours, at most ``most`` each."""
    groups: list[list[HourState]] = []
    for hour in hours:
        group = groups[-1] if groups else None
        if (
            group
            and group[-1].site_id == hour.site_id
            and group[-1].hour_at + timedelta(hours=1) == hour.hour_at
            and group[-1].is_rating_only == hour.is_rating_only
            and len(group) < most
        ):
            group.append(hour)
        else:
            groups.append([hour])
    return [Batch(group[0].site_id, tuple(group)) for group in groups]


_DEVICES: Final = """
SELECT count(DISTINCT device_id) FROM placements JOIN nodes ON nodes.id = placements.node_id
WHERE nodes.site_id = %s AND valid_from < %s AND (valid_to IS NULL OR valid_to > %s) AND superseded_at IS NULL
"""


def parted(connection: psycopg.Connection[Any], batch: Batch, device_hours: int) -> list[Batch]:
    """Return a batch as runs of hours, alike in length, of at most so many devices x hours each, or of one hour."""
    if len(batch.hours) == 1:
        return [batch]
    found = connection.execute(_DEVICES, (batch.site_id, batch.to_at, batch.from_at)).fetchone()
    most = max(1, device_hours // max(1, int(found[0]) if found else 1))
    parts = -(-len(batch.hours) // most)
    return batches(batch.hours, -(-len(batch.hours) // parts))


_REMEMBER_OPEN: Final = """
INSERT INTO changes (site_id, from_at, to_at, kind)
SELECT %(site_id)s, %(hour_at)s, %(hour_at)s + interval '1 hour', 'failed_close'
WHERE NOT EXISTS (SELECT FROM ledger_hours WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s)
AND NOT EXISTS (SELECT FROM changes WHERE site_id = %(site_id)s AND from_at = %(hour_at)s AND kind = 'failed_close')
"""


def remember_open(connection: psycopg.Connection[Any], site_id: int, hour_at: datetime) -> None:
    """Keep an hour due that failed before it ever had books. Once: an hour of a pool is announced only while it is the last."""
    connection.execute(_REMEMBER_OPEN, {"site_id": site_id, "hour_at": hour_at})


def settle(connection: psycopg.Connection[Any], hour: HourState, horizon_xid: str) -> bool:
    """Note that a closed hour is done with all changes before ``horizon_xid`` though it was not computed; False if it is not closed."""
    return bool(
        connection.execute(
            "UPDATE ledger_hours SET seen_xid = greatest(seen_xid, %s::xid8) "
            "WHERE site_id = %s AND hour_at = %s AND coalesce(shadow_run_id, run_id) = %s AND status = 'closed'",
            (horizon_xid, hour.site_id, hour.hour_at, hour.run_id),
        ).rowcount
    )


_FORGET: Final = (
    """
DELETE FROM changes WHERE written_xid < %(horizon)s::xid8
AND (to_at < %(settled)s OR NOT kind = ANY (%(data_kinds)s)) AND NOT EXISTS (
    SELECT FROM ledger_hours AS hours WHERE {near} AND {touches}
    AND ((changes.written_xid >= hours.seen_xid AND {concerns}) OR hours.status = 'provisional')
    AND changes.kind <> ALL (%(outside)s)
) AND NOT EXISTS (
    SELECT FROM unnest(%(unsettled_sites)s::integer[], %(unsettled_hours)s::timestamptz[]) AS hours (site_id, hour_at)
    WHERE (changes.site_id = hours.site_id OR changes.site_id IS NULL)
    AND changes.from_at < hours.hour_at + interval '1 hour' + {further} AND changes.to_at > hours.hour_at - {further}
) AND NOT (kind = ANY (%(data_kinds)s) AND EXISTS (
    SELECT FROM generate_series(date_trunc('hour', from_at, 'UTC'), to_at - interval '1 microsecond', interval '1 hour') AS wanted(hour_at)
    WHERE NOT EXISTS (SELECT FROM ledger_hours AS hours WHERE hours.site_id = changes.site_id AND hours.hour_at = wanted.hour_at)
))
""".replace("{touches}", TOUCHES.strip())
    .replace("{near}", _NEAR.strip())
    .replace("{concerns}", _CONCERNS.strip())
    .replace("{further}", _FURTHER)
)


def forget_changes(
    connection: psycopg.Connection[Any],
    horizon_xid: str,
    settled_before: datetime,
    unsettled: Sequence[tuple[int, datetime]] = (),
) -> int:
    """Delete changes that every hour they touch has seen; return how many.

    ``horizon_xid`` is a snapshot's xmin from before the hours were closed; ``settled_before`` keeps the changes of hours
    that are not closed yet. ``unsettled``: (site, hour) that failed or that another worker holds; what touches them is kept,
    whatever their rows say, since a worker that read before the change may yet write them.
    """
    cursor = connection.execute(
        _FORGET,
        {
            "horizon": horizon_xid,
            "settled": settled_before,
            "data_kinds": list(DATA_KINDS),
            "outside": list(OUTSIDE_THE_BOOKS),
            "unsettled_sites": [site_id for site_id, _ in unsettled],
            "unsettled_hours": [hour_at for _, hour_at in unsettled],
        },
    )
    return cursor.rowcount
