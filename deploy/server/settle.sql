-- After a dump that was loaded by hand, in the transaction that loads it or before any service starts (docs/databases.md). Which changes
-- an hour of the books has seen is told by transaction ids, and another server counts from its own beginning: left as they are, no
-- later change would ever restate an old hour. `wattledger restore` does this by itself.
SET search_path = public;
UPDATE ledger_hours AS hours SET seen_xid = CASE WHEN EXISTS (
    SELECT FROM changes WHERE (changes.site_id = hours.site_id OR changes.site_id IS NULL)
    AND changes.from_at < hours.hour_at + interval '2 hours' AND changes.to_at > hours.hour_at - interval '1 hour'
    AND changes.written_xid >= hours.seen_xid) THEN '1'::xid8 ELSE '2'::xid8 END;
UPDATE changes SET written_xid = '1'::xid8;
