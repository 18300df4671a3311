"""What a backup must find again in the books, and what a restored database must forget: its old transaction ids.

A server counts transactions from its own beginning. What an hour has seen of ``changes`` is told by these ids, so in another
server they would lie: a change made tomorrow would be older than what was seen yesterday, and no late row would ever restate
a bill. It decides nothing about what is restored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import psycopg

SETTLE: Final = """
UPDATE ledger_hours AS hours SET seen_xid = CASE WHEN EXISTS (
    SELECT FROM changes WHERE (changes.site_id = hours.site_id OR changes.site_id IS NULL)
    AND changes.from_at < hours.hour_at + interval '2 hours' AND changes.to_at > hours.hour_at - interval '1 hour'
    AND changes.written_xid >= hours.seen_xid) THEN '1'::xid8 ELSE '2'::xid8 END;
UPDATE changes SET written_xid = '1'::xid8;
INSERT INTO stamp_shifts (shift) SELECT max(stamp) FROM (
    SELECT recorded_xid::text::bigint FROM allocations UNION ALL SELECT superseded_xid::text::bigint FROM allocations
    UNION ALL SELECT recorded_xid::text::bigint FROM assets UNION ALL SELECT superseded_xid::text::bigint FROM assets
    UNION ALL SELECT recorded_xid::text::bigint FROM bindings UNION ALL SELECT superseded_xid::text::bigint FROM bindings
    UNION ALL SELECT recorded_xid::text::bigint FROM budgets UNION ALL SELECT superseded_xid::text::bigint FROM budgets
    UNION ALL SELECT recorded_xid::text::bigint FROM capacity_holds UNION ALL SELECT superseded_xid::text::bigint FROM capacity_holds
    UNION ALL SELECT recorded_xid::text::bigint FROM facility_factors UNION ALL SELECT superseded_xid::text::bigint FROM facility_factors
    UNION ALL SELECT recorded_xid::text::bigint FROM fx_rates UNION ALL SELECT superseded_xid::text::bigint FROM fx_rates
    UNION ALL SELECT recorded_xid::text::bigint FROM idle_policies UNION ALL SELECT superseded_xid::text::bigint FROM idle_policies
    UNION ALL SELECT recorded_xid::text::bigint FROM intensity UNION ALL SELECT superseded_xid::text::bigint FROM intensity
    UNION ALL SELECT recorded_xid::text::bigint FROM job_ends UNION ALL SELECT superseded_xid::text::bigint FROM job_ends
    UNION ALL SELECT recorded_xid::text::bigint FROM meter_readings UNION ALL SELECT superseded_xid::text::bigint FROM meter_readings
    UNION ALL SELECT recorded_xid::text::bigint FROM meter_words UNION ALL SELECT superseded_xid::text::bigint FROM meter_words
    UNION ALL SELECT recorded_xid::text::bigint FROM model_aliases UNION ALL SELECT superseded_xid::text::bigint FROM model_aliases
    UNION ALL SELECT recorded_xid::text::bigint FROM overhead_models UNION ALL SELECT superseded_xid::text::bigint FROM overhead_models
    UNION ALL SELECT recorded_xid::text::bigint FROM placements UNION ALL SELECT superseded_xid::text::bigint FROM placements
    UNION ALL SELECT recorded_xid::text::bigint FROM price_policies UNION ALL SELECT superseded_xid::text::bigint FROM price_policies
    UNION ALL SELECT recorded_xid::text::bigint FROM prices UNION ALL SELECT superseded_xid::text::bigint FROM prices
    UNION ALL SELECT recorded_xid::text::bigint FROM shared_it UNION ALL SELECT superseded_xid::text::bigint FROM shared_it
    UNION ALL SELECT recorded_xid::text::bigint FROM tariffs UNION ALL SELECT superseded_xid::text::bigint FROM tariffs
    UNION ALL SELECT recorded_xid::text::bigint FROM tenant_details UNION ALL SELECT superseded_xid::text::bigint FROM tenant_details
    UNION ALL SELECT recorded_xid::text::bigint FROM tenant_moves UNION ALL SELECT superseded_xid::text::bigint FROM tenant_moves
    UNION ALL SELECT recorded_xid::text::bigint FROM topology UNION ALL SELECT superseded_xid::text::bigint FROM topology
    UNION ALL SELECT split_part(snapshot, ':', 2)::bigint FROM ledger_runs
) AS stamps (stamp) HAVING max(stamp) IS NOT NULL;
"""
"""Run in the transaction that restores. Ids below 3 are no server's: all that comes counts as newer. An hour that had not
seen a change is due once more; if it finds nothing new, it makes no revision. Stamps of dated rows and snapshots of runs stay as
they are, and this server's count from the highest of them on: what a run saw is told by both servers' alike."""
_TOTALS: Final = """
SELECT count(*), count(DISTINCT (site_id, hour_at)), coalesce(sum(effective_cost), 0)::text, coalesce(sum(energy_mj), 0)::text,
       (SELECT count(*) FROM ledger_runs) FROM current_ledger_lines
"""


@dataclass(frozen=True, slots=True)
class LedgerTotals:
    """The books as one line; cost and energy (mJ) as exact text."""

    lines: int
    hours: int
    effective_cost: str
    energy_mj: str
    runs: int


def ledger_totals(connection: psycopg.Connection[Any]) -> LedgerTotals:
    """Return the totals of all current ledger lines, as one snapshot sees them."""
    row = connection.execute(_TOTALS).fetchone()
    if row is None:
        raise AssertionError("an aggregate without GROUP BY has one row")
    return LedgerTotals(*row)
