-- What the readings show of a lot: throttling, idle waste, and what could not be known; then everything of the lot goes to the tables of all.

CREATE OR REPLACE TEMP TABLE lot_finding AS
WITH held_from AS (
    SELECT hour, p.device_id, h.job_id, min(from_us) AS start_us, max(to_us) AS end_us FROM piece AS p JOIN held AS h
    ON p.segment = h.segment AND p.device_id = h.device_id WHERE h.job_id IS NOT NULL GROUP BY ALL
), slow AS (
    SELECT u.hour, u.device_id, u.job_id, start_us, end_us, bits_us, counter_us, throttled_us, held_us, accelerators,
           (energy_mj::HUGEINT * throttled_us // greatest(held_us, 1) * 20 // 100)::BIGINT AS waste_energy_mj
    FROM board_usage AS u JOIN held_from AS f ON u.hour = f.hour AND u.device_id = f.device_id AND u.job_id = f.job_id JOIN board AS b ON u.device_id = b.device_id
    WHERE energy_mj IS NOT NULL AND throttled_us >= 60000000 AND throttled_us * 100 >= held_us * 5 AND bits_us > 0
), near AS (
    -- An episode of ten minutes has five in one of the hours it touches, or goes beyond all hours that are asked for; and it may reach into the hours beside.
    SELECT DISTINCT device_id, unnest([hour - 1, hour, hour + 1]) AS hour FROM (
        SELECT device_id, hour, sum(idle_us) AS idle_us FROM span WHERE sole AND segment IS NOT NULL GROUP BY device_id, hour)
    WHERE idle_us >= 300000000 OR (idle_us > 0 AND hour IN ((SELECT min(hour) FROM span), (SELECT max(hour) FROM span)))
), run AS (
    -- Idle intervals that follow each other without a break.
    SELECT device_id, min(at_us) AS from_us, max(next_us) AS to_us FROM (
        SELECT device_id, at_us, next_us, sum(begins) OVER (PARTITION BY device_id ORDER BY at_us) AS number FROM (
            SELECT s.device_id, at_us, next_us, (lag(next_us) OVER (PARTITION BY s.device_id ORDER BY at_us) IS DISTINCT FROM at_us)::INTEGER AS begins
            FROM step AS s SEMI JOIN near AS n ON s.device_id = n.device_id AND s.at_us // 3600000000 = n.hour WHERE verdict = 0 AND idle))
    GROUP BY device_id, number HAVING max(next_us) - min(at_us) >= 600000000
), episode AS (
    SELECT r.device_id, h.job_id, greatest(r.from_us, h.start_us) AS start_us, least(r.to_us, h.end_us) AS end_us FROM run AS r JOIN held AS h USING (device_id)
    WHERE h.weight = h.weights AND h.job_id IS NOT NULL AND least(r.to_us, h.end_us) - greatest(r.from_us, h.start_us) >= 600000000
), idle_hour AS (SELECT DISTINCT device_id, hour FROM board_usage WHERE job_id IS NOT NULL AND idle_us > 0), clipped AS (
    SELECT DISTINCT e.device_id, e.job_id, h.hour, greatest(start_us, hour::BIGINT * 3600000000) AS start_us, least(end_us, (hour + 1)::BIGINT * 3600000000) AS end_us
    FROM episode AS e JOIN idle_hour AS h USING (device_id) WHERE start_us < (hour + 1)::BIGINT * 3600000000 AND end_us > hour::BIGINT * 3600000000
), idle AS (
    SELECT c.device_id, c.job_id, c.hour, c.start_us, c.end_us, sum(part_of_step(grown_mj, at_us, next_us, c.start_us, c.end_us))::BIGINT AS waste_energy_mj
    FROM (SELECT device_id, at_us, next_us, grown_mj, unnest(CASE WHEN (next_us - 1) // 3600000000 = at_us // 3600000000 THEN [at_us // 3600000000]
              ELSE range(at_us // 3600000000, (next_us - 1) // 3600000000 + 1) END) AS hour FROM step WHERE verdict = 0 AND idle) AS s
    JOIN clipped AS c ON s.device_id = c.device_id AND s.hour = c.hour AND at_us < c.end_us AND next_us > c.start_us
    GROUP BY ALL
)
SELECT hour, 'throttling' AS kind, device_id, job_id, start_us, end_us, '{"held_us":' || held_us
       || ',"loss_percent":20,"loss_source":"assumed","signals":[{"instrument":"clocks_event_reasons","throttled_us":' || bits_us || '}'
       || CASE WHEN counter_us > 0 THEN ',{"instrument":"violation_counters","throttled_us":' || throttled_us || '}' ELSE '' END || ']}' AS evidence,
       waste_energy_mj, throttled_us * accelerators * 20 // 100 AS capacity_freed_us, CASE WHEN counter_us > 0 THEN 0.9 ELSE 0.5 END::DOUBLE AS confidence
FROM slow
UNION ALL
SELECT hour, 'idle_waste', device_id, job_id, start_us, end_us,
       '{"episode_at_least_us":600000000,"signals":[{"instrument":"gpu_util_percent","value":0},{"instrument":"power","mean_mw":'
       || waste_energy_mj * 1000000 // (end_us - start_us) || '}]}', waste_energy_mj, (end_us - start_us) * accelerators, 0.9::DOUBLE
FROM idle JOIN board USING (device_id)
UNION ALL
SELECT hour, 'negative_remainder', device_id, NULL, hour::BIGINT * 3600000000, (hour + 1)::BIGINT * 3600000000,
       '{"minutes":' || known_us // 60000000 || ',"missing_mj":' || -overhead_mj || '}', NULL, NULL, 1.0::DOUBLE
FROM overhead JOIN chassis USING (node_id) WHERE overhead_mj < 0;

CREATE OR REPLACE TEMP TABLE lot_quality AS
WITH hole AS (
    SELECT hour, s.device_id, ['counter_reset', 'epoch_change', 'implausible', 'no_data'][verdict - 1] AS reason,
           sum(least(next_us, to_us) - greatest(at_us, from_us))::BIGINT AS time_us
    FROM (SELECT * FROM step WHERE verdict > 1) AS s JOIN piece AS p ON s.device_id = p.device_id AND at_us < to_us AND next_us > from_us GROUP BY ALL
    UNION ALL SELECT hour, device_id, 'telemetry_gap', sum(gap_us)::BIGINT FROM span WHERE gap_us > 0 GROUP BY ALL
), open AS (
    SELECT hour, device_id, sum(to_us - from_us - covered_us)::BIGINT - coalesce((
        SELECT sum(time_us) FROM hole AS h WHERE h.device_id = s.device_id AND h.hour = s.hour), 0)::BIGINT AS time_us
    FROM span AS s GROUP BY hour, device_id HAVING sum(to_us - from_us - covered_us) > 0
)
FROM hole
UNION ALL SELECT hour, device_id, 'no_data', time_us FROM open WHERE time_us > 0
UNION ALL
SELECT h.hour, c.device_id, 'overhead_unknown', 3600000000 - coalesce(known_us, 0) FROM (
    SELECT DISTINCT p.hour, b.node_id FROM piece AS p JOIN board AS b USING (device_id)) AS h
JOIN chassis AS c USING (node_id) LEFT JOIN (FROM overhead WHERE overhead_mj >= 0) AS o ON h.node_id = o.node_id AND h.hour = o.hour
WHERE h.node_id IN (SELECT node_id FROM meter) AND coalesce(known_us, 0) < 3600000000;

INSERT INTO usage
SELECT u.* EXCLUDE (bits_us, counter_us), b.accelerators, b.model FROM board_usage AS u JOIN board AS b USING (device_id)
UNION ALL
SELECT hour, device_id, holder, job_id, holder_key, energy_mj, 0, NULL, NULL, 0, 0, NULL, NULL, NULL, 0, known_us, 'overhead', 1, c.accelerators, c.model
FROM node_usage JOIN chassis AS c USING (device_id);

INSERT INTO finding FROM lot_finding;

INSERT INTO quality FROM lot_quality;
