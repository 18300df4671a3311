"""Law 1 asked of the raw samples alone, in SQL that shares nothing with the model: what each device's counters grew by in an hour."""

from __future__ import annotations

from typing import Final

INDEPENDENT: Final = """
-- Last minus first counter per boot and driver load, the hour's edges by the interpolated counter. Of feeds of one device the first
-- that speaks for a time tells of it (told); where its counter began anew no other reader of that counter is asked (said), but an
-- import (feed 4), which may have one of its own. A reading that those on either side of it contradict, though they agree, is none.
WITH raw AS (
    SELECT device_id, feed, node_id, boot_id, driver_epoch, at, energy_mj, lag(energy_mj) OVER beside AS last_mj,
           lead(energy_mj) OVER beside AS next_mj, lead(at) OVER beside - lag(at) OVER beside <= interval '5 minutes' AS near
    FROM device_samples JOIN epochs ON epochs.id = epoch_id
    WHERE energy_mj IS NOT NULL
    WINDOW beside AS (PARTITION BY device_id, feed, node_id, boot_id, driver_epoch ORDER BY at)
), judged AS (
    SELECT *, coalesce(near AND last_mj <= next_mj AND energy_mj > next_mj, false) AS above,
           coalesce(near AND last_mj <= next_mj AND energy_mj < last_mj, false) AS below FROM raw
), sorted AS (
    SELECT *, lag(above, 1, false) OVER (PARTITION BY device_id, feed, node_id, boot_id, driver_epoch ORDER BY at) AS was_above FROM judged
), reading AS (
    SELECT device_id, feed, (node_id, boot_id, driver_epoch) AS load, at, energy_mj,
           lead(at) OVER following AS next_at, lead(energy_mj) OVER following AS next_mj,
           lead((node_id, boot_id, driver_epoch)) OVER following AS next_load
    FROM sorted WHERE NOT above AND NOT (below AND NOT was_above)
    WINDOW following AS (PARTITION BY device_id, feed ORDER BY at)
), step AS (
    SELECT *, tstzrange(at, next_at) AS during,
           load = next_load AND next_mj >= energy_mj
           -- 20 kW per accelerator (these have one), a counter's value may be a second old
           AND next_mj - energy_mj <= 20000 * (extract(epoch FROM next_at - at) + 1) * 1000 + 1 AS true_step
    FROM reading WHERE next_at - at <= interval '48 hours'
), feeds AS (
    SELECT device_id, feed, range_agg(during) AS said,
           coalesce(range_agg(during) FILTER (WHERE true_step), '{}') AS told FROM step GROUP BY device_id, feed
), mine AS (
    SELECT device_id, feed, told - coalesce(
        CASE WHEN feed = 4 THEN range_agg(told) OVER before ELSE range_agg(said) OVER before END, '{}') AS during
    FROM feeds WINDOW before AS (PARTITION BY device_id ORDER BY feed ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
), part AS (
    SELECT device_id, at, (next_mj - energy_mj)::numeric AS grown,
           (extract(epoch FROM next_at - at) * 1000000)::bigint AS width,
           unnest(mine.during * tstzmultirange(step.during) * tstzmultirange(tstzrange(%(hour)s, %(hour)s + interval '1 hour'))) AS piece
    FROM step JOIN mine USING (device_id, feed) WHERE true_step
)
SELECT device_id, sum(
    floor(grown * (extract(epoch FROM upper(piece) - at) * 1000000)::bigint / width)
  - floor(grown * (extract(epoch FROM lower(piece) - at) * 1000000)::bigint / width))::bigint
FROM part GROUP BY device_id ORDER BY device_id
"""
