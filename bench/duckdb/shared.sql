-- Boards that several hold: pieces are cut at what was seen of who worked, and the energy of each goes by rest and by activity x level.
-- Holders of a board and hour have slots: 0 idle, 1 to 6 jobs in the order of their names, 7 those who hold nothing. A board that more
-- than six jobs hold within an hour ends the run.

CREATE OR REPLACE TEMP TABLE slot AS
WITH mine AS (SELECT * FROM held WHERE device_id BETWEEN $first AND $last), named AS (
    SELECT p.piece, p.device_id, p.hour, h.holder, h.job_id, h.holder_key, h.weight, h.weights, h.method,
           dense_rank() OVER (PARTITION BY p.device_id, p.hour, h.job_id IS NULL ORDER BY h.holder_key) AS place
    FROM piece AS p JOIN mine AS h ON p.segment = h.segment AND p.device_id = h.device_id WHERE NOT p.sole
)
SELECT * EXCLUDE place, CASE WHEN job_id IS NULL THEN CASE WHEN place = 1 THEN 0 ELSE error('two who are no job') END
       WHEN place > 6 THEN error('more than six jobs on one board in one hour') ELSE place END::INTEGER AS slot
FROM named;

-- What was seen, of whom, clipped to what they held: processes by job, MIG instances by whoever held them.
CREATE OR REPLACE TEMP TABLE look AS
WITH told AS (
    SELECT device_id, epoch_us("at") - span_us AS from_us, epoch_us("at") AS to_us, cluster, native_job_id, job_started_at_us,
           CASE WHEN method = 'process_utilization' THEN round(sm_util_percent::DOUBLE * 10000)::BIGINT ELSE error('another method') END AS activity_ppm
    FROM read_parquet($share_files, hive_partitioning = false) WHERE device_id BETWEEN $first AND $last AND span_us BETWEEN 1 AND 300000000
), run AS (
    SELECT r.*, job_id FROM (SELECT DISTINCT cluster, native_job_id, job_started_at_us FROM told) AS r JOIN job AS j
    ON r.cluster = j.cluster AND r.native_job_id = j.native_id AND abs(r.job_started_at_us - j.started_us) <= 5000000
    QUALIFY row_number() OVER (PARTITION BY r.cluster, r.native_job_id, r.job_started_at_us ORDER BY abs(r.job_started_at_us - j.started_us),
           job_id) = 1
), stretch AS (
    -- What a job held without a break is one, whatever changed for others.
    SELECT device_id, job_id, min(start_us) AS start_us, max(end_us) AS end_us FROM (
        SELECT *, sum(begins) OVER (PARTITION BY device_id, job_id ORDER BY start_us) AS number FROM (
            SELECT *, (start_us > coalesce(lag(end_us) OVER (PARTITION BY device_id, job_id ORDER BY start_us),
           start_us - 1))::INTEGER AS begins FROM (
                SELECT DISTINCT device_id, job_id, start_us, end_us FROM held WHERE device_id BETWEEN $first AND $last AND job_id IS NOT NULL)))
    GROUP BY device_id, job_id, number
), matched AS (
    SELECT t.device_id, s.job_id, t.from_us, t.to_us, t.activity_ppm, s.start_us, s.end_us FROM told AS t
    LEFT JOIN run AS r ON t.cluster = r.cluster AND t.native_job_id = r.native_job_id AND t.job_started_at_us = r.job_started_at_us
    LEFT JOIN stretch AS s ON s.device_id = t.device_id AND s.job_id = r.job_id AND s.start_us < t.to_us AND s.end_us > t.from_us
), following AS (
    SELECT *, lead(from_us) OVER (PARTITION BY device_id, job_id ORDER BY from_us) AS next_us FROM matched WHERE job_id IS NOT NULL
), seen AS (
    SELECT i.device_id AS instance_id, b.device_id, epoch_us("at") - span_us AS from_us, epoch_us("at") AS to_us,
           least(round(sm_active_ratio::DOUBLE * 1000000), 1000000)::BIGINT * b.slice_ppm // 1000000 AS of_board_ppm, b.slice_ppm AS whole_ppm
    FROM read_parquet($files, hive_partitioning = false) AS i JOIN instance AS b ON i.device_id = b.instance_id
    WHERE i.device_id BETWEEN (SELECT min(instance_id) FROM instance WHERE device_id BETWEEN $first AND $last)
          AND (SELECT max(instance_id) FROM instance WHERE device_id BETWEEN $first AND $last)
          AND sm_active_ratio BETWEEN 0 AND 2 AND span_us BETWEEN 1 AND 300000000
), on_slice AS (
    SELECT s.*, h.job_id, h.slice_ppm, greatest(from_us, start_us) AS first_us, least(to_us, end_us) AS last_us FROM seen AS s
    LEFT JOIN slice AS h ON s.instance_id = h.instance_id AND start_us < to_us AND end_us > from_us
), parted AS (
    -- An instance that changed hands within a look, or that several share: its activity was worked while it was held. Few.
    SELECT *, sum(slice_ppm * (last_us - first_us)) OVER (PARTITION BY instance_id, from_us) AS held FROM on_slice
    WHERE first_us > from_us OR last_us < to_us OR slice_ppm < whole_ppm
)
SELECT device_id, job_id, greatest(from_us, start_us) AS from_us,
       CASE WHEN next_us IS NULL THEN least(2 * to_us - from_us, end_us) ELSE least(2 * to_us - from_us, greatest(next_us, to_us),
           end_us) END AS to_us,
       least(activity_ppm * (to_us - from_us) // (least(to_us, end_us) - greatest(from_us, start_us)), 1000000) AS activity_ppm, 3 AS method
FROM following
UNION ALL SELECT device_id, NULL, from_us, to_us, activity_ppm, 3 FROM matched WHERE job_id IS NULL
UNION ALL SELECT device_id, job_id, from_us, to_us, of_board_ppm, 4 FROM on_slice
WHERE job_id IS NULL OR (first_us = from_us AND last_us = to_us AND slice_ppm >= whole_ppm)
UNION ALL SELECT device_id, job_id, first_us, last_us, least((of_board_ppm::HUGEINT * slice_ppm * (to_us - from_us) // held)::BIGINT, 1000000), 4 FROM parted;

-- Each look within each piece, and the pieces cut at all of these.
CREATE OR REPLACE TEMP TABLE glance AS
WITH several AS (SELECT * FROM piece WHERE NOT sole), met AS (
    SELECT piece, l.job_id, greatest(l.from_us, p.from_us) AS from_us, least(l.to_us, p.to_us) AS to_us, activity_ppm, method
    FROM look AS l JOIN several AS p ON l.device_id = p.device_id AND l.from_us // 3600000000 = p.hour WHERE l.from_us < p.to_us AND l.to_us > p.from_us
    UNION ALL
    SELECT piece, l.job_id, p.from_us, least(l.to_us, p.to_us), activity_ppm, method
    FROM (SELECT * FROM look WHERE (to_us - 1) // 3600000000 > from_us // 3600000000) AS l JOIN several AS p ON l.device_id = p.device_id
    AND (l.to_us - 1) // 3600000000 = p.hour WHERE l.to_us > p.from_us
)
SELECT m.piece, from_us, to_us, activity_ppm, m.method, CASE WHEN m.job_id IS NULL THEN 7 ELSE s.slot END AS slot
FROM met AS m LEFT JOIN slot AS s ON m.piece = s.piece AND m.job_id = s.job_id;

DROP TABLE look;

CREATE OR REPLACE TEMP TABLE sub AS
WITH point AS (
    SELECT piece, from_us AS at_us FROM piece WHERE NOT sole UNION SELECT piece, to_us FROM piece WHERE NOT sole
    UNION SELECT piece, from_us FROM glance UNION SELECT piece, to_us FROM glance
), placed AS (SELECT t.piece, t.at_us, p.device_id FROM point AS t JOIN piece AS p USING (piece)), shown AS (
    SELECT device_id, at_us, next_us, CASE WHEN verdict = 0 THEN grown_mj ELSE 0 END AS own_mj,
           CASE WHEN verdict = 0 THEN next_us - at_us ELSE 0 END AS own_us,
           -- Whole numbers below 2^53: as doubles they run up in a third of the time that 128 bits take.
           sum(own_mj::DOUBLE) OVER w - own_mj AS before_mj, sum(own_us::DOUBLE) OVER w - own_us AS before_us
    FROM step WHERE next_us IS NOT NULL AND device_id IN (SELECT device_id FROM piece WHERE NOT sole)
    WINDOW w AS (PARTITION BY device_id ORDER BY at_us ROWS UNBOUNDED PRECEDING)
), told AS (
    SELECT t.piece, t.at_us, before_mj::BIGINT + CASE WHEN t.at_us >= next_us THEN own_mj WHEN t.at_us = s.at_us THEN 0
               ELSE (own_mj::HUGEINT * (t.at_us - s.at_us) // (next_us - s.at_us))::BIGINT END AS shown_mj,
           before_us::BIGINT + CASE WHEN own_us = 0 THEN 0 ELSE least(t.at_us, next_us) - s.at_us END AS shown_us
    FROM placed AS t ASOF LEFT JOIN shown AS s ON t.device_id = s.device_id AND t.at_us >= s.at_us
), following AS (
    SELECT piece, at_us AS from_us, lead(at_us) OVER w AS to_us, coalesce(lead(shown_mj) OVER w, 0) - coalesce(shown_mj, 0) AS energy_mj,
           coalesce(lead(shown_us) OVER w, 0) - coalesce(shown_us, 0) AS covered_us
    FROM told WINDOW w AS (PARTITION BY piece ORDER BY at_us)
)
SELECT row_number() OVER (ORDER BY piece, from_us)::INTEGER AS sub, * FROM following WHERE to_us IS NOT NULL;

CREATE OR REPLACE TEMP TABLE worked AS
WITH seen AS (
    SELECT unnest(range(a.sub, b.sub + 1)) AS sub, slot, activity_ppm, method FROM glance AS g
    JOIN sub AS a ON g.piece = a.piece AND g.from_us = a.from_us JOIN sub AS b ON g.piece = b.piece AND g.to_us = b.to_us WHERE slot IS NOT NULL
), active AS (
    SELECT sub, max(method) AS look_method, sum(activity_ppm) FILTER (slot = 1)::BIGINT AS u1, sum(activity_ppm) FILTER (slot = 2)::BIGINT AS u2,
           sum(activity_ppm) FILTER (slot = 3)::BIGINT AS u3, sum(activity_ppm) FILTER (slot = 4)::BIGINT AS u4,
           sum(activity_ppm) FILTER (slot = 5)::BIGINT AS u5, sum(activity_ppm) FILTER (slot = 6)::BIGINT AS u6,
           sum(activity_ppm) FILTER (slot = 7)::BIGINT AS u7
    FROM seen GROUP BY sub
)
SELECT s.*, p.device_id, p.hour, look_method, coalesce(u1, 0) AS u1, coalesce(u2, 0) AS u2, coalesce(u3, 0) AS u3, coalesce(u4, 0) AS u4,
           coalesce(u5, 0) AS u5, coalesce(u6, 0) AS u6, coalesce(u7, 0) AS u7,
       least(energy_mj, coalesce(b.idle_power_mw, b.accelerators * 100000) * covered_us // 1000000) AS floor_mj, energy_mj - floor_mj AS active_mj,
       covered_us = s.to_us - s.from_us AS fits
FROM sub AS s JOIN piece AS p USING (piece) JOIN board AS b USING (device_id) LEFT JOIN active AS a ON s.sub = a.sub;

DROP TABLE glance;

-- Ridge least squares by board and hour, 40 sweeps over the normal equations (docs/methodology.md, shared boards), in the worker's order:
-- those who hold nothing, then jobs. What is summed are whole numbers below 2^53, so the order of addition does not matter.
CREATE OR REPLACE TEMP TABLE level AS
WITH RECURSIVE fitted AS (
    SELECT device_id, hour, active_mj::DOUBLE AS energy, ((to_us - from_us) // 1000)::DOUBLE AS ms,
           (u1 // 100)::DOUBLE AS p1, (u2 // 100)::DOUBLE AS p2, (u3 // 100)::DOUBLE AS p3, (u4 // 100)::DOUBLE AS p4, (u5 // 100)::DOUBLE AS p5,
           (u6 // 100)::DOUBLE AS p6, (u7 // 100)::DOUBLE AS p7
    FROM worked WHERE fits AND u1 + u2 + u3 + u4 + u5 + u6 + u7 > 0
), summed AS (
    SELECT device_id, hour, sum(energy) AS energy, sum(p1 * ms) AS w1, sum(p2 * ms) AS w2, sum(p3 * ms) AS w3, sum(p4 * ms) AS w4,
           sum(p5 * ms) AS w5, sum(p6 * ms) AS w6, sum(p7 * ms) AS w7,
           sum(p1 * energy) AS s1, sum(p2 * energy) AS s2, sum(p3 * energy) AS s3, sum(p4 * energy) AS s4, sum(p5 * energy) AS s5,
           sum(p6 * energy) AS s6, sum(p7 * energy) AS s7,
           sum(p1 * p1 * ms) / 100000000.0::DOUBLE AS b11, sum(p1 * p2 * ms) / 100000000.0::DOUBLE AS b12,
           sum(p1 * p3 * ms) / 100000000.0::DOUBLE AS b13, sum(p1 * p4 * ms) / 100000000.0::DOUBLE AS b14,
           sum(p1 * p5 * ms) / 100000000.0::DOUBLE AS b15, sum(p1 * p6 * ms) / 100000000.0::DOUBLE AS b16,
           sum(p1 * p7 * ms) / 100000000.0::DOUBLE AS b17,
           sum(p2 * p2 * ms) / 100000000.0::DOUBLE AS b22, sum(p2 * p3 * ms) / 100000000.0::DOUBLE AS b23,
           sum(p2 * p4 * ms) / 100000000.0::DOUBLE AS b24, sum(p2 * p5 * ms) / 100000000.0::DOUBLE AS b25,
           sum(p2 * p6 * ms) / 100000000.0::DOUBLE AS b26, sum(p2 * p7 * ms) / 100000000.0::DOUBLE AS b27,
           sum(p3 * p3 * ms) / 100000000.0::DOUBLE AS b33, sum(p3 * p4 * ms) / 100000000.0::DOUBLE AS b34,
           sum(p3 * p5 * ms) / 100000000.0::DOUBLE AS b35, sum(p3 * p6 * ms) / 100000000.0::DOUBLE AS b36,
           sum(p3 * p7 * ms) / 100000000.0::DOUBLE AS b37,
           sum(p4 * p4 * ms) / 100000000.0::DOUBLE AS b44, sum(p4 * p5 * ms) / 100000000.0::DOUBLE AS b45,
           sum(p4 * p6 * ms) / 100000000.0::DOUBLE AS b46, sum(p4 * p7 * ms) / 100000000.0::DOUBLE AS b47,
           sum(p5 * p5 * ms) / 100000000.0::DOUBLE AS b55, sum(p5 * p6 * ms) / 100000000.0::DOUBLE AS b56,
           sum(p5 * p7 * ms) / 100000000.0::DOUBLE AS b57,
           sum(p6 * p6 * ms) / 100000000.0::DOUBLE AS b66, sum(p6 * p7 * ms) / 100000000.0::DOUBLE AS b67,
           sum(p7 * p7 * ms) / 100000000.0::DOUBLE AS b77
    FROM fitted GROUP BY device_id, hour
), normal AS (
    SELECT *, greatest(energy / greatest((w1 + w2 + w3 + w4 + w5 + w6 + w7) / 10000.0::DOUBLE, 1.0::DOUBLE),
           0.000000001::DOUBLE) AS mean_w FROM summed
), sweep AS (
    SELECT 0 AS number, device_id, hour, s1 / 10000.0::DOUBLE / mean_w + 5000.0::DOUBLE AS g1, s2 / 10000.0::DOUBLE / mean_w + 5000.0::DOUBLE AS g2,
           s3 / 10000.0::DOUBLE / mean_w + 5000.0::DOUBLE AS g3, s4 / 10000.0::DOUBLE / mean_w + 5000.0::DOUBLE AS g4,
           s5 / 10000.0::DOUBLE / mean_w + 5000.0::DOUBLE AS g5, s6 / 10000.0::DOUBLE / mean_w + 5000.0::DOUBLE AS g6,
           s7 / 10000.0::DOUBLE / mean_w + 5000.0::DOUBLE AS g7,
           b11, b12, b13, b14, b15, b16, b17, b22, b23, b24, b25, b26, b27, b33, b34, b35, b36, b37, b44, b45, b46, b47, b55, b56, b57, b66, b67, b77,
           1.0::DOUBLE AS l1, 1.0::DOUBLE AS l2, 1.0::DOUBLE AS l3, 1.0::DOUBLE AS l4, 1.0::DOUBLE AS l5, 1.0::DOUBLE AS l6, 1.0::DOUBLE AS l7
    FROM normal
    UNION ALL
    SELECT number + 1, device_id, hour, g1, g2, g3, g4, g5, g6, g7,
           b11, b12, b13, b14, b15, b16, b17, b22, b23, b24, b25, b26, b27, b33, b34, b35, b36, b37, b44, b45, b46, b47, b55, b56, b57, b66, b67,
           b77, n1, n2, n3, n4, n5, n6, n7
    FROM (SELECT *, least(greatest((g6 - b67 * n7 - b16 * n1 - b26 * n2 - b36 * n3 - b46 * n4 - b56 * n5) / (b66 + 5000.0::DOUBLE), 0.125::DOUBLE),
           8.0::DOUBLE) AS n6 FROM
         (SELECT *, least(greatest((g5 - b57 * n7 - b15 * n1 - b25 * n2 - b35 * n3 - b45 * n4 - b56 * l6) / (b55 + 5000.0::DOUBLE), 0.125::DOUBLE),
           8.0::DOUBLE) AS n5 FROM
         (SELECT *, least(greatest((g4 - b47 * n7 - b14 * n1 - b24 * n2 - b34 * n3 - b45 * l5 - b46 * l6) / (b44 + 5000.0::DOUBLE), 0.125::DOUBLE),
           8.0::DOUBLE) AS n4 FROM
         (SELECT *, least(greatest((g3 - b37 * n7 - b13 * n1 - b23 * n2 - b34 * l4 - b35 * l5 - b36 * l6) / (b33 + 5000.0::DOUBLE), 0.125::DOUBLE),
           8.0::DOUBLE) AS n3 FROM
         (SELECT *, least(greatest((g2 - b27 * n7 - b12 * n1 - b23 * l3 - b24 * l4 - b25 * l5 - b26 * l6) / (b22 + 5000.0::DOUBLE), 0.125::DOUBLE),
           8.0::DOUBLE) AS n2 FROM
         (SELECT *, least(greatest((g1 - b17 * n7 - b12 * l2 - b13 * l3 - b14 * l4 - b15 * l5 - b16 * l6) / (b11 + 5000.0::DOUBLE), 0.125::DOUBLE),
           8.0::DOUBLE) AS n1 FROM
         (SELECT *, least(greatest((g7 - b17 * l1 - b27 * l2 - b37 * l3 - b47 * l4 - b57 * l5 - b67 * l6) / (b77 + 5000.0::DOUBLE), 0.125::DOUBLE),
           8.0::DOUBLE) AS n7 FROM
         sweep WHERE number < 40)))))))
)
SELECT device_id, hour, round_even(l1 * 1000, 0)::BIGINT AS l1, round_even(l2 * 1000, 0)::BIGINT AS l2, round_even(l3 * 1000, 0)::BIGINT AS l3,
           round_even(l4 * 1000, 0)::BIGINT AS l4, round_even(l5 * 1000, 0)::BIGINT AS l5, round_even(l6 * 1000, 0)::BIGINT AS l6,
           round_even(l7 * 1000, 0)::BIGINT AS l7 FROM sweep WHERE number = 40;

-- Rest by what each is entitled to, the active part by activity x level, or by entitlement where nobody was seen; largest remainder, ties
-- by slot. Bounds are the method's part of the active energy. One row a piece at last: sums by slot.
CREATE OR REPLACE TEMP TABLE shared AS
WITH entitled AS MATERIALIZED (
    SELECT piece, max(weights) AS weights, coalesce(max(weight) FILTER (slot = 0), 0) AS w0, coalesce(max(weight) FILTER (slot = 1), 0) AS w1,
           coalesce(max(weight) FILTER (slot = 2), 0) AS w2, coalesce(max(weight) FILTER (slot = 3), 0) AS w3,
           coalesce(max(weight) FILTER (slot = 4), 0) AS w4, coalesce(max(weight) FILTER (slot = 5), 0) AS w5,
           coalesce(max(weight) FILTER (slot = 6), 0) AS w6, coalesce(max(weight) FILTER (slot = 7), 0) AS w7,
           coalesce(max(error_ppm(method)) FILTER (slot = 0), 172000) AS e0, coalesce(max(rank_of(method)) FILTER (slot = 0), 0) AS m0,
           coalesce(max(error_ppm(method)) FILTER (slot = 1), 172000) AS e1, coalesce(max(rank_of(method)) FILTER (slot = 1), 0) AS m1,
           coalesce(max(error_ppm(method)) FILTER (slot = 2), 172000) AS e2, coalesce(max(rank_of(method)) FILTER (slot = 2), 0) AS m2,
           coalesce(max(error_ppm(method)) FILTER (slot = 3), 172000) AS e3, coalesce(max(rank_of(method)) FILTER (slot = 3), 0) AS m3,
           coalesce(max(error_ppm(method)) FILTER (slot = 4), 172000) AS e4, coalesce(max(rank_of(method)) FILTER (slot = 4), 0) AS m4,
           coalesce(max(error_ppm(method)) FILTER (slot = 5), 172000) AS e5, coalesce(max(rank_of(method)) FILTER (slot = 5), 0) AS m5,
           coalesce(max(error_ppm(method)) FILTER (slot = 6), 172000) AS e6, coalesce(max(rank_of(method)) FILTER (slot = 6), 0) AS m6,
           coalesce(max(error_ppm(method)) FILTER (slot = 7), 172000) AS e7, coalesce(max(rank_of(method)) FILTER (slot = 7), 0) AS m7
    FROM slot GROUP BY piece
), weighed AS MATERIALIZED (
    SELECT w.piece, w.sub, w.covered_us, floor_mj, active_mj, look_method, e.weights, e.w0, e.e0, e.m0, e.w1, e.e1, e.m1, e.w2, e.e2, e.m2, e.w3,
           e.e3, e.m3, e.w4, e.e4, e.m4, e.w5, e.e5, e.m5, e.w6, e.e6, e.m6, e.w7, e.e7, e.m7,
           u1 * CASE WHEN fits AND u1 > 0 THEN coalesce(l1, 1000) ELSE 1000 END AS x1, u2 * CASE WHEN fits AND u2 > 0 THEN coalesce(l2,
           1000) ELSE 1000 END AS x2, u3 * CASE WHEN fits AND u3 > 0 THEN coalesce(l3, 1000) ELSE 1000 END AS x3,
           u4 * CASE WHEN fits AND u4 > 0 THEN coalesce(l4, 1000) ELSE 1000 END AS x4, u5 * CASE WHEN fits AND u5 > 0 THEN coalesce(l5,
           1000) ELSE 1000 END AS x5, u6 * CASE WHEN fits AND u6 > 0 THEN coalesce(l6, 1000) ELSE 1000 END AS x6,
           u7 * CASE WHEN fits AND u7 > 0 THEN coalesce(l7, 1000) ELSE 1000 END AS x7
    FROM worked AS w JOIN entitled AS e USING (piece) LEFT JOIN level AS v ON w.device_id = v.device_id AND w.hour = v.hour
), chosen AS MATERIALIZED (
    SELECT * EXCLUDE (x1, x2, x3, x4, x5, x6, x7), x1 + x2 + x3 + x4 + x5 + x6 + x7 AS works, works > 0 AS known,
           CASE WHEN known THEN works ELSE weights END AS actives,
           CASE WHEN known THEN 0 ELSE w0 END AS a0, CASE WHEN known THEN x1 ELSE w1 END AS a1, CASE WHEN known THEN x2 ELSE w2 END AS a2,
           CASE WHEN known THEN x3 ELSE w3 END AS a3, CASE WHEN known THEN x4 ELSE w4 END AS a4, CASE WHEN known THEN x5 ELSE w5 END AS a5,
           CASE WHEN known THEN x6 ELSE w6 END AS a6, CASE WHEN known THEN x7 ELSE w7 END AS a7
    FROM weighed
), floored AS MATERIALIZED (
    SELECT *, part_of(floor_mj, w0, weights) AS f0, floor_mj * w0 % weights AS r0, part_of(floor_mj, w1, weights) AS f1,
           floor_mj * w1 % weights AS r1, part_of(floor_mj, w2, weights) AS f2, floor_mj * w2 % weights AS r2, part_of(floor_mj, w3, weights) AS f3,
           floor_mj * w3 % weights AS r3, part_of(floor_mj, w4, weights) AS f4, floor_mj * w4 % weights AS r4, part_of(floor_mj, w5, weights) AS f5,
           floor_mj * w5 % weights AS r5, part_of(floor_mj, w6, weights) AS f6, floor_mj * w6 % weights AS r6, part_of(floor_mj, w7, weights) AS f7,
           floor_mj * w7 % weights AS r7,
           part_of(active_mj, a0, actives) AS g0, rest_of(active_mj, a0, actives) AS s0, part_of(active_mj, a1, actives) AS g1, rest_of(active_mj,
           a1, actives) AS s1, part_of(active_mj, a2, actives) AS g2, rest_of(active_mj, a2, actives) AS s2, part_of(active_mj, a3, actives) AS g3,
           rest_of(active_mj, a3, actives) AS s3, part_of(active_mj, a4, actives) AS g4, rest_of(active_mj, a4, actives) AS s4, part_of(active_mj,
           a5, actives) AS g5, rest_of(active_mj, a5, actives) AS s5, part_of(active_mj, a6, actives) AS g6, rest_of(active_mj, a6, actives) AS s6,
           part_of(active_mj, a7, actives) AS g7, rest_of(active_mj, a7, actives) AS s7
    FROM chosen
), left_over AS MATERIALIZED (
    SELECT *, floor_mj - (f0 + f1 + f2 + f3 + f4 + f5 + f6 + f7) AS floor_left,
           active_mj - (g0 + g1 + g2 + g3 + g4 + g5 + g6 + g7) AS active_left FROM floored
), divided AS MATERIALIZED (
    SELECT piece, covered_us, active_mj, floor_mj + active_mj AS whole_mj, known, look_method, e0, m0, e1, m1, e2, m2, e3, m3, e4, m4, e5, m5, e6,
           m6, e7, m7,
           f0 + g0 + ((r1 > r0)::INTEGER + (r2 > r0)::INTEGER + (r3 > r0)::INTEGER + (r4 > r0)::INTEGER + (r5 > r0)::INTEGER + (r6 > r0)::INTEGER
           + (r7 > r0)::INTEGER < floor_left)::INTEGER
           + ((s1 > s0)::INTEGER + (s2 > s0)::INTEGER + (s3 > s0)::INTEGER + (s4 > s0)::INTEGER + (s5 > s0)::INTEGER + (s6 > s0)::INTEGER
           + (s7 > s0)::INTEGER < active_left)::INTEGER AS p0,
           f1 + g1 + ((r0 >= r1)::INTEGER + (r2 > r1)::INTEGER + (r3 > r1)::INTEGER + (r4 > r1)::INTEGER + (r5 > r1)::INTEGER + (r6 > r1)::INTEGER
           + (r7 > r1)::INTEGER < floor_left)::INTEGER
           + ((s0 >= s1)::INTEGER + (s2 > s1)::INTEGER + (s3 > s1)::INTEGER + (s4 > s1)::INTEGER + (s5 > s1)::INTEGER + (s6 > s1)::INTEGER
           + (s7 > s1)::INTEGER < active_left)::INTEGER AS p1,
           f2 + g2 + ((r0 >= r2)::INTEGER + (r1 >= r2)::INTEGER + (r3 > r2)::INTEGER + (r4 > r2)::INTEGER + (r5 > r2)::INTEGER
           + (r6 > r2)::INTEGER + (r7 > r2)::INTEGER < floor_left)::INTEGER
           + ((s0 >= s2)::INTEGER + (s1 >= s2)::INTEGER + (s3 > s2)::INTEGER + (s4 > s2)::INTEGER + (s5 > s2)::INTEGER + (s6 > s2)::INTEGER
           + (s7 > s2)::INTEGER < active_left)::INTEGER AS p2,
           f3 + g3 + ((r0 >= r3)::INTEGER + (r1 >= r3)::INTEGER + (r2 >= r3)::INTEGER + (r4 > r3)::INTEGER + (r5 > r3)::INTEGER
           + (r6 > r3)::INTEGER + (r7 > r3)::INTEGER < floor_left)::INTEGER
           + ((s0 >= s3)::INTEGER + (s1 >= s3)::INTEGER + (s2 >= s3)::INTEGER + (s4 > s3)::INTEGER + (s5 > s3)::INTEGER + (s6 > s3)::INTEGER
           + (s7 > s3)::INTEGER < active_left)::INTEGER AS p3,
           f4 + g4 + ((r0 >= r4)::INTEGER + (r1 >= r4)::INTEGER + (r2 >= r4)::INTEGER + (r3 >= r4)::INTEGER + (r5 > r4)::INTEGER
           + (r6 > r4)::INTEGER + (r7 > r4)::INTEGER < floor_left)::INTEGER
           + ((s0 >= s4)::INTEGER + (s1 >= s4)::INTEGER + (s2 >= s4)::INTEGER + (s3 >= s4)::INTEGER + (s5 > s4)::INTEGER + (s6 > s4)::INTEGER
           + (s7 > s4)::INTEGER < active_left)::INTEGER AS p4,
           f5 + g5 + ((r0 >= r5)::INTEGER + (r1 >= r5)::INTEGER + (r2 >= r5)::INTEGER + (r3 >= r5)::INTEGER + (r4 >= r5)::INTEGER
           + (r6 > r5)::INTEGER + (r7 > r5)::INTEGER < floor_left)::INTEGER
           + ((s0 >= s5)::INTEGER + (s1 >= s5)::INTEGER + (s2 >= s5)::INTEGER + (s3 >= s5)::INTEGER + (s4 >= s5)::INTEGER + (s6 > s5)::INTEGER
           + (s7 > s5)::INTEGER < active_left)::INTEGER AS p5,
           f6 + g6 + ((r0 >= r6)::INTEGER + (r1 >= r6)::INTEGER + (r2 >= r6)::INTEGER + (r3 >= r6)::INTEGER + (r4 >= r6)::INTEGER
           + (r5 >= r6)::INTEGER + (r7 > r6)::INTEGER < floor_left)::INTEGER
           + ((s0 >= s6)::INTEGER + (s1 >= s6)::INTEGER + (s2 >= s6)::INTEGER + (s3 >= s6)::INTEGER + (s4 >= s6)::INTEGER + (s5 >= s6)::INTEGER
           + (s7 > s6)::INTEGER < active_left)::INTEGER AS p6,
           f7 + g7 + ((r0 >= r7)::INTEGER + (r1 >= r7)::INTEGER + (r2 >= r7)::INTEGER + (r3 >= r7)::INTEGER + (r4 >= r7)::INTEGER
           + (r5 >= r7)::INTEGER + (r6 >= r7)::INTEGER < floor_left)::INTEGER
           + ((s0 >= s7)::INTEGER + (s1 >= s7)::INTEGER + (s2 >= s7)::INTEGER + (s3 >= s7)::INTEGER + (s4 >= s7)::INTEGER + (s5 >= s7)::INTEGER
           + (s6 >= s7)::INTEGER < active_left)::INTEGER AS p7
    FROM left_over
), bounded AS MATERIALIZED (
    SELECT *, (active_mj * CASE WHEN known THEN CASE look_method WHEN 3 THEN 51000 ELSE 68000 END ELSE e0 END + 999999) // 1000000 AS d0,
           (active_mj * CASE WHEN known THEN CASE look_method WHEN 3 THEN 51000 ELSE 68000 END ELSE e1 END + 999999) // 1000000 AS d1,
           (active_mj * CASE WHEN known THEN CASE look_method WHEN 3 THEN 51000 ELSE 68000 END ELSE e2 END + 999999) // 1000000 AS d2,
           (active_mj * CASE WHEN known THEN CASE look_method WHEN 3 THEN 51000 ELSE 68000 END ELSE e3 END + 999999) // 1000000 AS d3,
           (active_mj * CASE WHEN known THEN CASE look_method WHEN 3 THEN 51000 ELSE 68000 END ELSE e4 END + 999999) // 1000000 AS d4,
           (active_mj * CASE WHEN known THEN CASE look_method WHEN 3 THEN 51000 ELSE 68000 END ELSE e5 END + 999999) // 1000000 AS d5,
           (active_mj * CASE WHEN known THEN CASE look_method WHEN 3 THEN 51000 ELSE 68000 END ELSE e6 END + 999999) // 1000000 AS d6,
           (active_mj * CASE WHEN known THEN CASE look_method WHEN 3 THEN 51000 ELSE 68000 END ELSE e7 END + 999999) // 1000000 AS d7
    FROM divided
)
SELECT piece, sum(covered_us)::BIGINT AS covered_us,
       [sum(p0)::BIGINT, sum(p1)::BIGINT, sum(p2)::BIGINT, sum(p3)::BIGINT, sum(p4)::BIGINT, sum(p5)::BIGINT, sum(p6)::BIGINT,
           sum(p7)::BIGINT] AS energy_mj,
       [sum(p0) FILTER (active_mj > 0)::BIGINT, sum(p1) FILTER (active_mj > 0)::BIGINT, sum(p2) FILTER (active_mj > 0)::BIGINT,
           sum(p3) FILTER (active_mj > 0)::BIGINT, sum(p4) FILTER (active_mj > 0)::BIGINT, sum(p5) FILTER (active_mj > 0)::BIGINT,
           sum(p6) FILTER (active_mj > 0)::BIGINT, sum(p7) FILTER (active_mj > 0)::BIGINT] AS worked_mj,
       [sum(least(p0, d0))::BIGINT, sum(least(p1, d1))::BIGINT, sum(least(p2, d2))::BIGINT, sum(least(p3, d3))::BIGINT, sum(least(p4, d4))::BIGINT,
           sum(least(p5, d5))::BIGINT, sum(least(p6, d6))::BIGINT, sum(least(p7, d7))::BIGINT] AS below_mj,
       [sum(least(d0, whole_mj - p0))::BIGINT, sum(least(d1, whole_mj - p1))::BIGINT, sum(least(d2, whole_mj - p2))::BIGINT, sum(least(d3,
           whole_mj - p3))::BIGINT, sum(least(d4, whole_mj - p4))::BIGINT, sum(least(d5, whole_mj - p5))::BIGINT, sum(least(d6,
           whole_mj - p6))::BIGINT, sum(least(d7, whole_mj - p7))::BIGINT] AS above_mj,
       [max(CASE WHEN known THEN look_method ELSE m0 END), max(CASE WHEN known THEN look_method ELSE m1 END),
           max(CASE WHEN known THEN look_method ELSE m2 END), max(CASE WHEN known THEN look_method ELSE m3 END),
           max(CASE WHEN known THEN look_method ELSE m4 END), max(CASE WHEN known THEN look_method ELSE m5 END),
           max(CASE WHEN known THEN look_method ELSE m6 END), max(CASE WHEN known THEN look_method ELSE m7 END)] AS method
FROM bounded GROUP BY piece;

DROP TABLE worked;
