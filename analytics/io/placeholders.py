"""Makes the devices that node overhead and shared IT are booked on, where there is something to book and none is there yet.

An identity, like any device: never renamed, never removed. It has no placement, since nothing stands in a node that is not a device.
"""

from __future__ import annotations

from typing import Any, Final

import psycopg

CHASSIS: Final = "'chassis:' || sites.name || '/' || nodes.name"
SITE: Final = "'site:' || sites.name || '/' || shared.name"
# A node needs one if it has devices beside a meter that bills at any time, or a model that matches its name; a model's glob is matched when it
# is loaded, so that where a site has any, every node with devices has one.
_CHASSIS: Final = f"""
INSERT INTO devices (uuid, vendor, model, kind)
SELECT {CHASSIS}, 'unknown', 'chassis', 'chassis' FROM nodes JOIN sites ON sites.id = nodes.site_id
WHERE nodes.site_id = %(site_id)s
AND (EXISTS (SELECT FROM meters WHERE meters.node_id = nodes.id AND meters.name <> 'host' AND (bills OR EXISTS (
        SELECT FROM meter_words AS said WHERE said.meter_id = meters.id AND said.bills AND said.superseded_at IS NULL)))
     OR EXISTS (SELECT FROM overhead_models AS model WHERE model.site_id = nodes.site_id AND model.superseded_at IS NULL))
AND EXISTS (SELECT FROM placements AS placed JOIN devices ON devices.id = placed.device_id AND devices.kind = 'gpu'
            WHERE placed.node_id = nodes.id AND placed.superseded_at IS NULL)
AND NOT EXISTS (SELECT FROM devices AS known WHERE known.uuid = {CHASSIS})
ON CONFLICT (uuid) DO NOTHING
"""  # noqa: S608 (constants)
_SITE: Final = f"""
INSERT INTO devices (uuid, vendor, model, kind)
SELECT DISTINCT ON (shared.name) {SITE}, 'unknown', shared.kind, 'site' FROM shared_it AS shared JOIN sites ON sites.id = shared.site_id
WHERE shared.site_id = %(site_id)s AND shared.superseded_at IS NULL
AND NOT EXISTS (SELECT FROM devices AS known WHERE known.uuid = {SITE})
ORDER BY shared.name, shared.id
ON CONFLICT (uuid) DO NOTHING
"""  # noqa: S608


def ensure(connection: psycopg.Connection[Any], site_id: int) -> int:
    """Make what is missing of a site, in a transaction of its own, and return how many devices that were."""
    with connection.transaction():
        return sum(connection.execute(query, {"site_id": site_id}).rowcount for query in (_CHASSIS, _SITE))
