"""Reads dated reference data as it was known to a run of the books, or is known now, for a window of one site.

"Known" is the recorded pair, "holds" the valid pair; a row takes part when both say so. What a run knew is told by its snapshot:
``recorded_at`` is when a transaction began, and one that began before a run may have been committed after it. Runs from before
snapshots were kept, and rows from before their transactions were, are told by the instants.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString

import dataframely as dy
import psycopg

from analytics.frames import (
    Bindings,
    FacilityFactors,
    IdlePolicies,
    Intensity,
    Jobs,
    Prices,
    Tariffs,
    TenantMoves,
    Tenants,
)
from analytics.frames.references import ModelAliases, PricePolicies
from analytics.inputs import References
from analytics.io.rows import fetch_frame
from ingest.store.samples import FileRead


@dataclass(frozen=True, slots=True)
class Known:
    """What was known at an instant: to a run with its ``snapshot`` (in stamped transactions), or else by the dates alone."""

    at: datetime
    snapshot: str | None = None
    files: tuple[FileRead, ...] | None = None
    """Which files samples are read from, and from nowhere else; null = from wherever they are now."""


def known(of: LiteralString = "") -> LiteralString:
    """Return the condition that a dated row was known, as ``as_of`` and ``snapshot`` say; ``of`` names the table, with its dot."""
    return _KNOWN.replace("{of}", of)


_KNOWN: Final = """
CASE WHEN %(snapshot)s::pg_snapshot IS NULL
THEN {of}recorded_at <= %(as_of)s AND ({of}superseded_at IS NULL OR {of}superseded_at > %(as_of)s)
ELSE pg_visible_in_snapshot({of}recorded_xid, %(snapshot)s::pg_snapshot) AND ({of}superseded_at IS NULL
     OR NOT pg_visible_in_snapshot(coalesce({of}superseded_xid, '1'::xid8), %(snapshot)s::pg_snapshot)) END
"""
KNOWN: Final = known()
HOLDS: Final = "valid_from < %(to_at)s AND (valid_to IS NULL OR valid_to > %(from_at)s)"

_PRICES: Final = f"""
WITH called AS (
    SELECT DISTINCT provider, model FROM api_calls
    WHERE site_id = %(site_id)s AND called_at >= %(from_at)s AND called_at < %(to_at)s)
SELECT id AS price_id, provider, model, meter, amount, currency, valid_from, valid_to, site_id, region, purchase, service_tier,
       above_tokens, cache_ttl_s, time_zone, from_local, to_local, weekdays
FROM prices WHERE {KNOWN} AND {HOLDS} AND (site_id IS NULL OR site_id = %(site_id)s)
AND (provider = 'owned' OR (provider, model) IN (SELECT provider, model FROM called)
     OR (provider, model) IN (SELECT provider, model FROM model_aliases WHERE {KNOWN} AND {HOLDS}
                              AND provider IN (SELECT provider FROM called))
     OR (provider IN (SELECT provider FROM called)
         AND EXISTS (SELECT FROM price_policies WHERE unknown = 'estimate_high' AND {KNOWN} AND {HOLDS})))
"""  # noqa: S608 (constants of this module)
_ALIASES: Final = f"""
SELECT id AS alias_id, provider, kind, pattern, model, position, valid_from, valid_to FROM model_aliases
WHERE {KNOWN} AND {HOLDS} AND provider IN (
    SELECT provider FROM api_calls WHERE site_id = %(site_id)s AND called_at >= %(from_at)s AND called_at < %(to_at)s)
"""  # noqa: S608
_POLICIES: Final = f"""
SELECT id AS policy_id, provider, model, unknown, valid_from, valid_to FROM price_policies WHERE {KNOWN} AND {HOLDS}
"""  # noqa: S608
_TARIFFS: Final = f"""
SELECT id AS tariff_id, metering_point, amount_per_kwh, currency, valid_from, valid_to
FROM tariffs WHERE site_id = %(site_id)s AND {KNOWN} AND {HOLDS}
"""  # noqa: S608
_INTENSITY: Final = f"""
SELECT id AS intensity_id, gco2e_per_kwh, estimated, life_cycle, valid_from, valid_to
FROM intensity WHERE basis = 'location' AND {KNOWN} AND {HOLDS}
AND grid_zone = (SELECT grid_zone FROM sites WHERE id = %(site_id)s)
"""  # noqa: S608
_FACTORS: Final = f"""
SELECT id AS factor_id, factor, category, valid_from, valid_to
FROM facility_factors WHERE site_id = %(site_id)s AND {KNOWN} AND {HOLDS}
"""  # noqa: S608
_TENANTS: Final = "SELECT id AS tenant_id, path FROM tenants"
_BINDINGS: Final = f"""
SELECT id AS binding_id, position, tenant_id, cluster, account, partition, user_name, namespace, label, api_key, tag,
       valid_from, valid_to
FROM bindings WHERE {KNOWN} AND {HOLDS}
"""  # noqa: S608
_IDLE: Final = f"""
SELECT id AS policy_id, policy, basis, tenant_id, fixed_ppm, valid_from, valid_to
FROM idle_policies WHERE site_id = %(site_id)s AND {KNOWN} AND {HOLDS}
"""  # noqa: S608
MOVES: Final = "SELECT id AS move_id, tenant_id, to_tenant_id, valid_from, valid_to FROM tenant_moves"
_MOVES: Final = f"{MOVES} WHERE {KNOWN} AND {HOLDS}"


def load_references(
    connection: psycopg.Connection[Any],
    *,
    site_id: int,
    from_at: datetime,
    to_at: datetime,
    as_of: Known,
    currency: str,
    jobs: dy.DataFrame[Jobs],
) -> References:
    """Return what was known at ``as_of`` and holds at some time of the window; API prices only for models called."""
    scope = {"site_id": site_id, "from_at": from_at, "to_at": to_at, "as_of": as_of.at, "snapshot": as_of.snapshot}
    return References(
        currency=currency,
        tenants=fetch_frame(connection, _TENANTS, scope, Tenants),
        jobs=jobs,
        bindings=fetch_frame(connection, _BINDINGS, scope, Bindings),
        prices=fetch_frame(connection, _PRICES, scope, Prices),
        tariffs=fetch_frame(connection, _TARIFFS, scope, Tariffs),
        intensity=fetch_frame(connection, _INTENSITY, scope, Intensity),
        facility_factors=fetch_frame(connection, _FACTORS, scope, FacilityFactors),
        tenant_moves=fetch_frame(connection, _MOVES, scope, TenantMoves),
        idle_policies=fetch_frame(connection, _IDLE, scope, IdlePolicies),
        aliases=fetch_frame(connection, _ALIASES, scope, ModelAliases),
        price_policies=fetch_frame(connection, _POLICIES, scope, PricePolicies),
    )
