"""Notes how far after an hour what comes later may move it, and tells the hour before of silences over their edge.

An hour reads all rows up to a margin after its end, and beyond it one reading only: the first one of a device that said nothing in the margin.
Rows beyond the margin come all the time and move nothing, so they do not make it due; that one reading is told of by the hour it lies in,
which reads it anyway. It closes nothing.
"""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import psycopg

from analytics.io.hours import REACH, SILENCE
from analytics.model.activity import LONGEST_US
from analytics.policy import Policy

if TYPE_CHECKING:
    from analytics.io.runs import HourState
    from analytics.io.save import SilencesTold

_LOOKS_US: Final = 2 * LONGEST_US
"""How far after it looks at shared boards speak of an hour: for as long again as they are long."""
_TOLD: Final = "SELECT crossed_sha256 FROM ledger_hours WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s"
_TELL: Final = (
    "INSERT INTO changes (site_id, from_at, to_at, kind) VALUES (%(site_id)s, %(before_at)s, %(hour_at)s, %(kind)s)"
)
_SLOWEST: Final = """
SELECT coalesce(max(epochs.cadence_us), 0) FROM epochs JOIN nodes ON nodes.id = epochs.node_id WHERE nodes.site_id = %(site_id)s
"""
_NOTE: Final = """
UPDATE ledger_hours SET heard_until = %(heard_until)s, meters_until = %(meters_until)s, crossed_sha256 = %(crossed)s
WHERE site_id = %(site_id)s AND hour_at = %(hour_at)s
AND (heard_until, meters_until, crossed_sha256) IS DISTINCT FROM (%(heard_until)s, %(meters_until)s, %(crossed)s::bytea)
"""


def note_reach(connection: psycopg.Connection[Any], state: HourState, told: SilencesTold, policy: Policy) -> None:
    """Note of an hour that was just saved how far it has listened; in the transaction that saved it, its row locked.

    Where silences over its beginning are others than when it was saved before, the hour before is due again, once: it was computed
    without knowing them. What both read together neither tells the other. A silence that nobody ended yet is told of by nobody.
    """
    at: dict[str, Any] = {"site_id": state.site_id, "hour_at": state.hour_at}
    crossed = hashlib.sha256(repr([tuple(each) for each in told.crossed]).encode()).digest() if told.crossed else None
    if told.is_first and crossed is not None:
        known = connection.execute(_TOLD, at).fetchone()
        if known is None or known[0] is None or bytes(known[0]) != crossed:
            connection.execute(_TELL, at | {"before_at": state.hour_at - REACH, "kind": SILENCE})
    (slowest_us,) = connection.execute(_SLOWEST, at).fetchone() or (0,)
    end_at = state.hour_at + timedelta(hours=1)
    heard_until = end_at + min(timedelta(microseconds=max(policy.margin_us, _LOOKS_US)), REACH)
    connection.execute(
        _NOTE,
        at
        | {
            # Late rows in a silence that is over, and what is told of who held the device in it, move the hour still.
            "heard_until": max(heard_until, min(told.heard_at or heard_until, end_at + REACH)),
            "meters_until": max(heard_until, end_at + _patience(slowest_us, policy)),
            "crossed": crossed,
        },
    )


def _patience(slowest_us: int, policy: Policy) -> timedelta:
    """Return how far after its end an hour reads its nodes' meters, at most as far as late rows before it reach."""
    return min(timedelta(microseconds=slowest_us * policy.gaps.max_gap_cadences), REACH)
