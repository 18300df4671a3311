"""The hour as the unit of sealing: its advisory lock key, and how a writer holds hours open.

A writer takes the shared lock of each hour it writes, in key order and before any row lock, then asks the catalog; the
sealer takes the exclusive lock to flip an hour's state. So a writer either finishes before the flip or sees it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import psycopg

HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US
_EPOCH: Final = "timestamptz '1970-01-01 00:00:00+00'"


class SiteHour(NamedTuple):
    """One hour of one site; ``hour`` counts hours since the Unix epoch."""

    site_id: int
    hour: int

    @property
    def lock_key(self) -> int:
        """The key of its advisory lock: the site in the upper, the hour in the lower 32 bits."""
        return (self.site_id << 32) | self.hour


def hold_open(conn: psycopg.Connection[Any], hours: Iterable[SiteHour]) -> frozenset[SiteHour]:
    """Lock hours against sealing until the transaction ends; return those that are sealing or sealed already.

    Must come before the transaction's row locks: a writer that held one while waiting for the sealer could deadlock.
    """
    wanted = sorted(hours)
    if not wanted:
        return frozenset()
    keys = sorted(hour.lock_key for hour in wanted)
    conn.execute("SELECT pg_advisory_xact_lock_shared(key) FROM unnest(%s::bigint[]) AS key", [array(keys)])
    # A statement of its own, after the locks are held: its snapshot must see what the sealer committed meanwhile.
    closed = conn.execute(
        "SELECT site_id, (extract(epoch FROM hour_at) / 3600)::integer FROM hour_catalog "  # noqa: S608 (constant)
        "JOIN unnest(%s::integer[], %s::integer[]) AS wanted (site, hour) "
        f"ON site_id = site AND hour_at = {_EPOCH} + hour * interval '1 hour' WHERE state <> 'open'",
        [array(hour.site_id for hour in wanted), array(hour.hour for hour in wanted)],
    ).fetchall()
    return frozenset(SiteHour(*row) for row in closed)


def array(numbers: Iterable[int]) -> str:
    """Spell an array of whole numbers: the driver, which looks at each element's type, takes longer than a short query."""
    return "{" + ",".join(map(str, numbers)) + "}"
