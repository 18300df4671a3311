"""Keeps what a file tells of LLM calls, within the import's transaction, as reports of the file's kind of source."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any, Final

import psycopg
import sqlalchemy as sa

from ingest.calls import ApiCall, CallSource, Report
from ingest.store import identities
from ingest.store.call_stage import SiteReport
from ingest.store.calls import Written, days_of, keep_calls
from ingest.store.imports import make_days

AT_ONCE: Final = 20_000
"""Reports staged together: what of one call lies further apart is found by its name all the same."""
_EPOCH: Final = date(1970, 1, 1)


def keep_reports(
    conn: sa.Connection, site_id: int, calls: Sequence[ApiCall], source: CallSource, *, tenant: str | None = None
) -> Written:
    """Keep reports of one source; ``tenant`` names who pays where the import says so, else the bindings decide.

    Raises TooManyDaysError, and psycopg's errors.
    """
    if not calls:
        return Written()
    days = [_EPOCH + timedelta(days=number) for number in sorted(days_of(calls))]
    make_days(conn, "api_calls", days, referred_site_id=site_id)
    tenant_id = identities.tenant_ids(conn, [tenant])[tenant] if tenant else None
    driver: psycopg.Connection[Any] | None = conn.connection.driver_connection
    assert driver is not None  # noqa: S101 - a checked-out connection has one
    counted = superseded = repeated = 0
    for start in range(0, len(calls), AT_ONCE):
        part = [SiteReport(site_id, Report(call, source, tenant_id)) for call in calls[start : start + AT_ONCE]]
        kept = keep_calls(driver, part)
        counted, superseded, repeated = counted + kept.counted, superseded + kept.superseded, repeated + kept.repeated
    return Written(counted, superseded, repeated)
