"""Reads dated reference data as it was known at an instant, for a window of one site.

"Known" is the recorded pair of dates, "holds" the valid pair; a row takes part when both say so.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import dataframely as dy
import psycopg

from analytics.frames import Bindings, FacilityFactors, Intensity, Jobs, Prices, Tariffs, Tenants
from analytics.io.rows import fetch_frame
from analytics.pipeline import References

KNOWN: Final = "recorded_at <= %(as_of)s AND (superseded_at IS NULL OR superseded_at > %(as_of)s)"
HOLDS: Final = "valid_from < %(to_at)s AND (valid_to IS NULL OR valid_to > %(from_at)s)"

_PRICES: Final = f"""
SELECT id AS price_id, provider, model, meter, amount, currency, valid_from, valid_to
FROM prices WHERE {KNOWN} AND {HOLDS}
AND (provider = 'owned' OR (provider, model) IN (
    SELECT DISTINCT provider, model FROM api_calls
    WHERE site_id = %(site_id)s AND called_at >= %(from_at)s AND called_at < %(to_at)s))
"""  # noqa: S608 (constants of this module)
_TARIFFS: Final = f"""
SELECT id AS tariff_id, metering_point, amount_per_kwh, currency, valid_from, valid_to
FROM tariffs WHERE site_id = %(site_id)s AND {KNOWN} AND {HOLDS}
"""  # noqa: S608
_INTENSITY: Final = f"""
SELECT id AS intensity_id, gco2e_per_kwh, valid_from, valid_to
FROM intensity WHERE basis = 'location' AND {KNOWN} AND {HOLDS}
AND grid_zone = (SELECT grid_zone FROM sites WHERE id = %(site_id)s)
-- Direct emissions are what an inventory wants; life-cycle values stand in where a zone has no others.
AND life_cycle = (SELECT bool_and(known.life_cycle) FROM intensity AS known
                  WHERE known.grid_zone = intensity.grid_zone AND known.basis = 'location'
                  AND known.recorded_at <= %(as_of)s AND (known.superseded_at IS NULL OR known.superseded_at > %(as_of)s)
                  AND known.valid_from < %(to_at)s AND (known.valid_to IS NULL OR known.valid_to > %(from_at)s))
"""  # noqa: S608
_FACTORS: Final = f"""
SELECT id AS factor_id, factor, valid_from, valid_to
FROM facility_factors WHERE site_id = %(site_id)s AND {KNOWN} AND {HOLDS}
"""  # noqa: S608
_TENANTS: Final = "SELECT id AS tenant_id, path FROM tenants"
_BINDINGS: Final = f"""
SELECT id AS binding_id, position, tenant_id, cluster, account, partition, user_name, namespace, label, api_key, tag,
       valid_from, valid_to
FROM bindings WHERE {KNOWN} AND {HOLDS}
"""  # noqa: S608


def load_references(
    connection: psycopg.Connection[Any],
    *,
    site_id: int,
    from_at: datetime,
    to_at: datetime,
    as_of: datetime,
    currency: str,
    jobs: dy.DataFrame[Jobs],
) -> References:
    """Return what was known at ``as_of`` and holds at some time of the window; API prices only for models called."""
    scope = {"site_id": site_id, "from_at": from_at, "to_at": to_at, "as_of": as_of}
    return References(
        currency=currency,
        tenants=fetch_frame(connection, _TENANTS, scope, Tenants),
        jobs=jobs,
        bindings=fetch_frame(connection, _BINDINGS, scope, Bindings),
        prices=fetch_frame(connection, _PRICES, scope, Prices),
        tariffs=fetch_frame(connection, _TARIFFS, scope, Tariffs),
        intensity=fetch_frame(connection, _INTENSITY, scope, Intensity),
        facility_factors=fetch_frame(connection, _FACTORS, scope, FacilityFactors),
    )
