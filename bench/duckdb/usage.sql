-- Usage hours of boards: board x hour x holder. What several hold is divided by entitlement, energy by who worked (2_shared.sql).

-- Silences: their energy is known and its time is not. It stays with jobs that held the board throughout, else it is nobody's; bounds by what
-- a board can draw at most. Judged by piece; what is nobody's by board and hour.
CREATE OR REPLACE TEMP TABLE gap_part AS
WITH gap AS (
    SELECT s.device_id, at_us, next_us, grown_mj, EXISTS (
        FROM held AS h WHERE h.device_id = s.device_id AND start_us <= at_us AND end_us >= next_us) AS kept
    FROM step AS s WHERE verdict = 1
), atom AS (
    SELECT piece, piece AS place, device_id, hour, from_us, to_us FROM piece WHERE sole
    UNION ALL SELECT piece, -sub, device_id, hour, s.from_us, s.to_us FROM sub AS s JOIN piece AS p USING (piece)
), part AS (
    SELECT a.piece, a.place, a.device_id, a.hour, g.at_us, kept, grown_mj, next_us - at_us AS dt_us, greatest(at_us, from_us) - at_us AS lo,
           least(next_us, to_us) - at_us AS hi, (grown_mj::HUGEINT * hi // dt_us)::BIGINT - (grown_mj::HUGEINT * lo // dt_us)::BIGINT AS gap_mj
    FROM gap AS g JOIN atom AS a ON g.device_id = a.device_id AND at_us < to_us AND next_us > from_us
), judged AS (
    SELECT min(piece) AS piece, device_id, hour, kept, grown_mj, dt_us, sum(gap_mj)::BIGINT AS gap_mj, sum(hi - lo)::BIGINT AS gap_us
    FROM part GROUP BY device_id, hour, at_us, kept, grown_mj, dt_us, CASE WHEN kept THEN place END
)
SELECT piece, device_id, hour, kept, gap_mj, gap_us,
       greatest(gap_mj - greatest(grown_mj - (most_mw::HUGEINT * (dt_us - gap_us) // 1000000)::BIGINT, 0), 0) AS below_mj,
       greatest(least(grown_mj, (most_mw::HUGEINT * gap_us // 1000000)::BIGINT) - gap_mj, 0) AS above_mj
FROM judged JOIN board USING (device_id);

CREATE OR REPLACE TEMP TABLE span AS
WITH silent AS (
    SELECT piece, sum(hi - lo)::BIGINT AS gap_us FROM (
        SELECT p.piece, greatest(at_us, from_us) AS lo, least(next_us, to_us) AS hi FROM (SELECT * FROM step WHERE verdict = 1) AS s
        JOIN piece AS p ON s.device_id = p.device_id AND at_us < to_us AND next_us > from_us) GROUP BY piece
), kept AS (
    SELECT piece, sum(gap_mj)::BIGINT AS kept_mj, sum(gap_us)::BIGINT AS kept_us, sum(below_mj)::BIGINT AS below_mj, sum(above_mj)::BIGINT AS above_mj
    FROM gap_part WHERE kept GROUP BY piece
)
SELECT p.*, coalesce(metered_mj, 0) + coalesce(moved_mj, 0) AS metered_mj, coalesce(kept_mj, 0) AS kept_mj, coalesce(edged_mj, 0) AS edged_mj,
       coalesce(k.below_mj, 0) + coalesce(e.below_mj, 0) AS below_mj, coalesce(k.above_mj, 0) + coalesce(e.above_mj, 0) AS above_mj,
       coalesce(gap_us, 0) AS gap_us, p.to_us - p.from_us - coalesce(covered_us, 0) - coalesce(gap_us, 0) AS dark_us, coalesce(kept_us, 0) AS kept_us,
       coalesce(covered_us, 0) AS covered_us, coalesce(known_us, 0) AS known_us, coalesce(active_us, 0) AS active_us,
       coalesce(idle_us, 0) AS idle_us, coalesce(throttled_us, 0) AS throttled_us, coalesce(bits_us, 0) AS bits_us, coalesce(counter_us, 0) AS counter_us,
       coalesce(covered_us, 0) + coalesce(gap_us, 0) > 0 AS heard
FROM piece AS p LEFT JOIN measured AS m USING (piece) LEFT JOIN silent AS s USING (piece) LEFT JOIN kept AS k USING (piece)
LEFT JOIN moved AS e USING (piece);

CREATE OR REPLACE TEMP TABLE board_usage AS
WITH whole AS (
    SELECT hour, s.device_id, coalesce(h.holder, 'idle') AS holder, h.job_id, coalesce(h.holder_key, 'idle') AS holder_key, metered_mj, kept_mj, edged_mj,
           0 AS worked_mj, below_mj, above_mj, gap_us, dark_us, kept_us, covered_us, known_us, active_us, idle_us, throttled_us, bits_us, counter_us,
           0 AS seen_us, heard, coalesce(rank_of(h.method), 0) AS method
    FROM span AS s LEFT JOIN held AS h ON s.segment = h.segment AND s.device_id = h.device_id WHERE sole
), each AS (
    -- Each rounded down, what is left goes by ones to the largest rests, ties by name.
    SELECT piece, slot, quantity, total * weight // weights + (row_number() OVER (PARTITION BY piece, quantity ORDER BY total * weight % weights DESC, slot)
           <= total - sum(total * weight // weights) OVER (PARTITION BY piece, quantity))::INTEGER AS share
    FROM (SELECT * FROM span WHERE NOT sole) UNPIVOT (total FOR quantity IN (kept_mj, below_mj, above_mj, gap_us, dark_us, kept_us, covered_us, known_us,
          active_us, idle_us, throttled_us, bits_us, counter_us)) JOIN slot USING (piece)
), by_weight AS (
    PIVOT each ON quantity IN ('kept_mj', 'below_mj', 'above_mj', 'gap_us', 'dark_us', 'kept_us', 'covered_us', 'known_us', 'active_us', 'idle_us',
        'throttled_us', 'bits_us', 'counter_us') USING sum(share)::BIGINT GROUP BY piece, slot
), parts AS (
    SELECT p.hour, p.device_id, h.holder, h.job_id, h.holder_key, s.energy_mj[slot + 1] AS metered_mj, w.kept_mj, 0 AS edged_mj,
           coalesce(s.worked_mj[slot + 1], 0) AS worked_mj, w.below_mj + s.below_mj[slot + 1] AS below_mj, w.above_mj + s.above_mj[slot + 1] AS above_mj,
           w.gap_us, w.dark_us, w.kept_us, w.covered_us, w.known_us, w.active_us, w.idle_us, w.throttled_us, w.bits_us, w.counter_us, 0 AS seen_us,
           p.heard, s.method[slot + 1] AS method
    FROM by_weight AS w JOIN slot AS h USING (piece, slot) JOIN shared AS s USING (piece) JOIN span AS p USING (piece)
    UNION ALL
    SELECT hour, device_id, 'unattributed:no_job', NULL, 'unattributed:no_job', s.energy_mj[8], 0, 0, coalesce(s.worked_mj[8], 0), s.below_mj[8],
           s.above_mj[8], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, p.covered_us, heard, s.method[8]
    FROM shared AS s JOIN span AS p USING (piece) WHERE s.energy_mj[8] > 0
), summed AS (
    SELECT hour, device_id, holder, job_id, holder_key, sum(metered_mj + kept_mj)::BIGINT AS energy_mj,
           sum(least(edged_mj + worked_mj, metered_mj) + kept_mj)::BIGINT AS estimated_mj, sum(below_mj)::BIGINT AS below_mj,
           sum(above_mj)::BIGINT AS above_mj, sum(covered_us + gap_us + dark_us)::BIGINT AS held_us, sum(covered_us + kept_us + seen_us)::BIGINT AS spanned_us,
           sum(covered_us)::BIGINT AS covered_us, sum(known_us)::BIGINT AS known_us, sum(active_us)::BIGINT AS active_us, sum(idle_us)::BIGINT AS idle_us,
           sum(throttled_us)::BIGINT AS throttled_us, sum(bits_us)::BIGINT AS bits_us, sum(counter_us)::BIGINT AS counter_us,
           CASE WHEN holder = 'idle' THEN sum(dark_us)::BIGINT ELSE 0 END AS down_us, max(method)::INTEGER AS method, bool_or(heard) AS heard
    FROM (FROM whole UNION ALL FROM parts) GROUP BY hour, device_id, holder, job_id, holder_key
    UNION ALL
    SELECT hour, device_id, 'unattributed:telemetry_gap', NULL, 'unattributed:telemetry_gap', sum(gap_mj)::BIGINT, sum(gap_mj)::BIGINT, sum(below_mj)::BIGINT,
           sum(above_mj)::BIGINT, 0, sum(gap_us)::BIGINT, 0, 0, 0, 0, 0, 0, 0, 0, 0, true
    FROM gap_part WHERE NOT kept GROUP BY hour, device_id
)
SELECT hour, device_id, holder, job_id, holder_key, CASE WHEN spanned_us > 0 THEN energy_mj END AS energy_mj,
       CASE WHEN spanned_us > 0 THEN estimated_mj END AS estimated_mj,
       CASE WHEN spanned_us > 0 AND estimated_mj > 0 THEN greatest(energy_mj - below_mj, 0) END AS energy_low_mj,
       CASE WHEN spanned_us > 0 AND estimated_mj > 0 THEN energy_mj + above_mj END AS energy_high_mj, held_us, covered_us,
       CASE WHEN known_us > 0 THEN active_us END AS active_us, CASE WHEN known_us > 0 THEN idle_us END AS idle_us,
       CASE WHEN known_us > 0 THEN throttled_us END AS throttled_us, down_us, spanned_us, methods()[method + 1] AS method,
       CASE WHEN heard THEN 1 END AS feed, bits_us, counter_us
FROM summed;
