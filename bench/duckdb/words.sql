-- Words that several of the files use.
CREATE OR REPLACE MACRO verdict_of(anew, dt_us, grown_mj) AS
    CASE WHEN anew THEN 3 WHEN dt_us > $reach_us THEN 5 WHEN grown_mj < 0 THEN 2
         WHEN grown_mj > 20000 * (dt_us + $refresh_us) // 1000 + 1 THEN 4 WHEN dt_us > $gap_us THEN 1 ELSE 0 END::UTINYINT;
CREATE OR REPLACE MACRO part_of(total, weight, weights) AS
    CASE WHEN total < 500000000 THEN total * weight // weights ELSE (total::HUGEINT * weight // weights)::BIGINT END;
CREATE OR REPLACE MACRO rest_of(total, weight, weights) AS
    CASE WHEN total < 500000000 THEN total * weight % weights ELSE (total::HUGEINT * weight % weights)::BIGINT END;
-- Methods, the most exact first, and how far their parts of a shared board's active energy may be off (90 %, parts per million).
CREATE OR REPLACE MACRO methods() AS
    ['whole', 'node_meter', 'slice', 'process_utilization', 'slice_activity', 'mps_threads', 'shards', 'share', 'count', 'equal', 'overhead'];
CREATE OR REPLACE MACRO rank_of(method) AS list_position(methods(), method) - 1;
CREATE OR REPLACE MACRO error_ppm(method) AS
    CASE method WHEN 'process_utilization' THEN 51000 WHEN 'slice_activity' THEN 68000 WHEN 'mps_threads' THEN 60000 WHEN 'slice' THEN 214000
                WHEN 'count' THEN 500000 ELSE 172000 END;
-- What an interval between readings has of [from_us, to_us), by the interpolated counter.
CREATE OR REPLACE MACRO part_of_step(grown_mj, at_us, next_us, from_us, to_us) AS
    CASE WHEN at_us >= from_us AND next_us <= to_us THEN grown_mj
         ELSE (grown_mj::HUGEINT * (least(next_us, to_us) - at_us) // (next_us - at_us)
               - grown_mj::HUGEINT * (greatest(at_us, from_us) - at_us) // (next_us - at_us))::BIGINT END;
-- Of several meters of a node the first of these that speaks in an hour counts.
CREATE OR REPLACE MACRO authority() AS ['redfish', 'ac', 'pdu', 'ipmi', 'rapl/psys', 'rapl-psys', 'import', 'hwmon', 'dc', 'hw'];
-- Patterns of bindings: globs, a missing one fits anything, and nothing fits what is missing.
CREATE OR REPLACE MACRO fits(pattern, word) AS pattern IS NULL OR coalesce(word GLOB pattern, false);
-- Exact amounts: whole billionths, one rounding half to even.
CREATE OR REPLACE MACRO billionths(amount) AS
    CASE WHEN amount::DECIMAL(38, 18) = amount::DECIMAL(28, 9) THEN (amount::DECIMAL(28, 9) * 1000000000)::HUGEINT ELSE error('more than nine places') END;
CREATE OR REPLACE MACRO half_even(num, den) AS
    num // den + (2 * (num % den) > den OR (2 * (num % den) = den AND num // den % 2 = 1))::INTEGER;
CREATE OR REPLACE MACRO money(nano) AS (nano::DECIMAL(18, 0) * 0.000000001::DECIMAL(10, 9))::DECIMAL(38, 9);
-- What the lots put together.
CREATE OR REPLACE TABLE usage (hour INTEGER, device_id INTEGER, holder VARCHAR, job_id BIGINT, holder_key VARCHAR, energy_mj BIGINT, estimated_mj BIGINT,
    energy_low_mj BIGINT, energy_high_mj BIGINT, held_us BIGINT, covered_us BIGINT, active_us BIGINT, idle_us BIGINT, throttled_us BIGINT, down_us BIGINT,
    spanned_us BIGINT, method VARCHAR, feed SMALLINT, accelerators INTEGER, model VARCHAR);
CREATE OR REPLACE TABLE finding (hour INTEGER, kind VARCHAR, device_id INTEGER, job_id BIGINT, start_us BIGINT, end_us BIGINT, evidence VARCHAR,
    waste_energy_mj BIGINT, capacity_freed_us BIGINT, confidence DOUBLE);
CREATE OR REPLACE TABLE quality (hour INTEGER, device_id INTEGER, reason VARCHAR, time_us BIGINT);
