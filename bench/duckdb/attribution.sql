-- The books of some boards over some hours, in DuckDB: what attribution.day is measured beside. Run by bench/attribution_peer.py once
-- for each lot of boards: the sealed files lie by device and time, so a lot is some row groups of each file, every row is decoded
-- once, and the window sorts what fits into memory. Integers throughout: energy in mJ, time in us, products in 128 bits.
--
-- Given (made beforehand, not timed): held (who held which board when, evidence already weighed), board, hour. Makes: part (board x hour x holder). Lines: attribution_lines.sql.
--
-- Left out here and done by ours: minutes, findings, quality, bounds of estimates, power levels at cuts without a reading, activity of
-- shared boards (here: what they are entitled to), node overhead, hashes, the chain over lines, commits to a database.

CREATE OR REPLACE TEMP TABLE cut AS
WITH edge AS (
    SELECT device_id, hour_us AS at_us FROM board, hour WHERE device_id BETWEEN $first AND $last
    UNION SELECT device_id, (SELECT max(hour_us) + 3600000000 FROM hour) FROM board WHERE device_id BETWEEN $first AND $last
    UNION SELECT device_id, unnest([start_us, end_us]) FROM held WHERE device_id BETWEEN $first AND $last
), piece AS (
    SELECT device_id, at_us AS from_us, lead(at_us) OVER (PARTITION BY device_id ORDER BY at_us) AS to_us FROM edge
    WHERE at_us BETWEEN (SELECT min(hour_us) FROM hour) AND (SELECT max(hour_us) + 3600000000 FROM hour)
), segment AS (SELECT DISTINCT segment, device_id, start_us, end_us FROM held WHERE device_id BETWEEN $first AND $last)
SELECT row_number() OVER () AS piece, piece.device_id, piece.from_us - piece.from_us % 3600000000 AS hour_us, from_us, to_us,
       CASE WHEN to_us <= segment.end_us THEN segment.segment END AS segment
FROM piece ASOF LEFT JOIN segment ON piece.device_id = segment.device_id AND piece.from_us >= segment.start_us
WHERE to_us IS NOT NULL;

CREATE OR REPLACE TEMP TABLE step AS
WITH reading AS (
    SELECT device_id, epoch_us("at") AS at_us, epoch_id, energy_mj, power_average_mw AS power_mw, gpu_util_percent AS util,
           (clocks_event_reasons & 236) <> 0 AS slowed, throttle_power_cap_ns + throttle_sw_thermal_ns + throttle_hw_thermal_ns
           + throttle_power_brake_ns AS throttled_ns
    FROM read_parquet($files) WHERE device_id BETWEEN $first AND $last AND energy_mj IS NOT NULL
), following AS (
    SELECT device_id, at_us, epoch_id, energy_mj, throttled_ns, lead(at_us) OVER w AS next_us, lead(epoch_id) OVER w AS next_epoch,
           lead(energy_mj) OVER w AS next_mj, lead(throttled_ns) OVER w AS next_ns, lead(at_us, 2) OVER w - lead(at_us) OVER w <= $gap_us AS soon,
           -- An exact reading at an event carries no gauges: the periodic row after it speaks.
           coalesce(lead(util) OVER w, CASE WHEN soon THEN lead(util, 2) OVER w END) AS util,
           coalesce(lead(power_mw) OVER w, CASE WHEN soon THEN lead(power_mw, 2) OVER w END) AS power_mw,
           coalesce(lead(slowed) OVER w, CASE WHEN soon THEN lead(slowed, 2) OVER w END) AS slowed
    FROM reading WINDOW w AS (PARTITION BY device_id ORDER BY at_us)
), judged AS (
    SELECT f.device_id, at_us, next_us, next_us - at_us AS dt_us, next_mj - f.energy_mj AS grown_mj,
           CASE WHEN epoch_id <> next_epoch THEN 3 WHEN dt_us > $reach_us THEN 5
                WHEN grown_mj < 0 THEN 2 WHEN grown_mj > 20000 * (dt_us + $refresh_us) // 1000 + 1 THEN 4 WHEN dt_us > $gap_us THEN 1 ELSE 0 END AS verdict,
           util > 0 AS active, util = 0 AND f.power_mw <= 130000 AS idle, util > 0 AND slowed AS slowed, util IS NOT NULL AS known,
           (next_ns - throttled_ns) // 1000 AS violation_us
    FROM following AS f WHERE next_us IS NOT NULL
)
SELECT device_id, at_us, next_us, dt_us, grown_mj, verdict, active, idle, known,
       CASE WHEN violation_us >= 0 THEN least(violation_us, dt_us) WHEN slowed THEN dt_us ELSE 0 END AS throttled_us
FROM judged WHERE verdict < 2;

-- Most intervals lie in one piece. Those that pass the end of their hour meet the pieces of later hours too.
CREATE OR REPLACE TEMP TABLE measured AS
WITH met AS (
    SELECT piece, segment, c.from_us, c.to_us, s.* FROM step AS s JOIN cut AS c
    ON s.device_id = c.device_id AND s.at_us - s.at_us % 3600000000 = c.hour_us AND s.at_us < c.to_us AND s.next_us > c.from_us
    UNION ALL
    SELECT piece, segment, c.from_us, c.to_us, s.* FROM step AS s JOIN cut AS c
    ON s.device_id = c.device_id AND s.next_us > c.from_us AND c.hour_us > s.at_us
    WHERE s.next_us - s.next_us % 3600000000 > s.at_us
), clipped AS (
    SELECT *, greatest(at_us, from_us) - at_us AS lo, least(next_us, to_us) - at_us AS hi, hi - lo = dt_us AS whole FROM met
), counted AS (
    SELECT piece, segment, verdict, at_us, next_us, hi - lo AS time_us, active, idle, known,
           CASE WHEN whole THEN grown_mj ELSE (grown_mj::HUGEINT * hi // dt_us - grown_mj::HUGEINT * lo // dt_us)::BIGINT END AS energy_mj,
           CASE WHEN whole THEN throttled_us ELSE (throttled_us::HUGEINT * hi // dt_us - throttled_us::HUGEINT * lo // dt_us)::BIGINT END AS throttled_us
    FROM clipped
)
SELECT c.piece, sum(energy_mj) FILTER (verdict = 0) AS metered_mj, sum(time_us) FILTER (verdict = 0) AS covered_us,
       sum(time_us) FILTER (verdict = 0 AND known) AS known_us, sum(time_us) FILTER (verdict = 0 AND active) AS active_us,
       sum(time_us) FILTER (verdict = 0 AND idle) AS idle_us, sum(throttled_us) FILTER (verdict = 0) AS throttled_us,
       sum(energy_mj) FILTER (verdict = 1) AS gap_mj, sum(time_us) FILTER (verdict = 1) AS gap_us,
       -- A gap inside one holding is its holders'; any other is nobody's.
       sum(energy_mj) FILTER (verdict = 1 AND h.start_us <= at_us AND h.end_us >= next_us) AS kept_mj,
       sum(time_us) FILTER (verdict = 1 AND h.start_us <= at_us AND h.end_us >= next_us) AS kept_us
FROM counted AS c LEFT JOIN (SELECT DISTINCT segment, start_us, end_us FROM held) AS h ON verdict = 1 AND h.segment = c.segment
GROUP BY c.piece;

INSERT INTO part
WITH span AS (
    SELECT c.*, coalesce(metered_mj, 0) AS metered_mj, coalesce(covered_us, 0) AS covered_us, coalesce(known_us, 0) AS known_us,
           coalesce(active_us, 0) AS active_us, coalesce(idle_us, 0) AS idle_us, coalesce(throttled_us, 0) AS throttled_us,
           coalesce(gap_mj, 0) AS gap_mj, coalesce(gap_us, 0) AS gap_us, coalesce(kept_mj, 0) AS kept_mj, coalesce(kept_us, 0) AS kept_us
    FROM cut AS c LEFT JOIN measured USING (piece)
), holder AS (
    SELECT segment, holder, job_id, holder_key, weight, weights FROM held WHERE device_id BETWEEN $first AND $last
), parts AS (
    SELECT s.*, s.to_us - s.from_us AS held_us, coalesce(holder, 'idle') AS holder, job_id, coalesce(holder_key, 'idle') AS holder_key,
           coalesce(weight, 1) AS weight, coalesce(weights, 1) AS weights
    FROM span AS s LEFT JOIN holder USING (segment)
), whole AS (SELECT * FROM parts WHERE weight = weights), split AS (
    -- Largest remainder: each part rounded down, what is left goes by ones to the largest rests, ties by name.
    SELECT piece, device_id, hour_us, holder, job_id, holder_key, quantity, floor_of
           + (row_number() OVER (PARTITION BY piece, quantity ORDER BY rest DESC, holder_key) <= total - sum(floor_of) OVER (PARTITION BY piece, quantity))::BIGINT AS share
    FROM (
        SELECT piece, device_id, hour_us, holder, job_id, holder_key, quantity, total, (total::HUGEINT * weight // weights)::BIGINT AS floor_of,
               total::HUGEINT * weight % weights AS rest
        FROM (SELECT * FROM parts WHERE weight <> weights)
        UNPIVOT (total FOR quantity IN (metered_mj, kept_mj, held_us, covered_us, known_us, active_us, idle_us, throttled_us, kept_us, gap_us))
    )
), each AS (
    SELECT device_id, hour_us, holder, job_id, holder_key, metered_mj, kept_mj, held_us, covered_us, known_us, active_us, idle_us, throttled_us, kept_us FROM whole
    UNION ALL
    SELECT device_id, hour_us, holder, job_id, holder_key, metered_mj, kept_mj, held_us, covered_us, known_us, active_us, idle_us, throttled_us, kept_us
    FROM (PIVOT split ON quantity IN ('metered_mj', 'kept_mj', 'held_us', 'covered_us', 'known_us', 'active_us', 'idle_us', 'throttled_us', 'kept_us')
          USING sum(share) GROUP BY piece, device_id, hour_us, holder, job_id, holder_key)
), booked AS (
    SELECT hour_us, device_id, holder, job_id, holder_key, sum(metered_mj + kept_mj) AS energy_mj, sum(kept_mj) AS kept_mj, sum(held_us) AS held_us,
           sum(covered_us) AS covered_us, sum(known_us) AS known_us, sum(active_us) AS active_us, sum(idle_us) AS idle_us,
           sum(throttled_us) AS throttled_us, sum(covered_us + kept_us) AS spanned_us
    FROM each GROUP BY ALL
    UNION ALL
    SELECT hour_us, device_id, 'unattributed:telemetry_gap', NULL, 'unattributed:telemetry_gap', sum(gap_mj - kept_mj), sum(gap_mj - kept_mj), 0, 0, 0, 0, 0, 0,
           sum(gap_us - kept_us)
    FROM span WHERE gap_us > kept_us GROUP BY hour_us, device_id
)
SELECT hour_us, device_id, holder, job_id, holder_key, CASE WHEN spanned_us > 0 THEN energy_mj END, CASE WHEN spanned_us > 0 THEN kept_mj END,
       held_us, covered_us, CASE WHEN known_us > 0 THEN active_us END, CASE WHEN known_us > 0 THEN idle_us END,
       CASE WHEN known_us > 0 THEN throttled_us END
FROM booked;
