"""Loads what a rating of closed hours of one site reads: their usage hours as stored, findings, dated references, API calls. No sample.

All in one snapshot, in which it is asked once more whether a rating is enough: a holding or a reading that was told of since the
hours were picked would be taken for seen, and lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from analytics.frames import ApiCalls, Findings, Jobs, NamedUsage
from analytics.inputs import Window
from analytics.io.findings import BOOKS_UNBALANCED, OF_A_CLOSE
from analytics.io.holds import DEVICE, JOB_KEY
from analytics.io.hours import still_rating_only
from analytics.io.load import API_CALLS, JOBS, begin_snapshot
from analytics.io.manifest import Manifest, rating_manifest
from analytics.io.references import Known, load_references
from analytics.io.rows import fetch_frame
from analytics.io.runs import HourState
from analytics.pipeline import RatingInputs

# What rows of before formulas 2 do not say is null; of times and bounds, that there were none.
STORED_USAGE: Final = """
SELECT used.hour_at, used.device_id, used.holder, used.job_id, used.tenant_id, used.state, used.energy_mj, used.estimated_mj, used.energy_low_mj,
       used.energy_high_mj, used.held_us, used.covered_us, used.active_us, used.idle_us, used.throttled_us,
       coalesce(used.reserved_us, 0) AS reserved_us, coalesce(used.down_us, 0) AS down_us, used.accelerators, used.method,
        used.reason, used.source, used.coverage, used.feed, used.origin,
       device.model AS device_model, CASE WHEN job_id IS NULL THEN holder ELSE 'job:' || {job_key} END AS holder_key
"""
# Of a frozen hour those of what it would be by now; whose they were is asked anew anyway.
_USAGE: Final = (
    (
        STORED_USAGE
        + """
FROM ledger_hours AS hours JOIN ledger_runs AS runs ON runs.id = coalesce(hours.shadow_run_id, hours.run_id)
JOIN usage_hours AS used ON used.site_id = hours.site_id AND used.hour_at = hours.hour_at
    AND used.revision = coalesce(runs.usage_revision, runs.revision)
JOIN {device} AS device ON device.id = used.device_id LEFT JOIN jobs ON jobs.id = used.job_id
WHERE hours.site_id = %(site_id)s AND hours.hour_at >= %(from_at)s AND hours.hour_at < %(to_at)s
ORDER BY used.hour_at, used.device_id, used.holder
"""
    )
    .replace("{device}", DEVICE)
    .replace("{job_key}", JOB_KEY)
)
_FINDINGS: Final = """
SELECT dedupe_key, date_trunc('hour', start_at, 'UTC') AS hour_at, kind, device_id, job_id, tenant_id, start_at, end_at,
       evidence::text AS evidence, waste_energy_mj, avoidable_cash, capacity_freed_us, currency, confidence, origin
FROM findings WHERE site_id = %(site_id)s AND start_at >= %(from_at)s AND start_at < %(to_at)s
AND kind = ANY (%(kinds)s) AND withdrawn_at IS NULL
"""


@dataclass(frozen=True, slots=True)
class LoadedRating:
    """Inputs of a rating with what identifies them."""

    inputs: RatingInputs
    as_of: Known
    seen_xid: str
    read: Manifest


def load_rating(
    connection: psycopg.Connection[Any], hours: Sequence[HourState], window: Window, currency: str
) -> LoadedRating | None:
    """Return what rating consecutive closed hours of one site needs, as known now; None where they need to be closed as a whole.

    ``connection`` is in no transaction.
    """
    site_id = hours[0].site_id
    with connection.transaction():
        seen = begin_snapshot(connection)
        if not still_rating_only(connection, hours):
            return None
        now = Known(seen.at)
        scope: dict[str, Any] = {
            "site_id": site_id,
            "from_at": window.from_at,
            "to_at": window.to_at,
            "as_of": now.at,
            "kinds": [kind for kind in OF_A_CLOSE if kind != BOOKS_UNBALANCED],
        }
        usage = fetch_frame(connection, _USAGE, scope, NamedUsage)
        findings = fetch_frame(connection, _FINDINGS, scope, Findings)
        job_ids = usage["job_id"].drop_nulls().unique().to_list()
        references = load_references(
            connection,
            site_id=site_id,
            from_at=window.from_at,
            to_at=window.to_at,
            as_of=now,
            currency=currency,
            jobs=fetch_frame(connection, JOBS, {"job_ids": job_ids}, Jobs),
        )
        inputs = RatingInputs(window, usage, findings, references, fetch_frame(connection, API_CALLS, scope, ApiCalls))
    return LoadedRating(inputs, Known(seen.at, seen.snapshot), seen.oldest_xid, rating_manifest(inputs))
