-- Of all lots: who pays, the usage hours as they are stored, and the lines of the ledger: one rounding a group of hour, category and rate,
-- half to even, to nine places, spread over its lines by largest remainder. Makes: usage_hours, ledger_lines, findings.

CREATE OR REPLACE TABLE tenant_of AS
WITH rule AS (
    -- Of a job the first binding whose every pattern matches, of those in force; jobs and rules meet once, not once an hour.
    SELECT j.job_id, b.* FROM job AS j JOIN binding AS b ON fits(b.cluster, j.cluster) AND fits(b.account, j.account) AND fits(b.partition, j.partition)
    AND fits(b.user_name, j.user_name) AND fits(b.namespace, j.namespace)
), asked AS (SELECT DISTINCT hour, job_id FROM usage WHERE job_id IS NOT NULL)
SELECT a.hour, a.job_id, coalesce(j.named_tenant_id, r.tenant_id) AS tenant_id, j.origin FROM asked AS a JOIN job AS j USING (job_id)
LEFT JOIN rule AS r ON a.job_id = r.job_id AND valid_from_us <= a.hour::BIGINT * 3600000000 AND coalesce(valid_to_us, 1::BIGINT << 61) > a.hour::BIGINT * 3600000000
QUALIFY row_number() OVER (PARTITION BY a.hour, a.job_id ORDER BY position, binding_id) = 1;

CREATE OR REPLACE TABLE booked AS
WITH held AS (
    SELECT u.*, t.tenant_id, greatest(u.origin, t.origin) AS least_origin, CASE WHEN estimated_mj > 0 THEN 'estimated' ELSE 'measured' END AS source,
           CASE WHEN u.method = 'overhead' THEN least(greatest(spanned_us, 0), 3600000000) * (1.0::DOUBLE / 3600000000.0::DOUBLE)
                WHEN held_us > 0 THEN covered_us::DOUBLE / held_us::DOUBLE ELSE 0 END AS coverage,
           CASE WHEN u.job_id IS NOT NULL AND idle_us * 2 > held_us THEN 'allocated_idle' WHEN holder <> 'idle' THEN 'used'
                WHEN held_us - down_us >= down_us THEN 'available' ELSE 'down' END AS state
    FROM (SELECT *, 4 AS origin FROM usage) AS u LEFT JOIN tenant_of AS t ON u.hour = t.hour AND u.job_id = t.job_id
)
SELECT *, CASE WHEN starts_with(holder, 'unattributed:') THEN holder[14:] WHEN holder = 'idle' AND state = 'down' THEN 'no_telemetry' END AS reason FROM held;

CREATE OR REPLACE TABLE usage_hours AS
SELECT make_timestamptz(hour::BIGINT * 3600000000) AS hour_at, device_id, holder, job_id, tenant_id, state, energy_mj, estimated_mj, energy_low_mj,
       energy_high_mj, held_us, covered_us, active_us, idle_us, throttled_us, 0::BIGINT AS reserved_us, down_us, accelerators, method, reason, source,
       coverage, feed::SMALLINT AS feed, least_origin::SMALLINT AS origin
FROM booked;

-- What is in force at the beginning of each hour: amounts as whole billionths.
CREATE OR REPLACE TEMP TABLE rate AS
WITH known AS (
    SELECT 'gpu_owned' AS kind, model, id, billionths(amount) AS amount, valid_from_us, valid_to_us FROM price WHERE provider = 'owned' AND meter = 'accelerator_hour'
    UNION ALL SELECT 'electricity', NULL, id, billionths(amount), valid_from_us, valid_to_us FROM tariff
    UNION ALL SELECT 'carbon', NULL, id, billionths(amount), valid_from_us, valid_to_us FROM grid
    UNION ALL SELECT 'facility', NULL, id, billionths(amount), valid_from_us, valid_to_us FROM facility
)
SELECT (hour_us // 3600000000)::INTEGER AS hour, kind, model, id, amount FROM known, hour WHERE valid_from_us <= hour_us AND coalesce(valid_to_us, 1::BIGINT << 61) > hour_us
QUALIFY row_number() OVER (PARTITION BY hour_us, kind, model ORDER BY valid_from_us DESC, id DESC) = 1;

CREATE OR REPLACE TEMP TABLE carrier AS
SELECT hour, tenant_id, holder, job_id, model, CASE WHEN method = 'overhead' THEN 'node_overhead' ELSE 'gpu_owned' END AS charge_category,
       any_value(holder_key) AS holder_key, sum(held_us * accelerators)::BIGINT AS accelerator_us, sum(energy_mj)::BIGINT AS energy_mj,
       CASE WHEN count(energy_low_mj) > 0 THEN sum(coalesce(energy_low_mj, energy_mj))::BIGINT END AS energy_low_mj,
       CASE WHEN count(energy_high_mj) > 0 THEN sum(coalesce(energy_high_mj, energy_mj))::BIGINT END AS energy_high_mj, sum(held_us)::BIGINT AS held_us,
       sum(covered_us)::BIGINT AS covered_us, max(rank_of(method)) AS method, bool_or(source = 'estimated') AS is_estimated, max(least_origin) AS origin,
       min(coverage) AS told, CASE WHEN job_id IS NOT NULL THEN 'job' WHEN holder = 'idle' THEN 'idle' WHEN starts_with(holder, 'platform:') THEN 'platform'
       ELSE 'unattributed' END AS pool
FROM booked GROUP BY ALL;

CREATE OR REPLACE TEMP TABLE line AS
WITH electric AS (
    SELECT hour, tenant_id, holder, job_id, model, 'electricity' AS charge_category, any_value(holder_key) AS holder_key, NULL::BIGINT AS accelerator_us,
           sum(energy_mj)::BIGINT AS energy_mj, NULL::BIGINT AS energy_low_mj, NULL::BIGINT AS energy_high_mj, sum(held_us)::BIGINT AS held_us,
           sum(covered_us)::BIGINT AS covered_us, max(method) AS method, bool_or(is_estimated) AS is_estimated, max(origin) AS origin, min(told) AS told, pool
    FROM carrier GROUP BY ALL HAVING sum(energy_mj) IS NOT NULL
)
SELECT l.*, p.id AS price_id, NULL::INTEGER AS tariff_id, CASE WHEN charge_category = 'gpu_owned' THEN accelerator_us ELSE coalesce(energy_mj, 0) END AS quantity
FROM carrier AS l LEFT JOIN rate AS p ON l.hour = p.hour AND p.kind = 'gpu_owned' AND p.model = l.model AND charge_category = 'gpu_owned'
UNION ALL SELECT l.*, NULL, t.id, energy_mj FROM electric AS l LEFT JOIN rate AS t ON l.hour = t.hour AND t.kind = 'electricity';

-- Totals of the groups that are rounded, once each.
CREATE OR REPLACE TEMP TABLE total AS
WITH summed AS (
    SELECT hour, CASE WHEN charge_category = 'electricity' THEN 'electricity' ELSE 'gpu_owned' END AS kind, coalesce(price_id, tariff_id) AS id, sum(quantity)::HUGEINT AS weights
    FROM line WHERE charge_category <> 'node_overhead' AND coalesce(price_id, tariff_id) IS NOT NULL GROUP BY ALL
    UNION ALL SELECT hour, kind, NULL, sum(energy_mj)::HUGEINT FROM carrier, (VALUES ('carbon'), ('facility')) AS k(kind) GROUP BY hour, kind
)
SELECT s.hour, s.kind, s.id, weights, CASE s.kind WHEN 'gpu_owned' THEN half_even(weights * r.amount, 3600000000)
       WHEN 'facility' THEN half_even(weights * f.amount, 1000000000) ELSE half_even(weights * r.amount * f.amount, 3600000000000000000) END AS nano
FROM summed AS s JOIN rate AS r ON s.hour = r.hour AND s.kind = r.kind AND coalesce(s.id, r.id) = r.id JOIN rate AS f ON s.hour = f.hour AND f.kind = 'facility';

CREATE OR REPLACE TABLE ledger_lines AS
WITH floored AS (
    SELECT l.*, c.nano AS cost_nano, c.nano * quantity // c.weights AS cost_floor, c.nano * quantity % c.weights AS cost_rest,
           g.nano AS grams_nano, g.nano * energy_mj // g.weights AS grams_floor, g.nano * energy_mj % g.weights AS grams_rest,
           f.nano AS facility_nano, f.nano * energy_mj // f.weights AS facility_floor, f.nano * energy_mj % f.weights AS facility_rest
    FROM line AS l LEFT JOIN total AS c ON l.hour = c.hour AND c.kind = CASE WHEN charge_category = 'node_overhead' THEN '' ELSE charge_category END
    AND c.id = coalesce(price_id, tariff_id)
    LEFT JOIN total AS g ON l.hour = g.hour AND g.kind = 'carbon' AND charge_category <> 'electricity'
    LEFT JOIN total AS f ON l.hour = f.hour AND f.kind = 'facility' AND charge_category <> 'electricity'
), ranked AS (
    SELECT *, cost_floor + (row_number() OVER (PARTITION BY hour, charge_category, price_id, tariff_id ORDER BY cost_rest DESC, holder_key, model)
               <= cost_nano - sum(cost_floor) OVER (PARTITION BY hour, charge_category, price_id, tariff_id))::INTEGER AS cost,
           grams_floor + (row_number() OVER (PARTITION BY hour, grams_nano IS NULL ORDER BY grams_rest DESC NULLS LAST, holder_key, model, charge_category)
               <= grams_nano - sum(grams_floor) OVER (PARTITION BY hour, grams_nano IS NULL))::INTEGER AS grams,
           facility_floor + (row_number() OVER (PARTITION BY hour, facility_nano IS NULL ORDER BY facility_rest DESC NULLS LAST, holder_key, model, charge_category)
               <= facility_nano - sum(facility_floor) OVER (PARTITION BY hour, facility_nano IS NULL))::INTEGER AS facility_mj
    FROM floored
)
SELECT make_timestamptz(hour::BIGINT * 3600000000) AS hour_at,
       concat_ws('|', coalesce(tenant_id::VARCHAR, '-'), holder, model, charge_category, coalesce(price_id::VARCHAR, tariff_id::VARCHAR, '-')) AS line_key,
       tenant_id, job_id, NULL::VARCHAR AS api_key, holder_key, pool, model AS device_model, charge_category, price_id::INTEGER AS price_id,
       tariff_id::INTEGER AS tariff_id, quantity, CASE WHEN charge_category = 'gpu_owned' THEN 'accelerator-us' ELSE 'mJ' END AS quantity_unit,
       CASE WHEN charge_category <> 'electricity' THEN energy_mj END AS energy_mj, energy_low_mj, energy_high_mj, facility_mj::BIGINT AS facility_mj,
       CASE WHEN facility_mj IS NOT NULL THEN 2 END::SMALLINT AS facility_category, money(grams) AS carbon_gco2e, methods()[method + 1] AS method,
       CASE WHEN charge_category = 'node_overhead' THEN money(0) ELSE money(cost) END AS billed_cost, billed_cost AS effective_cost, 'USD' AS currency,
       'closed' AS status, CASE WHEN is_estimated THEN 'estimated' ELSE 'measured' END AS source,
       CASE WHEN held_us > 0 THEN covered_us::DOUBLE / held_us::DOUBLE ELSE told END AS coverage, origin::SMALLINT AS origin
FROM ranked;

CREATE OR REPLACE TABLE findings AS
SELECT concat_ws('|', f.kind, device_id, coalesce(f.job_id::VARCHAR, '-'), start_us) AS dedupe_key, make_timestamptz(f.hour::BIGINT * 3600000000) AS hour_at, f.kind,
       device_id, f.job_id, t.tenant_id, make_timestamptz(start_us) AS start_at, make_timestamptz(end_us) AS end_at, evidence, waste_energy_mj,
       money(half_even(waste_energy_mj::HUGEINT * r.amount * p.amount, 3600000000000000000)) AS avoidable_cash, capacity_freed_us, 'USD' AS currency,
       confidence, greatest(4, t.origin)::SMALLINT AS origin
FROM finding AS f LEFT JOIN tenant_of AS t ON f.hour = t.hour AND f.job_id = t.job_id LEFT JOIN rate AS r ON f.hour = r.hour AND r.kind = 'electricity'
LEFT JOIN rate AS p ON f.hour = p.hour AND p.kind = 'facility';
