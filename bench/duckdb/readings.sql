-- The books of some boards over some hours, in DuckDB: what attribution.day is measured beside. Run by bench/attribution_peer.py once for
-- each lot of boards, the lots by as many connections as there are cores, one thread each. Integers throughout: energy in mJ, time in us,
-- products in 128 bits where 64 do not do.
--
-- This file: pieces (board x hour x who held it) and intervals between readings, with what is metered in each piece.
-- Given: held (who held which board when), board, hour.

CREATE OR REPLACE TEMP TABLE piece AS
WITH segment AS (
    SELECT segment, device_id, start_us, end_us, bool_and(weight = weights) AS sole, min(holder_key) AS holder_key FROM held
    WHERE device_id BETWEEN $first AND $last GROUP BY ALL
), bound AS (SELECT min(hour_us) AS first_us, max(hour_us) + 3600000000 AS last_us FROM hour), edge AS (
    SELECT device_id, hour_us AS at_us FROM board, hour WHERE device_id BETWEEN $first AND $last
    UNION SELECT device_id, last_us FROM board, bound WHERE device_id BETWEEN $first AND $last
    UNION SELECT device_id, unnest([start_us, end_us]) FROM segment
), cut AS (
    SELECT device_id, at_us AS from_us, lead(at_us) OVER (PARTITION BY device_id ORDER BY at_us) AS to_us FROM edge, bound
    WHERE at_us BETWEEN first_us AND last_us
)
SELECT row_number() OVER ()::INTEGER AS piece, cut.device_id, (from_us // 3600000000)::INTEGER AS hour, from_us, to_us,
       CASE WHEN to_us <= s.end_us THEN s.segment END AS segment, CASE WHEN to_us <= s.end_us THEN sole ELSE true END AS sole,
       CASE WHEN to_us <= s.end_us THEN s.holder_key ELSE 'idle' END AS holder_key
FROM cut ASOF LEFT JOIN segment AS s ON cut.device_id = s.device_id AND cut.from_us >= s.start_us
WHERE to_us IS NOT NULL;

-- Sealed files lie by device and time. So what follows a reading is the next row of its file: a window over nothing streams, where one over
-- (PARTITION BY device_id ORDER BY at) sorts 9 M rows of a lot, for thrice the time (docs/attribution.md). The first and last two rows of a
-- board in each file are kept beside, and what lies between two files is made of these.
CREATE OR REPLACE TEMP TABLE step AS
WITH reading AS (
    SELECT device_id, epoch_us("at") AS at_us, epoch_id, energy_mj, power_average_mw AS power_mw, gpu_util_percent AS util,
           (clocks_event_reasons & 236) <> 0 AS slowed, throttle_power_cap_ns + throttle_sw_thermal_ns + throttle_hw_thermal_ns
           + throttle_power_brake_ns AS throttled_ns
    FROM read_parquet($files, hive_partitioning = false) WHERE device_id BETWEEN $first AND $last AND energy_mj IS NOT NULL
), following AS (
    SELECT *, lead(device_id, 2) OVER () IS DISTINCT FROM device_id AS is_last, lag(device_id, 2) OVER () IS DISTINCT FROM device_id AS is_first,
           lead(at_us) OVER () AS next_us, lead(epoch_id) OVER () AS next_epoch, lead(energy_mj) OVER () AS next_mj,
           lead(throttled_ns) OVER () AS next_ns, lead(at_us, 2) OVER () - next_us <= $gap_us AS soon,
           -- An exact reading at an event carries no gauges: the periodic row after it speaks.
           coalesce(lead(util) OVER (), CASE WHEN soon THEN lead(util, 2) OVER () END) AS next_util,
           coalesce(lead(power_mw) OVER (), CASE WHEN soon THEN lead(power_mw, 2) OVER () END) AS next_power_mw,
           coalesce(lead(slowed) OVER (), CASE WHEN soon THEN lead(slowed, 2) OVER () END) AS next_slowed
    FROM reading
)
SELECT device_id, at_us, CASE WHEN NOT is_last THEN next_us END AS next_us, CASE WHEN NOT is_last THEN next_mj - energy_mj END AS grown_mj,
       CASE WHEN NOT is_last THEN verdict_of(epoch_id <> next_epoch, next_us - at_us, next_mj - energy_mj) END AS verdict,
       next_util AS util, next_util = 0 AND next_power_mw <= 130000 AS idle, next_util > 0 AND next_slowed AS slowed,
       (next_ns - throttled_ns) // 1000 AS violation_us,
       CASE WHEN is_first OR is_last THEN [is_last::BIGINT, epoch_id, energy_mj, following.util, power_mw, following.slowed::BIGINT, throttled_ns] END AS raw
FROM following;

INSERT INTO step
WITH edge AS (
    SELECT device_id, at_us, raw[1] = 1 AS is_last, raw[2] AS epoch_id, raw[3] AS energy_mj, raw[4] AS util, raw[5] AS power_mw, raw[6] = 1 AS slowed,
           raw[7] AS throttled_ns FROM step WHERE raw IS NOT NULL
), following AS (
    SELECT *, lead(at_us) OVER w AS next_us, lead(epoch_id) OVER w AS next_epoch, lead(energy_mj) OVER w AS next_mj,
           lead(throttled_ns) OVER w AS next_ns, lead(at_us, 2) OVER w - next_us <= $gap_us AS soon,
           coalesce(lead(util) OVER w, CASE WHEN soon THEN lead(util, 2) OVER w END) AS next_util,
           coalesce(lead(power_mw) OVER w, CASE WHEN soon THEN lead(power_mw, 2) OVER w END) AS next_power_mw,
           coalesce(lead(slowed) OVER w, CASE WHEN soon THEN lead(slowed, 2) OVER w END) AS next_slowed
    FROM edge WINDOW w AS (PARTITION BY device_id ORDER BY at_us)
)
SELECT device_id, at_us, next_us, next_mj - energy_mj, verdict_of(epoch_id <> next_epoch, next_us - at_us, next_mj - energy_mj), next_util,
       next_util = 0 AND next_power_mw <= 130000, next_util > 0 AND next_slowed, (next_ns - throttled_ns) // 1000, NULL
FROM following WHERE is_last AND next_us IS NOT NULL;

-- Intervals that pass the end of a piece, with the part of each that lies in it; there are few.
CREATE OR REPLACE TEMP TABLE crossed AS
WITH met AS (
    SELECT p.*, s.* EXCLUDE (device_id, raw) FROM step AS s JOIN piece AS p ON s.device_id = p.device_id AND s.at_us // 3600000000 = p.hour
    WHERE verdict = 0 AND at_us < to_us AND next_us > from_us AND (at_us < from_us OR next_us > to_us)
    UNION ALL
    SELECT p.*, s.* EXCLUDE (device_id, raw) FROM (SELECT * FROM step WHERE verdict = 0 AND (next_us - 1) // 3600000000 > at_us // 3600000000) AS s
    JOIN piece AS p ON s.device_id = p.device_id AND p.hour > s.at_us // 3600000000 AND next_us > from_us
)
SELECT *, greatest(at_us, from_us) - at_us AS lo, least(next_us, to_us) - at_us AS hi, next_us - at_us AS dt_us,
       (grown_mj::HUGEINT * hi // dt_us)::BIGINT - (grown_mj::HUGEINT * lo // dt_us)::BIGINT AS part_mj
FROM met;

CREATE OR REPLACE TEMP TABLE measured AS
WITH counted AS (
    SELECT piece, next_us - at_us AS time_us, grown_mj AS energy_mj, util, idle, violation_us >= 0 AS counted,
           CASE WHEN violation_us >= 0 THEN least(violation_us, next_us - at_us) WHEN slowed THEN next_us - at_us ELSE 0 END AS throttled_us, slowed
    FROM step AS s JOIN piece AS p ON s.device_id = p.device_id AND s.at_us // 3600000000 = p.hour AND at_us >= from_us AND next_us <= to_us
    WHERE verdict = 0
    UNION ALL
    SELECT piece, hi - lo, part_mj, util, idle, violation_us >= 0,
           CASE WHEN violation_us >= 0 THEN (least(violation_us, dt_us)::HUGEINT * hi // dt_us - least(violation_us, dt_us)::HUGEINT * lo // dt_us)::BIGINT
                WHEN slowed THEN hi - lo ELSE 0 END, slowed
    FROM crossed
)
SELECT piece, sum(energy_mj)::BIGINT AS metered_mj, sum(time_us)::BIGINT AS covered_us, sum(time_us) FILTER (util IS NOT NULL)::BIGINT AS known_us,
       sum(time_us) FILTER (util > 0)::BIGINT AS active_us, sum(time_us) FILTER (idle)::BIGINT AS idle_us, sum(throttled_us)::BIGINT AS throttled_us,
       sum(time_us) FILTER (slowed)::BIGINT AS bits_us, sum(time_us) FILTER (counted)::BIGINT AS counter_us
FROM counted GROUP BY piece;

-- Where one holder gives way to another strictly inside an interval: by the power of either side (docs/methodology.md, edges).
CREATE OR REPLACE TEMP TABLE moved AS
WITH sides AS (
    SELECT b.piece FROM piece AS a JOIN piece AS b ON a.device_id = b.device_id AND a.hour = b.hour AND a.to_us = b.from_us
    WHERE a.sole AND b.sole AND a.holder_key <> b.holder_key
), split AS (
    SELECT DISTINCT device_id, at_us, next_us, hour FROM crossed JOIN sides USING (piece) WHERE at_us < from_us
), part AS (
    SELECT c.*, bool_and(sole) OVER (PARTITION BY c.device_id, c.at_us, c.hour) AS all_sole FROM crossed AS c SEMI JOIN split AS s
    ON c.device_id = s.device_id AND c.at_us = s.at_us AND c.hour = s.hour
), beside AS (
    SELECT s.device_id, s.at_us, s.next_us, s.grown_mj * 1000000 // (s.next_us - s.at_us) AS power_mw FROM step AS s
    WHERE verdict = 0 AND s.next_us - s.at_us >= $refresh_us AND (device_id, at_us // 3600000000) IN (
        SELECT (device_id, unnest([at_us // 3600000000 - 1, at_us // 3600000000, next_us // 3600000000])) FROM split)
), levelled AS (
    SELECT p.*, p.hi - p.lo AS time_us, coalesce(b.idle_power_mw, b.accelerators * 100000) AS rest_mw,
           CASE WHEN p.lo = 0 AND e.at_us >= p.from_us THEN e.power_mw
                WHEN p.hi = p.dt_us AND l.next_us <= p.to_us THEN l.power_mw
                WHEN p.holder_key = 'idle' THEN rest_mw END AS level_mw
    FROM part AS p JOIN board AS b USING (device_id) LEFT JOIN beside AS e ON e.device_id = p.device_id AND e.next_us = p.at_us
    LEFT JOIN beside AS l ON l.device_id = p.device_id AND l.at_us = p.next_us
    WHERE all_sole
), summed AS (
    SELECT *, sum(part_mj) OVER i AS total_mj, greatest(total_mj * 1000000 - coalesce(sum(time_us * level_mw) OVER i, 0),
           rest_mw * coalesce(sum(time_us) FILTER (level_mw IS NULL) OVER i, 0)) AS left_uw,
           coalesce(sum(time_us) FILTER (level_mw IS NULL) OVER i, 0) AS open_us
    FROM levelled WINDOW i AS (PARTITION BY device_id, at_us, hour)
), weighed AS (
    SELECT *, CASE WHEN level_mw IS NOT NULL THEN time_us * level_mw ELSE left_uw * time_us // greatest(open_us, 1) END::HUGEINT AS first_weight,
           CASE WHEN sum(first_weight) OVER i > 0 THEN first_weight ELSE time_us END AS weight
    FROM summed WINDOW i AS (PARTITION BY device_id, at_us, hour)
), floored AS (
    SELECT *, sum(weight) OVER i AS weights, total_mj * weight // weights AS floor_mj, total_mj * weight % weights AS rest
    FROM weighed WINDOW i AS (PARTITION BY device_id, at_us, hour)
), shared AS (
    SELECT piece, part_mj, (floor_mj + (row_number() OVER (PARTITION BY device_id, at_us, hour ORDER BY rest DESC, holder_key, from_us)
           <= total_mj - sum(floor_mj) OVER (PARTITION BY device_id, at_us, hour))::INTEGER)::BIGINT AS level_mj
    FROM floored
)
SELECT piece, sum(level_mj - part_mj)::BIGINT AS moved_mj, sum(level_mj)::BIGINT AS edged_mj, sum(level_mj - least(level_mj, part_mj))::BIGINT AS below_mj,
       sum(greatest(level_mj, part_mj) - level_mj)::BIGINT AS above_mj
FROM shared GROUP BY piece;
