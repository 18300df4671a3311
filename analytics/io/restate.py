"""Asks for closed hours to be computed again, with the formulas of now and a reason that stays with their runs. It computes nothing itself.

An hour that comes out the same keeps its revision. Of a closed month, what comes out otherwise is posted as corrections.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg

from analytics.io.hours import RESTATE


class RestateError(ValueError):
    """What cannot be restated; the message says why."""


@dataclass(frozen=True, slots=True)
class Asked:
    """How many closed hours were asked for, and how many of these are of closed months."""

    hours: int
    frozen: int


def ask(
    connection: psycopg.Connection[Any], site: str | None, from_at: datetime, to_at: datetime, reason: str
) -> Asked:
    """Make closed hours of [from, to) due, of a site or of all; raise RestateError where there is none, or no reason."""
    if not reason.strip():
        raise RestateError("say why: the reason stays with the runs of these hours")
    from_at, to_at = from_at.astimezone(UTC), to_at.astimezone(UTC)
    if to_at <= from_at or any(at.minute or at.second or at.microsecond for at in (from_at, to_at)):
        raise RestateError(f"from {from_at.isoformat()} to {to_at.isoformat()} are no full hours; give full UTC hours")
    given = {"site": site, "from_at": from_at, "to_at": to_at, "kind": RESTATE, "note": reason.strip()}
    with connection.transaction():
        row = connection.execute(
            """
            SELECT count(*), count(frozen_period_id) FROM ledger_hours JOIN sites ON sites.id = ledger_hours.site_id
            WHERE status = 'closed' AND hour_at >= %(from_at)s AND hour_at < %(to_at)s
            AND (%(site)s::text IS NULL OR sites.name = %(site)s)
            """,
            given,
        ).fetchone()
        if row is None or not row[0]:
            raise RestateError(f"no hour of {site or 'any site'} in that time is closed")
        connection.execute(
            """
            INSERT INTO changes (site_id, from_at, to_at, kind, note)
            VALUES ((SELECT id FROM sites WHERE name = %(site)s), %(from_at)s, %(to_at)s, %(kind)s, %(note)s)
            """,
            given,
        )
    return Asked(int(row[0]), int(row[1]))
