"""Lets names of old calls go, and finds them again where an old report comes all the same.

``call_keys`` would grow for ever: names go when their call is older than the window (docs/storage.md). Whoever writes a report that
is older than that, or nearly, first puts the names of calls around its own time back, from the calls themselves: so a late report of
a call is found however late it is, as long as both are of times less than :data:`APART` from each other.
The order makes it safe beside writers: first it is said which names go, then everybody who may not have read that is waited
for, and then they go. It never touches a call, nor the marks of ids that name none.
"""
# ruff: noqa: S608 - the SQL is made of this package's own names

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg

from ingest.store.call_reuse import MARK
from ingest.store.call_stage import TABLE

APART: Final = timedelta(days=31)
"""How far apart the times of two reports of one call may be, where names are put back. An invoice says a month."""
_BLOCKS: Final = 4_096
"""Pages of a transaction: 32 MiB."""
_WAIT_S: Final = 30.0
_STEP_S: Final = 0.1
_ANNOUNCE: Final = (
    "INSERT INTO call_name_window AS old (id, pruned_before, deleted_before) VALUES (1, %s, '-infinity') "
    "ON CONFLICT (id) DO UPDATE SET pruned_before = greatest(old.pruned_before, excluded.pruned_before) "
    "RETURNING pruned_before, deleted_before < pruned_before"
)
_AFTER: Final = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text"
_OVER: Final = "SELECT pg_snapshot_xmin(pg_current_snapshot()) >= %s::xid8"
_PAGES: Final = "SELECT pg_relation_size('call_keys') / current_setting('block_size')::bigint"
# Names that came since it was said which go stay until the next time: somebody may be about to look one up.
_DELETE: Final = (
    "DELETE FROM call_keys WHERE ctid >= format('(%%s,0)', %s::bigint)::tid AND ctid < format('(%%s,0)', %s::bigint)::tid "
    f"AND called_at < %s AND dedupe_key <> '{MARK}' AND age(xmin) > age(%s::xid8::xid)"
)
_DONE: Final = "UPDATE call_name_window SET deleted_before = %s WHERE id = 1 AND pruned_before = %s"
_OLDEST: Final = (
    f"SELECT pruned_before + %s, min(staged.called_at), max(staged.called_at) FROM call_name_window, {TABLE} AS staged "
    "WHERE staged.called_at < pruned_before + %s GROUP BY 1"
)
# Of each call its names as ingest gives them: its ids, or its own key where it has none. A report that was merged into a
# call has its place beside it.
_PUT_BACK: Final = f"""
WITH old AS MATERIALIZED (SELECT site_id, source, dedupe_key, response_id, request_id FROM {TABLE} WHERE called_at < %(until)s),
ids AS MATERIALIZED (
    SELECT site_id, response_id AS id FROM old WHERE response_id IS NOT NULL
    UNION SELECT site_id, request_id FROM old WHERE request_id IS NOT NULL),
names AS (
    SELECT told.site_id, told.called_at, told.dedupe_key,
           unnest(CASE WHEN response_id IS NULL AND request_id IS NULL THEN ARRAY['key/' || dedupe_key]
                  ELSE ARRAY['id/' || response_id, 'id/' || request_id] END) AS name
    FROM api_calls AS told WHERE called_at >= %(first)s AND called_at <= %(last)s
     AND ((site_id, response_id) IN (SELECT site_id, id FROM ids) OR (site_id, request_id) IN (SELECT site_id, id FROM ids)
          OR (site_id, dedupe_key) IN (SELECT site_id, dedupe_key FROM old))
    UNION ALL
    SELECT told.site_id, told.counted_at, told.counted_key, 'key/' || told.dedupe_key
    FROM old JOIN call_reports AS told USING (site_id, source, dedupe_key))
INSERT INTO call_keys (site_id, key, called_at, dedupe_key)
SELECT DISTINCT ON (site_id, key) site_id, key, called_at, dedupe_key FROM (
    SELECT site_id, called_at, dedupe_key, substr(encode(sha256(convert_to(name, 'UTF8')), 'hex'), 1, 32)::uuid AS key
    FROM names WHERE name IS NOT NULL) AS named
ORDER BY site_id, key, called_at ON CONFLICT DO NOTHING
"""


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many names went; ``waits``: somebody has written for so long that it was left to the next time."""

    names: int = 0
    waits: bool = False


def prune_names(
    connection: psycopg.Connection[Any], before: datetime, is_ours: Callable[[], bool] = lambda: True
) -> Pruned:
    """Let the names of calls before this instant go, in transactions of its own. As the worker; once for each ``before``."""
    row = connection.execute(_ANNOUNCE, [before]).fetchone()
    connection.commit()
    if row is None or not row[1]:
        return Pruned()
    before = row[0]
    (after,) = connection.execute(_AFTER).fetchone() or (None,)
    connection.commit()
    if not _nobody_writes_since_before(connection, after):
        return Pruned(waits=True)
    (pages,) = connection.execute(_PAGES).fetchone() or (0,)
    connection.commit()
    names = 0
    for start in range(0, pages, _BLOCKS):
        if not is_ours():
            return Pruned(names)
        names += connection.execute(_DELETE, [start, start + _BLOCKS, before, after]).rowcount
        connection.commit()
    connection.execute(_DONE, [before, before])
    connection.commit()
    return Pruned(names)


def _nobody_writes_since_before(connection: psycopg.Connection[Any], after: str | None) -> bool:
    """Wait until all transactions are over that may have looked before it was said which names go."""
    until_s = time.monotonic() + _WAIT_S
    while True:
        (is_over,) = connection.execute(_OVER, [after]).fetchone() or (False,)
        connection.commit()
        if is_over or time.monotonic() > until_s:
            return bool(is_over)
        time.sleep(_STEP_S)


def put_back(driver: psycopg.Connection[Any]) -> bool:
    """Put the names back that staged reports may need; return whether there was an old one among these.

    Called after they are staged, so that the transaction has an id by which the worker sees that it goes on.
    """
    row = driver.execute(_OLDEST, [APART, APART]).fetchone()
    if row is None:
        return False
    until, first, last = row
    driver.execute(_PUT_BACK, {"until": until, "first": first - APART, "last": last + APART})
    return True
