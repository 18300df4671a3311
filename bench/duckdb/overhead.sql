-- What a node uses beyond its boards, over the minutes that its meter and all of its boards cover, by who used the boards.

CREATE OR REPLACE TEMP TABLE node_step AS
WITH reading AS (
    SELECT meter_id, epoch_us("at") AS at_us, lead(epoch_us("at")) OVER w AS next_us, energy_mj, lead(energy_mj) OVER w AS next_mj, epoch_id,
           lead(epoch_id) OVER w AS next_epoch
    FROM read_parquet($node_files, hive_partitioning = false) WHERE energy_mj IS NOT NULL
    AND meter_id IN (SELECT meter_id FROM meter WHERE node_id IN (SELECT node_id FROM board WHERE device_id BETWEEN $first AND $last))
    WINDOW w AS (PARTITION BY meter_id ORDER BY "at")
)
SELECT meter_id, at_us, next_us, next_mj - energy_mj AS grown_mj FROM reading
WHERE epoch_id = next_epoch AND next_us - at_us <= $node_gap_us AND next_mj >= energy_mj
AND next_mj - energy_mj <= 1280000 * (next_us - at_us + $refresh_us) // 1000 + 1;

CREATE OR REPLACE TEMP TABLE node_hour AS
WITH node AS (SELECT node_id, count(*) AS boards, list(device_id) AS devices FROM board WHERE device_id BETWEEN $first AND $last GROUP BY node_id), metered AS (
    SELECT meter_id, unnest(range(at_us // 3600000000, (next_us - 1) // 3600000000 + 1)) AS hour, at_us, next_us, grown_mj FROM node_step
), spoken AS (
    SELECT meter_id, hour::INTEGER AS hour, sum(part_of_step(grown_mj, at_us, next_us, hour * 3600000000, (hour + 1) * 3600000000))::BIGINT AS node_mj,
           sum(least(next_us, (hour + 1) * 3600000000) - greatest(at_us, hour * 3600000000))::BIGINT AS covered_us
    FROM metered SEMI JOIN (SELECT hour_us // 3600000000 AS hour FROM hour) AS h USING (hour) GROUP BY meter_id, hour
), chosen AS (
    SELECT node_id, hour, meter_id, node_mj, covered_us FROM spoken JOIN meter USING (meter_id)
    QUALIFY row_number() OVER (PARTITION BY node_id, hour ORDER BY coalesce(list_position(authority(), name), 99), name) = 1
), under AS (
    SELECT b.node_id, s.hour, sum(s.metered_mj)::BIGINT AS boards_mj, sum(s.covered_us)::BIGINT AS covered_us FROM span AS s JOIN board AS b USING (device_id)
    GROUP BY b.node_id, s.hour
)
SELECT n.node_id, c.hour, meter_id, boards, devices, node_mj - boards_mj AS overhead_mj,
       c.covered_us = 3600000000 AND u.covered_us = 3600000000 * boards AS complete
FROM node AS n JOIN chosen AS c USING (node_id) JOIN under AS u USING (node_id, hour);

-- An hour with a hole in it is looked at by the minute, on both sides.
CREATE OR REPLACE TEMP TABLE overhead AS
WITH wanted AS (SELECT node_id, hour, unnest(devices) AS device_id, boards FROM node_hour WHERE NOT complete), near AS (
    SELECT DISTINCT device_id, unnest([hour - 1, hour]) AS hour FROM wanted
), of_board AS (
    SELECT device_id, unnest(range(at_us // 60000000, (next_us - 1) // 60000000 + 1)) AS minute, at_us, next_us, grown_mj
    FROM step AS s SEMI JOIN near AS n ON s.device_id = n.device_id AND at_us // 3600000000 = n.hour WHERE verdict = 0
), under AS (
    SELECT w.node_id, minute, any_value(w.hour) AS hour, sum(part_of_step(grown_mj, at_us, next_us, minute * 60000000, (minute + 1) * 60000000)) AS boards_mj,
           sum(least(next_us, (minute + 1) * 60000000) - greatest(at_us, minute * 60000000)) = 60000000 * any_value(w.boards) AS complete
    FROM of_board AS b JOIN wanted AS w ON b.device_id = w.device_id AND minute // 60 = w.hour GROUP BY w.node_id, minute
), of_node AS (
    SELECT meter_id, unnest(range(at_us // 60000000, (next_us - 1) // 60000000 + 1)) AS minute, at_us, next_us, grown_mj
    FROM node_step SEMI JOIN (SELECT meter_id FROM node_hour WHERE NOT complete) USING (meter_id)
), above AS (
    SELECT h.node_id, minute, sum(part_of_step(grown_mj, at_us, next_us, minute * 60000000, (minute + 1) * 60000000)) AS node_mj,
           sum(least(next_us, (minute + 1) * 60000000) - greatest(at_us, minute * 60000000)) = 60000000 AS complete
    FROM of_node AS n JOIN node_hour AS h ON n.meter_id = h.meter_id AND n.minute // 60 = h.hour WHERE NOT h.complete GROUP BY h.node_id, minute
)
SELECT node_id, hour, overhead_mj, 3600000000 AS known_us FROM node_hour WHERE complete
UNION ALL
SELECT node_id, hour, sum(node_mj - boards_mj)::BIGINT, count(*) * 60000000 FROM under JOIN above USING (node_id, minute)
WHERE under.complete AND above.complete GROUP BY node_id, hour;

CREATE OR REPLACE TEMP TABLE node_usage AS
WITH used AS (
    SELECT b.node_id, u.hour, u.holder, u.job_id, u.holder_key, sum(coalesce(energy_mj, 0))::BIGINT AS used_mj FROM board_usage AS u JOIN board AS b USING (device_id)
    GROUP BY ALL
), named AS (
    SELECT * EXCLUDE (holder, holder_key), CASE WHEN bool_and(holder = 'idle') OVER n THEN 'platform:overhead' ELSE holder END AS holder,
           CASE WHEN bool_and(holder = 'idle') OVER n THEN 'platform:overhead' ELSE holder_key END AS holder_key, sum(used_mj) OVER n AS all_mj
    FROM used WINDOW n AS (PARTITION BY node_id, hour)
), floored AS (
    SELECT c.device_id, n.*, known_us, overhead_mj, CASE WHEN all_mj > 0 THEN (overhead_mj::HUGEINT * used_mj // all_mj)::BIGINT ELSE 0 END AS floor_mj,
           CASE WHEN all_mj > 0 THEN overhead_mj::HUGEINT * used_mj % all_mj ELSE 0 END AS rest
    FROM named AS n JOIN overhead AS o USING (node_id, hour) JOIN chassis AS c USING (node_id) WHERE overhead_mj >= 0
), ranked AS (
    SELECT *, row_number() OVER (PARTITION BY node_id, hour ORDER BY rest DESC, holder_key) AS place, overhead_mj - sum(floor_mj) OVER (PARTITION BY node_id, hour) AS more
    FROM floored
)
SELECT hour, device_id, holder, job_id, holder_key,
       CASE WHEN all_mj > 0 THEN floor_mj + (place <= more)::INTEGER WHEN place = 1 THEN overhead_mj ELSE 0 END AS energy_mj, known_us
FROM ranked;
