-- After a dump that was loaded by hand, in the transaction that loads it or before any service starts (docs/databases.md). Which changes
-- an hour of the books has seen is told by transaction ids, and another server counts from its own beginning: left as they are, no
-- later change would ever restate an old hour. `wattledger restore` does this by itself.
SET search_path = public;
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
