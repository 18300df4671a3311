-- Who held which board when, from allocations as they were told (docs/methodology.md, who held what). Makes: board, chassis, instance, held, slice.
--
-- Known here is what the simulated fleet has: whole boards, shares, MIG instances, counts on nodes, and holdings without an end. Contradicting
-- claims, boots, moves between nodes, other feeds than the agent's: the worker weighs them, and here they end the run.

CREATE OR REPLACE TABLE board AS
SELECT device_id, node_id, accelerators, model, idle_power_mw, accelerators * (
    SELECT arg_min(most_mw, place) FROM sheet WHERE regexp_matches(model, pattern)) AS most_mw
FROM device WHERE kind = 'gpu';

CREATE OR REPLACE TABLE chassis AS SELECT device_id, node_id, accelerators, model FROM device WHERE kind = 'chassis';

CREATE OR REPLACE TABLE instance AS
SELECT device_id AS instance_id, parent_device_id AS device_id, slice_ppm FROM device WHERE parent_device_id IS NOT NULL;

CREATE OR REPLACE TEMP TABLE known AS
SELECT CASE WHEN count(*) FILTER (feed <> 1 OR origin <> 4 OR cadence_us * 3 > $gap_us) > 0 THEN error('another feed') END,
       CASE WHEN count(DISTINCT (node_id, boot_id)) > count(DISTINCT node_id) THEN error('a node that booted') END,
       CASE WHEN (SELECT count(*) > count(DISTINCT device_id) FROM device) THEN error('a device that moved') END
FROM epoch;

CREATE OR REPLACE TEMP TABLE claim AS
WITH ended AS (
    -- Without an end of its own or of its job it goes on until another has the whole device.
    SELECT a.* REPLACE (coalesce(end_us, (
        SELECT min(start_us) FROM allocation AS b WHERE b.device_id = a.device_id AND b.job_id <> a.job_id AND b.share_ppm IS NULL AND b.start_us > a.start_us),
        2305843009213693952) AS end_us)
    FROM allocation AS a
), fraction AS (
    -- The simplest fraction that a share to a millionth is.
    SELECT ppm, arg_min(num, den) AS num, min(den) AS den FROM (
        SELECT ppm, den, round(ppm * den / 1000000.0::DOUBLE)::BIGINT AS num FROM (SELECT DISTINCT share_ppm AS ppm FROM ended UNION SELECT slice_ppm FROM instance),
               range(1, 501) AS r(den))
    WHERE num > 0 AND abs(num * 1000000 - ppm * den) <= den GROUP BY ppm
), free AS (SELECT node_id, count(*) AS boards, bool_or(device_id IN (SELECT device_id FROM ended)) AS named FROM board GROUP BY node_id)
SELECT coalesce(i.device_id, e.device_id) AS device_id, e.device_id AS leaf_id, job_id, job_key, coalesce(s.num, 1) * coalesce(p.num, 1) AS num,
       coalesce(s.den, 1) * coalesce(p.den, 1) AS den, CASE WHEN i.device_id IS NOT NULL THEN 'slice' WHEN share_ppm IS NULL THEN 'whole' ELSE 'share' END AS method,
       start_us, end_us
FROM ended AS e LEFT JOIN instance AS i ON e.device_id = i.instance_id LEFT JOIN fraction AS s ON e.share_ppm = s.ppm
LEFT JOIN fraction AS p ON i.slice_ppm = p.ppm WHERE e.device_id IS NOT NULL
UNION ALL
SELECT b.device_id, b.device_id, job_id, job_key, CASE WHEN named THEN error('a count on a node of which boards are held by name') ELSE e.accelerators END, boards,
       'count', start_us, end_us
FROM ended AS e JOIN board AS b USING (node_id) JOIN free USING (node_id) WHERE e.device_id IS NULL;

CREATE OR REPLACE TABLE slice AS
SELECT leaf_id AS instance_id, job_id, num * 1000000 // den AS slice_ppm, start_us, end_us FROM claim WHERE leaf_id <> device_id;

CREATE OR REPLACE TABLE held AS
WITH edge AS (SELECT device_id, start_us AS at_us FROM claim UNION SELECT device_id, end_us FROM claim), segment AS (
    SELECT row_number() OVER () AS segment, * FROM (
        SELECT device_id, at_us AS start_us, lead(at_us) OVER (PARTITION BY device_id ORDER BY at_us) AS end_us FROM edge) WHERE end_us IS NOT NULL
), part AS (
    SELECT segment, c.device_id, s.start_us, s.end_us, job_id, job_key, num, den, method FROM claim AS c JOIN segment AS s
    ON c.device_id = s.device_id AND c.start_us < s.end_us AND c.end_us > s.start_us
), denominator AS (
    SELECT segment, list_reduce(list(DISTINCT den), lambda a, b: lcm(a, b)) AS weights FROM part GROUP BY segment
), common AS (
    SELECT segment, device_id, start_us, end_us, job_id, job_key, method, weights, num * weights // den AS weight FROM part JOIN denominator USING (segment)
), summed AS (
    SELECT segment, device_id, start_us, end_us, weights, sum(weight)::BIGINT AS taken, max(rank_of(method)) AS method FROM common GROUP BY ALL
)
SELECT segment, device_id, start_us, end_us, 'job:' || job_id AS holder, job_id, 'job:' || job_key AS holder_key, weight, weights, method FROM common
UNION ALL
SELECT segment, device_id, start_us, end_us, 'idle', NULL, 'idle', CASE WHEN taken > weights THEN error('a board that is held more than once') ELSE weights - taken END,
       weights, methods()[method + 1] FROM summed WHERE taken <> weights;
