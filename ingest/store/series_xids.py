"""Makes events of errors of devices that series tell of: once, whichever server hears of one, and however often it is sent.

The row of a device says which code stood last; who changes it writes the event in the same transaction. The first code that is
heard of a device is no event: nobody knows when it happened. Where an agent has the device it tells of its errors itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
import sqlalchemy as sa

from collector.wire import Feed
from ingest.errors import BadBodyError, UnavailableError
from ingest.series.xids import Stood
from ingest.store.outages import OUTAGES

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
DETAIL: Final = "changed between two scrapes"
_STANDS: Final = """
INSERT INTO series_xids AS known (device_id, code, from_at)
SELECT id, %(code)s, %(at)s FROM devices WHERE uuid = %(uuid)s
ON CONFLICT (device_id) DO UPDATE SET code = excluded.code, from_at = excluded.from_at
WHERE excluded.from_at > known.from_at AND excluded.code <> known.code
RETURNING device_id, xmax <> 0
"""
_EVENT: Final = """
INSERT INTO device_events (at, device_id, epoch_id, kind, code, detail)
SELECT %(at)s, %(device)s, epochs.id, 'xid', %(code)s, %(detail)s FROM epochs JOIN nodes ON nodes.id = epochs.node_id
WHERE nodes.site_id = %(site)s AND nodes.name = %(node)s AND epochs.feed = ANY (%(feeds)s) AND epochs.origin = %(origin)s
AND NOT EXISTS (SELECT FROM placements WHERE device_id = %(device)s AND superseded_at IS NULL AND valid_to IS NULL
                AND coalesce(feed, 1) < %(scraped)s)
ORDER BY epochs.first_seen_at DESC, epochs.id DESC LIMIT 1
"""
_CHANGED: Final = "INSERT INTO changes (site_id, from_at, to_at, kind) VALUES (%s, %s, %s, 'device_events')"


def keep(engine: sa.Engine, site_id: int, stood: Sequence[Stood]) -> list[Stood]:
    """Commit what changed; return what the store knows now: not codes of devices it has never heard of. Raises IngestError."""
    try:
        with engine.begin() as conn:
            driver: psycopg.Connection[Any] | None = conn.connection.driver_connection
            assert driver is not None  # noqa: S101 - a checked-out connection has one
            # By device, so that two servers with the same devices wait for each other.
            ordered = sorted(stood, key=lambda one: (one.uuid, one.at_us))
            return [one for one in ordered if _keep(driver, site_id, one)]
    except OUTAGES as error:
        raise UnavailableError("database_unavailable", "the series cannot be kept now; send them again", 2) from error
    except (sa.exc.DBAPIError, psycopg.Error) as error:
        raise BadBodyError("refused_by_database", f"the database refuses these: {type(error).__name__}") from error


def _keep(conn: psycopg.Connection[Any], site_id: int, one: Stood) -> bool:
    at = _EPOCH + timedelta(microseconds=one.at_us)
    row = conn.execute(_STANDS, {"code": one.code, "at": at, "uuid": one.uuid}).fetchone()
    if row is None:
        return conn.execute("SELECT FROM devices WHERE uuid = %s", [one.uuid]).fetchone() is not None
    device_id, is_change = row
    if is_change and one.code:
        event = {
            "at": at,
            "device": device_id,
            "code": one.code,
            "detail": DETAIL,
            "site": site_id,
            "node": one.node,
            "feeds": [int(Feed.REMOTE_WRITE), int(Feed.SECOND_SCRAPER)],
            "origin": int(one.origin),
            "scraped": int(Feed.REMOTE_WRITE),
        }
        if conn.execute(_EVENT, event).rowcount:
            conn.execute(_CHANGED, [site_id, at, at + timedelta(microseconds=1)])
    return True
