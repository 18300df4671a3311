"""Writes LLM calls: each report is kept, and of several reports of one call exactly one counts, whatever the order.

``api_calls`` holds one row per call, what counts of it; readers need no filter. ``call_keys`` names calls: a report whose
names are all new is a call of its own and goes in at once, together with thousands of others. Only where a name is known,
or shared within the group, are the reports of that call gathered and merged, under a lock of the site. Two writers at
once meet at the key of ``call_keys``: the second waits until the first has committed, and then finds the name known.
"""
# ruff: noqa: S608 - the SQL is made of this package's own names

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import sqlalchemy as sa

from ingest.calls import ApiCall, CallSource
from ingest.errors import BadBodyError, UnavailableError
from ingest.rows import Rows
from ingest.store.call_merge import merge
from ingest.store.call_reuse import freed
from ingest.store.call_stage import AS_KEPT, FIELDS, KNOWN_NAME, NAMING, OWN, TABLE, Reports, SiteReport, stage
from ingest.store.call_window import put_back
from ingest.store.hours import DAY_US, HOUR_US
from ingest.store.outages import OUTAGES
from ingest.store.partitions import is_missing_partition
from ingest.store.registry import Registry

_COLUMNS: Final = f"called_at, site_id, tenant_id, source, {', '.join(FIELDS)}"
_STAGED: Final = f"called_at, site_id, tenant_id, source, {', '.join(AS_KEPT)}"
# In the order of the keys: two writers that name the same calls wait for each other, never in a circle.
_NAME: Final = (
    f"INSERT INTO call_keys (site_id, key, called_at, dedupe_key) SELECT site_id, key, called_at, dedupe_key FROM {NAMING} "
    "AS named ORDER BY site_id, key ON CONFLICT DO NOTHING"
)
# Where this transaction has written before, the names it gave then are known too, and look like those it gives now.
_BEGUN: Final = "SELECT pg_current_xact_id_if_assigned() IS NOT NULL"
_NAME_AGAIN: Final = (
    f"WITH named AS MATERIALIZED {NAMING}, made AS (INSERT INTO call_keys (site_id, key, called_at, dedupe_key) "
    "SELECT site_id, key, called_at, dedupe_key FROM named ORDER BY site_id, key ON CONFLICT DO NOTHING "
    "RETURNING site_id, key) SELECT DISTINCT n FROM named WHERE (site_id, key) NOT IN (SELECT site_id, key FROM made)"
)
_KNOWN: Final = (
    f"SELECT DISTINCT named.n FROM {NAMING} AS named, {KNOWN_NAME} AS known "
    "WHERE known.written_by <> pg_current_xact_id()::xid"
)
# A report with ids is not registered under its own name as well, which would double the names there are. The same report
# may have come without them, though: then that name is known.
_KNOWN_BY_OWN: Final = f"SELECT named.n FROM {OWN} AS named, {KNOWN_NAME} AS known"
# Looking whether a row is there before it is inserted is a quarter of its cost; nearly never one is.
_INSERT_NEW: Final = f"INSERT INTO api_calls ({_COLUMNS}) SELECT {_STAGED} FROM {TABLE} WHERE n <> ALL (%s)"
_INSERT: Final = f"{_INSERT_NEW} ON CONFLICT (dedupe_key, called_at) DO NOTHING"
_THERE: Final = (
    f"SELECT new.n, new.site_id, known.site_id, dedupe_key FROM {TABLE} AS new, LATERAL (SELECT found.site_id FROM api_calls "
    "AS found WHERE found.dedupe_key = new.dedupe_key AND found.called_at = new.called_at OFFSET 0) AS known "
    "WHERE new.n <> ALL (%s)"
)
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('wattledger.calls', %s))"
_CHANGES: Final = (
    "INSERT INTO changes (site_id, from_at, to_at, kind) SELECT site, at, at + interval '1 hour', 'api_calls' FROM "
    "(SELECT site, timestamptz '1970-01-01 00:00:00+00' + hour * interval '1 hour' AS at "
    "FROM unnest(%s::integer[], %s::bigint[]) AS touched (site, hour)) AS hours"
)


@dataclass(frozen=True, slots=True)
class Written:
    """What became of reports: they count now, a better report of their call counts, or they were known already."""

    counted: int = 0
    superseded: int = 0
    repeated: int = 0


def write_calls(
    engine: sa.Engine, registry: Registry, site_id: int, calls: Sequence[ApiCall], *, source: CallSource
) -> Written:
    """Commit the reports of one source. Raises UnavailableError or BadBodyError."""
    if not calls:
        return Written()
    told = Rows.of(ApiCall, calls)
    reports = Reports([site_id] * len(told), [source] * len(told), [None] * len(told), told)
    try:
        try:
            return _written(engine, registry, reports)
        except psycopg.errors.CheckViolation as error:
            if not is_missing_partition(error):  # an empty day, dropped since it was made or seen
                raise
            registry.forget_days()
            return _written(engine, registry, reports)
    except OUTAGES as error:
        raise UnavailableError("database_unavailable", "the calls cannot be kept now; send them again", 2) from error
    except (sa.exc.DBAPIError, psycopg.Error) as error:
        raise BadBodyError(
            "refused_by_database", f"the database refuses these calls: {type(error).__name__}"
        ) from error


def _written(engine: sa.Engine, registry: Registry, reports: Reports) -> Written:
    registry.ensure_days("api_calls", days_of(reports.calls))
    with engine.begin() as conn:
        driver: psycopg.Connection[Any] | None = conn.connection.driver_connection
        assert driver is not None  # noqa: S101 - a checked-out connection has one
        return keep_calls(driver, reports)


def days_of(calls: Sequence[ApiCall]) -> set[int]:
    """Return the days since the Unix epoch whose partitions these calls need."""
    return {at_us // DAY_US for at_us in Rows.of(ApiCall, calls).columns["called_at_us"]}


def keep_calls(driver: psycopg.Connection[Any], given: Sequence[SiteReport]) -> Written:
    """Keep reports within the caller's transaction; their days' partitions are there. Leaves ``changes``.

    The transaction must be READ COMMITTED; it waits for others that name the same calls. Raises psycopg's errors, and
    BadBodyError where a row of another site has the same key at the same instant.
    """
    if not given:
        return Written()
    reports = Reports.of(given)
    begun = driver.execute(_BEGUN).fetchone()
    staged = stage(driver, reports)
    slow = set(staged.sharing)
    # Names put back are of this transaction, and known all the same.
    if put_back(driver) or begun == (True,):
        slow |= {position for (position,) in driver.execute(_NAME_AGAIN)}
    elif driver.execute(_NAME).rowcount < staged.names:
        slow |= {position for (position,) in driver.execute(_KNOWN)}
    slow |= {position for (position,) in driver.execute(_KNOWN_BY_OWN)}
    slow -= freed(driver, reports, slow)
    inserted, known = _inserted(driver, slow)
    slow |= known
    instants_us = zip(reports.site_ids, reports.calls.columns["called_at_us"], strict=True)
    hours = {(site_id, at_us // HOUR_US) for at, (site_id, at_us) in enumerate(instants_us) if at not in slow}
    counted, superseded, repeated = inserted, 0, 0
    for site_id in sorted({reports.site_ids[position] for position in slow}):
        driver.execute(_LOCK, [site_id])
        ours = {
            position: reports[position].report for position in sorted(slow) if reports.site_ids[position] == site_id
        }
        merged = merge(driver, site_id, ours)
        counted += merged.counted
        superseded += merged.superseded
        repeated += merged.repeated
        hours |= {(site_id, at_us // HOUR_US) for at_us in merged.touched_us}
    if hours:
        sites, numbers = zip(*sorted(hours), strict=True)
        driver.execute(_CHANGES, [list(sites), list(numbers)])
    return Written(counted, superseded, repeated)


def _inserted(driver: psycopg.Connection[Any], slow: set[int]) -> tuple[int, set[int]]:
    """Insert the staged reports that are calls of their own; return how many, and those whose row was there."""
    driver.execute("SAVEPOINT calls")
    try:
        inserted = driver.execute(_INSERT_NEW, [list(slow)]).rowcount
    except psycopg.errors.UniqueViolation:
        # The same report came with other ids; or a replica of the version before wrote it, which gives no names.
        driver.execute("ROLLBACK TO calls")
    else:
        driver.execute("RELEASE calls")
        return inserted, set()
    there: set[int] = set()
    for position, site_id, known_site_id, key in driver.execute(_THERE, [list(slow)]):
        if site_id != known_site_id:
            raise BadBodyError("known_elsewhere", f"another site has a call {key!r} at the same instant")
        there.add(position)
    return driver.execute(_INSERT, [list(slow | there)]).rowcount, there
