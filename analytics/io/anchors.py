"""Reads the counter values that were told with allocations: what a device's counter showed when a job took or left it.

Of a MIG instance it is its board's. Whether a value fits between the readings is the model's to say (``model/anchors.py``).
"""

from __future__ import annotations

from typing import Any, Final

import dataframely as dy
import polars as pl
import psycopg

from analytics.frames import Anchors
from analytics.io.references import known
from analytics.io.rows import fetch_frame

_ANCHORS: Final = """
SELECT coalesce(CASE WHEN device.described_at > %(as_of)s THEN NULL ELSE device.parent_device_id END, device.id) AS device_id,
       told.at, told.energy_mj
FROM allocations AS held JOIN devices AS device ON device.id = held.device_id
CROSS JOIN LATERAL (VALUES (held.start_at, held.start_energy_mj), (held.end_at, held.end_energy_mj)) AS told (at, energy_mj)
WHERE held.site_id = %(site_id)s AND told.energy_mj IS NOT NULL
AND told.at >= %(reach_from)s AND told.at < %(reach_to)s
AND held.start_at < %(reach_to)s AND (held.end_at IS NULL OR held.end_at >= %(reach_from)s)
AND {known}
ORDER BY 1, 2, 3
""".replace("{known}", known("held."))


def load_anchors(
    connection: psycopg.Connection[Any], scope: dict[str, Any], devices: pl.DataFrame
) -> dy.DataFrame[Anchors]:
    """Return the counter values told of allocations that begin or end within the reach, of these devices, in a fixed order.

    ``scope``: site_id, reach_from, reach_to and what the snapshot knows (``references.known``).
    """
    told = fetch_frame(connection, _ANCHORS, scope, Anchors)
    return Anchors.validate(told.filter(pl.col("device_id").is_in(devices["device_id"].implode())))
