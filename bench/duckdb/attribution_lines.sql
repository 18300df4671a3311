-- Lines of the ledger from attribution.sql's ``part``: one of each hour, tenant, holder and category, every group of an hour, category and
-- rate rounded once, half to even, to nine places, and spread over its lines by largest remainder.
--
-- Given: job_tenant (job_id, tenant_id), board (device_id, accelerators, model), rate (hour_us, category, num, den: billionths of
-- the currency, or of a gram, for one unit of the quantity). Makes: line.

CREATE OR REPLACE TABLE line AS
WITH gathered AS (
    SELECT p.hour_us, t.tenant_id, p.holder, any_value(p.holder_key) AS holder_key, p.job_id, b.model, sum(p.held_us * b.accelerators) AS accelerator_us,
           sum(p.energy_mj) AS energy_mj
    FROM part AS p JOIN board AS b USING (device_id) LEFT JOIN job_tenant AS t USING (job_id)
    GROUP BY p.hour_us, t.tenant_id, p.holder, p.job_id, b.model
), quantities AS (
    SELECT *, 'gpu_owned' AS category, accelerator_us AS quantity FROM gathered
    UNION ALL SELECT *, 'electricity', energy_mj FROM gathered WHERE energy_mj IS NOT NULL
    UNION ALL SELECT *, 'carbon', energy_mj FROM gathered WHERE energy_mj IS NOT NULL
), summed AS (
    SELECT hour_us, category, sum(quantity)::HUGEINT AS weights, any_value(num)::HUGEINT AS num, any_value(den)::HUGEINT AS den
    FROM quantities JOIN rate USING (hour_us, category) GROUP BY hour_us, category
), total AS (
    SELECT hour_us, category, weights, weights * num // den + CASE WHEN 2 * (weights * num % den) > den
           OR (2 * (weights * num % den) = den AND weights * num // den % 2 = 1) THEN 1 ELSE 0 END AS nano
    FROM summed
), floored AS (
    SELECT q.*, nano, nano * quantity // weights AS floor_of, nano * quantity % weights AS rest FROM quantities AS q JOIN total USING (hour_us, category)
)
SELECT hour_us, tenant_id, holder, job_id, model, category, quantity, floor_of + (row_number() OVER (PARTITION BY hour_us, category ORDER BY rest DESC, holder_key, model)
       <= nano - sum(floor_of) OVER (PARTITION BY hour_us, category))::HUGEINT AS nano
FROM floored;
