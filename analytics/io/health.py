"""What `wattledger doctor` asks of a database: roles, partitions, lease, hours, what waits, what has no price.

It reads and counts; what is fine and what is not is judged elsewhere. Every query is bounded to the last days, so that it
answers at once on a database of years.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import psycopg

from analytics.frames import USED
from analytics.io.hours import due_hours
from analytics.io.lease import NAME as LEASE_NAME
from analytics.io.lease import SESSION_PREFIX

RECENT: Final = timedelta(hours=24)
_ROLES: Final = """
SELECT rolname, rolsuper, rolbypassrls, EXISTS (SELECT FROM pg_class WHERE relowner = pg_roles.oid) AS owns
FROM pg_roles WHERE rolname = ANY (%(names)s)
"""
# Of our services' sessions: a login sees only its own by name, a superuser all.
_OWNING_LOGINS: Final = """
SELECT DISTINCT usename FROM pg_stat_activity JOIN pg_roles AS owner ON owner.rolname = 'wattledger_owner'
WHERE datname = current_database() AND pg_has_role(usesysid, owner.oid, 'MEMBER')
AND (application_name IN ('wattledger-ingest', 'wattledger-pulse', 'wattledger-api') OR starts_with(application_name, %(worker)s))
ORDER BY usename
"""
# Partitions are reached through their parent, whose policies count; the roles have no grants on them.
_UNGUARDED: Final = """
SELECT c.relname FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
AND NOT (c.relrowsecurity AND c.relforcerowsecurity) ORDER BY c.relname
"""
# What the tables are stands beside what was recorded: a half-done restore can leave them apart.
_LAYOUT: Final = """
SELECT layout, (SELECT CASE relkind WHEN 'p' THEN 'native' ELSE 'hypertables' END FROM pg_class
                WHERE oid = 'public.device_samples'::regclass),
       reason, (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'), current_setting('timescaledb.license', true)
FROM store_layout
"""
_COLUMNSTORE: Final = """
SELECT count(*) FROM timescaledb_information.hypertables WHERE hypertable_schema = 'public' AND compression_enabled
"""
_PARTITION_DAYS: Final = """
SELECT parent.relname, max(right(child.relname, 8)) FROM pg_inherits
JOIN pg_class AS parent ON parent.oid = inhparent JOIN pg_class AS child ON child.oid = inhrelid
WHERE parent.relkind = 'p' AND parent.relnamespace = 'public'::regnamespace AND child.relname ~ '_p[0-9]{8}$'
GROUP BY parent.relname ORDER BY parent.relname
"""
_PARTITIONED: Final = """
SELECT relname FROM pg_class WHERE relkind = 'p' AND relnamespace = 'public'::regnamespace ORDER BY relname
"""
_LEASE: Final = "SELECT holder, clock_timestamp() - updated_at FROM watermarks WHERE name = %(name)s"
_LAST_CLOSED: Final = """
SELECT sites.name, max(hours.hour_at) FROM ledger_hours AS hours JOIN sites ON sites.id = hours.site_id
WHERE hours.status = 'closed' GROUP BY sites.name ORDER BY sites.name
"""
_DEAD_LETTERS: Final = """
SELECT reason, count(*), min(received_at) FROM dead_letters WHERE replayed_at IS NULL GROUP BY reason ORDER BY reason
"""
_REJECTED: Final = """
SELECT stream || ': ' || reason, sum(rows)::bigint FROM rejections WHERE day_at >= %(today)s GROUP BY stream, reason ORDER BY 2 DESC
"""
# Only sites with something on them: an empty one owes no tariff.
_SITE_RATES: Final = """
SELECT sites.name,
    EXISTS (SELECT FROM tariffs WHERE site_id = sites.id AND {in_force}) AS has_tariff,
    sites.grid_zone, sites.time_zone,
    EXISTS (SELECT FROM intensity WHERE grid_zone = sites.grid_zone AND basis = 'location' AND {in_force}) AS has_intensity,
    EXISTS (SELECT FROM facility_factors WHERE site_id = sites.id AND {in_force}) AS has_facility_factor
FROM sites WHERE EXISTS (SELECT FROM nodes WHERE nodes.site_id = sites.id) ORDER BY sites.name
"""
_UNPRICED_MODELS: Final = """
SELECT DISTINCT devices.model FROM devices WHERE NOT EXISTS (
    SELECT FROM prices WHERE provider = 'owned' AND prices.model = devices.model AND meter = 'accelerator_hour' AND {in_force})
ORDER BY devices.model
"""
_IN_FORCE: Final = "superseded_at IS NULL AND valid_from <= %(now)s AND (valid_to IS NULL OR valid_to > %(now)s)"
_SHARES: Final = """
SELECT pool, coalesce(sum(quantity) FILTER (WHERE quantity_unit <> 'request'), 0)::bigint,
       coalesce(sum(quantity) FILTER (WHERE quantity_unit <> 'request' AND tenant_id IS NULL), 0)::bigint,
       count(*) FILTER (WHERE quantity_unit <> 'request' AND effective_cost IS NULL),
       coalesce(sum(quantity) FILTER (WHERE quantity_unit = 'request'), 0)::bigint
FROM current_ledger_lines WHERE hour_at >= %(since)s AND pool IN ('job', 'api') AND charge_category = ANY (%(used)s)
GROUP BY pool
"""
# What a line names and is not priced by: an amount the books have no rate for.
_ELSEWHERE: Final = """
SELECT DISTINCT known.currency FROM current_ledger_lines AS lines CROSS JOIN LATERAL (
    SELECT currency FROM prices WHERE id = lines.price_id UNION ALL SELECT currency FROM tariffs WHERE id = lines.tariff_id
) AS known
WHERE hour_at >= %(since)s AND billed_cost IS NULL AND known.currency <> lines.currency ORDER BY known.currency
"""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What any login may ask of a server."""

    version: str
    clock_ahead_s: float
    """Server clock minus ours."""
    roles: Mapping[str, RoleFacts]
    owning_logins: tuple[str, ...] = ()
    """Logins of services that are connected and may become the owner of all tables; of others than ours only a superuser sees."""


@dataclass(frozen=True, slots=True)
class RoleFacts:
    is_superuser: bool
    bypasses_rls: bool
    owns_tables: bool


@dataclass(frozen=True, slots=True)
class LayoutFacts:
    """How the days of samples are kept: as recorded, and as the tables are."""

    recorded: str
    found: str
    reason: str
    timescale_version: str | None
    """Of the extension in this database; None = not installed in it."""
    timescale_licence: str | None
    """apache or timescale; the second has a columnstore."""
    columnstore_tables: int
    """Hypertables whose older days TimescaleDB keeps by column."""


@dataclass(frozen=True, slots=True)
class LeaseFacts:
    """Who does the worker's work, and since how long nothing was heard of it."""

    holder: str | None
    silent_s: float


@dataclass(frozen=True, slots=True)
class SiteRates:
    site: str
    has_tariff: bool
    grid_zone: str | None
    time_zone: str
    has_intensity: bool
    has_facility_factor: bool


@dataclass(frozen=True, slots=True)
class Waiting:
    """Dead letters of one reason."""

    reason: str
    letters: int
    oldest_at: datetime


@dataclass(frozen=True, slots=True)
class Mapped:
    """How much of one pool's quantity of the last day has no tenant, how many of its lines no price.

    ``usage_unknown_calls`` told no token counts: nothing to price, so no price is missing.
    """

    pool: str
    total: int
    unmapped: int
    unpriced_lines: int
    usage_unknown_calls: int


@dataclass(frozen=True, slots=True)
class LedgerFacts:
    """What a migrated database knows about itself."""

    unguarded_tables: tuple[str, ...]
    layout: LayoutFacts
    last_partition: Mapping[str, date | None]
    """The newest day of each partitioned table; a hypertable is none."""
    lease: LeaseFacts | None
    last_closed_at: Mapping[str, datetime]
    """The newest closed hour, by site."""
    overdue_hours: int
    oldest_overdue_at: datetime | None
    waiting: tuple[Waiting, ...]
    rejected_rows: Mapping[str, int]
    """Of today, UTC, by stream and reason, most first."""
    site_rates: tuple[SiteRates, ...]
    unpriced_models: tuple[str, ...]
    mapped: tuple[Mapped, ...]
    other_currencies: tuple[str, ...] = ()
    """Of prices and tariffs that lines of late name and have no cost by."""


def server_facts(connection: psycopg.Connection[Any], role_names: list[str], now: datetime) -> ServerFacts:
    """Return what any login may ask; ``now`` is our clock at this moment."""
    at, version = _one(connection, "SELECT clock_timestamp(), current_setting('server_version')")
    roles = connection.execute(_ROLES, {"names": role_names}).fetchall()
    owning = connection.execute(_OWNING_LOGINS, {"worker": SESSION_PREFIX}).fetchall()
    return ServerFacts(
        version,
        (at - now).total_seconds(),
        {name: RoleFacts(*facts) for name, *facts in roles},
        tuple(str(name) for (name,) in owning),
    )


def lease_facts(connection: psycopg.Connection[Any]) -> LeaseFacts | None:
    """Return who does the worker's work, None where nobody ever did. The worker's role may ask, and ingest's."""
    lease = connection.execute(_LEASE, {"name": LEASE_NAME}).fetchone()
    return None if lease is None else LeaseFacts(lease[0], lease[1].total_seconds())


def ledger_facts(connection: psycopg.Connection[Any], now: datetime, overdue_after: timedelta) -> LedgerFacts:
    """Return what a migrated database knows; an hour is overdue that long after its end. Needs the worker's role."""
    days = dict(connection.execute(_PARTITION_DAYS).fetchall())
    names = [name for (name,) in connection.execute(_PARTITIONED)]
    overdue = [
        hour.hour_at for hour in due_hours(connection, now) if hour.hour_at + timedelta(hours=1) + overdue_after < now
    ]
    at = {
        "now": now,
        "since": now - RECENT,
        "used": list(USED),
        "today": now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0),
    }
    return LedgerFacts(
        unguarded_tables=tuple(name for (name,) in connection.execute(_UNGUARDED)),
        layout=_layout(connection),
        last_partition={name: _day(days.get(name)) for name in names},
        lease=lease_facts(connection),
        last_closed_at=dict(connection.execute(_LAST_CLOSED).fetchall()),
        overdue_hours=len(overdue),
        oldest_overdue_at=min(overdue, default=None),
        waiting=tuple(Waiting(*row) for row in connection.execute(_DEAD_LETTERS)),
        rejected_rows=dict(connection.execute(_REJECTED, at).fetchall()),
        site_rates=tuple(SiteRates(*row) for row in connection.execute(_SITE_RATES.format(in_force=_IN_FORCE), at)),
        unpriced_models=tuple(name for (name,) in connection.execute(_UNPRICED_MODELS.format(in_force=_IN_FORCE), at)),
        mapped=tuple(Mapped(*row) for row in connection.execute(_SHARES, at)),
        other_currencies=tuple(name for (name,) in connection.execute(_ELSEWHERE, at)),
    )


def _layout(connection: psycopg.Connection[Any]) -> LayoutFacts:
    recorded, found, reason, version, licence = _one(connection, _LAYOUT)
    # Without the extension there is no such view.
    tables = 0 if version is None else _one(connection, _COLUMNSTORE)[0]
    return LayoutFacts(recorded, found, reason, version, licence, tables)


def _one(connection: psycopg.Connection[Any], query: Any) -> tuple[Any, ...]:
    row = connection.execute(query).fetchone()
    if row is None:
        raise psycopg.DataError(f"{query!r} returned no row")
    return tuple(row)


def _day(text: str | None) -> date | None:
    return None if text is None else date(int(text[:4]), int(text[4:6]), int(text[6:]))
